"""The bytes of one stored update: what they look like, and what is refused.

A record is complete in itself: format version, shapes and dtypes, standard deviations and step,
lattice, dither key, mask, payload, and a CRC-32 of all of it. The same arrays, settings and key
give the same bytes.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np

from flwr_afuic.errors import RecordError
from flwr_afuic.history.dither import KEY_BYTES
from flwr_afuic.history.packing import Reader, pack_number

MAGIC = b"AFUH"
VERSION = 2
"""Since 2, tensors have families, and may say that their deviation is the last tensor's."""

READABLE = (1, 2)
_FIXED = struct.Struct("<BBBf")
_CHECKSUMS = struct.Struct("<II")
_DTYPES = {"float16": 1, "float32": 2, "float64": 3}
_DTYPE_NAMES = {code: name for name, code in _DTYPES.items()}
_DTYPE, _FAMILY, _SAME, _WHOLE = 0x07, 0x38, 0x40, 0x80  # bits of a tensor's first byte
_MOST_TENSORS = 1_000_000
_MOST_ENTRIES = 2**40


@dataclass(frozen=True)
class TensorHead:
    """What a record says of one tensor.

    Attributes
    ----------
    shape : tuple of int
        Its shape.
    dtype : str
        The dtype of the model's array; decoded values are float32.
    std : float
        Standard deviation that the lattice's step ``c * std`` is measured in. Zero for a tensor
        of zeros.
    whole : bool
        Whether every entry is stored, so that the mask does not cover it.
    family : int
        Tensors of one family share symbol models, 0 to 7.
    """

    shape: tuple[int, ...]
    dtype: str
    std: float
    whole: bool
    family: int = 0

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class RecordHead:
    """What a record says before its payload.

    Attributes
    ----------
    lattice : int
        Code of the lattice; 0 for entries stored as float32.
    coder : int
        Code of the entropy coder.
    mask : int
        How the mask is coded.
    step : float
        ``c``, the lattice's step in standard deviations.
    key : bytes
        Key of the dither.
    kept : int
        Entries that the mask marks.
    tensors : tuple of TensorHead
        The tensors, in order.
    symbols : int
        CRC-32 of the entropy coder's symbols.
    """

    lattice: int
    coder: int
    mask: int
    step: float
    key: bytes
    kept: int
    tensors: tuple[TensorHead, ...]
    symbols: int


def check_dtype(dtype: str) -> None:
    """Raise :class:`RecordError` for an array whose deviations cannot be stored."""
    if dtype not in _DTYPES:
        raise RecordError(
            f"an update has dtype {dtype}; only {', '.join(_DTYPES)} can be stored: leave counters "
            "and statistics out"
        )


def pack_record(head: RecordHead, payload: bytes) -> bytes:
    """Assemble a record."""
    parts = [
        MAGIC,
        bytes([VERSION]),
        _FIXED.pack(head.lattice, head.coder, head.mask, head.step),
        head.key,
        pack_number(head.kept),
        pack_number(len(head.tensors)),
    ]
    last = None
    for tensor in head.tensors:
        same = tensor.std == last
        flags = tensor.family << 3 | _SAME * same | _WHOLE * tensor.whole
        parts.append(bytes([_DTYPES[tensor.dtype] | flags]))
        parts.append(pack_number(len(tensor.shape)))
        parts += [pack_number(extent) for extent in tensor.shape]
        if not same:
            parts.append(struct.pack("<f", tensor.std))
        last = tensor.std
    parts.append(payload)
    body = b"".join(parts) + struct.pack("<I", head.symbols)
    return body + struct.pack("<I", zlib.crc32(body))


def unpack_record(data: bytes) -> tuple[RecordHead, bytes]:
    """Take a record apart into head and payload.

    Raises
    ------
    RecordError
        If the bytes are no record, of a newer format, damaged, or cut short.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise RecordError(f"{len(data)} bytes that begin {data[:8]!r} are no record of an update")
    if len(data) > len(MAGIC) and data[len(MAGIC)] not in READABLE:
        raise RecordError(
            f"the record has format {data[len(MAGIC)]} and this version reads "
            f"{' and '.join(map(str, READABLE))}; use a newer flwr-afuic"
        )
    body_end = len(data) - _CHECKSUMS.size
    if body_end < len(MAGIC) + 1 + _FIXED.size + KEY_BYTES:
        raise RecordError(f"the record is cut short: {len(data)} bytes are left of it")
    symbols, checksum = _CHECKSUMS.unpack(data[body_end:])
    if zlib.crc32(memoryview(data)[:-4]) != checksum:
        raise RecordError("the record's checksum does not match: it is damaged or cut short")
    reader = Reader(memoryview(data)[len(MAGIC) + 1 : body_end])
    lattice, coder, mask, step = _FIXED.unpack(reader.take(_FIXED.size))
    key, kept, count = reader.take(KEY_BYTES), reader.number(), reader.number()
    if count > _MOST_TENSORS:
        raise RecordError(f"the record claims {count} tensors; it is damaged")
    tensors: list[TensorHead] = []
    for _ in range(count):
        tensors.append(_tensor(reader, tensors[-1].std if tensors else math.nan))
    head = RecordHead(lattice, coder, mask, step, key, kept, tuple(tensors), symbols)
    return head, reader.take(reader.left)


def _tensor(reader: Reader, last: float) -> TensorHead:
    kind = reader.take(1)[0]
    shape = tuple(reader.number() for _ in range(reader.number()))
    std = last if kind & _SAME else struct.unpack("<f", reader.take(4))[0]
    dtype = _DTYPE_NAMES.get(kind & _DTYPE)
    if dtype is None:
        raise RecordError(f"the record names dtype {kind & _DTYPE}, unknown to this version")
    tensor = TensorHead(shape, dtype, std, bool(kind & _WHOLE), (kind & _FAMILY) >> 3)
    if not (0 <= std < math.inf) or max(shape, default=0) > _MOST_ENTRIES:
        raise RecordError(f"the record holds a tensor {shape} of deviation {std}; it is damaged")
    return tensor
