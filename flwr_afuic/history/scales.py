"""In which unit the step of each tensor of an update is measured.

What is unlearned is a sum over tensors and windows, and at ``kappa = 1`` an error in any of them
counts the same. The fewest bytes for a given error of the sum take the same error everywhere, and
nothing finer where entries are small ("reverse water-filling", Cover and Thomas, 10.3.3) [D]. So
one step serves all tensors of an update; from window to window, :mod:`flwr_afuic.history.encoder`
holds it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import HistoryError

Unit = Literal["update", "tensor"]

_MOST_FAMILIES = 8
_LEAST_FAMILY = 1024  # entries
_SMALLEST = 1e-30  # below it, a tensor is zero for every purpose


def deviation(values: NDArray[np.float32]) -> float:
    """Standard deviation about zero of a flat tensor; 0 for no entries or next to none.

    Raises
    ------
    HistoryError
        If it holds NaN or infinity.
    """
    if not len(values):
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        square = float(np.dot(values, values)) / len(values)
    if not math.isfinite(square):
        square = float(np.mean(np.square(values, dtype=np.float64)))
    if not math.isfinite(square) or math.sqrt(square) > np.finfo(np.float32).max:
        raise HistoryError("an update holds NaN or infinity and cannot be stored; screen it first")
    std = float(np.float32(math.sqrt(square)))
    return std if std > _SMALLEST else 0.0


def units(
    stds: Sequence[float],
    sizes: Sequence[int],
    unit: Unit,
    *,
    alone_below: int,
    least: Sequence[float] | None = None,
) -> list[float]:
    """Return in what each tensor's step is measured.

    Parameters
    ----------
    stds : sequence of float
        Standard deviation of each tensor.
    sizes : sequence of int
        Its number of entries.
    unit : {"update", "tensor"}
        The standard deviation of all entries together, or of each tensor.
    alone_below : int
        A tensor of at most so many entries has its own unit in any case: its bytes do not matter.
    least : sequence of float, optional
        Lower bound for each tensor.

    Returns
    -------
    list of float
        Zero for a tensor of zeros.
    """
    total = sum(std * std * size for std, size in zip(stds, sizes, strict=True))
    whole = math.sqrt(total / max(1, sum(sizes)))
    found = []
    for std, size, bound in zip(stds, sizes, least or [0.0] * len(stds), strict=True):
        own = whole if unit == "update" and size > alone_below else std
        found.append(float(np.float32(max(own, bound))) if std else 0.0)
    return found


def families(ratios: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Group tensors whose entries are alike once divided by their units.

    Parameters
    ----------
    ratios : sequence of float
        Unit over standard deviation of each tensor; infinite for a tensor of zeros.
    sizes : sequence of int
        Its number of entries that are coded.

    Returns
    -------
    list of int
        A family for each, 0 to 7: octaves of the ratio. Small families join the next large one, as
        the symbol models of a family take bytes, too.
    """
    octaves = [
        min(_MOST_FAMILIES - 1, max(0, 1 + round(math.log2(ratio)))) if 0 < ratio < math.inf else 0
        for ratio in ratios
    ]
    entries = Counter[int]()
    for octave, size in zip(octaves, sizes, strict=True):
        entries[octave] += size
    large = sorted(octave for octave, count in entries.items() if count >= _LEAST_FAMILY) or [0]
    return [min(large, key=lambda other: abs(other - octave)) for octave in octaves]
