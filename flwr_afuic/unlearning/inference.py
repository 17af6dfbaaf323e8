"""Frozen predictions, scores and seeded batches: the torch ground all unlearning stands on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flwr_afuic.errors import DataError
from flwr_afuic.unlearning.level import ForgetScore
from flwr_afuic.unlearning.tasks import CLASSIFICATION, Task, task_of

_MOST_ENTRIES = 2**20
"""Of a batch of inputs: 256 grey images of 64x64."""


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Run in eval mode (norm statistics and dropout frozen), then restore every module's mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def predict(model: nn.Module, x: Tensor, batch_size: int = 256) -> Tensor:
    """Logits of ``model`` in eval mode, without gradient.

    Parameters
    ----------
    model : nn.Module
    x : Tensor, shape (n, c, *spatial)
    batch_size : int, default 256
        At most; fewer of large images and volumes, whose features would not fit into memory.

    Returns
    -------
    Tensor, shape (n, k), or (n, k, *spatial) of a segmentation

    Raises
    ------
    DataError
        If there are no images.
    """
    if len(x) == 0:
        raise DataError("no images to predict on; pass at least one")
    with frozen_statistics(model), torch.no_grad():
        return torch.cat([model(part) for part in torch.split(x, _fitting(x, batch_size))])


def _fitting(x: Tensor, batch_size: int) -> int:
    return max(1, min(batch_size, _MOST_ENTRIES // max(1, x[0].numel())))


def score(
    model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 256, task: Task | None = None
) -> ForgetScore:
    """Score a model on images with targets.

    Parameters
    ----------
    model : nn.Module
        Left in the mode it came in.
    x : Tensor, shape (n, c, *spatial)
    y : Tensor
        Targets as the task has them: int64 of shape (n,) for classification.
    batch_size : int, default 256
        Images per forward pass.
    task : Task, optional
        What the model says it is for by default.

    Returns
    -------
    ForgetScore
        Mean loss in nats (infinite where the output is not finite), mean score (accuracy, or the
        mean Dice of a segmentation), count.

    Raises
    ------
    DataError
        If the set is empty or images and targets differ in number.
    """
    check_set("scored set", x, y)
    task = task or task_of(model)
    if not task.dense:
        return score_logits(predict(model, x, batch_size), y, task)
    # Volume by volume: all outputs at once would take many times the images' memory.
    size = _fitting(x, batch_size)
    parts = [
        score_logits(predict(model, images, size), targets, task)
        for images, targets in zip(torch.split(x, size), torch.split(y, size), strict=True)
    ]
    loss = sum(part.loss * part.count for part in parts) / len(y)
    mean = sum(part.accuracy * part.count for part in parts) / len(y)
    return ForgetScore(loss, mean, len(y), task.score_name)


def score_logits(logits: Tensor, y: Tensor, task: Task = CLASSIFICATION) -> ForgetScore:
    """Score logits of shape (n, k, *spatial) against targets."""
    loss = float(task.mean_loss(logits.double(), y))
    mean = float(task.scores(logits, y).mean())
    return ForgetScore(loss if math.isfinite(loss) else math.inf, mean, len(y), task.score_name)


def sample_losses(
    model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 256, task: Task | None = None
) -> Tensor:
    """Loss of each sample, shape (n,), float64: what membership is told by."""
    return sample_results(model, x, y, batch_size, task)[0]


def sample_results(
    model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 256, task: Task | None = None
) -> tuple[Tensor, Tensor]:
    """Loss and score of each sample, both of shape (n,) and float64, from one look at each."""
    check_set("scored set", x, y)
    task = task or task_of(model)
    size = _fitting(x, batch_size)
    losses, scores = [], []
    for images, targets in zip(torch.split(x, size), torch.split(y, size), strict=True):
        outputs = predict(model, images, size)
        losses.append(task.losses(outputs.double(), targets))
        scores.append(task.scores(outputs, targets).double())
    return torch.cat(losses), torch.cat(scores)


def check_set(name: str, x: Tensor, y: Tensor) -> None:
    """Raise DataError unless images and labels are as many, and at least one."""
    if len(x) == 0 or len(x) != len(y):
        raise DataError(f"{name}: {len(x)} images and {len(y)} labels; need as many, at least one")


def index_batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of indices below ``count``, each epoch in a fresh order.

    An epoch's remainder shorter than a batch is left out, so that every step weighs the same.
    """
    size = min(size, count)
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]
