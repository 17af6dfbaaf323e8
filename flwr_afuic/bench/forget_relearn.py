"""How fast a model learns the erased data again, beside retraining."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from flwr_afuic.app.client_app import network
from flwr_afuic.app.federation import FederationData
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.models.arrays import set_arrays
from flwr_afuic.seeds import derive_seed
from flwr_afuic.unlearning.inference import index_batches, predict

_STEPS = 80
EVERY = 2
"""Gradient steps between two scores."""
_ORDERS = 2
_SLOWER = 5.0
_MOST_SCORED = 256


def relearn_curve(settings: AppSettings, data: FederationData, arrays: Arrays) -> list[float]:
    """Accuracy on D_f after 0, 2, 4, ... 80 steps of training on it, mean of two orders.

    As a site trains, at a fifth of its learning rate: at the full one a few steps are enough, and
    a ratio of such times would say little. Scored on up to 256 erased images, the same for all.

    Parameters
    ----------
    settings : AppSettings
    data : FederationData
    arrays : list of ndarray
        The model; left as it is.

    Returns
    -------
    list of float, length 41
    """
    forget = data.forget
    rng = np.random.default_rng(derive_seed(settings.seed, "relearn"))
    rows = torch.as_tensor(np.sort(rng.permutation(len(forget))[:_MOST_SCORED]))
    scored, labels = forget.images[rows], forget.labels[rows]
    curves = []
    for order in range(_ORDERS):
        model = network(settings)
        set_arrays(model, arrays)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=settings.lr / _SLOWER, momentum=settings.momentum
        )
        seed = derive_seed(settings.seed, "relearn", str(order))
        batches = index_batches(
            len(forget), settings.batch_size, torch.Generator().manual_seed(seed)
        )
        curve = [_accuracy(model, scored, labels)]
        for step in range(1, _STEPS + 1):
            batch = next(batches)
            optimizer.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(model(forget.images[batch]), forget.labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            if step % EVERY == 0:
                curve.append(_accuracy(model, scored, labels))
        curves.append(curve)
    return [float(value) for value in np.mean(curves, axis=0)]


def _accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    return float((predict(model, images).argmax(1) == labels).double().mean())
