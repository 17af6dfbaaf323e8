"""The relearning basis: directions along which a model would learn the erased data again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from flwr_afuic.errors import DataError
from flwr_afuic.federation.layout import infer_kind
from flwr_afuic.unlearning.checks import check_count, check_range
from flwr_afuic.unlearning.inference import check_set, frozen_statistics, index_batches

Loss = Callable[[Tensor, Tensor], Tensor]

_NEGLIGIBLE = 1e-6


@dataclass(frozen=True, kw_only=True)
class RelearningSettings:
    """How the erased data are learned again, on a copy, to see which way that goes.

    Parameters
    ----------
    steps : int, default 4
        Gradient steps between two snapshots.
    lr, momentum : float
        Of SGD; small, since erased data can be learned again within a few ordinary steps,
        after which nothing moves any more.
    clip : float, default 1.0
        Greatest gradient norm.
    batch_size : int, default 32
        Erased images per step.
    """

    steps: int = 4
    lr: float = 0.02
    momentum: float = 0.5
    clip: float = 1.0
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("batch_size", self.batch_size)
        check_range("lr", self.lr, above=True)
        check_range("clip", self.clip, above=True)
        check_range("momentum", self.momentum, high=0.999)


def relearning_basis(
    model: nn.Module,
    *,
    forget_x: Tensor,
    forget_y: Tensor,
    rank: int,
    loss: Loss = functional.cross_entropy,
    settings: RelearningSettings | None = None,
    seed: int,
) -> npt.NDArray[np.float32]:
    """Span the directions in which training on D_f moves an unlearned model.

    Parameters
    ----------
    model : nn.Module
        The unlearned model; left unchanged. Normalisation statistics and dropout are frozen.
    forget_x : Tensor, shape (n, c, h, w)
    forget_y : Tensor, shape (n,), int64
        The erased data D_f.
    rank : int
        Snapshots taken, and most rows returned.
    loss : callable
        The federation's training loss, of logits and labels.
    settings : RelearningSettings, optional
    seed : int
        Of the order of the batches.

    Returns
    -------
    ndarray of shape (r, p), float32
        Orthonormal rows over the entries of the trained arrays, in ``state_dict``'s order;
        ``r <= rank``, fewer where the movement spans fewer directions, 0 where there is none.
        Row 0 is the direction of most movement. A row's sign is such that the whole movement
        has a positive coefficient: a model that moves along ``+row`` relearns.

    Raises
    ------
    DataError
        If the set is empty, or relearning diverges.
    ConfigError
        If the rank is below 1.

    Notes
    -----
    Ours (``rank`` snapshots of ordinary training, their steps by singular value
    decomposition). A lock that forbids these directions takes ``-row``.
    """
    check_set("forget set", forget_x, forget_y)
    check_count("rank", rank)
    settings = settings or RelearningSettings()
    learner = copy.deepcopy(model)
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=settings.lr, momentum=settings.momentum)
    generator = torch.Generator().manual_seed(seed)
    batches = index_batches(len(forget_x), settings.batch_size, generator)
    snapshots = [_flat(learner)]
    with frozen_statistics(learner):
        for _ in range(rank):
            for _ in range(settings.steps):
                pick = next(batches)
                optimizer.zero_grad(set_to_none=True)
                loss(learner(forget_x[pick]), forget_y[pick]).backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(trained, settings.clip)
                optimizer.step()
            snapshots.append(_flat(learner))
    return principal_directions(np.diff(np.stack(snapshots), axis=0))


def principal_directions(moves: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Orthonormalise successive moves of shape (r, p), largest first, signed by their sum."""
    if not bool(np.isfinite(moves).all()):
        raise DataError("relearning the erased data diverged; no basis can be made of it")
    _, values, rows = np.linalg.svd(moves, full_matrices=False)
    rows = rows[values > _NEGLIGIBLE * max(float(values[0]), _NEGLIGIBLE)]
    signs = np.where(rows @ moves.sum(axis=0) < 0, -1.0, 1.0)
    return np.asarray(signs[:, None] * rows, dtype=np.float32)


def _flat(model: nn.Module) -> npt.NDArray[np.float64]:
    """Concatenate what the server calls trained arrays, in the order of ``state_dict``."""
    arrays = {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()}
    parts = [a.reshape(-1) for name, a in arrays.items() if infer_kind(name, a) == "trained"]
    return np.concatenate(parts).astype(np.float64)
