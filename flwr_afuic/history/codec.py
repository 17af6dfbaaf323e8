"""An update to bytes and back: threshold, lattice, entropy coder, record.

The order of the stages is the paper's (MEDU, arXiv 2505.03388) [P]; their details are
derived [D] or our choice [O] as each module says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import ConfigError, RecordError
from flwr_afuic.history.coders import SymbolReader
from flwr_afuic.history.dither import blocks_of, dequantize, quantize
from flwr_afuic.history.entropy import reader_for, writer_named
from flwr_afuic.history.lattices import LATTICES, Lattice, Points, lattice_named
from flwr_afuic.history.masks import read_mask, write_mask
from flwr_afuic.history.record import (
    RecordHead,
    TensorHead,
    check_dtype,
    pack_record,
    unpack_record,
)
from flwr_afuic.history.scales import Unit, deviation, families, units
from flwr_afuic.history.sparsify import Threshold
from flwr_afuic.history.symbols import read_points, write_points

Flat = NDArray[np.float32]

EXACT = "none"
_SMALLEST_STEP = 1e-3


@dataclass(frozen=True)
class CodecSettings:
    """How updates are stored.

    Parameters
    ----------
    lattice : {"E8", "A2", "Z", "none"}
        Lattice of the quantiser; ``none`` stores float32.
    step : float
        Step in standard deviations, ``c``, at least 0.001. The error of a stored entry is
        ``(c * std)**2`` times the lattice's second moment. Sites that keep a budget start from it;
        see ``opening``.
    threshold : Threshold
        Which entries are stored. By default all are: what a threshold drops is missing from every
        sum (bias), while the lattice's error is random and averages out.
    coder : {"auto", "range", "zstd"}
        Entropy coder; ``auto`` takes the range coder where it is installed.
    unit : {"update", "tensor"}
        Whose standard deviation: that of all entries of the update, or of each tensor.
    hold : float
        That standard deviation counts for at least this share of that of the site's last record,
        in [0, 1]. Methods that need single updates, and no sums, record with ``tensor`` and 0.
    budget : float
        Bits an entry that a site's records may take on average: where they would take more, the
        step is made coarser. 0 for no limit.
    credit : float
        How many records' budget a site may spend in advance, as the first ones need most.
    opening : float
        Bits an entry that a site's first record takes, where there is a budget: the step that
        gives them is the site's. Sites whose updates have few large entries are stored finer than
        at one step for all, and no site's correction is much less exact than another's. 0 for
        ``step`` itself.

    Raises
    ------
    ConfigError
        If a setting is unknown or out of its range.
    """

    lattice: str = "E8"
    step: float = 0.9
    threshold: Threshold = field(default_factory=lambda: Threshold("none"))
    coder: str = "auto"
    unit: Unit = "update"
    hold: float = 0.98
    budget: float = 0.9
    credit: float = 3.0
    opening: float = 1.8

    def __post_init__(self) -> None:
        if self.lattice != EXACT:
            lattice_named(self.lattice)
        if not _SMALLEST_STEP <= self.step < math.inf:
            raise ConfigError(f"step is {self.step}; it must be at least {_SMALLEST_STEP}")
        if self.unit not in get_args(Unit):
            raise ConfigError(f"unit is {self.unit!r}; use 'update' or 'tensor'")
        if not 0 <= self.hold <= 1:
            raise ConfigError(f"hold is {self.hold}; it must be in [0, 1]")
        for name in ("budget", "credit", "opening"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.coder not in ("auto", "range", "zstd"):
            raise ConfigError(f"unknown coder {self.coder!r}; use auto, range or zstd")

    @property
    def code(self) -> int:
        """The lattice's number in records."""
        return 0 if self.lattice == EXACT else LATTICES[self.lattice].code


@dataclass(frozen=True)
class Record:
    """A decoded record.

    Attributes
    ----------
    head : RecordHead
        What the record says of itself.
    arrays : list of ndarray of float32
        Its tensors, in their shapes; entries that were not stored are zero.
    noise : tuple of float
        For each tensor, the expected squared error of what was stored of it,
        ``E||x - x^||**2``: of subtractive dither it is known exactly, whatever the tensor.
    """

    head: RecordHead
    arrays: list[Flat]
    noise: tuple[float, ...]


def encode_update(
    arrays: Sequence[NDArray[Any]],
    settings: CodecSettings,
    key: bytes,
    *,
    factor: float = 1.0,
    least: Sequence[float] | None = None,
) -> bytes:
    """Encode one update as a record.

    Parameters
    ----------
    arrays : sequence of ndarray
        Floating-point tensors, the deviation of each trained array.
    settings : CodecSettings
        How.
    key : bytes
        Key of the dither, 16 bytes, unique to this record
        (:func:`~flwr_afuic.history.dither.dither_key`).
    factor : float
        What is stored is ``factor`` times the arrays.
    least : sequence of float, optional
        For each array, the least standard deviation that its step is measured in
        (:class:`~flwr_afuic.history.encoder.RecordEncoder`).

    Returns
    -------
    bytes
        The record; the same for the same arguments.

    Raises
    ------
    HistoryError
        If a tensor holds NaN or infinity, or has a dtype that cannot be stored.
    """
    flat = [np.asarray(array, dtype=np.float32).reshape(-1) for array in arrays]
    stds = [deviation(values) for values in flat]
    scales = units(
        [std * factor for std in stds], [len(values) for values in flat], settings.unit,
        alone_below=settings.threshold.whole_below, least=least,
    )  # fmt: skip
    heads: list[TensorHead] = []
    masks: list[NDArray[Any] | None] = []
    tensors: list[Flat] = []
    for array, values, std, scale in zip(arrays, flat, stds, scales, strict=True):
        check_dtype(str(array.dtype))
        mask = settings.threshold.mask(values, std) if std else np.zeros(len(values), np.bool_)
        heads.append(TensorHead(array.shape, str(array.dtype), scale, mask is None))
        masks.append(mask)
        tensors.append(values if mask is None else values[mask])
    writer = writer_named(settings.coder)
    covered = [mask for mask in masks if mask is not None]
    kept = np.flatnonzero(np.concatenate(covered)) if covered else np.zeros(0, dtype=np.int64)
    mask_kind = write_mask(kept, sum(map(len, covered)), writer)
    raw = b""
    if settings.lattice == EXACT:
        raw = b"".join((t * np.float32(factor)).astype("<f4").tobytes() for t in tensors)
    else:
        lattice = lattice_named(settings.lattice)
        steps = [settings.step * head.std / factor for head in heads]
        ratios = [
            head.std / (std * factor) if std else math.inf
            for head, std in zip(heads, stds, strict=True)
        ]
        found = families(ratios, [len(values) for values in tensors])
        heads = [replace(head, family=family) for head, family in zip(heads, found, strict=True)]
        points = _quantize_all(tensors, steps, lattice, key)
        blocks = [blocks_of(len(values), lattice) for values in tensors]
        for family, places in _by_family(found, blocks):
            write_points(_chosen(points, places), lattice, writer, family=family)
    head = RecordHead(
        settings.code, writer.code, mask_kind, settings.step, key, len(kept), tuple(heads),
        writer.checksum,
    )  # fmt: skip
    return pack_record(head, raw + writer.finish())


def _quantize_all(tensors: list[Flat], steps: list[float], lattice: Lattice, key: bytes) -> Points:
    """Quantise the tensors one after the other, so that they share symbol models."""
    blocks = sum(blocks_of(len(values), lattice) for values in tensors)
    cosets = np.empty(blocks, dtype=np.bool_)
    floors = np.empty((lattice.dimension, blocks), dtype=np.int32)
    start = 0
    for number, (values, step) in enumerate(zip(tensors, steps, strict=True)):
        if len(values):
            points = quantize(values, step, lattice, key, number)
            end = start + len(points.cosets)
            cosets[start:end], floors[:, start:end] = points.cosets, points.floors
            start = end
    return Points(cosets, floors)


def _by_family(found: Sequence[int], blocks: Sequence[int]) -> Iterator[tuple[int, list[slice]]]:
    """Yield each family, and where its tensors' blocks lie among all."""
    ends = np.cumsum(blocks, dtype=np.int64).tolist()
    for family in sorted(set(found)):
        yield (
            family,
            [
                slice(end - count, end)
                for own, count, end in zip(found, blocks, ends, strict=True)
                if own == family and count
            ],
        )


def _chosen(points: Points, places: list[slice]) -> Points:
    if len(places) == 1 or not places:
        place = places[0] if places else slice(0, 0)
        return Points(points.cosets[place], points.floors[:, place])
    return Points(
        np.concatenate([points.cosets[place] for place in places]),
        np.concatenate([points.floors[:, place] for place in places], axis=1),
    )


def decode_record(data: bytes, *, key: bytes | None = None) -> Record:
    """Decode a record.

    Parameters
    ----------
    data : bytes
        As :func:`encode_update` returned it.
    key : bytes, optional
        The dither key that the record should have.

    Raises
    ------
    RecordError
        If the bytes are damaged, cut short, no record, or have another key: then they belong to
        another client, round or history.
    """
    head, payload = unpack_record(data)
    if key is not None and head.key != key:
        raise RecordError("the record belongs to another client, round or history")
    found = list(_flat(head, payload))
    arrays = [flat.reshape(t.shape) for (flat, _), t in zip(found, head.tensors, strict=True)]
    noise = tuple(
        stored * _error(head.lattice, head.step * tensor.std)
        for (_, stored), tensor in zip(found, head.tensors, strict=True)
    )
    return Record(head, arrays, noise)


def _error(code: int, step: float) -> float:
    """Return the expected squared error of an entry."""
    moments = {lattice.code: lattice.second_moment for lattice in LATTICES.values()}
    return moments.get(code, 0.0) * step**2


def _flat(head: RecordHead, payload: bytes) -> Iterator[tuple[Flat, int]]:
    """Yield each tensor, and how many of its entries were stored."""
    covered = sum(tensor.size for tensor in head.tensors if not tensor.whole)
    whole = sum(tensor.size for tensor in head.tensors if tensor.whole)
    raw = 4 * (head.kept + whole) if head.lattice == 0 else 0
    if len(payload) < raw or head.kept > covered:
        raise RecordError(f"the record claims {head.kept} entries of {covered}; it is damaged")
    reader = reader_for(head.coder, payload[raw:])
    kept = read_mask(head.mask, head.kept, covered, reader)
    bounds = np.cumsum([0, *(0 if t.whole else t.size for t in head.tensors)])
    edges = np.searchsorted(kept, bounds)
    sizes = [
        tensor.size if tensor.whole else int(edges[i + 1] - edges[i])
        for i, tensor in enumerate(head.tensors)
    ]
    values = _stored(head, sizes, np.frombuffer(payload[:raw], dtype="<f4"), reader)
    for index, (tensor, stored) in enumerate(zip(head.tensors, values, strict=True)):
        if tensor.whole:
            yield stored, len(stored)
            continue
        flat = np.zeros(tensor.size, dtype=np.float32)
        flat[kept[edges[index] : edges[index + 1]] - bounds[index]] = stored
        yield flat, len(stored)


def _stored(
    head: RecordHead, sizes: list[int], raw: NDArray[Any], reader: SymbolReader
) -> Iterator[Flat]:
    """Yield the stored entries of each tensor."""
    if head.lattice == 0:
        ends = np.cumsum(sizes)
        yield from (
            raw[end - size : end].astype(np.float32) for size, end in zip(sizes, ends, strict=True)
        )
        return
    found = [lattice for lattice in LATTICES.values() if lattice.code == head.lattice]
    if not found:
        raise RecordError(f"the record names lattice {head.lattice}, which is not known here")
    (lattice,) = found
    blocks = [blocks_of(size, lattice) for size in sizes]
    points = Points(
        np.empty(sum(blocks), dtype=np.bool_),
        np.empty((lattice.dimension, sum(blocks)), dtype=np.int32),
    )
    for family, places in _by_family([tensor.family for tensor in head.tensors], blocks):
        counts = [place.stop - place.start for place in places]
        part = read_points(sum(counts), lattice, reader, family=family)
        edges = np.cumsum([0, *counts]).tolist()
        for place, start, end in zip(places, edges, edges[1:], strict=False):
            points.cosets[place] = part.cosets[start:end]
            points.floors[:, place] = part.floors[:, start:end]
    if reader.checksum != head.symbols:
        raise RecordError(
            "the record's symbols were decoded otherwise than they were written; install the "
            "version of constriction it was written with"
        )
    start = 0
    for number, (size, count, tensor) in enumerate(zip(sizes, blocks, head.tensors, strict=True)):
        part = Points(points.cosets[start : start + count], points.floors[:, start : start + count])
        start += count
        yield dequantize(part, size, head.step * tensor.std, lattice, head.key, number)
