"""The passes of :mod:`flwr_afuic.federation.kernels`, compiled by numba, which must be installed.

Each reads and writes every entry once, at the speed of the memory. Compiled when first called with
arrays of some type, for a few seconds, and kept on disk.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

_BLOCK = 4096
_WIDTH = np.uint64(16)
_HALF = np.uint64(0x8000)


def _packed(value: float) -> Any:
    bits = np.float64(value).view(np.uint64)
    return (bits + _HALF) >> _WIDTH


def _unpacked(bits: Any) -> Any:
    return np.uint64(bits << _WIDTH).view(np.float64)


_round = numba.njit(inline="always")(_packed)
_widen = numba.njit(inline="always")(_unpacked)


def _weigh(high: NDArray[Any], low: NDArray[Any], factor: float) -> None:
    for i in range(high.size):
        bits = _round(factor * np.float64(high[i]) + 0.0)
        high[i] = np.uint32(bits >> _WIDTH).view(np.float32)
        low[i] = np.uint16(bits)


def _pair(
    high: NDArray[Any], low: NDArray[Any], factor: float, a: NDArray[Any], other: float
) -> None:
    for i in range(high.size):
        first = _widen(_round(factor * np.float64(high[i]) + 0.0))
        bits = _round(first + other * np.float64(a[i]))
        high[i] = np.uint32(bits >> _WIDTH).view(np.float32)
        low[i] = np.uint16(bits)


def _fold(high: NDArray[Any], low: NDArray[Any], a: NDArray[Any], factor: float) -> None:
    for i in range(high.size):
        top = np.uint64(np.float32(high[i]).view(np.uint32)) << _WIDTH
        bits = _round(_widen(top | np.uint64(low[i])) + factor * np.float64(a[i]))
        high[i] = np.uint32(bits >> _WIDTH).view(np.float32)
        low[i] = np.uint16(bits)


def _step(high: NDArray[Any], low: NDArray[Any], old: NDArray[Any], rate: float) -> None:
    for i in range(high.size):
        top = np.uint64(np.float32(high[i]).view(np.uint32)) << _WIDTH
        high[i] = np.float64(old[i]) + rate * _widen(top | np.uint64(low[i]))


def _finish(
    high: NDArray[Any], low: NDArray[Any], a: NDArray[Any], factor: float, old: NDArray[Any],
    rate: float,
) -> None:  # fmt: skip
    for i in range(high.size):
        top = np.uint64(np.float32(high[i]).view(np.uint32)) << _WIDTH
        bits = _round(_widen(top | np.uint64(low[i])) + factor * np.float64(a[i]))
        high[i] = np.float64(old[i]) + rate * _widen(bits)


def _square_block(array: NDArray[Any], zero: Any) -> float:
    total = 0.0
    for start in range(0, array.size, _BLOCK):
        block: Any = array[start : start + _BLOCK]
        part: Any = zero
        for i in range(block.size):
            part += block[i] * block[i]
        total += part
    return total


_compile = numba.njit(nogil=True, cache=True, fastmath=False)
weigh, pair, fold = _compile(_weigh), _compile(_pair), _compile(_fold)
step, finish = _compile(_step), _compile(_finish)
# The terms of a block may be added in any order, so that several are at once.
_block = numba.njit(nogil=True, cache=True, fastmath={"reassoc"})(_square_block)


def square(array: NDArray[Any]) -> float:
    """Sum of squares: of blocks in the array's type, over blocks in float64."""
    return float(_block(array, array.dtype.type(0)))
