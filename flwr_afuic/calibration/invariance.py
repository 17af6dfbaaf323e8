"""Prediction invariance: a few server-side steps towards predictions Phi does not change."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flwr_afuic.calibration.steps import ProxySteps
from flwr_afuic.calibration.transforms import MonaiPhi, Phi
from flwr_afuic.errors import DataError
from flwr_afuic.unlearning.inference import frozen_statistics, index_batches, predict
from flwr_afuic.unlearning.tasks import task_of


@dataclass(frozen=True, kw_only=True)
class InvarianceSettings(ProxySteps):
    """Steps of one calibration, by default 10 at a rate of 0.0003.

    The rate is small on purpose: these steps come with every version, and at .01 they
    outweighed the training between two versions, cost points of test score and brought
    erased data back.
    """

    steps: int = 10
    lr: float = 0.0003


def calibrate(
    model: nn.Module,
    proxies: Tensor,
    phi: Phi,
    *,
    settings: InvarianceSettings | None = None,
    seed: int,
) -> None:
    """Pull ``f(Phi(x))`` towards ``f(x)`` on proxies, in place.

    Minimises ``E_P KL(sg f(x) || f(Phi(x)))``; the teacher is the model itself as it came in.

    Parameters
    ----------
    model : nn.Module
        The current global model. Normalisation statistics stay as they are.
    proxies : Tensor, shape (n, c, *spatial)
        Unlabelled images like the task's.
    phi : Phi
        With ``IdentityPhi`` the gradient is zero and the model does not change. A segmentation
        moves with its image: of ``MonaiPhi`` only the changes of intensity are used for one, and
        any other transformation must leave every voxel in its place.
    settings : InvarianceSettings, optional
    seed : int
        Of the only generator used; several calls may run in threads.

    Raises
    ------
    DataError
        If there are no proxies.

    Notes
    -----
    The loss is the paper's (arXiv 2604.26809, Eq. 4); that the teacher is the current model, not
    the merged one, and the number of steps are our reading. It does not by itself stop
    resurfacing.
    """
    settings = settings or InvarianceSettings()
    if len(proxies) == 0:
        raise DataError("no proxies to calibrate on; pass some or turn prediction invariance off")
    generator, task = torch.Generator().manual_seed(seed), task_of(model)
    if task.dense and isinstance(phi, MonaiPhi):
        phi = phi.in_place()
    batches = index_batches(len(proxies), settings.batch_size, generator)
    picks = [next(batches) for _ in range(settings.steps)]
    # Only the proxies that are drawn need a teacher: there may be many more.
    used, place = torch.unique(torch.cat(picks), return_inverse=True)
    teacher = predict(model, proxies[used])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=settings.lr, momentum=settings.momentum)
    with frozen_statistics(model):
        for pick, where in zip(picks, place.split([len(p) for p in picks]), strict=True):
            student = model(phi(proxies[pick], generator=generator))
            loss = task.divergence(teacher[where], student)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, settings.clip)
            optimizer.step()
