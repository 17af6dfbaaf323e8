"""Subtractive dithered quantisation: encode ``q = NN(x/s + z)``, decode ``x^ = s (q - z)``.

The dither is drawn from Philox, a counter-based generator: key and tensor number are all it
takes to draw it again, so it is never stored [D]. Only the generator's raw words are used: NumPy
keeps those the same from version to version, unlike its distributions.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import HistoryError
from flwr_afuic.history.lattices import Floats, Lattice, Points

KEY_BYTES = 16
# Part of the format: which entries share a block follows from it. Its arrays fit a core's cache.
_CHUNK = 16384
_LARGEST = float(2**30)


def dither_key(seed: int, window: int, site: str) -> bytes:
    """Return the Philox key of one site's record of one window, 16 bytes."""
    text = "\x1f".join(["dither", str(seed), str(window), site])
    return hashlib.sha256(text.encode()).digest()[:KEY_BYTES]


def generator(key: bytes, tensor: int) -> np.random.Philox:
    """Return the counter-based generator of one tensor of one record."""
    # The top counter word: streams of 2**192 blocks each, which never meet.
    counter = np.array([0, 0, 0, tensor], dtype=np.uint64)
    return np.random.Philox(key=int.from_bytes(key, "little"), counter=counter)


def blocks_of(entries: int, lattice: Lattice) -> int:
    """Return into how many blocks ``entries`` entries are packed; the last may be padded."""
    return -(-entries // lattice.dimension)


def _chunks(entries: int, lattice: Lattice) -> list[tuple[int, int, int, int]]:
    """List (first entry, end, first block, end) of each chunk."""
    size = lattice.dimension
    return [
        (start, min(start + _CHUNK, entries), start // size, blocks_of(min(start + _CHUNK, entries),
         lattice))
        for start in range(0, entries, _CHUNK)
    ]  # fmt: skip


def _draw(source: np.random.Philox, lattice: Lattice, blocks: int) -> Floats:
    words = source.random_raw(-(-blocks * lattice.dimension // 2)).astype("<u8", copy=False)
    halves = words.view("<u4")[: blocks * lattice.dimension] >> np.uint32(8)
    uniform = halves.view(np.int32).astype(np.float32)
    uniform *= np.float32(2.0**-24)
    return lattice.dither(uniform.reshape(lattice.dimension, blocks))


def quantize(values: Floats, step: float, lattice: Lattice, key: bytes, tensor: int) -> Points:
    """Quantise entries at random: the error is uniform on the cell, whatever the entries.

    Parameters
    ----------
    values : ndarray of float32, shape (m,)
        Entries; blocks are padded with zeros.
    step : float
        Scale of the lattice, positive, in the entries' unit.
    lattice : Lattice
        Which lattice; it is unbounded, so that nothing overloads.
    key : bytes
        Key of the record, 16 bytes.
    tensor : int
        Number of the tensor in the record.

    Returns
    -------
    Points
        ``ceil(m / L)`` lattice points.

    Raises
    ------
    HistoryError
        If an entry is farther than 2**30 steps from zero, or is no number.
    """
    blocks = blocks_of(len(values), lattice)
    cosets = np.empty(blocks, dtype=np.bool_)
    floors = np.empty((lattice.dimension, blocks), dtype=np.int32)
    source = generator(key, tensor)
    factor = np.float32(1.0 / step)
    for start, end, first, last in _chunks(len(values), lattice):
        block = np.zeros((lattice.dimension, last - first), dtype=np.float32)
        np.multiply(values[start:end], factor, out=block.reshape(-1)[: end - start])
        if not max(block.max(), -block.min()) < _LARGEST:
            raise HistoryError(
                f"entries up to {np.abs(values[start:end]).max():g} cannot be quantised with step "
                f"{step:g}; use a larger step, and only finite updates"
            )
        block += _draw(source, lattice, last - first)
        points = lattice.nearest(block)
        cosets[first:last] = points.cosets
        floors[:, first:last] = points.floors
    return Points(cosets, floors)


def dequantize(
    points: Points, entries: int, step: float, lattice: Lattice, key: bytes, tensor: int
) -> NDArray[np.float32]:
    """Undo :func:`quantize` but for its error; float32, shape (entries,)."""
    values = np.empty(entries, dtype=np.float32)
    source = generator(key, tensor)
    for start, end, first, last in _chunks(entries, lattice):
        part = Points(points.cosets[first:last], points.floors[:, first:last])
        block = lattice.coordinates(part)
        block -= _draw(source, lattice, last - first)
        np.multiply(block.reshape(-1)[: end - start], np.float32(step), out=values[start:end])
    return values
