"""Small pieces of the binary format: whole numbers of any size, and reading that never overruns."""

from __future__ import annotations

from flwr_afuic.errors import RecordError

_LONGEST = 10


def pack_number(value: int) -> bytes:
    """Write a whole number, seven bits a byte, lowest first."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def pack_signed(value: int) -> bytes:
    """Write an integer of either sign, small ones in a byte."""
    return pack_number(value << 1 if value >= 0 else (-value << 1) - 1)


class Reader:
    """Reads a record's bytes in order; RecordError where they end too early."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self.position = 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self.position

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        if not 0 <= count <= self.left:
            raise RecordError(
                f"the record ends early: {count} bytes are due and {self.left} are left; "
                "it is damaged"
            )
        self.position += count
        return bytes(self._data[self.position - count : self.position])

    def number(self) -> int:
        """Read what :func:`pack_number` wrote."""
        value = 0
        for index in range(_LONGEST):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value
        raise RecordError("a number of the record has no end; it is damaged")

    def signed(self) -> int:
        """Read what :func:`pack_signed` wrote."""
        value = self.number()
        return -((value + 1) >> 1) if value & 1 else value >> 1
