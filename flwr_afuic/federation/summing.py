"""Weighted sums of small updates, compensated and rounded once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.federation.chunks import CHUNK, spread
from flwr_afuic.federation.layout import Arrays, ArraySpec

FloatArray = NDArray[np.float64]

HELD_BYTES = 2 << 20
"""Updates that are held as they came until so many bytes are together."""


class WeightedSum:
    """A sum of weighted lists of arrays.

    Terms are taken together in batches, and each batch is added to the sum so far in compensated
    (two-float64) arithmetic and rounded once to float64. Small models fit one batch as a whole:
    their sum does not depend on the order of arrival (exact while the terms of one entry span
    less than 106 bits, which the screen's norm bound ensures in practice). Of larger updates each
    is a batch: plain float64 sums in the order of arrival. Of large models
    :class:`~flwr_afuic.federation.large_sums.LargeSum` sums most, this the rest.

    Memory: 8 bytes an entry once a batch is full, kept for the next sum, and at most
    :data:`HELD_BYTES` of updates that are held as they came.

    Parameters
    ----------
    specs : sequence of ArraySpec
        Of the arrays of one update.
    """

    def __init__(self, specs: Sequence[ArraySpec]) -> None:
        self._sizes = [spec.size for spec in specs]
        self._sums: list[FloatArray] = []
        self._held: list[tuple[Arrays, float]] = []
        self._held_bytes = 0
        self._summed = False

    def add(self, arrays: Arrays, factor: float) -> None:
        """Add ``factor`` times ``arrays``, which must not change before the sum is cleared."""
        flat = [np.asarray(array).reshape(-1) for array in arrays]
        self._held.append((flat, float(factor)))
        self._held_bytes += sum(array.nbytes for array in flat)
        if self._held_bytes > HELD_BYTES:
            self._fold()

    def total(
        self, index: int, piece: slice, out: FloatArray, scratch: Scratch, rate: float = 1.0
    ) -> None:
        """Write a piece of one array's sum, times ``rate``, into ``out``."""
        if self._summed and not self._held:
            np.multiply(self._sums[index][piece], rate, out=out)
            return
        terms = [(arrays[index][piece], factor) for arrays, factor in self._held]
        if self._summed:
            out[...] = self._sums[index][piece]
        else:
            _weigh(out, *terms.pop(0))
            out += 0.0  # as if added to zero: no sum is a negative zero
        _add(out, terms, scratch)
        out *= rate

    def clear(self) -> None:
        """Empty the sum; the accumulators are kept for the next one."""
        self._held, self._held_bytes, self._summed = [], 0, False

    @property
    def bytes_kept(self) -> int:
        """Bytes of accumulators and held updates."""
        return self._held_bytes + sum(array.nbytes for array in self._sums)

    def _fold(self) -> None:
        if not self._sums:
            self._sums = [np.empty(size) for size in self._sizes]
        for index, total in enumerate(self._sums):
            self._fold_one(index, total)
        self._held, self._held_bytes, self._summed = [], 0, True

    def _fold_one(self, index: int, total: FloatArray) -> None:
        def work(pieces: Iterator[slice]) -> None:
            scratch = Scratch(total.size)
            for piece in pieces:
                part = total[piece]
                terms = [(arrays[index][piece], factor) for arrays, factor in self._held]
                if not self._summed:
                    _weigh(part, *terms.pop(0))
                _add(part, terms, scratch)

        spread(total.size, work)


class Scratch:
    """Buffers of one thread, each made when it is first asked for."""

    def __init__(self, size: int) -> None:
        self._size = min(CHUNK, size)
        self._buffers: dict[str, FloatArray] = {}

    def take(self, name: str, size: int) -> FloatArray:
        """Return the first ``size`` entries of a buffer."""
        if name not in self._buffers:
            self._buffers[name] = np.empty(self._size)
        return self._buffers[name][:size]


Term = tuple[NDArray[np.generic], float]


def _weigh(out: FloatArray, part: NDArray[np.generic], factor: float) -> None:
    out[...] = part  # in two steps: NumPy multiplies mixed types through a slow buffer
    out *= factor


def _add(total: FloatArray, terms: list[Term], scratch: Scratch) -> None:
    """Add terms to ``total`` in place, rounding once."""
    size = total.size
    if len(terms) <= 1:  # then the rounded sum is what plain addition gives
        for part, factor in terms:
            term = scratch.take("term", size)
            _weigh(term, part, factor)
            total += term
        return
    term, shadow, rest, low = (scratch.take(n, size) for n in ("term", "shadow", "rest", "low"))
    high = scratch.take("high", size)
    low[...] = 0.0
    for part, factor in terms:  # Knuth's two-sum
        _weigh(term, part, factor)
        np.add(total, term, out=high)
        np.subtract(high, total, out=shadow)
        np.subtract(high, shadow, out=rest)
        np.subtract(total, rest, out=rest)
        np.subtract(term, shadow, out=term)
        rest += term
        low += rest
        total[...] = high
    total += low
