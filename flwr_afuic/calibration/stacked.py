"""The directions of many half-spaces as one matrix, read piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from flwr_afuic.federation.chunks import SHARED_FROM, spread
from flwr_afuic.federation.kernels import compiled

_BLOCK = 1 << 13
"""Entries of the matrix that one product takes: so few that BLAS starts no threads of its own."""


class StackedDirections:
    """The directions held, row by row, and what a projection needs of them again and again.

    A projection reads the basis twice, piece by piece and in as many threads as there are
    processors: once for the model's coordinates, once for the step. Neither makes a copy of it,
    and neither depends on the number of threads. Large models are read by compiled code where
    numba is installed; the sums differ in their last bits from those of BLAS.
    """

    def __init__(
        self,
        keys: tuple[str, ...],
        rows: npt.NDArray[np.float64],
        offsets: npt.NDArray[np.float64],
    ) -> None:
        self.keys = keys
        self.rows = rows
        self.offsets = offsets
        self.gram = rows @ rows.T
        self._block = max(256, _BLOCK // len(rows))

    def coordinates(self, vector: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], float]:
        """Return ``rows @ vector``, shape (m,), and the vector's length.

        The length is NaN or infinity where an entry is not finite.
        """
        if vector.size <= self._block:
            with np.errstate(over="ignore", invalid="ignore"):
                return self.rows @ vector, math.sqrt(vector @ vector)
        passes = self._passes(vector)
        found: list[tuple[int, npt.NDArray[np.float64], float]] = []

        def at_once(pieces: Iterator[slice]) -> None:
            for piece in pieces:
                sums = np.zeros(len(self.rows) + 1)
                passes.dots(self.rows, vector, piece.start, piece.stop, sums)
                found.append((piece.start, sums[:-1], float(sums[-1])))

        def work(pieces: Iterator[slice]) -> None:
            with np.errstate(over="ignore", invalid="ignore"):
                for piece in pieces:
                    reached, squares = np.zeros(len(self.rows)), 0.0
                    for block in self._blocks(piece):
                        part = vector[block]
                        reached += self.rows[:, block] @ part
                        squares += float(part @ part)
                    found.append((piece.start, reached, squares))

        spread(vector.size, work if passes is None else at_once)
        found.sort(key=lambda part: part[0])
        total = np.sum([reached for _, reached, _ in found], axis=0)
        return total, float(np.sqrt(sum(squares for _, _, squares in found)))

    def moved(
        self,
        vector: npt.NDArray[np.float64],
        weights: npt.NDArray[np.float64],
        result: npt.NDArray[np.floating],
    ) -> npt.NDArray[np.floating]:
        """Write ``vector + weights @ rows`` to ``result``, which may be ``vector``; return it."""
        if vector.size <= self._block:
            result[...] = vector + weights @ self.rows
            return result
        passes = self._passes(vector)

        def at_once(pieces: Iterator[slice]) -> None:
            for piece in pieces:
                passes.moved(result, vector, weights, self.rows, piece.start, piece.stop)

        def work(pieces: Iterator[slice]) -> None:
            for piece in pieces:
                for block in self._blocks(piece):
                    result[block] = vector[block] + weights @ self.rows[:, block]

        spread(vector.size, work if passes is None else at_once, whole_shares=passes is not None)
        return result

    def _passes(self, vector: npt.NDArray[np.float64]) -> Any:
        """Return compiled passes for a large model, where numba is installed."""
        return compiled() if vector.size >= SHARED_FROM and vector.flags.c_contiguous else None

    def _blocks(self, piece: slice) -> Iterator[slice]:
        for start in range(piece.start, piece.stop, self._block):
            yield slice(start, min(piece.stop, start + self._block))
