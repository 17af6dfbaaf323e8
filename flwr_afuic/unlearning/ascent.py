"""Projected gradient ascent at the site that erases.

A. Halimi, S. Kadhe, A. Rawat, N. Baracaldo, "Federated Unlearning: How to Efficiently Erase a
Client in FL?", 2022 (arXiv 2207.05521), and the notebook its authors published. [P] is the paper's
word, [N] the notebook's as we know it, [O] our choice.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from flwr_afuic.errors import ConfigError
from flwr_afuic.federation.layout import Vector
from flwr_afuic.models.reinitialise import reinitialise
from flwr_afuic.seeds import derive_seed
from flwr_afuic.unlearning.checks import check_count, check_range
from flwr_afuic.unlearning.inference import (
    check_set,
    frozen_statistics,
    index_batches,
    score,
)
from flwr_afuic.unlearning.local import STOP_BUDGET, STOP_DIVERGED, UnlearningOutcome

STOP_EARLY = "early stop"


@dataclass(frozen=True, kw_only=True)
class PgaSettings:
    """Settings of one projected gradient ascent.

    Parameters
    ----------
    objective : "pga"
        Tells these settings from others on the wire.
    epochs : int, default 5
        Passes over the erased data [N].
    lr, momentum : float
        Of SGD, .01 and .9 [N].
    clip : float, default 5.0
        Greatest gradient norm [N].
    batch_size : int, default 128
        [N]
    radius_share : float, default 1/3
        The ball's radius, as a share of the mean distance between ``w_ref`` and random models [P].
    random_models : int, default 10
        How many of those [P].
    sites : int, default 2
        ``K``, the sites whose models the global one is the mean of; at least 2.
    stop_accuracy : float, default 0.1
        The ascent ends once a batch's accuracy before the step is at most this. The paper stops
        at a validation accuracy [P]; that it is the batch's is ours [O].
    """

    objective: Literal["pga"] = "pga"
    epochs: int = 5
    lr: float = 0.01
    momentum: float = 0.9
    clip: float = 5.0
    batch_size: int = 128
    radius_share: float = 1 / 3
    random_models: int = 10
    sites: int = 2
    stop_accuracy: float = 0.1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "random_models", "sites"):
            check_count(name, getattr(self, name))
        for name in ("lr", "clip", "radius_share"):
            check_range(name, getattr(self, name), above=True)
        check_range("momentum", self.momentum, high=0.999)
        check_range("stop_accuracy", self.stop_accuracy, high=1.0)


def reference_weights(current: Vector, own: Vector, sites: int) -> Vector:
    """Return ``w_ref = (K w - w_u) / (K - 1)`` [P]: the mean of the others' last models.

    Parameters
    ----------
    current : ndarray, shape (p,)
        The global model ``w``, taken for the mean of ``K`` local models.
    own : ndarray, shape (p,)
        The erasing site's own last local model ``w_u``.
    sites : int
        ``K``, at least 2.

    Examples
    --------
    >>> import numpy as np
    >>> reference_weights(np.array([2.0]), np.array([5.0]), 4)  # others: mean 1
    array([1.])
    """
    if sites < 2:
        raise ConfigError(f"{sites} site(s) trained; the reference of an ascent needs at least 2")
    mean: Vector = (sites * current - own) / (sites - 1)
    return mean


def start_from_reference(model: nn.Module, own: nn.Module, sites: int) -> None:
    """Turn the global model into ``w_ref``, in place; statistics stay the global model's."""
    with torch.no_grad():
        for current, mine in zip(model.parameters(), own.parameters(), strict=True):
            mean = reference_weights(current.double().numpy(), mine.double().numpy(), sites)
            current.copy_(torch.from_numpy(mean))


def project(model: nn.Module, centre: list[Tensor], radius: float) -> None:
    """Move a model's parameters to the nearest point of a ball, in place."""
    parameters = list(model.parameters())
    with torch.no_grad():
        pairs = list(zip(parameters, centre, strict=True))
        distance = math.sqrt(sum(float((p - c).double().pow(2).sum()) for p, c in pairs))
        if distance > radius:
            for parameter, middle in pairs:
                parameter.copy_(middle + (parameter - middle) * (radius / distance))


def ball_radius(reference: nn.Module, *, settings: PgaSettings, seed: int) -> float:
    """Return a share of the mean distance between the reference and random models [P]."""
    centre = [p.detach().clone() for p in reference.parameters()]
    random = copy.deepcopy(reference)
    distances = []
    for number in range(settings.random_models):
        reinitialise(random, seed=derive_seed(seed, "random-model", number))
        pairs = zip(random.parameters(), centre, strict=True)
        squares = [float((p.detach() - c).double().pow(2).sum()) for p, c in pairs]
        distances.append(math.sqrt(sum(squares)))
    return settings.radius_share * sum(distances) / len(distances)


def ascend(
    model: nn.Module,
    *,
    forget_x: Tensor,
    forget_y: Tensor,
    settings: PgaSettings,
    seed: int,
) -> UnlearningOutcome:
    """Maximise the loss on D_f within a ball around the reference, in place.

    Parameters
    ----------
    model : nn.Module
        ``w_ref``, where the ascent starts and which the ball is around [P]; becomes the unlearned
        model. Normalisation statistics are used and kept [O].
    forget_x : Tensor, shape (n, c, h, w)
    forget_y : Tensor, shape (n,), int64
        The erased data D_f.
    settings : PgaSettings
    seed : int
        Of the random models and the order of batches.

    Returns
    -------
    UnlearningOutcome
        ``before`` is of the reference model.
    """
    check_set("forget set", forget_x, forget_y)
    start = copy.deepcopy(model.state_dict())
    centre = [parameter.detach().clone() for parameter in model.parameters()]
    radius = ball_radius(model, settings=settings, seed=seed)
    before = score(model, forget_x, forget_y)
    generator = torch.Generator().manual_seed(derive_seed(seed, "ascent"))
    batches = index_batches(len(forget_x), settings.batch_size, generator)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=settings.lr, momentum=settings.momentum)
    budget = settings.epochs * max(1, len(forget_x) // settings.batch_size)
    taken, reason = 0, STOP_BUDGET
    with frozen_statistics(model):
        while taken < budget:
            pick = next(batches)
            logits = model(forget_x[pick])
            hits = (logits.detach().argmax(1) == forget_y[pick]).double().mean()
            if taken and float(hits) <= settings.stop_accuracy:
                reason = STOP_EARLY
                break
            optimizer.zero_grad(set_to_none=True)
            (-functional.cross_entropy(logits, forget_y[pick])).backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(trained, settings.clip)
            if not bool(torch.isfinite(norm)):
                model.load_state_dict(start)
                reason = STOP_DIVERGED
                break
            optimizer.step()
            project(model, centre, radius)
            taken += 1
    pairs = zip(model.parameters(), centre, strict=True)
    moved = math.sqrt(sum(float((p.detach() - c).double().pow(2).sum()) for p, c in pairs))
    return UnlearningOutcome(
        steps=taken,
        stop_reason=reason,
        before=before,
        after=score(model, forget_x, forget_y),
        reference=None,
        delta_norm=moved,
    )
