"""The directions of many half-spaces as one matrix, read piece by piece."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_PIECE = 1 << 18
"""Entries of a model that are projected at a time; results are the same where it is one piece."""


class StackedDirections:
    """The directions held, row by row, and what a projection needs of them again and again.

    A projection reads the basis twice, piece by piece: once for the model's coordinates, once
    for the step. Neither makes a copy of it.
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

    def coordinates(self, vector: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], float]:
        """Return ``rows @ vector``, shape (m,), and the vector's length.

        The length is NaN or infinity where an entry is not finite.
        """
        reached, squares = np.zeros(len(self.rows)), 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, vector.size, _PIECE):
                part = vector[start : start + _PIECE]
                reached += self.rows[:, start : start + _PIECE] @ part
                squares += float(part @ part)
        return reached, float(np.sqrt(squares))

    def moved(
        self,
        vector: npt.NDArray[np.float64],
        weights: npt.NDArray[np.float64],
        dtype: np.dtype[np.floating],
    ) -> npt.NDArray[np.floating]:
        """Return ``vector + weights @ rows`` as ``dtype``."""
        result = np.empty(vector.shape, dtype)
        for start in range(0, vector.size, _PIECE):
            piece = slice(start, start + _PIECE)
            result[piece] = vector[piece] + weights @ self.rows[:, piece]
        return result
