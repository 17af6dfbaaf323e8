"""Bilateral Knowledge Excision: both towers forget a pair's alignment.

EASE (arXiv 2605.00733) states that a forgotten pair's alignment survives in the coupling of the
two towers, and that both branches have to be displaced [P]. Its losses could not be had; these are
ours [O], after ``ds_ii/dtheta_v = J_v^T t_i`` and ``ds_ii/dtheta_t = J_t^T v_i``: if one tower
moves, the other is a fixed target that later alignment pulls back to.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from flwr_afuic.calibration.blocks import BlockBasis
from flwr_afuic.errors import ConfigError, DataError
from flwr_afuic.federation.layout import Vector
from flwr_afuic.unlearning.checks import check_count, check_range
from flwr_afuic.unlearning.inference import frozen_statistics, index_batches
from flwr_afuic.unlearning.level import forget_level_met
from flwr_afuic.unlearning.local import (
    STOP_BUDGET,
    STOP_DIVERGED,
    STOP_REACHED,
    UnlearningOutcome,
)
from flwr_afuic.unlearning.pairs import (
    DualTower,
    Pairs,
    as_towers,
    contrastive_loss,
    score_pairs,
    similarities,
)
from flwr_afuic.unlearning.relearning import principal_directions

Objective = Literal["bke", "pairs-ascent"]
Sides = Literal["both", "vision", "text"]


@dataclass(frozen=True, kw_only=True)
class ExcisionSettings:
    """Settings of one excision; scalars only, so that they can cross the wire.

    Parameters
    ----------
    objective : {"bke", "pairs-ascent"}
        The excision, or, to compare with, ascent on the erased pairs' InfoNCE.
    sides : {"both", "vision", "text"}
        Which branches are displaced; one only is for the ablation.
    steps : int, default 60
        Most gradient steps.
    lr, momentum, clip : float
        Of SGD, and the greatest gradient norm.
    batch_size, retained_batch_size : int
        Erased, and retained, pairs per step.
    gamma : float, default 1.0
        Weight of InfoNCE on the retained pairs, where the site has any; 0 leaves them out.
    tolerance : float, default 0.01
        Mean excess similarity at which it is enough.
    radius : float, default 0.0
        Greatest distance from the snapshot, by projection; 0 for none.
    check_every : int, default 10
        Steps between two looks at the excess.

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """

    objective: Objective = "bke"
    sides: Sides = "both"
    steps: int = 60
    lr: float = 0.1
    momentum: float = 0.5
    clip: float = 1.0
    batch_size: int = 64
    retained_batch_size: int = 64
    gamma: float = 1.0
    tolerance: float = 0.01
    radius: float = 0.0
    check_every: int = 10

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):
            raise ConfigError(f"objective is {self.objective!r}; use 'bke' or 'pairs-ascent'")
        if self.sides not in get_args(Sides):
            raise ConfigError(f"sides is {self.sides!r}; use 'both', 'vision' or 'text'")
        for name in ("steps", "batch_size", "retained_batch_size", "check_every"):
            check_count(name, getattr(self, name))
        for name in ("lr", "clip"):
            check_range(name, getattr(self, name), above=True)
        for name in ("gamma", "tolerance", "radius"):
            check_range(name, getattr(self, name))
        check_range("momentum", self.momentum, high=0.999)

    def to_json(self) -> str:
        """Write the settings as one JSON object of scalars."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, allow_nan=False)


def excess_loss(v: Tensor, t: Tensor, base: Tensor, sides: Sides = "both") -> Tensor:
    """Sum of ``L_v`` and ``L_t``: how far pairs are more similar than the base model had them.

    ``L_v = mean relu(s(v_i, sg t_i) - s_i0)^2`` moves the image tower only, ``L_t`` the text
    tower only (``sg`` stops the gradient). A pretrained model rightly aligns many pairs: the
    target is what it knew before the federation, not zero.

    Parameters
    ----------
    v, t : Tensor, shape (n, e)
        Embeddings of norm 1.
    base : Tensor, shape (n,)
        ``s_i0``, similarities with the adapters off.
    sides : {"both", "vision", "text"}

    Returns
    -------
    Tensor, shape ()
    """
    terms = []
    if sides in ("both", "vision"):
        terms.append(functional.relu((v * t.detach()).sum(dim=1) - base).square().mean())
    if sides in ("both", "text"):
        terms.append(functional.relu((v.detach() * t).sum(dim=1) - base).square().mean())
    return torch.stack(terms).sum()


def excise(
    model: nn.Module,
    forget: Pairs,
    retained: Pairs | None,
    *,
    settings: ExcisionSettings,
    seed: int,
) -> UnlearningOutcome:
    """Excise pairs from a dual-tower model, in place.

    Minimises ``L_v + L_t + gamma InfoNCE(retained)`` over the adapters. Where the forget level is
    met at the start, as it may be once the server has taken back its part, nothing is done: with
    training the similarity of pairs that nobody saw rises as well, and to push below that would
    set the erased pairs apart from all others.

    Parameters
    ----------
    model : nn.Module
        A :class:`~flwr_afuic.unlearning.pairs.DualTower`, the snapshot; becomes the result.
    forget : Pairs
        What is erased.
    retained : Pairs or None
        What the site keeps; None or empty where it leaves with everything.
    settings : ExcisionSettings
    seed : int
        Of the only generator used.

    Returns
    -------
    UnlearningOutcome
        Scores are of :func:`~flwr_afuic.unlearning.pairs.score_pairs` among erased and retained
        pairs; ``reference`` is the score with the adapters off: what the base model knew.

    Raises
    ------
    DataError
        If nothing is to be erased, or the model has no two towers.
    """
    if not len(forget):
        raise DataError("no pairs to excise; pass at least one")
    towers = as_towers(model)
    keep = retained if retained is not None and len(retained) else None
    anchored = settings.gamma > 0 and keep is not None
    with towers.adapters_off():
        base, reference = similarities(towers, forget), score_pairs(towers, forget, keep)
    before = score_pairs(towers, forget, keep)
    if settings.objective == "bke" and forget_level_met(before, reference).met:
        return UnlearningOutcome(0, STOP_REACHED, before, before, reference, 0.0)
    trained = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in trained]
    generator = torch.Generator().manual_seed(seed)
    batches = index_batches(len(forget), settings.batch_size, generator)
    kept = index_batches(len(keep) if keep else 1, settings.retained_batch_size, generator)
    optimizer = torch.optim.SGD(trained, lr=settings.lr, momentum=settings.momentum)
    taken, reason = 0, STOP_BUDGET
    with frozen_statistics(model), torch.enable_grad():
        for taken in range(1, settings.steps + 1):
            # Small last steps: what is merged must not hang on the last batches drawn.
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * (1 + math.cos(math.pi * taken / settings.steps)) / 2
            i = next(batches)
            loss = _loss(towers, forget.take(i), base[i], settings)
            if anchored and keep is not None:
                loss = loss + settings.gamma * _info_nce(towers, keep.take(next(kept)))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(trained, settings.clip)
            if not bool(torch.isfinite(norm)):
                with torch.no_grad():
                    for parameter, value in zip(trained, start, strict=True):
                        parameter.copy_(value)
                reason = STOP_DIVERGED
                break
            optimizer.step()
            if settings.radius:
                _confine(trained, start, settings.radius)
            if settings.objective == "bke" and taken % settings.check_every == 0:
                excess = functional.relu(similarities(towers, forget) - base)
                if float(excess.mean()) <= settings.tolerance:
                    reason = STOP_REACHED
                    break
    moved = sum(
        float((p.detach() - s).double().square().sum()) for p, s in zip(trained, start, strict=True)
    )
    after = score_pairs(towers, forget, keep)
    return UnlearningOutcome(taken, reason, before, after, reference, math.sqrt(moved))


def _loss(model: DualTower, pairs: Pairs, base: Tensor, settings: ExcisionSettings) -> Tensor:
    v, t = model.embed_images(pairs.images), model.embed_texts(pairs.tokens, pairs.mask)
    if settings.objective == "pairs-ascent":
        if settings.sides == "vision":
            t = t.detach()
        if settings.sides == "text":
            v = v.detach()
        return -contrastive_loss(v, t, model.scale(), pairs.groups)
    return excess_loss(v, t, base, settings.sides)


def _info_nce(model: DualTower, pairs: Pairs) -> Tensor:
    v, t = model.embed_images(pairs.images), model.embed_texts(pairs.tokens, pairs.mask)
    return contrastive_loss(v, t, model.scale(), pairs.groups)


def _confine(trained: list[nn.Parameter], start: list[Tensor], radius: float) -> None:
    """Project back into the ball around the snapshot."""
    with torch.no_grad():
        pairs = list(zip(trained, start, strict=True))
        distance = math.sqrt(sum(float((p - s).double().square().sum()) for p, s in pairs))
        if distance > radius:
            for p, s in pairs:
                p.copy_(s + (radius / distance) * (p - s))


def excise_parameters(
    vector: NDArray[np.floating], initial: NDArray[np.floating], basis: BlockBasis, beta: float
) -> Vector:
    """Excision without data: take the model back along the forget-exclusive basis.

    ``theta_b <- theta_b - beta B_b B_b^T (theta_b - theta_b0)`` in every block, of both towers.

    Parameters
    ----------
    vector, initial : ndarray, shape (p,)
        The model, and the one the federation began with.
    basis : BlockBasis
        ``B``; where it has no direction nothing moves, and no removal may be claimed.
    beta : float
        In (0, 1]; 1 takes out the whole of what was learned along ``B``.

    Returns
    -------
    ndarray, shape (p,)
    """
    if not 0.0 < beta <= 1.0:
        raise ConfigError(f"beta is {beta!r}; it must be in (0, 1]")
    result: Vector = np.array(vector, dtype=np.float64)
    learned = basis.coordinates(result) - basis.coordinates(np.asarray(initial, dtype=np.float64))
    basis.subtract(result, beta * learned)
    return result


def forget_directions(
    model: nn.Module, forget: Pairs, *, rank: int, seed: int, lr: float = 0.02, steps: int = 4
) -> NDArray[np.float32]:
    """Span the directions in which training on the erased pairs would move the model again.

    For erasures of part of a site's data, whose history shows all of it: what plays the forgotten
    client's updates then. As :func:`~flwr_afuic.unlearning.relearning.relearning_basis`, with
    InfoNCE.

    Parameters
    ----------
    model : nn.Module
        The excised model; left unchanged.
    forget : Pairs
    rank : int
        Most rows.
    seed : int
    lr : float
        Of SGD.
    steps : int
        Gradient steps between two of ``rank`` snapshots.

    Returns
    -------
    ndarray, shape (r, p), float32
        Orthonormal rows over the arrays of the model's ``state_dict``.
    """
    check_count("rank", rank)
    learner = copy.deepcopy(model)
    towers = as_towers(learner)
    trained = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=lr, momentum=0.5)
    batches = index_batches(len(forget), 32, torch.Generator().manual_seed(seed))
    snapshots = [_flat(learner)]
    with frozen_statistics(learner), torch.enable_grad():
        for _ in range(rank):
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                _info_nce(towers, forget.take(next(batches))).backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
            snapshots.append(_flat(learner))
    return principal_directions(np.diff(np.stack(snapshots), axis=0))


def _flat(model: nn.Module) -> Vector:
    parts = [t.detach().double().cpu().numpy().reshape(-1) for t in model.state_dict().values()]
    return np.concatenate(parts)
