"""Local forgetting objectives: what a site minimises on its erased data, one interface for all."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from flwr_afuic.errors import ConfigError
from flwr_afuic.unlearning.level import ForgetScore
from flwr_afuic.unlearning.tasks import CLASSIFICATION, Task
from flwr_afuic.unlearning.tasks import kl_divergence as kl_divergence


@dataclass(frozen=True)
class ForgetBatch:
    """One batch of erased samples as an objective sees it.

    Parameters
    ----------
    logits : Tensor, shape (n, k, *spatial)
        Of the model being unlearned; carries the gradient.
    labels : Tensor
        Targets of D_f; of what shape, the task says.
    snapshot : Tensor, shape (n, k, *spatial)
        Logits of the frozen snapshot ``w_s``.
    reference : Tensor, shape (n, k, *spatial), or None
        Logits of the reference that never saw D_f.
    level : float or None
        Mean loss of held-out data, in nats: stands in for the reference where there is none.
    task : Task
        Says what the loss of a sample is.
    """

    logits: Tensor
    labels: Tensor
    snapshot: Tensor
    reference: Tensor | None = None
    level: float | None = None
    task: Task = CLASSIFICATION


@runtime_checkable
class UnlearningObjective(Protocol):
    """What is minimised on the erased data, and when that is enough."""

    @property
    def name(self) -> str:
        """Name under which ``make_objective`` knows the objective."""
        ...

    def loss(self, batch: ForgetBatch) -> Tensor:
        """Return the scalar to minimise on one batch, in nats."""
        ...

    def reached(self, score: ForgetScore) -> bool:
        """Tell whether a score on D_f ends the unlearning before its step budget."""
        ...


_FAR = 0.25  # nats below the bound


def _check_finite(name: str, value: float, *, positive: bool) -> None:
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        bound = "> 0" if positive else ">= 0"
        raise ConfigError(f"{name} must be finite and {bound}, got {value!r}")


@dataclass(frozen=True)
class ReferenceBounded:
    """Raise each erased sample's loss to the reference's, and no further (the default).

    ``E_f max(0, l_ref(x, y) + margin - l_w(x, y))``, l = the task's loss of a sample
    (cross-entropy; of a segmentation, its mean over the case's voxels). Forgetting some samples
    drags others along; those the reference gets right, which a retrained model would know too,
    are held back by ``keep * max(0, l_w - l_ref)``, times the reference's score. The rest may go
    beyond the reference: held exactly at it, erased influence came back within a few rounds.
    Without a reference, ``l_ref`` is the mean loss of the site's held-out data: a weaker bound,
    since a model that never saw a poisoned sample has a far higher loss on it than on clean
    held-out data.

    Cross-entropy has hardly any slope on a sample the model is sure of (``1 - p``), so that
    thoroughly memorised data would never start to move. Where more than a quarter of a nat is
    missing and ``p > .9``, a tenth of the log-odds beyond ``p = .9`` is added: the slope stays
    above .1.

    Parameters
    ----------
    margin : float, default 0.0
        Added to the reference's loss, in nats.
    keep : float, default 0.3
        Weight of the part that holds known samples back; not used without a reference.

    Notes
    -----
    Ours; the paper (arXiv 2604.26809) does not fix a local loss that we know of.
    """

    margin: float = 0.0
    keep: float = 0.3
    name: str = "reference-bounded"

    def __post_init__(self) -> None:
        _check_finite("margin", self.margin, positive=False)
        _check_finite("keep", self.keep, positive=False)

    def loss(self, batch: ForgetBatch) -> Tensor:
        """Distance from the reference's loss, weighted by its side, mean over the batch."""
        task = batch.task
        own = task.losses(batch.logits, batch.labels)
        if batch.reference is not None:
            bound = task.losses(batch.reference, batch.labels)
        elif batch.level is not None:
            bound = torch.full_like(own, batch.level)
        else:
            raise ConfigError(
                "objective 'reference-bounded' needs a reference model or the score of held-out "
                "data; pass reference= or holdout="
            )
        missing = bound + self.margin - own
        push = torch.where(missing > _FAR, 0.1 * task.certainty(batch.logits, batch.labels), 0.0)
        total = functional.relu(missing) + push
        if batch.reference is not None and self.keep > 0:
            known = task.scores(batch.reference, batch.labels).to(total.dtype)
            total = total + self.keep * known * functional.relu(-missing)
        return total.mean()

    def reached(self, score: ForgetScore) -> bool:
        """Never early: the hinge itself goes to zero."""
        return False


@dataclass(frozen=True)
class Ascent:
    """Gradient ascent on the erased data, stopped at a bound of its mean cross-entropy.

    Parameters
    ----------
    bound : float, default 2.0
        Mean cross-entropy on D_f, in nats, at which to stop.

    Notes
    -----
    The oldest baseline. It erases at the merge and rebounds within a few rounds.
    """

    bound: float = 2.0
    name: str = "ascent"

    def __post_init__(self) -> None:
        _check_finite("bound", self.bound, positive=True)

    def loss(self, batch: ForgetBatch) -> Tensor:
        """Negative cross-entropy."""
        return -batch.task.mean_loss(batch.logits, batch.labels)

    def reached(self, score: ForgetScore) -> bool:
        """Stop once the mean loss on D_f is at the bound."""
        return score.loss >= self.bound


@dataclass(frozen=True)
class AnchoredNpo:
    """Negative preference optimisation; anchored by the KL term every objective carries.

    ``(2 / beta) E_f log(1 + (p_w(y|x) / p_s(y|x))^beta)`` with the snapshot as the comparison.

    Parameters
    ----------
    beta : float, default 1.0
        Inverse temperature. Towards zero it becomes plain ascent.

    Notes
    -----
    R. Zhang et al., "Negative Preference Optimization", 2024, Eq. 3. With a fixed budget it
    can fail silently; compare its score with a reference's.
    """

    beta: float = 1.0
    name: str = "anchored-npo"

    def __post_init__(self) -> None:
        _check_finite("beta", self.beta, positive=True)

    def loss(self, batch: ForgetBatch) -> Tensor:
        """Softplus of the log-ratio of the model's to the snapshot's probability."""
        own = batch.task.losses(batch.logits, batch.labels)
        before = batch.task.losses(batch.snapshot, batch.labels)
        return 2.0 / self.beta * functional.softplus(self.beta * (before - own)).mean()

    def reached(self, score: ForgetScore) -> bool:
        """Never early: a fixed budget."""
        return False


@dataclass(frozen=True)
class KlToReference:
    """Match the reference's whole prediction on the erased data: ``E_f KL(f_ref || f_w)``."""

    name: str = "kl-to-reference"

    def loss(self, batch: ForgetBatch) -> Tensor:
        """Kullback-Leibler divergence from the reference to the model, mean over the batch."""
        if batch.reference is None:
            raise ConfigError(
                "objective 'kl-to-reference' needs a reference model; pass reference= or choose "
                "'reference-bounded', which can do with the score of held-out data"
            )
        return batch.task.divergence(batch.reference, batch.logits)

    def reached(self, score: ForgetScore) -> bool:
        """Never early: a fixed budget."""
        return False


_OBJECTIVES: dict[str, Callable[..., UnlearningObjective]] = {
    "reference-bounded": ReferenceBounded,
    "ascent": Ascent,
    "anchored-npo": AnchoredNpo,
    "kl-to-reference": KlToReference,
}

OBJECTIVE_NAMES = tuple(_OBJECTIVES)


def make_objective(name: str, **options: float) -> UnlearningObjective:
    """Build an unlearning objective by name.

    Parameters
    ----------
    name : str
        One of ``OBJECTIVE_NAMES``.
    **options : float
        Options of that objective: ``margin``, ``keep`` (reference-bounded), ``bound`` (ascent),
        ``beta`` (anchored-npo).

    Returns
    -------
    UnlearningObjective

    Raises
    ------
    ConfigError
        If the name or an option is unknown, or an option is out of range.
    """
    factory = _OBJECTIVES.get(name)
    if factory is None:
        raise ConfigError(
            f"unknown unlearning objective {name!r}; known: {', '.join(OBJECTIVE_NAMES)}"
        )
    known = [option for option in inspect.signature(factory).parameters if option != "name"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(
            f"objective {name!r} has no option {', '.join(unknown)}; "
            f"known: {', '.join(known) or 'none'}"
        )
    return factory(**options)
