"""Lattices Z, A2 and E8: nearest points, and dither that is uniform on the Voronoi cell.

The random lattice coding of MEDU (arXiv 2505.03388) is entropy-coded subtractive dithered
quantisation. That it is a lattice code is the paper's word [P]; these lattices, their
decoders and their dither are derived here [D]. Every lattice is scaled to cell volume 1, so that
one step size means the same for all: the error of an entry is ``step**2 * second_moment``.

Points are integers throughout: each lattice here is a rectangular lattice and its translate
by half a diagonal, so a point is a coset (0 or 1) and the floors of its coordinates.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import ConfigError

Floats = NDArray[np.float32]
_HALF = np.float32(0.5)


@dataclass(frozen=True)
class Points:
    """Lattice points of ``n`` blocks of length ``L``.

    Attributes
    ----------
    cosets : ndarray of bool, shape (n,)
        Which translate each point belongs to; all False for Z.
    floors : ndarray of int32, shape (L, n)
        Floors of the coordinates in the units of the rectangular lattice.
    """

    cosets: NDArray[np.bool_]
    floors: NDArray[np.int32]


class Lattice(ABC):
    """One lattice of cell volume 1.

    Attributes
    ----------
    name : str
        As settings name it.
    code : int
        As records name it.
    dimension : int
        Entries per block, ``L``.
    second_moment : float
        Normalised second moment of the Voronoi cell per dimension (Conway and Sloane,
        chapter 21): the mean squared error of an entry at step 1.
    """

    name: ClassVar[str]
    code: ClassVar[int]
    dimension: ClassVar[int]
    second_moment: ClassVar[float]

    @abstractmethod
    def nearest(self, points: Floats) -> Points:
        """Return the lattice points nearest to ``points``, shape (L, n)."""

    @abstractmethod
    def coordinates(self, points: Points) -> Floats:
        """Return where lattice points lie, shape (L, n)."""

    @abstractmethod
    def spread(self, uniform: Floats) -> Floats:
        """Map uniform numbers in [0, 1), shape (L, n), on a box that tiles space with the lattice.

        A box of periods of the lattice holds a whole number of its cells, so reducing it modulo
        the lattice is uniform on the Voronoi cell, as with the fundamental parallelepiped.
        """

    def dither(self, uniform: Floats) -> Floats:
        """Return ``y - nearest(y)``, uniform on the Voronoi cell, shape (L, n)."""
        spread = self.spread(uniform)
        spread -= self.coordinates(self.nearest(spread))
        return spread


class CubicLattice(Lattice):
    """The integers: scalar rounding."""

    name = "Z"
    code = 1
    dimension = 1
    second_moment = 1.0 / 12.0

    def nearest(self, points: Floats) -> Points:
        """See :meth:`Lattice.nearest`."""
        floors = np.rint(points).astype(np.int32)
        return Points(np.zeros(points.shape[1], dtype=np.bool_), floors)

    def coordinates(self, points: Points) -> Floats:
        """See :meth:`Lattice.coordinates`."""
        return points.floors.astype(np.float32)

    def spread(self, uniform: Floats) -> Floats:
        """See :meth:`Lattice.spread`."""
        return uniform.copy()


class HexagonalLattice(Lattice):
    """A2: the better of two rectangular cosets of sides 1 and sqrt(3)."""

    name = "A2"
    code = 2
    dimension = 2
    second_moment = 5.0 / (36.0 * math.sqrt(3.0))
    # Sides of the rectangle once the cell, half of it, is scaled to area 1.
    _sides: ClassVar[Floats] = np.sqrt(
        np.array([[2.0 / math.sqrt(3.0)], [2.0 * math.sqrt(3.0)]])
    ).astype(np.float32)

    def nearest(self, points: Floats) -> Points:
        """See :meth:`Lattice.nearest`."""
        scaled = points / self._sides
        rounded = np.rint(scaled)
        scaled -= rounded
        below = scaled < 0
        np.abs(scaled, out=scaled)
        # The other coset lies 1/2 - |d| away: compare (|dx|, |dy|) of both, in units of the sides.
        cosets = scaled[0] + np.float32(3.0) * scaled[1] > 1
        floors = rounded.astype(np.int32)
        floors -= below & cosets
        return Points(cosets, floors)

    def coordinates(self, points: Points) -> Floats:
        """See :meth:`Lattice.coordinates`."""
        places = points.floors.astype(np.float32)
        places += points.cosets * _HALF
        places *= self._sides
        return places

    def spread(self, uniform: Floats) -> Floats:
        """See :meth:`Lattice.spread`."""
        spread: Floats = uniform * self._sides
        return spread


class GossetLattice(Lattice):
    """E8: the better of D8 and D8 + 1/2 (Conway and Sloane, 1982)."""

    name = "E8"
    code = 3
    dimension = 8
    second_moment = 929.0 / 12960.0

    def nearest(self, points: Floats) -> Points:
        """See :meth:`Lattice.nearest`.

        Both cosets follow from one rounding: with ``d = x - round(x)`` the half-integers lie
        ``1/2 - |d|`` away. In either coset the sum of the floors must be even; where it is odd, the
        coordinate with the largest residual is rounded the other way.
        """
        rounded = np.rint(points)
        residual = points - rounded
        below = residual < 0
        np.abs(residual, out=residual)
        floors = rounded.astype(np.int32)
        odd = (np.bitwise_xor.reduce(floors, axis=0) & 1).astype(np.bool_)
        odd_half = odd ^ np.bitwise_xor.reduce(below, axis=0)
        largest, smallest = residual.max(axis=0), residual.min(axis=0)
        # Row by row: the order of a sum of floats must not depend on the machine.
        total = residual[0].copy()
        for row in residual[1:]:
            total += row
        whole = odd * (1 - 2 * largest)
        half = 2 - total + odd_half * (2 * smallest)
        cosets = half < whole
        # Where the sum is odd, the first coordinate with the extreme residual moves.
        moves = residual == np.where(cosets, smallest, largest)
        left = np.where(cosets, odd_half, odd)
        for row in moves:
            row &= left
            left ^= row
        # Steps of -1, 0 and 1 in bytes, added at once: numpy is slow where types meet.
        steps = moves.view(np.int8) - (below & cosets).view(np.int8)
        below ^= cosets
        below &= moves
        steps -= below.view(np.int8) << 1
        floors += steps.astype(np.int32)
        return Points(cosets, floors)

    def coordinates(self, points: Points) -> Floats:
        """See :meth:`Lattice.coordinates`."""
        places = points.floors.astype(np.float32)
        places += points.cosets * _HALF
        return places

    def spread(self, uniform: Floats) -> Floats:
        """See :meth:`Lattice.spread`."""
        return uniform * np.float32(2.0)


LATTICES: dict[str, Lattice] = {
    lattice.name: lattice for lattice in (CubicLattice(), HexagonalLattice(), GossetLattice())
}


def lattice_named(name: str) -> Lattice:
    """Return the lattice of that name; ConfigError lists the known ones."""
    if name not in LATTICES:
        raise ConfigError(f"unknown lattice {name!r}; use one of {', '.join(LATTICES)}")
    return LATTICES[name]
