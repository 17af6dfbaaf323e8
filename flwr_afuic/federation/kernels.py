"""Passes over large arrays that read and write each entry once, compiled by numba if installed.

NumPy takes three passes for ``sum += factor * update`` with mixed types, which a cache softens and
does not spare. With numba (the extra ``speed``) it is one, at the speed of the memory. Both give
the same numbers, bit by bit: one multiplication and one addition, each rounded to float64.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Pass = Callable[..., None]

_BLOCK = 4096
_log = logging.getLogger("flwr_afuic")


class Kernels(NamedTuple):
    """Compiled passes; all arrays are contiguous, of shape (n,), and not checked.

    Attributes
    ----------
    weigh : callable(sum, update, factor)
        ``sum = factor * update``.
    fold : callable(sum, update, factor)
        ``sum += factor * update``.
    step : callable(out, old, sum, rate)
        ``out = old + rate * sum``, rounded once to the type of ``out``.
    square : callable(array) -> float
        Sum of squares: of :data:`_BLOCK` entries in the array's type, of blocks in float64.
    """

    weigh: Pass
    fold: Pass
    step: Pass
    square: Callable[[NDArray[Any]], float]


@cache
def kernels() -> Kernels | None:
    """Return the compiled passes, or None where numba is not installed.

    Compiled when first called with arrays of some type, for a few seconds, and kept on disk.
    """
    try:
        numba = importlib.import_module("numba")
    except ImportError:
        _log.debug("numba is not installed: large models are summed in NumPy, which takes longer")
        return None
    compiled = numba.njit(nogil=True, cache=True, fastmath=False)
    # The terms of a block may be added in any order, so that several are at once.
    block = numba.njit(nogil=True, cache=True, fastmath={"reassoc"})(_square_block)

    def square(array: NDArray[Any]) -> float:
        return float(block(array, array.dtype.type(0)))

    return Kernels(compiled(_weigh), compiled(_fold), compiled(_step), square)


def fits(*arrays: NDArray[Any]) -> bool:
    """Whether compiled passes take these arrays: contiguous float32 or float64."""
    return all(
        array.dtype in (np.float32, np.float64) and array.flags.c_contiguous for array in arrays
    )


def _weigh(total: NDArray[Any], update: NDArray[Any], factor: float) -> None:
    for i in range(total.size):
        total[i] = factor * np.float64(update[i])


def _fold(total: NDArray[Any], update: NDArray[Any], factor: float) -> None:
    for i in range(total.size):
        total[i] += factor * np.float64(update[i])


def _step(out: NDArray[Any], old: NDArray[Any], total: NDArray[Any], rate: float) -> None:
    for i in range(out.size):
        out[i] = np.float64(old[i]) + rate * total[i]


def _square_block(array: NDArray[Any], zero: Any) -> float:
    total = 0.0
    for start in range(0, array.size, _BLOCK):
        part: Any = zero
        for i in range(start, min(start + _BLOCK, array.size)):
            part += array[i] * array[i]
        total += part
    return total
