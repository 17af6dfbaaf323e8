"""Which entries of a record are stored: a bitmap, or the gaps between them, whichever is shorter.

The mask often takes more bytes than the entries. It is coded for all tensors of a record
together: bytes of the bitmap, or delta-coded indices, both through the entropy coder.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import RecordError
from flwr_afuic.history.coders import SymbolReader, SymbolWriter

_BITMAP, _GAPS = 16, 17  # groups of symbols, apart from those of lattice points
_RARE = 4096

Indices = NDArray[np.int64]


def write_mask(kept: Indices, entries: int, writer: SymbolWriter) -> int:
    """Hand a mask to an entropy coder.

    Parameters
    ----------
    kept : ndarray of int64, shape (m,)
        Indices of the stored entries, ascending.
    entries : int
        How many entries the mask covers.
    writer : SymbolWriter
        Where to.

    Returns
    -------
    int
        What the mask was written as, for :func:`read_mask`.
    """
    if len(kept) == 0:
        return _GAPS
    gaps = np.diff(kept, prepend=-1) - 1
    bits = np.zeros(entries, dtype=np.bool_)
    bits[kept] = True
    bitmap = np.packbits(bits)
    if int(gaps.max()) >= 2**30 or _cost(bitmap) < _cost(gaps):
        writer.write(_BITMAP, bitmap)
        return _BITMAP
    writer.write(_GAPS, gaps)
    return _GAPS


def _cost(symbols: NDArray[np.uint8] | Indices) -> float:
    """Estimate the bits that symbols and their model take: a table, or a geometric law."""
    mean = float(symbols.mean())
    curve = (mean + 1) * np.log2(mean + 1) - mean * np.log2(mean) if mean else 0.0
    top = int(symbols.max())
    if top >= _RARE:
        return len(symbols) * curve
    counts = np.bincount(symbols)
    counts = counts[counts > 0]
    table = float(-(counts * np.log2(counts / len(symbols))).sum()) + 8.0 * top
    return min(table, len(symbols) * curve)


def read_mask(kind: int, count: int, entries: int, reader: SymbolReader) -> Indices:
    """Take the indices of ``count`` stored entries among ``entries`` back.

    Raises
    ------
    RecordError
        If they are not so many, or lie outside.
    """
    if kind == _BITMAP:
        bitmap = reader.read(_BITMAP, -(-entries // 8)).astype(np.uint8)
        kept = np.flatnonzero(np.unpackbits(bitmap, count=entries))
    elif kind == _GAPS:
        kept = np.cumsum(reader.read(_GAPS, count).astype(np.int64) + 1) - 1
    else:
        raise RecordError(f"the record's mask has kind {kind}; it is damaged")
    if len(kept) != count or (count and not 0 <= kept[0] <= kept[-1] < entries):
        raise RecordError(f"the record's mask does not mark {count} of {entries} entries")
    return kept
