"""Sites with a linear model and hardly any work of their own: what is measured is the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp

from flwr_afuic import wire
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.unlearning.level import ForgetScore

SIDE = 8
CLASSES = 10
EXAMPLES = 16

_LEVEL = ForgetScore(2.3, 0.1, EXAMPLES)
_UNLEARNING_STEPS = 60


def initial_arrays() -> ArrayRecord:
    """Return the model to start from: ``images.reshape(n, 64) @ weight.T + bias``."""
    arrays = {
        "1.weight": np.zeros((CLASSES, SIDE * SIDE), np.float32),
        "1.bias": np.zeros(CLASSES, np.float32),
    }
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


class LinearSite(NumPyClient):
    """One step of least squares on a few generated images; it speaks the erasure protocol.

    Its unlearning is a fixed small delta, and its word on the erased data is always that they
    are forgotten: models are of no interest here.

    Parameters
    ----------
    partition : int
        Seeds its images; also its name.
    """

    def __init__(self, partition: int) -> None:
        self._partition = partition

    def get_properties(self, config: dict[str, Any]) -> dict[str, Any]:
        """Say who it is."""
        return self._words()

    def fit(self, parameters: Arrays, config: dict[str, Any]) -> tuple[Arrays, int, dict[str, Any]]:
        """Train, or unlearn, and return the difference."""
        weight, bias = parameters[:2]
        rng = np.random.default_rng(self._partition)
        images = rng.standard_normal((EXAMPLES, weight.shape[1]), dtype=np.float32)
        labels = np.eye(CLASSES, dtype=np.float32)[rng.integers(CLASSES, size=EXAMPLES)]
        error = (images @ weight.T + bias - labels) / EXAMPLES
        step = [-0.1 * error.T @ images, -0.1 * error.sum(axis=0)]
        if config.get(wire.TASK) != wire.TASK_UNLEARN:
            return _float32(step), EXAMPLES, {**self._words(), wire.KIND: wire.KIND_DELTA}
        evidence = wire.Evidence(
            before=ForgetScore(1.0, 0.9, EXAMPLES), after=_LEVEL, reference=None, holdout=_LEVEL,
            steps=_UNLEARNING_STEPS, stop_reason="steps", delta_norm=1.0,
        )  # fmt: skip
        words = {
            **self._words(), wire.KIND: wire.KIND_ERASURE, wire.STEPS: _UNLEARNING_STEPS,
            wire.REQUEST: str(config[wire.REQUEST]), wire.EVIDENCE: evidence.to_json(),
        }  # fmt: skip
        return _float32([-part for part in step]), EXAMPLES, words

    def evaluate(
        self, parameters: Arrays, config: dict[str, Any]
    ) -> tuple[float, int, dict[str, Any]]:
        """Score: the same for every model."""
        words: dict[str, Any] = {**self._words(), "accuracy": _LEVEL.accuracy}
        if config.get(wire.TASK) == wire.TASK_VERIFY:
            words[wire.REQUEST] = str(config[wire.REQUEST])
        return _LEVEL.loss, EXAMPLES, words

    def _words(self) -> dict[str, Any]:
        return {wire.SITE: str(self._partition), wire.CLIENT: wire.PROTOCOL}


def _float32(arrays: Arrays) -> Arrays:
    return [np.asarray(array, np.float32) for array in arrays]


def linear_app() -> ClientApp:
    """Return the ClientApp of every site."""

    def client_fn(context: Context) -> Any:
        return LinearSite(int(context.node_config["partition-id"])).to_client()

    return ClientApp(client_fn=client_fn)
