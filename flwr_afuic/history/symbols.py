"""Lattice points as symbols for the entropy coder, and back.

Z writes its integers. A2 and E8 write one bit for the coset and then the floors of the ambient
coordinates with one model a coset (a reduced basis would correlate them: E8 then takes 3.67
instead of 1.94 bits an entry at distortion 0.1). E8's last floor has the parity of the sum of the
others, which saves the bit that the coset costs. For A2 the coset and two ambient floors stand in
for the basis pair: they carry the same information with four small tables instead of a square
one [O].
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.history.coders import SymbolReader, SymbolWriter
from flwr_afuic.history.lattices import Lattice, Points

_COSETS = 0
_FLOORS = 1  # and the next: axis by axis, coset by coset
_GROUPS = 32  # numbers of groups of a family of points; masks use some of the first family's


def _groups(lattice: Lattice, coset: int) -> list[tuple[int, list[int]]]:
    """List (group, axes whose floors are alike) for points of one coset."""
    axes = list(range(lattice.dimension))
    if lattice.name == "A2":
        return [(_FLOORS + 2 * axis + coset, [axis]) for axis in axes]
    if lattice.name == "E8":
        axes.pop()
    return [(_FLOORS + coset, axes)]


def _parities(lattice: Lattice, floors: NDArray[np.int32]) -> list[NDArray[np.intp]]:
    """Return the blocks whose last floor is even, and those where it is odd."""
    odd = np.bitwise_xor.reduce(floors[: lattice.dimension - 1], axis=0) & 1
    return [np.flatnonzero(odd == parity) for parity in (0, 1)]


def _coset_blocks(
    lattice: Lattice, cosets: NDArray[np.bool_]
) -> Iterator[tuple[int, NDArray[np.intp] | slice]]:
    if lattice.dimension == 1:
        yield 0, slice(None)
        return
    for coset in (0, 1):
        yield coset, np.flatnonzero(cosets == coset)


def write_points(
    points: Points, lattice: Lattice, writer: SymbolWriter, *, family: int = 0
) -> None:
    """Hand lattice points to an entropy coder.

    Parameters
    ----------
    points : Points
        The points.
    lattice : Lattice
        Their lattice.
    writer : SymbolWriter
        Where to.
    family : int
        Points of another family, 0 to 7, have symbol models of their own.
    """
    base = _GROUPS * family
    if lattice.dimension > 1:
        writer.write(base + _COSETS, points.cosets)
    for coset, blocks in _coset_blocks(lattice, points.cosets):
        floors = points.floors if isinstance(blocks, slice) else points.floors.take(blocks, axis=1)
        center = 0.5 * coset
        for group, axes in _groups(lattice, coset):
            writer.write(base + group, floors[axes[0] : axes[-1] + 1], center=center)
        if lattice.name == "E8":
            for parity, part in enumerate(_parities(lattice, floors)):
                writer.write(
                    base + _FLOORS + coset, floors[-1, part], center=center, modulus=2,
                    residue=parity,
                )  # fmt: skip


def read_points(blocks: int, lattice: Lattice, reader: SymbolReader, *, family: int = 0) -> Points:
    """Take ``blocks`` lattice points of a family back from an entropy decoder."""
    base = _GROUPS * family
    cosets = np.zeros(blocks, dtype=np.bool_)
    if lattice.dimension > 1:
        cosets = reader.read(base + _COSETS, blocks).astype(np.bool_)
    result = np.empty((lattice.dimension, blocks), dtype=np.int32)
    for coset, places in _coset_blocks(lattice, cosets):
        count = blocks if isinstance(places, slice) else len(places)
        floors = np.empty((lattice.dimension, count), dtype=np.int32)
        for group, axes in _groups(lattice, coset):
            symbols = reader.read(base + group, count * len(axes))
            floors[axes[0] : axes[-1] + 1] = symbols.reshape(len(axes), count)
        if lattice.name == "E8":
            for parity, part in enumerate(_parities(lattice, floors)):
                floors[-1, part] = reader.read(
                    base + _FLOORS + coset, len(part), modulus=2, residue=parity
                )
        result[:, places] = floors
    return Points(cosets, result)
