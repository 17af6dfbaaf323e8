"""Image-text pairs and what a dual-tower contrastive model makes of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from flwr_afuic.errors import DataError
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.unlearning.inference import frozen_statistics
from flwr_afuic.unlearning.level import ForgetScore
from flwr_afuic.unlearning.orthogonal import LOSSES


@dataclass(frozen=True)
class Pairs:
    """Images and captions that belong together, row by row.

    Attributes
    ----------
    images : Tensor, shape (n, c, h, w)
    tokens : Tensor, shape (n, length), int64
        The captions.
    mask : Tensor, shape (n, length), int64
        1 where there is a token.
    groups : Tensor, shape (n,), int64
        Captions of one number are identical: they are hits of each other, and no negatives.
    """

    images: Tensor
    tokens: Tensor
    mask: Tensor
    groups: Tensor

    def __post_init__(self) -> None:
        sizes = (len(self.images), len(self.tokens), len(self.mask), len(self.groups))
        if len(set(sizes)) != 1 or self.tokens.shape != self.mask.shape:
            raise DataError(
                f"pairs of {sizes[0]} images, {sizes[1]} captions, {sizes[2]} masks and {sizes[3]} "
                f"groups; tokens {tuple(self.tokens.shape)}, mask {tuple(self.mask.shape)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Tensor | Sequence[int]) -> Pairs:
        """Return the pairs of these rows, in that order."""
        index = torch.as_tensor(rows, dtype=torch.long)
        return Pairs(self.images[index], self.tokens[index], self.mask[index], self.groups[index])


def concatenate(parts: Sequence[Pairs]) -> Pairs:
    """Put sets of pairs one after the other."""
    return Pairs(
        *(torch.cat([getattr(p, f) for p in parts]) for f in ("images", "tokens", "mask", "groups"))
    )


class DualTower(Protocol):
    """What unlearning asks of an image-text model.

    It is an ``nn.Module`` besides, whose parameters that need a gradient are the adapters.
    """

    def embed_images(self, images: Tensor) -> Tensor:
        """Return embeddings of norm 1, shape (n, e)."""

    def embed_texts(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return embeddings of norm 1, shape (n, e)."""

    def scale(self) -> Tensor:
        """Return what similarities are multiplied by in the loss, shape ()."""

    def adapters_off(self) -> AbstractContextManager[object]:
        """Make the model its frozen base, inside the context."""


def as_module(model: DualTower) -> nn.Module:
    """Return the model as the module it is; DataError if it is none."""
    if not isinstance(model, nn.Module):
        raise DataError(f"{type(model).__name__} is no torch.nn.Module")
    return model


def as_towers(model: nn.Module) -> DualTower:
    """Return a module as the dual-tower model it is; DataError if it is none."""
    missing = [
        name
        for name in ("embed_images", "embed_texts", "scale", "adapters_off")
        if not callable(getattr(model, name, None))
    ]
    if missing:
        raise DataError(
            f"{type(model).__name__} is no dual-tower model: it lacks {', '.join(missing)}"
        )
    return cast(DualTower, model)


def targets_of(groups: Tensor) -> Tensor:
    """Share each row's target mass among the rows of its group, shape (n, n)."""
    same = (groups[:, None] == groups[None, :]).to(torch.get_default_dtype())
    return same / same.sum(dim=1, keepdim=True)


def contrastive_loss(v: Tensor, t: Tensor, scale: Tensor, groups: Tensor) -> Tensor:
    """Symmetric InfoNCE of a batch, CLIP's loss, with identical captions as positives.

    Parameters
    ----------
    v, t : Tensor, shape (n, e)
        Embeddings of images and captions, of norm 1.
    scale : Tensor, shape ()
        Factor on similarities.
    groups : Tensor, shape (n,)
        See :class:`Pairs`.

    Returns
    -------
    Tensor, shape ()
        In nats.
    """
    logits, target = scale * v @ t.T, targets_of(groups).to(v.dtype)
    one = -(target * functional.log_softmax(logits, dim=1)).sum(dim=1).mean()
    other = -(target * functional.log_softmax(logits.T, dim=1)).sum(dim=1).mean()
    return (one + other) / 2


def forgetting_loss(v: Tensor, t: Tensor, scale: Tensor, groups: Tensor) -> Tensor:
    """FedOSD's bounded unlearning loss on pairs: ``-mean log(1 - p / 2)`` in both directions.

    ``p`` is the softmax mass of a row's own group. FedOSD (AAAI 2025) has it for classes; that a
    pair's caption takes the class's place is ours.
    """
    logits, same = scale * v @ t.T, groups[:, None] == groups[None, :]
    losses = [
        -torch.log1p(-(functional.softmax(rows, dim=1) * same).sum(dim=1) / 2).mean()
        for rows in (logits, logits.T)
    ]
    return (losses[0] + losses[1]) / 2


def embed(model: DualTower, pairs: Pairs, batch_size: int = 128) -> tuple[Tensor, Tensor]:
    """Embed pairs in eval mode, without gradient; shapes (n, e)."""
    with frozen_statistics(as_module(model)), torch.no_grad():
        images = [model.embed_images(part) for part in torch.split(pairs.images, batch_size)]
        parts = zip(
            torch.split(pairs.tokens, batch_size), torch.split(pairs.mask, batch_size), strict=True
        )
        texts = [model.embed_texts(tokens, mask) for tokens, mask in parts]
    return torch.cat(images), torch.cat(texts)


def similarities(model: DualTower, pairs: Pairs) -> Tensor:
    """Cosine similarity ``s_ii`` of each image with its own caption, shape (n,), no gradient."""
    if not len(pairs):
        raise DataError("no pairs; pass at least one")
    v, t = embed(model, pairs)
    return (v * t).sum(dim=1)


def score_pairs(model: DualTower, pairs: Pairs, others: Pairs | None = None) -> ForgetScore:
    """Score how well a model finds the other half of each pair.

    Parameters
    ----------
    model : DualTower
    pairs : Pairs
        Those that are scored.
    others : Pairs, optional
        Further pairs to find them among, as distractors.

    Returns
    -------
    ForgetScore
        Loss: InfoNCE in nats over all that is searched. Accuracy: recall at 1, the mean of image
        to text and text to image, identical captions counted as hits.
    """
    if not len(pairs):
        raise DataError("no pairs to score; pass at least one")
    gallery = pairs if others is None or not len(others) else concatenate([pairs, others])
    v, t = embed(model, gallery)
    n = len(pairs)
    target = targets_of(gallery.groups)[:n].double()
    same = target > 0
    losses, hits = [], []
    with torch.no_grad():
        scale = float(model.scale())
    for own, all_ in ((v, t), (t, v)):
        logits = scale * own[:n].double() @ all_.double().T
        losses.append(float(-(target * functional.log_softmax(logits, dim=1)).sum(dim=1).mean()))
        best = logits.argmax(dim=1, keepdim=True)
        hits.append(float(same.gather(1, best).double().mean()))
    loss = sum(losses) / 2
    return ForgetScore(max(loss, 0.0) if math.isfinite(loss) else math.inf, sum(hits) / 2, n)


def pairs_gradient(model: DualTower, pairs: Pairs, *, loss: str = LOSSES[0]) -> Arrays:
    """Gradient of a mean loss over a site's pairs, at a model that is left as it is.

    Parameters
    ----------
    model : DualTower
        Its ``state_dict`` says which arrays travel, in which order.
    pairs : Pairs
        All in one batch: the loss contrasts them with each other.
    loss : {"cross-entropy", "unlearning-cross-entropy"}
        InfoNCE, or :func:`forgetting_loss`.

    Returns
    -------
    list of ndarray
        In ``state_dict`` order; zeros for what is not trained.
    """
    if loss not in LOSSES:
        raise DataError(f"unknown loss {loss!r}; known: {', '.join(LOSSES)}")
    if not len(pairs):
        raise DataError("no pairs to take a gradient over; pass at least one")
    module = as_module(model)
    value = forgetting_loss if loss == LOSSES[1] else contrastive_loss
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    with frozen_statistics(module), torch.enable_grad():
        v, t = model.embed_images(pairs.images), model.embed_texts(pairs.tokens, pairs.mask)
        total = value(v, t, model.scale(), pairs.groups)
        found = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    gradients = dict(zip(trained, found, strict=True))
    result: Arrays = []
    for name, tensor in module.state_dict().items():
        gradient = gradients.get(name)
        array = torch.zeros_like(tensor) if gradient is None else gradient.detach()
        result.append(array.cpu().numpy().astype(tensor.cpu().numpy().dtype))
    return result
