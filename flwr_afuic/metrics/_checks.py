"""Argument validation shared by the metrics, kept apart from what they compute."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flwr_afuic.errors import ConfigError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Weights = ArrayLike | Sequence[ArrayLike]
"""A model's arrays in their order, or a single array."""

# Differences of decimal scores miss their bound by rounding (.9 - .85 > .05); far below any score.
ROUNDING = 1e-9
_ROW_SUM_TOLERANCE = 1e-3


def finite_array(values: ArrayLike, name: str, ndim: int | None = None) -> FloatArray:
    """Return `values` as float64, refusing what is empty, not finite or of another rank."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} is not an array of numbers: {error}; pass numbers") from error
    if ndim is not None and array.ndim != ndim:
        raise ConfigError(f"{name} has shape {array.shape}; pass an array with {ndim} axes")
    if array.size == 0:
        raise ConfigError(f"{name} is empty; pass at least one value")
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise ConfigError(f"{name} holds {bad} NaN or infinite values; remove or repair them")
    return array


def finite_number(value: float, name: str) -> float:
    """Return `value` as a float, refusing NaN and infinity."""
    return float(finite_array(value, name, ndim=0))


def share(value: float, name: str) -> float:
    """Return `value` as a float in [0, 1]."""
    number = finite_number(value, name)
    if not -ROUNDING <= number <= 1 + ROUNDING:
        raise ConfigError(f"{name} is {number}; pass a value between 0 and 1")
    return number


def not_negative(value: float, name: str) -> float:
    """Return `value` as a finite float that is zero or more."""
    number = finite_number(value, name)
    if number < 0:
        raise ConfigError(f"{name} is {number}; pass zero or more")
    return number


def class_labels(values: ArrayLike, name: str, n_classes: int | None = None) -> IntArray:
    """Return `values`, shape (n,), as class indices, below `n_classes` where that is given."""
    array = finite_array(values, name, ndim=1)
    labels = array.astype(np.int64)
    if np.any(labels != array):
        raise ConfigError(f"{name} holds values that are no whole numbers; pass class indices")
    if n_classes is not None and (labels.min() < 0 or labels.max() >= n_classes):
        raise ConfigError(
            f"{name} runs from {labels.min()} to {labels.max()}; "
            f"pass class indices from 0 to {n_classes - 1}"
        )
    return labels


def probabilities(values: ArrayLike, name: str) -> FloatArray:
    """Return `values`, shape (n, C), refusing rows that are no probability distributions."""
    array = finite_array(values, name, ndim=2)
    sums = array.sum(axis=1)
    if np.any(array < 0) or np.any(np.abs(sums - 1) > _ROW_SUM_TOLERANCE):
        raise ConfigError(
            f"{name} has rows that are no probabilities (sums from {sums.min():.4g} to "
            f"{sums.max():.4g}, least value {array.min():.4g}); apply softmax first"
        )
    return array


def same_shape(first: NDArray[np.generic], second: NDArray[np.generic], names: str) -> None:
    """Refuse two arrays that do not match in shape."""
    if first.shape != second.shape:
        raise ConfigError(
            f"{names} differ in shape: {first.shape} and {second.shape}; "
            "pass one entry of each for every sample"
        )


def flat_weights(weights: Weights, name: str) -> list[FloatArray]:
    """Return a model's arrays as float64; a single array counts as a model of one array."""
    if hasattr(weights, "__array__"):
        return [finite_array(weights, name)]
    if not isinstance(weights, list | tuple) or not weights:
        raise ConfigError(f"{name} is no array and no list of arrays; pass a model's arrays")
    return [finite_array(array, f"{name}[{index}]") for index, array in enumerate(weights)]


def same_layout(first: list[FloatArray], second: list[FloatArray], names: str) -> None:
    """Refuse two models whose arrays differ in number or shape."""
    if [array.shape for array in first] != [array.shape for array in second]:
        raise ConfigError(
            f"{names} differ in layout: {len(first)} and {len(second)} arrays, first shapes "
            f"{first[0].shape} and {second[0].shape}; pass two versions of one model"
        )


def dot(first: list[FloatArray], second: list[FloatArray]) -> float:
    """Return the inner product of two models of one layout, accumulated in float64."""
    return math.fsum(float(np.vdot(a, b)) for a, b in zip(first, second, strict=True))


def minus(first: list[FloatArray], second: list[FloatArray]) -> list[FloatArray]:
    """Return the difference of two models of one layout."""
    return [a - b for a, b in zip(first, second, strict=True)]
