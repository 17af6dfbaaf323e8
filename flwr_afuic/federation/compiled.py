"""The passes of :mod:`flwr_afuic.federation.kernels`, compiled by numba, which must be installed.

Each reads and writes every entry once, at the speed of the memory. Compiled when first called with
arrays of some type, for a few seconds, and kept on disk.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

_BLOCK = 2048
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


def _eight_rows(flat: NDArray[Any], at: int, size: int, n: int) -> Any:
    return (
        flat[at : at + n],
        flat[at + size : at + size + n],
        flat[at + 2 * size : at + 2 * size + n],
        flat[at + 3 * size : at + 3 * size + n],
        flat[at + 4 * size : at + 4 * size + n],
        flat[at + 5 * size : at + 5 * size + n],
        flat[at + 6 * size : at + 6 * size + n],
        flat[at + 7 * size : at + 7 * size + n],
    )


_rows8 = numba.njit(inline="always")(_eight_rows)


def _dots_of_eight(
    found: NDArray[Any], flat: NDArray[Any], at: int, size: int, x: NDArray[Any]
) -> None:
    n = x.size
    a, b, c, d, e, f, g, h = _rows8(flat, at, size, n)
    sa, sb, sc, sd, se, sf, sg, sh = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        sa += a[i] * x[i]
        sb += b[i] * x[i]
        sc += c[i] * x[i]
        sd += d[i] * x[i]
        se += e[i] * x[i]
        sf += f[i] * x[i]
        sg += g[i] * x[i]
        sh += h[i] * x[i]
    found[0] += sa
    found[1] += sb
    found[2] += sc
    found[3] += sd
    found[4] += se
    found[5] += sf
    found[6] += sg
    found[7] += sh


def _dots(
    rows: NDArray[Any], vector: NDArray[Any], start: int, stop: int, found: NDArray[Any]
) -> None:
    flat = rows.reshape(-1)  # slices of a matrix are not known to be contiguous
    size, count = vector.size, rows.shape[0]
    for first in range(start, stop, _BLOCK):
        x: Any = vector[first : min(stop, first + _BLOCK)]
        n, squares, r = x.size, 0.0, 0
        for i in range(n):
            squares += x[i] * x[i]
        found[-1] += squares
        while r + 8 <= count:  # the memory brings several streams sooner than one
            _dots8(found[r : r + 8], flat, r * size + first, size, x)
            r += 8
        while r < count:
            at, total = r * size + first, 0.0
            row: Any = flat[at : at + n]
            for i in range(n):
                total += row[i] * x[i]
            found[r] += total
            r += 1


def _add_eight(
    total: NDArray[Any], flat: NDArray[Any], at: int, size: int, weights: NDArray[Any]
) -> None:
    n = total.size
    a, b, c, d, e, f, g, h = _rows8(flat, at, size, n)
    wa, wb, wc, wd = weights[0], weights[1], weights[2], weights[3]
    we, wf, wg, wh = weights[4], weights[5], weights[6], weights[7]
    for i in range(n):
        left = (wa * a[i] + wb * b[i]) + (wc * c[i] + wd * d[i])
        total[i] += left + ((we * e[i] + wf * f[i]) + (wg * g[i] + wh * h[i]))


def _moved(
    out: NDArray[Any], vector: NDArray[Any], weights: NDArray[Any], rows: NDArray[Any],
    start: int, stop: int,
) -> None:  # fmt: skip
    flat = rows.reshape(-1)
    size, count = vector.size, rows.shape[0]
    scratch = np.empty(_BLOCK)
    for first in range(start, stop, _BLOCK):
        x: Any = vector[first : min(stop, first + _BLOCK)]
        n, r = x.size, 0
        total: Any = scratch[:n]
        for i in range(n):
            total[i] = x[i]
        while r + 8 <= count:
            _add8(total, flat, r * size + first, size, weights[r : r + 8])
            r += 8
        while r < count:
            at = r * size + first
            row: Any = flat[at : at + n]
            for i in range(n):
                total[i] += weights[r] * row[i]
            r += 1
        for i in range(n):
            out[first + i] = total[i]


_compile = numba.njit(nogil=True, cache=True, fastmath=False)
weigh, pair, fold = _compile(_weigh), _compile(_pair), _compile(_fold)
step, finish = _compile(_step), _compile(_finish)
# The terms of a block may be added in any order, so that several are at once.
_reorder = numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
_add8, _dots8 = _reorder(_add_eight), _reorder(_dots_of_eight)
_block, dots = _reorder(_square_block), _reorder(_dots)
moved = _reorder(_moved)


def square(array: NDArray[Any]) -> float:
    """Sum of squares: of blocks in the array's type, over blocks in float64."""
    return float(_block(array, array.dtype.type(0)))
