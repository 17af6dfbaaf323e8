"""Distance to retraining, in parameters and in predictions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from flwr_afuic.errors import ConfigError
from flwr_afuic.metrics._checks import (
    FloatArray,
    Weights,
    dot,
    flat_weights,
    minus,
    probabilities,
    same_layout,
    same_shape,
)


def parameter_distance_ratio(unlearned: Weights, retrained: Weights, original: Weights) -> float:
    """||U - R|| / ||O - R|| over all arrays together, Euclidean.

    Parameters
    ----------
    unlearned, retrained, original : list of array, of one layout
        Trained arrays only: BatchNorm counters would drown everything else.

    Returns
    -------
    float
        0 at retraining, 1 as far from it as the original. Two retrainings with different seeds
        are apart too: read it beside their ratio.

    Raises
    ------
    ConfigError
        If layouts differ, a value is not finite, or original and retrained are equal.

    Examples
    --------
    >>> parameter_distance_ratio([[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 4.0]])
    0.25
    """
    u = flat_weights(unlearned, "unlearned")
    r = flat_weights(retrained, "retrained")
    o = flat_weights(original, "original")
    same_layout(u, r, "unlearned and retrained")
    same_layout(o, r, "original and retrained")
    reference = _norm(minus(o, r))
    if reference == 0:
        raise ConfigError(
            "original and retrained are equal, so there is no distance to compare with; "
            "pass the model before the erasure as original"
        )
    return _norm(minus(u, r)) / reference


def jensen_shannon_per_sample(first: ArrayLike, second: ArrayLike) -> FloatArray:
    """Jensen-Shannon divergence of every pair of predictions.

    ``(KL(p || m) + KL(q || m)) / 2`` with ``m = (p + q) / 2`` (Lin 1991), base 2.

    Parameters
    ----------
    first, second : array, shape (n, C)
        Predicted probabilities of two models on the same samples.

    Returns
    -------
    array of float64, shape (n,)
        In bits, so in [0, 1].

    Raises
    ------
    ConfigError
        If shapes differ or rows are no probabilities.

    Examples
    --------
    >>> jensen_shannon_per_sample([[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]).tolist()
    [1.0, 0.0]
    """
    p, q = probabilities(first, "first"), probabilities(second, "second")
    same_shape(p, q, "first and second")
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    middle = (p + q) / 2
    divergence = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    # Rounding alone may leave the range.
    return np.asarray(np.clip(divergence, 0.0, 1.0), dtype=np.float64)


def jensen_shannon_divergence(first: ArrayLike, second: ArrayLike) -> float:
    """Mean over samples of the Jensen-Shannon divergence of two models' predictions.

    Parameters
    ----------
    first, second : array, shape (n, C)
        Predicted probabilities of two models on the same samples.

    Returns
    -------
    float
        In bits, so in [0, 1].

    Raises
    ------
    ConfigError
        If shapes differ or rows are no probabilities.

    Examples
    --------
    >>> jensen_shannon_divergence([[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]])
    0.5
    """
    return float(jensen_shannon_per_sample(first, second).mean())


def _norm(weights: list[FloatArray]) -> float:
    return math.sqrt(dot(weights, weights))


def _relative_entropy(p: FloatArray, q: FloatArray) -> FloatArray:
    """KL(p || q) of every row in bits; 0 log 0 is 0, and q > 0 wherever p > 0."""
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return np.asarray((p * np.log2(ratio)).sum(axis=1), dtype=np.float64)
