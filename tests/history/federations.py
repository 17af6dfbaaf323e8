"""Histories to unlearn from: made by hand, and by small convex federations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.history.codec import CodecSettings
from flwr_afuic.history.recorder import Recorder, RecorderSettings
from flwr_afuic.history.sparsify import Threshold
from flwr_afuic.history.store import UpdateStore

Vector = NDArray[np.float64]

EXACT = CodecSettings("none", threshold=Threshold("none"))
EXACTLY = RecorderSettings(codec=EXACT, aggregate=EXACT)


def record(
    store: UpdateStore,
    rounds: Sequence[Mapping[str, tuple[float, Vector]]],
    settings: RecorderSettings = EXACTLY,
) -> Recorder:
    """Record rounds of {site: (weight, update)}; each is one merge and ends a window."""
    recorder = Recorder(store, settings)
    for version, updates in enumerate(rounds, start=1):
        for site, (weight, update) in updates.items():
            recorder.add(site, [update], weight)
        recorder.merged(version, version)
        recorder.close()
    return recorder


def without(rounds: Sequence[Mapping[str, tuple[float, Vector]]], forget: set[str]) -> Vector:
    """``D_T`` at kappa 1, as the difference of the weighted means with and without the sites."""
    total = np.zeros_like(next(iter(rounds[0].values()))[1], dtype=np.float64)
    for updates in rounds:
        if forget & set(updates):
            rest = {site: pair for site, pair in updates.items() if site not in forget}
            total += _mean(rest) - _mean(updates)
    return total


def _mean(updates: Mapping[str, tuple[float, Vector]]) -> Vector:
    weights = sum(weight for weight, _ in updates.values())
    return sum(
        (weight * update.astype(np.float64) for weight, update in updates.values()), np.float64(0)
    ) / weights  # fmt: skip


def some_rounds(seed: int, rounds: int = 6, sites: str = "abcde", size: int = 40) -> list[
    dict[str, tuple[float, Vector]]
]:  # fmt: skip
    """Random updates, random weights, random participants (never fewer than three)."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(rounds):
        present = rng.permutation(list(sites))[: rng.integers(3, len(sites) + 1)]
        result.append(
            {str(s): (float(rng.integers(1, 90)), rng.normal(size=size).astype(np.float32))
             for s in sorted(present)}
        )  # fmt: skip
    return result


@dataclass
class Convex:
    """Full-batch federated gradient descent on a convex problem, one local step a round."""

    initial: Vector
    final: Vector
    updates: list[dict[str, tuple[float, Vector]]]


def train(
    gradients: Mapping[str, Callable[[Vector], Vector]], size: int, steps: Sequence[float]
) -> Convex:
    """Train all sites together with equal weights."""
    w = np.zeros(size)
    rounds: list[dict[str, tuple[float, Vector]]] = []
    for step in steps:
        updates = {site: (1.0, -step * gradient(w)) for site, gradient in gradients.items()}
        w = w + _mean(updates)
        rounds.append(updates)
    return Convex(np.zeros(size), w, rounds)


def logistic_sites(seed: int, sites: int, size: int = 20, each: int = 50) -> dict[
    str, Callable[[Vector], Vector]
]:  # fmt: skip
    """Gradients of ridge logistic regression on data that differ from site to site.

    Site ``s0`` has its labels swapped, and is worth forgetting.
    """
    rng = np.random.default_rng(seed)
    common = rng.normal(size=size)
    result = {}
    for site in range(sites):
        x = rng.normal(size=(each, size)) + rng.normal(size=size)
        own = common + rng.normal(size=size)
        y = (rng.random(each) < 1 / (1 + np.exp(-x @ own))).astype(np.float64)
        result[f"s{site}"] = _logistic(x, 1 - y if site == 0 else y)
    return result


def _logistic(x: Vector, y: Vector) -> Callable[[Vector], Vector]:
    def gradient(w: Vector) -> Vector:
        return x.T @ (1 / (1 + np.exp(-x @ w)) - y) / len(y) + 0.01 * w

    return gradient
