"""The fallback where no range coder is installed: zstandard, some per cent longer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from flwr_afuic.errors import RecordError
from flwr_afuic.history.coders import SymbolReader, Symbols, SymbolWriter
from flwr_afuic.history.packing import Reader, pack_number, pack_signed

_ZSTD_LEVEL = 1
_ZSTD_LARGEST = 2**33


@dataclass(frozen=True)
class _Digits:
    """Symbols from ``low`` on, as bytes of ``per_byte`` digits in base ``base``, or as integers.

    Zstandard spends a bit on each byte at least, so that small symbols share bytes.
    """

    low: int
    base: int

    @property
    def per_byte(self) -> int:
        count = 0
        while self.base ** (count + 1) <= 256 and count < 8:
            count += 1
        return count

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.min_scalar_type(self.base - 1).newbyteorder("<")

    def pack(self, symbols: Symbols) -> bytes:
        digits = symbols.astype(np.int64) - self.low
        if self.per_byte < 2:
            return digits.astype(self.dtype).tobytes()
        padded = np.zeros(-(-len(digits) // self.per_byte) * self.per_byte, dtype=np.int64)
        padded[: len(digits)] = digits
        return (padded.reshape(-1, self.per_byte) @ self._powers).astype(np.uint8).tobytes()

    def unpack(self, reader: Reader, count: int) -> Symbols:
        if self.per_byte < 2:
            raw = reader.take(count * self.dtype.itemsize)
            digits = np.frombuffer(raw, dtype=self.dtype).astype(np.int64)
        else:
            raw = reader.take(-(-count // self.per_byte))
            packed = np.frombuffer(raw, dtype=np.uint8).astype(np.int64)
            digits = (packed[:, None] // self._powers % self.base).reshape(-1)[:count]
        return (digits + self.low).astype(np.int32)

    @property
    def _powers(self) -> NDArray[np.int64]:
        return self.base ** np.arange(self.per_byte, dtype=np.int64)


class ZstdWriter(SymbolWriter):
    """Writes small integers, several to a byte, compressed by zstandard."""

    name = "zstd"
    code = 2

    def finish(self) -> bytes:
        """See :meth:`SymbolWriter.finish`."""
        digits: dict[int, _Digits] = {}
        head = bytearray(pack_number(len(self._centers)))
        for number in self._centers:
            symbols = [w.symbols for w in self._written if w.group == number]
            low, high = min(int(s.min()) for s in symbols), max(int(s.max()) for s in symbols)
            digits[number] = _Digits(low, high - low + 1)
            head += bytes([number]) + pack_signed(low) + pack_number(high - low + 1)
        body = b"".join(digits[w.group].pack(w.symbols) for w in self._written)
        return bytes(head) + zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(body)


class ZstdReader(SymbolReader):
    """Reads what :class:`ZstdWriter` wrote."""

    def __init__(self, data: bytes) -> None:
        reader = Reader(data)
        self._digits: dict[int, _Digits] = {}
        for _ in range(reader.number()):
            number, low, base = reader.take(1)[0], reader.signed(), reader.number()
            if not (1 <= base <= 2**32 and abs(low) <= 2**31):
                raise RecordError(f"a symbol group spans {base} from {low}; the record is damaged")
            self._digits[number] = _Digits(low, base)
        super().__init__(set(self._digits))
        try:
            decompressor = zstandard.ZstdDecompressor()
            body = decompressor.decompress(reader.take(reader.left), max_output_size=_ZSTD_LARGEST)
        except zstandard.ZstdError as error:
            raise RecordError(f"the record's symbols cannot be decompressed ({error})") from error
        self._body = Reader(body)

    def _decode(self, group: int, count: int, modulus: int, residue: int) -> Symbols:
        return self._digits[group].unpack(self._body, count)
