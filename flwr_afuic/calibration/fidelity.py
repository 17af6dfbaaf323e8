"""Fidelity at the merge: the model after it predicts on proxies what it predicted before.

An erasure delta was found on the target's snapshot and costs the current model something on
data nobody asked to erase. A few steps on proxies give that back before the merge, confined
so that they neither undo the erasure nor touch what the retained sites learned meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flwr_afuic.calibration.steps import ProxySteps
from flwr_afuic.calibration.transforms import Phi
from flwr_afuic.errors import DataError
from flwr_afuic.unlearning.inference import frozen_statistics, index_batches, predict
from flwr_afuic.unlearning.tasks import task_of

Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class FidelitySettings(ProxySteps):
    """Steps at one merge, by default 20 at a rate of 0.01; the first ten bring most of it."""

    steps: int = 20
    lr: float = 0.01


def keep_fidelity(
    model: nn.Module,
    teacher: nn.Module,
    proxies: Tensor,
    phi: Phi,
    *,
    settings: FidelitySettings | None = None,
    seed: int,
) -> None:
    """Pull a merged model's predictions on proxies back to those before the merge, in place.

    Minimises ``E_P KL(f_{w_c}(Phi(x)) || f_w(Phi(x)))`` from ``w = w_c + d``.

    Parameters
    ----------
    model : nn.Module
        The current model with the erasure delta added. Normalisation statistics stay.
    teacher : nn.Module
        The current model ``w_c`` before the merge. Left unchanged.
    proxies : Tensor, shape (n, c, *spatial)
        Unlabelled images like the task's, none of them erased data.
    phi : Phi
        Applied to the images both models see.
    settings : FidelitySettings, optional
    seed : int
        Of the only generator used.

    Raises
    ------
    DataError
        If there are no proxies.

    Notes
    -----
    Ours; the paper (arXiv 2604.26809) says of the merge only that fidelity is kept. It uses
    the paper's consistency loss (Eq. 4) across the merge instead of across a transformation.
    """
    settings = settings or FidelitySettings()
    if len(proxies) == 0:
        raise DataError("no proxies to keep fidelity on; pass some or turn fidelity off")
    generator, task = torch.Generator().manual_seed(seed), task_of(teacher)
    batches = index_batches(len(proxies), settings.batch_size, generator)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=settings.lr, momentum=settings.momentum)
    with frozen_statistics(model):
        for _ in range(settings.steps):
            images = phi(proxies[next(batches)], generator=generator)
            loss = task.divergence(predict(teacher, images), model(images))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, settings.clip)
            optimizer.step()


def confine(step: Vector, *, delta: Vector, progress: Vector) -> Vector:
    """Take out of a step what would undo the erasure or touch concurrent progress.

    Parameters
    ----------
    step : ndarray, shape (p,)
        What the fidelity steps changed.
    delta : ndarray, shape (p,)
        The erasure delta ``d``.
    progress : ndarray, shape (p,)
        ``w_c - w_s``: what the retained sites learned since the snapshot; may be zero.

    Returns
    -------
    ndarray, shape (p,)
        The nearest step that is orthogonal to ``progress`` (so that lost progress stays 0) and
        whose product with ``delta`` is not negative (so that it starts inside the lock).

    Examples
    --------
    >>> step, delta = np.array([-1.0, 2.0, 3.0]), np.array([1.0, 0.0, 0.0])
    >>> confine(step, delta=delta, progress=np.array([0.0, 1.0, 0.0])).tolist()
    [0.0, 0.0, 3.0]
    """
    free = _without(step, progress)
    across = _without(delta, progress)
    return _without(free, across) if float(free @ across) < 0 else free


def _without(vector: Vector, direction: Vector) -> Vector:
    square = float(direction @ direction)
    return vector if square == 0 else vector - (float(vector @ direction) / square) * direction
