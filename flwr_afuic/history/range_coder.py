"""A range coder over static models (``constriction``): within .001 bit of the models' entropy."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import RecordError
from flwr_afuic.history.coders import SymbolReader, Symbols, SymbolWriter, Written
from flwr_afuic.history.models import Model, fit_model, read_model
from flwr_afuic.history.packing import Reader, pack_number, pack_signed

_WIDEST = 2048
_BULK = 1024
_MOST_ESCAPES = 32
_MOST_SHIFT = 23  # the coder counts to 2**24


@dataclass(frozen=True)
class _Group:
    """How the symbols of one group are coded: a model of ``symbol >> shift``, low bits as such.

    With ``escapes`` the model's last symbol says that the value stands in a list of its own.
    """

    model: Model
    shift: int
    escapes: bool

    @property
    def plain(self) -> bool:
        return self.shift == 0 and not self.escapes

    def choice(self, modulus: int, residue: int) -> tuple[int, int, NDArray[np.float64]]:
        """Return first symbol, step between symbols, and weights under a congruence."""
        first, weights = self.model.first, self.model.weights
        if modulus == 1 or not self.plain:
            return first, 1, weights
        skipped = (residue - first) % modulus
        return first + skipped, modulus, np.ascontiguousarray(weights[skipped::modulus])


def _categorical(weights: NDArray[np.float64]) -> Any:
    return _coder().stream.model.Categorical(weights, perfect=False)


def range_coder_installed() -> bool:
    """Whether ``constriction`` can be imported."""
    try:
        importlib.import_module("constriction")
    except ImportError:
        return False
    return True


def _coder() -> Any:
    try:
        return importlib.import_module("constriction")
    except ImportError as error:
        raise RecordError(
            "this record was written by the range coder; install constriction to read it"
        ) from error


def _grouped(symbols: Symbols, center: float) -> tuple[_Group, bytes]:
    low, high = int(symbols.min()), int(symbols.max())
    if high - low < _WIDEST:
        model = fit_model(low, np.bincount(symbols - low), center)
        return _Group(model, 0, False), model.data
    # Few values far out must not make the table long: the bulk sets shift and width.
    tail = min(0.0005, _MOST_ESCAPES / len(symbols))
    bulk = [int(edge) for edge in np.quantile(symbols, [tail, 1 - tail])]
    shift = max(0, (bulk[1] - bulk[0]) // _BULK).bit_length()
    coarse = symbols >> shift
    first, size = bulk[0] >> shift, (bulk[1] >> shift) - (bulk[0] >> shift) + 1
    outside = (coarse < first) | (coarse >= first + size)
    escapes = bool(outside.any())
    index = np.where(outside, size, coarse - first)
    counts = np.bincount(index, minlength=size + escapes)
    model = fit_model(first, counts, center if not shift else 0.5)
    return _Group(model, shift, escapes), model.data


class RangeWriter(SymbolWriter):
    """Writes with a range coder over static models."""

    name = "range"
    code = 1

    def finish(self) -> bytes:
        """See :meth:`SymbolWriter.finish`."""
        groups: dict[int, _Group] = {}
        head = bytearray(pack_number(len(self._centers)))
        for number, center in self._centers.items():
            parts = [w.symbols for w in self._written if w.group == number]
            symbols = parts[0] if len(parts) == 1 else np.concatenate(parts)
            group, data = _grouped(symbols, center)
            groups[number] = group
            flags = (center == 0.5) | group.escapes << 1
            head += bytes([number, flags, group.shift]) + data
        encoder = _coder().stream.queue.RangeEncoder()
        escaped: list[bytes] = []
        for written in self._written:
            self._encode(encoder, groups[written.group], written, escaped)
        words: bytes = encoder.get_compressed().astype("<u4").tobytes()
        return bytes(head) + pack_number(len(escaped)) + b"".join(escaped) + words

    @staticmethod
    def _encode(encoder: Any, group: _Group, written: Written, escaped: list[bytes]) -> None:
        first, step, weights = group.choice(written.modulus, written.residue)
        coarse = written.symbols >> group.shift if group.shift else written.symbols
        index = coarse - np.int32(first)
        if step == 2:
            index >>= 1
        if group.escapes:
            last = len(weights) - 1
            outside = (index < 0) | (index >= last)
            index[outside] = last
            escaped += [pack_signed(int(v)) for v in written.symbols[outside]]
        if len(weights) > 1:
            encoder.encode(index, _categorical(weights))
        if group.shift:
            low = written.symbols & np.int32((1 << group.shift) - 1)
            encoder.encode(low, _coder().stream.model.Uniform(1 << group.shift))


class RangeReader(SymbolReader):
    """Reads what :class:`RangeWriter` wrote."""

    def __init__(self, data: bytes) -> None:
        reader = Reader(data)
        self._groups: dict[int, _Group] = {}
        for _ in range(reader.number()):
            number, flags, shift = reader.take(3)
            half = bool(flags & 1) or bool(shift)
            model = read_model(reader, 0.5 if half else 0.0)
            if shift > _MOST_SHIFT:
                raise RecordError(f"a symbol group is shifted by {shift} bits; it is damaged")
            self._groups[number] = _Group(model, shift, bool(flags & 2))
        self._escaped: Iterator[int] = iter([reader.signed() for _ in range(reader.number())])
        super().__init__(set(self._groups))
        words = reader.take(reader.left // 4 * 4)
        compressed = np.frombuffer(words, dtype="<u4").astype(np.uint32)
        self._decoder = _coder().stream.queue.RangeDecoder(compressed)

    def _decode(self, group: int, count: int, modulus: int, residue: int) -> Symbols:
        chosen = self._groups[group]
        first, step, weights = chosen.choice(modulus, residue)
        try:
            symbols = self._indices(count, weights)
            values = symbols * np.int32(step) + np.int32(first)
            if chosen.shift:
                uniform = _coder().stream.model.Uniform(1 << chosen.shift)
                values = (values << chosen.shift) | self._decoder.decode(uniform, count)
            if chosen.escapes:
                for place in np.flatnonzero(symbols == len(weights) - 1):
                    values[place] = next(self._escaped)
        except (AssertionError, ValueError, OverflowError, StopIteration) as error:
            raise RecordError(f"the record's symbols cannot be decoded ({error})") from error
        return np.asarray(values, dtype=np.int32)

    def _indices(self, count: int, weights: NDArray[np.float64]) -> Symbols:
        if len(weights) <= 1:
            return np.zeros(count, dtype=np.int32)
        symbols: Symbols = self._decoder.decode(_categorical(weights), count)
        return symbols
