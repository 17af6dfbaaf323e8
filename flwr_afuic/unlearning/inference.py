"""Frozen predictions, scores and seeded batches: the torch ground all unlearning stands on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from flwr_afuic.errors import DataError
from flwr_afuic.unlearning.level import ForgetScore


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
    x : Tensor, shape (n, c, h, w)
    batch_size : int, default 256

    Returns
    -------
    Tensor, shape (n, k)

    Raises
    ------
    DataError
        If there are no images.
    """
    if len(x) == 0:
        raise DataError("no images to predict on; pass at least one")
    with frozen_statistics(model), torch.no_grad():
        return torch.cat([model(part) for part in torch.split(x, batch_size)])


def score(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 256) -> ForgetScore:
    """Score a model on labelled images.

    Parameters
    ----------
    model : nn.Module
        Maps (n, c, h, w) to logits (n, k). Left in the mode it came in.
    x : Tensor, shape (n, c, h, w)
    y : Tensor, shape (n,), int64
    batch_size : int, default 256
        Images per forward pass.

    Returns
    -------
    ForgetScore
        Mean cross-entropy in nats (infinite where the output is not finite), accuracy, count.

    Raises
    ------
    DataError
        If the set is empty or images and labels differ in number.
    """
    check_set("scored set", x, y)
    return score_logits(predict(model, x, batch_size), y)


def score_logits(logits: Tensor, y: Tensor) -> ForgetScore:
    """Score logits of shape (n, k) against labels of shape (n,)."""
    loss = float(functional.cross_entropy(logits.double(), y))
    accuracy = float((logits.argmax(dim=1) == y).double().mean())
    return ForgetScore(loss if math.isfinite(loss) else math.inf, accuracy, len(y))


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
