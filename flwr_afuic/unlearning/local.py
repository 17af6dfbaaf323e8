"""Local unlearning at the site that erases: bounded by a reference, anchored to the snapshot."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flwr_afuic.errors import ConfigError, DataError
from flwr_afuic.unlearning.inference import (
    check_set,
    frozen_statistics,
    index_batches,
    predict,
    score,
    score_logits,
)
from flwr_afuic.unlearning.level import ForgetScore, forget_level_met
from flwr_afuic.unlearning.objectives import ForgetBatch
from flwr_afuic.unlearning.settings import UnlearningSettings
from flwr_afuic.unlearning.tasks import task_of

__all__ = ["ForgetScore", "UnlearningOutcome", "UnlearningSettings", "score", "unlearn"]

STOP_BUDGET = "budget"
STOP_REACHED = "level reached"
STOP_DIVERGED = "diverged"


@dataclass(frozen=True)
class UnlearningOutcome:
    """What one local unlearning did.

    Parameters
    ----------
    steps : int
        Gradient steps taken.
    stop_reason : str
        ``"budget"``, ``"level reached"`` or ``"diverged"`` (non-finite values; the model is
        then the snapshot again and must not be merged as an erasure).
    before, after : ForgetScore
        Of the snapshot and of the unlearned model on D_f.
    reference : ForgetScore or None
        Of the reference on D_f; without a reference, the hold-out score given.
    delta_norm : float
        ``||w_u - w_s||``, trained arrays only.
    """

    steps: int
    stop_reason: str
    before: ForgetScore
    after: ForgetScore
    reference: ForgetScore | None
    delta_norm: float


def unlearn(
    model: nn.Module,
    *,
    forget_x: Tensor,
    forget_y: Tensor,
    anchor_x: Tensor,
    reference: nn.Module | None,
    holdout: ForgetScore | None,
    settings: UnlearningSettings,
    seed: int,
    radius: float = math.inf,
) -> UnlearningOutcome:
    """Unlearn D_f from the snapshot, in place.

    Minimises ``objective(D_f) + anchor_weight * E_A KL(f_{w_s} || f_w)`` over ``w`` from
    ``w_s``. With the default objective each erased sample's loss is raised to what a model that
    never saw it would have, and no further.

    Parameters
    ----------
    model : nn.Module
        The snapshot ``w_s``; becomes ``w_u``. Normalisation statistics are used and kept, never
        updated: they would carry the erased data.
    forget_x : Tensor, shape (n, c, *spatial)
    forget_y : Tensor
        The erased data D_f, with targets as the model's task has them: int64 of shape (n,) for
        classification.
    anchor_x : Tensor, shape (m, c, *spatial)
        Images on which the snapshot's predictions are kept: the proxies, or, where there are
        none, the site's own kept or held-out images. No labels are needed.
    reference : nn.Module or None
        A model that never saw D_f (``distil_reference``).
    holdout : ForgetScore or None
        Without a reference: the snapshot's score on data the site held out from training. Its
        loss is then the level to which the loss on D_f is raised.
    settings : UnlearningSettings
    seed : int
        Of the only generator used; several calls may run in threads.
    radius : float
        Greatest ``||w_u - w_s||``, trained arrays only: after each step weights farther away are
        drawn back along the straight line. A delta that is going to be clipped is better found
        within the clip: cut afterwards, one found without a bound has unlearned only a
        part of what it should.

    Returns
    -------
    UnlearningOutcome

    Raises
    ------
    DataError
        If a set is empty or images and labels differ in number.
    ConfigError
        If the objective needs a reference or a hold-out score and has none, or the radius is no
        positive number.

    Notes
    -----
    Ours (the paper's local loss, arXiv 2604.26809, is not known to us). That the anchor's
    teacher is the snapshot, not the current model, keeps the delta free of progress that the
    merge would count twice.
    """
    check_set("forget set", forget_x, forget_y)
    if not radius > 0:
        raise ConfigError(f"radius is {radius}; it must be positive")
    anchored = settings.anchor_weight > 0
    if anchored and len(anchor_x) == 0:
        raise DataError("no anchor images; pass proxies or the site's kept images as anchor_x")
    objective, task = settings.make_objective(), task_of(model)
    snapshot = copy.deepcopy(model)
    # The frozen models' outputs do not change: once for all steps, not once a step.
    forget_teacher = predict(snapshot, forget_x)
    anchor_teacher = predict(snapshot, anchor_x) if anchored else forget_teacher[:0]
    level = reference_logits = reference_score = None
    if reference is not None:
        reference_logits = predict(reference, forget_x)
        reference_score = score_logits(reference_logits, forget_y, task)
    elif holdout is not None:
        level, reference_score = holdout.loss, holdout
    before = score_logits(forget_teacher, forget_y, task)

    generator = torch.Generator().manual_seed(seed)
    forget_batches = index_batches(len(forget_x), settings.batch_size, generator)
    anchor_batches = index_batches(max(1, len(anchor_x)), settings.anchor_batch_size, generator)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    starts = [p.detach().clone() for p in trained] if math.isfinite(radius) else []
    optimizer = torch.optim.SGD(trained, lr=settings.lr, momentum=settings.momentum)
    taken, reason = 0, STOP_BUDGET
    with frozen_statistics(model):
        while taken < settings.attempts * settings.steps:
            done = taken % settings.steps
            if taken and done == 0 and _enough(model, forget_x, forget_y, reference_score):
                break
            # Small last steps: what is merged must not hang on the last batches drawn.
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * (1 + math.cos(math.pi * done / settings.steps)) / 2
            i = next(forget_batches)
            j = next(anchor_batches) if anchored else i[:0]
            logits = model(torch.cat([forget_x[i], anchor_x[j]]) if anchored else forget_x[i])
            batch = ForgetBatch(
                logits=logits[: len(i)],
                labels=forget_y[i],
                snapshot=forget_teacher[i],
                reference=None if reference_logits is None else reference_logits[i],
                level=level,
                task=task,
            )
            loss = objective.loss(batch)
            if anchored:
                kept = task.divergence(anchor_teacher[j], logits[len(i) :])
                loss = loss + settings.anchor_weight * kept
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(trained, settings.clip)
            if not bool(torch.isfinite(norm)):
                model.load_state_dict(snapshot.state_dict())
                reason = STOP_DIVERGED
                break
            optimizer.step()
            if math.isfinite(radius):
                _draw_back(trained, starts, radius)
            taken += 1
            if taken % settings.check_every == 0 and objective.reached(
                score(model, forget_x, forget_y)
            ):
                reason = STOP_REACHED
                break
    return UnlearningOutcome(
        steps=taken,
        stop_reason=reason,
        before=before,
        after=score(model, forget_x, forget_y),
        reference=reference_score,
        delta_norm=_distance(model, snapshot),
    )


@torch.no_grad()
def _draw_back(trained: list[nn.Parameter], starts: list[Tensor], radius: float) -> None:
    """Put weights that left the ball around where they started back onto it."""
    moved = [p - start for p, start in zip(trained, starts, strict=True)]
    norm = float(torch.stack([m.square().sum() for m in moved]).sum().sqrt())
    if norm > radius:
        for p, start, m in zip(trained, starts, moved, strict=True):
            p.copy_(start + m * (radius / norm))


def _enough(model: nn.Module, x: Tensor, y: Tensor, reference: ForgetScore | None) -> bool:
    """Tell whether one attempt was enough; without anything to compare with it has to be."""
    return reference is None or forget_level_met(score(model, x, y), reference).met


def _distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    squares = [float((a.detach() - b.detach()).double().pow(2).sum()) for a, b in pairs]
    return math.sqrt(sum(squares))
