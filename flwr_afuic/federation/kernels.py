"""Passes over large float32 arrays, compiled by numba if it is installed (the extra ``speed``).

Sums are held in 48 bits an entry: a float64 whose last 16 bits are rounded away (to nearest, ties
away from zero), 37 bits of mantissa where float32 has 24. Its first 32 bits lie in the memory of a
float32 array, which becomes the new model in the end, the other 16 beside it. NumPy takes many
passes for what compiled code does in one; both give the same numbers, bit by bit.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Pass = Callable[..., None]
Bits = NDArray[np.uint64]

_WIDTH = np.uint64(16)
_HALF = np.uint64(0x8000)
_LOW = np.uint64(0xFFFF)
_log = logging.getLogger("flwr_afuic")


class Passes(NamedTuple):
    """Work on the sums of one array; arrays are contiguous, of shape (n,), and not checked.

    ``high`` is float32, ``low`` uint16, updates and ``old`` float32. A product and the addition to
    the sum are each rounded to float64, the sum then to 48 bits.

    Attributes
    ----------
    weigh : callable(high, low, factor)
        ``sum = factor * high``, where ``high`` is an update as it came.
    pair : callable(high, low, factor, update, update_factor)
        ``weigh`` and ``fold`` in one.
    fold : callable(high, low, update, factor)
        ``sum += factor * update``.
    step : callable(high, low, old, rate)
        ``high = old + rate * sum``, now as float32.
    finish : callable(high, low, update, factor, old, rate)
        ``fold`` and ``step`` in one.
    whole : bool
        Whether a pass needs no scratch, and takes arrays of any length at once.
    """

    weigh: Pass
    pair: Pass
    fold: Pass
    step: Pass
    finish: Pass
    whole: bool


@cache
def compiled() -> Any | None:
    """Return the module of compiled passes, or None where numba is not installed."""
    if importlib.util.find_spec("numba") is None:
        _log.debug("numba is not installed: large models are summed in NumPy, which takes longer")
        return None
    return importlib.import_module("flwr_afuic.federation.compiled")


def passes() -> Passes:
    """Return the fastest passes there are."""
    made = compiled()
    if made is None:
        return IN_NUMPY
    return Passes(made.weigh, made.pair, made.fold, made.step, made.finish, whole=True)


def fits(array: NDArray[Any]) -> bool:
    """Whether compiled passes take an array: contiguous float32 or float64."""
    return array.dtype in (np.float32, np.float64) and array.flags.c_contiguous


def _write(high: NDArray[Any], low: NDArray[Any], values: NDArray[np.float64]) -> None:
    bits = _packed(values)
    low[...] = bits & _LOW
    bits >>= _WIDTH
    high.view(np.uint32)[...] = bits


def _packed(values: NDArray[np.float64]) -> Bits:
    """Round values, which are written over, to 48 bits."""
    bits = values.view(np.uint64)
    bits += _HALF
    bits >>= _WIDTH
    return bits


def _read(high: NDArray[Any], low: NDArray[Any]) -> NDArray[np.float64]:
    bits: Bits = high.view(np.uint32).astype(np.uint64)
    bits <<= _WIDTH
    bits |= low
    bits <<= _WIDTH
    return bits.view(np.float64)


def _weighed(update: NDArray[Any], factor: float) -> NDArray[np.float64]:
    values = update.astype(np.float64)
    values *= factor
    return values


def _weigh(high: NDArray[Any], low: NDArray[Any], factor: float) -> None:
    values = _weighed(high, factor)
    values += 0.0  # as if added to zero: no sum is a negative zero
    _write(high, low, values)


def _pair(
    high: NDArray[Any], low: NDArray[Any], factor: float, update: NDArray[Any],
    update_factor: float,
) -> None:  # fmt: skip
    _weigh(high, low, factor)
    _fold(high, low, update, update_factor)


def _fold(high: NDArray[Any], low: NDArray[Any], update: NDArray[Any], factor: float) -> None:
    values = _read(high, low)
    values += _weighed(update, factor)
    _write(high, low, values)


def _step(high: NDArray[Any], low: NDArray[Any], old: NDArray[Any], rate: float) -> None:
    values = _read(high, low)
    values *= rate
    values += old.astype(np.float64)
    high[...] = values


def _finish(
    high: NDArray[Any], low: NDArray[Any], update: NDArray[Any], factor: float,
    old: NDArray[Any], rate: float,
) -> None:  # fmt: skip
    _fold(high, low, update, factor)
    _step(high, low, old, rate)


IN_NUMPY = Passes(_weigh, _pair, _fold, _step, _finish, whole=False)
"""The same in NumPy, for pieces that stay in the processor's cache."""
