"""What entropy coders have in common: arrays of integers in, bytes out, and back.

A writer takes a sequence of arrays, each belonging to a group of like symbols; a reader gives them
back in the order in which they were written.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import RecordError

Symbols = NDArray[np.int32]


@dataclass(frozen=True)
class Written:
    """Symbols of one group, all congruent to ``residue`` modulo ``modulus`` (1 or 2)."""

    group: int
    symbols: Symbols
    modulus: int = 1
    residue: int = 0


class SymbolWriter(ABC):
    """Collects arrays of integers and turns them into bytes.

    Attributes
    ----------
    name, code : str, int
        As settings and records name the coder.
    checksum : int
        CRC-32 of the symbols: bytes may be whole and yet be decoded otherwise than they were
        written, by another version of a library.
    """

    name: ClassVar[str]
    code: ClassVar[int]

    def __init__(self) -> None:
        self.checksum = 0
        self._written: list[Written] = []
        self._centers: dict[int, float] = {}

    def write(
        self,
        group: int,
        symbols: NDArray[Any],
        *,
        center: float = 0.0,
        modulus: int = 1,
        residue: int = 0,
    ) -> None:
        """Add integers, shape (n,).

        Parameters
        ----------
        group : int
            Symbols of one group share a model.
        symbols : ndarray of int32, shape (n,)
            The integers; all congruent to ``residue`` modulo ``modulus``, which the reader is
            told again and which then costs no bits.
        center : {0, 0.5}
            What turns a symbol into a coordinate; the same for all of a group.
        """
        flat = np.ascontiguousarray(symbols, dtype=np.int32).reshape(-1)
        if len(flat):
            self._written.append(Written(group, flat, modulus, residue))
            self.checksum = _checksum(flat, self.checksum)
            self._centers[group] = center

    @abstractmethod
    def finish(self) -> bytes:
        """Return everything written, as bytes."""


def _checksum(symbols: Symbols, start: int) -> int:
    return zlib.crc32(symbols.astype("<i4", copy=False).data.cast("B"), start)


class SymbolReader(ABC):
    """Gives back what a :class:`SymbolWriter` wrote, array by array in the same order.

    Attributes
    ----------
    checksum : int
        CRC-32 of the symbols read so far.
    """

    def __init__(self, groups: set[int]) -> None:
        self.checksum = 0
        self._known = groups

    def read(self, group: int, count: int, *, modulus: int = 1, residue: int = 0) -> Symbols:
        """Return the next ``count`` integers, of that group and congruence.

        Raises
        ------
        RecordError
            If the bytes do not hold them.
        """
        if count == 0:
            return np.zeros(0, dtype=np.int32)
        if group not in self._known:
            raise RecordError(f"the record lacks the symbols of group {group}; it is damaged")
        symbols = self._decode(group, count, modulus, residue)
        self.checksum = _checksum(symbols, self.checksum)
        return symbols

    @abstractmethod
    def _decode(self, group: int, count: int, modulus: int, residue: int) -> Symbols:
        """Decode the next symbols of a group that exists."""
