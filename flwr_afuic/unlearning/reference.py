"""The proxy-distilled reference: what a model that never met the erased data would know."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flwr_afuic.calibration.transforms import MonaiPhi, Phi
from flwr_afuic.errors import DataError
from flwr_afuic.unlearning.checks import check_count, check_range
from flwr_afuic.unlearning.inference import index_batches, predict
from flwr_afuic.unlearning.tasks import task_of


@dataclass(frozen=True, kw_only=True)
class DistillationSettings:
    """Settings of one distillation.

    Parameters
    ----------
    steps : int, default 200
        Gradient steps; 600 gave no better reference on 28x28 images.
    lr : float, default 0.05
        At the start; decays to zero along a half cosine.
    momentum : float, default 0.9
    clip : float, default 5.0
        Greatest gradient norm.
    batch_size : int, default 64
        Augmented proxy images per step.
    views : int, default 8
        Augmented copies of each proxy, made and labelled by the teacher once; the proxies
        themselves come on top. Cheaper than labelling anew at every step.

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """

    steps: int = 200
    lr: float = 0.05
    momentum: float = 0.9
    clip: float = 5.0
    batch_size: int = 64
    views: int = 8

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "views"):
            check_count(name, getattr(self, name))
        check_range("lr", self.lr, above=True)
        check_range("clip", self.clip, above=True)
        check_range("momentum", self.momentum, high=0.999)


def distil_reference(
    teacher: nn.Module,
    student: nn.Module,
    proxies: Tensor,
    *,
    settings: DistillationSettings | None = None,
    phi: Phi | None = None,
    seed: int,
) -> None:
    """Train a fresh student on the teacher's predictions on proxies only, in place.

    The student has never met the erased data itself. Its teacher has: the result is an empirical
    reference and no guarantee, and a certificate must say so.

    Parameters
    ----------
    teacher : nn.Module
        The snapshot ``w_s``. Left unchanged.
    student : nn.Module
        Of the same task, freshly initialised by the caller; becomes the reference.
    proxies : Tensor, shape (n, c, *spatial)
        Unlabelled images like the task's, none of them erased.
    settings : DistillationSettings, optional
    phi : Phi, optional
        Augmentation of the proxies; ``MonaiPhi()`` where none is given.
    seed : int
        Of the only generator used; several calls may run in threads.

    Raises
    ------
    DataError
        If there are no proxies.

    Notes
    -----
    Ours; ``E KL(f_{w_s}(Phi(x)) || f_student(Phi(x)))``, for a segmentation plus a soft Dice
    loss (:meth:`~flwr_afuic.unlearning.tasks.Task.imitation`). Normalisation statistics of the
    student are learned from the proxies; dropout is off, since it would draw from the global
    generator.
    """
    settings = settings or DistillationSettings()
    if len(proxies) == 0:
        raise DataError("no proxies to distil on; pass some, or unlearn without a reference")
    phi = phi if phi is not None else MonaiPhi()
    generator, task = torch.Generator().manual_seed(seed), task_of(teacher)
    # No more copies than the steps can use.
    most = math.ceil(settings.steps * settings.batch_size / len(proxies))
    views = [phi(proxies, generator=generator) for _ in range(min(settings.views, most))]
    images = torch.cat([proxies, *views])
    labels = predict(teacher, images)
    batches = index_batches(len(images), settings.batch_size, generator)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=settings.lr, momentum=settings.momentum)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    with _training_without_dropout(student):
        for _ in range(settings.steps):
            pick = next(batches)
            loss = task.imitation(labels[pick], student(images[pick]))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, settings.clip)
            optimizer.step()
            schedule.step()


@contextmanager
def _training_without_dropout(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    for module, _ in modes:
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
