"""Feature contrast against a downgraded model, and memory kept by its low frequencies.

Z. Deng, L. Luo, H. Chen, "Enable the Right to be Forgotten with Federated Client Unlearning in
Medical Imaging" (FCU), MICCAI 2024. What we know of its text: the site unlearns on the level of
features, guided by a *downgraded* model (model-contrastive unlearning), and what is general in the
global model is kept by its low frequencies (frequency-guided memory preservation), after which
the retained sites train on. [P] marks that; formulas and constants are our reading [O].
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from flwr_afuic.errors import ConfigError
from flwr_afuic.unlearning.checks import check_count, check_range
from flwr_afuic.unlearning.inference import check_set, frozen_statistics, index_batches, score
from flwr_afuic.unlearning.local import STOP_BUDGET, STOP_DIVERGED, UnlearningOutcome


@dataclass(frozen=True, kw_only=True)
class FcuSettings:
    """Settings of one feature-contrastive unlearning.

    Parameters
    ----------
    objective : "fcu"
        Tells these settings from others on the wire.
    epochs : int, default 5
        Passes over the erased data.
    lr : float, default 0.05
        Of SGD. Of .01 and .05 the one that forgets, by validation data (docs/results.md) [O].
    momentum, clip : float
        Of SGD.
    batch_size : int, default 64
    temperature : float, default 0.5
        ``tau`` of the contrast, as in model-contrastive federated learning.
    low_pass : float, default 0.1
        Share of the frequencies, from the lowest, that stay the global model's; 0 keeps none.
    """

    objective: Literal["fcu"] = "fcu"
    epochs: int = 5
    lr: float = 0.05
    momentum: float = 0.9
    clip: float = 5.0
    batch_size: int = 64
    temperature: float = 0.5
    low_pass: float = 0.1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            check_count(name, getattr(self, name))
        for name in ("lr", "clip", "temperature"):
            check_range(name, getattr(self, name), above=True)
        check_range("momentum", self.momentum, high=0.999)
        check_range("low_pass", self.low_pass, high=1.0)


def contrast_loss(
    features: Tensor, downgraded: Tensor, original: Tensor, *, temperature: float
) -> Tensor:
    """Pull features towards the downgraded model's, away from the global model's.

    ``-mean log(e^(s_d/tau) / (e^(s_d/tau) + e^(s_g/tau)))``, ``s`` the cosine similarity: the
    model-contrastive loss with the downgraded model as the positive [P] in MOON's form [O].

    Parameters
    ----------
    features, downgraded, original : Tensor, shape (n, d)
        Of the same images under the model that unlearns, the downgraded and the global one.
    temperature : float
        ``tau``.

    Returns
    -------
    Tensor, shape ()

    Examples
    --------
    >>> z, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> round(float(contrast_loss(z, z, z, temperature=0.5)), 4)  # both as near: log 2
    0.6931
    >>> round(float(contrast_loss(z, z, other, temperature=0.5)), 4)  # log(1 + e^-2)
    0.1269
    """
    near = functional.cosine_similarity(features, downgraded, dim=1) / temperature
    far = functional.cosine_similarity(features, original, dim=1) / temperature
    return functional.softplus(far - near).mean()


def keep_low_frequencies(
    unlearned: NDArray[Any], original: NDArray[Any], low_pass: float
) -> NDArray[Any]:
    """Give an array the low frequencies of the global model and the high ones of the unlearned.

    Of weights of two or more dimensions, as a matrix of output by input entries, by the discrete
    Fourier transform; frequencies up to ``low_pass / 2`` cycles per entry on both axes are low.
    Other arrays stay as unlearned. Low for general, high for specific is the paper's [P], the
    transform's form and the cut are ours [O].

    Parameters
    ----------
    unlearned, original : ndarray, of one shape
    low_pass : float
        In [0, 1]; 0 keeps nothing, 1 everything.
    """
    if unlearned.ndim < 2 or low_pass == 0:
        return unlearned
    after = unlearned.reshape(len(unlearned), -1).astype(np.float64)
    before = original.reshape(len(original), -1).astype(np.float64)
    rows, columns = (np.abs(np.fft.fftfreq(n)) <= low_pass / 2 for n in after.shape)
    low = rows[:, None] & columns[None, :]
    change = np.fft.ifft2(np.where(low, 0.0, np.fft.fft2(after - before))).real
    return np.asarray(before + change).reshape(unlearned.shape).astype(unlearned.dtype)


def unlearn_by_contrast(
    model: nn.Module,
    downgraded: nn.Module,
    *,
    forget_x: Tensor,
    forget_y: Tensor,
    settings: FcuSettings,
    seed: int,
) -> UnlearningOutcome:
    """Unlearn D_f on the level of features, then keep the memory's low frequencies; in place.

    Parameters
    ----------
    model : nn.Module
        The global model; becomes the unlearned one. Normalisation statistics are used and kept.
    downgraded : nn.Module
        The downgraded model; left unchanged.
    forget_x : Tensor, shape (n, c, h, w)
    forget_y : Tensor, shape (n,), int64
        The erased data D_f.
    settings : FcuSettings
    seed : int
        Of the order of batches.

    Raises
    ------
    ConfigError
        If the model has no linear layer whose inputs could be its features.
    """
    check_set("forget set", forget_x, forget_y)
    original = copy.deepcopy(model)
    before = score(model, forget_x, forget_y)
    generator = torch.Generator().manual_seed(seed)
    batches = index_batches(len(forget_x), settings.batch_size, generator)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=settings.lr, momentum=settings.momentum)
    budget = settings.epochs * max(1, len(forget_x) // settings.batch_size)
    taken, reason = 0, STOP_BUDGET
    with frozen_statistics(model), frozen_statistics(downgraded), frozen_statistics(original):
        while taken < budget:
            images = forget_x[next(batches)]
            with torch.no_grad():
                fixed = [features_of(other, images) for other in (downgraded, original)]
            loss = contrast_loss(
                features_of(model, images), *fixed, temperature=settings.temperature
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(trained, settings.clip)
            if not bool(torch.isfinite(norm)):
                model.load_state_dict(original.state_dict())
                reason = STOP_DIVERGED
                break
            optimizer.step()
            taken += 1
    moved = _remember(model, original, settings.low_pass)
    return UnlearningOutcome(
        steps=taken,
        stop_reason=reason,
        before=before,
        after=score(model, forget_x, forget_y),
        reference=None,
        delta_norm=moved,
    )


def _remember(model: nn.Module, original: nn.Module, low_pass: float) -> float:
    """Keep low frequencies of every parameter; return how far the model is from the original."""
    square = 0.0
    with torch.no_grad():
        for after, before in zip(model.parameters(), original.parameters(), strict=True):
            kept = keep_low_frequencies(
                after.detach().cpu().numpy(), before.detach().cpu().numpy(), low_pass
            )
            after.copy_(torch.from_numpy(np.array(kept)))
            square += float((after - before).double().pow(2).sum())
    return float(np.sqrt(square))


def features_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return what a model's last linear layer is given, shape (n, d)."""
    with _watched(model) as seen:
        model(images)
    return seen[-1].flatten(1)


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[Tensor]]:
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError("the model has no linear layer; its features for a contrast are unknown")
    seen: list[Tensor] = []
    handle = linear[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()
