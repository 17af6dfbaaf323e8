"""Arrays that lie in the very bytes in which they travel: one copy of a model, not two.

Flower sends an array as a file of NumPy's (``.npy``, version 1.0) in a ``bytes`` object. A model
that is made in such a file needs no second copy to be sent.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from collections.abc import Callable
from functools import cache, lru_cache
from io import BytesIO
from typing import Any, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

_MAGIC = b"\x93NUMPY\x01\x00"
_LONGEST_HEADER = 1024


@lru_cache(maxsize=4096)
def header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return how NumPy's file format begins for such an array; empty where we leave it to NumPy."""
    kind = np.dtype(dtype)
    if kind.hasobject or not math.prod(shape) or min(shape, default=1) < 0:
        return b""
    stream = BytesIO()
    fields = {"descr": npy.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(stream, fields)
    return stream.getvalue()


class Draft:
    """An array under way, in the bytes of its file.

    Parameters
    ----------
    dtype, shape
        Of the array.
    memory : list of bytes, optional
        Files of earlier arrays of this kind. One to which nobody else refers is taken out of the
        list and written over; without any, new memory is taken.

    Attributes
    ----------
    array : ndarray
        To be written to, with anything in it at first.
    """

    def __init__(
        self, dtype: str, shape: tuple[int, ...], memory: list[bytes] | None = None
    ) -> None:
        self._shape = shape
        self._head = header(dtype, shape)
        if not self._head:
            self.array = np.empty(shape, dtype)
            return
        # Nobody else refers to the bytes, so that neither getbuffer() nor getvalue() makes a copy.
        place = _unused(memory or [])
        if memory and place is not None:
            self._file = BytesIO(memory.pop(place))
            self._view = self._file.getbuffer()
        else:
            # Bytes of zeros, which the system hands out without writing them.
            size = len(self._head) + math.prod(shape) * np.dtype(dtype).itemsize
            self._file = BytesIO(bytes(size))
            self._view = self._file.getbuffer()
            _use_large_pages(self._view)
            self._view[: len(self._head)] = self._head
        flat = np.frombuffer(self._view, dtype, offset=len(self._head))
        self.array = flat.reshape(shape)

    def finish(self) -> NDArray[Any]:
        """Return the array, read-only; nobody may hold :attr:`array` or a part of it any more.

        Raises
        ------
        BufferError
            If somebody does: what was written could be written to afterwards.
        """
        array = self.__dict__.pop("array")
        if not self._head:
            array.flags.writeable = False
            return cast(NDArray[Any], array)
        dtype = array.dtype
        del array
        self._view.release()
        data = self._file.getvalue()
        self._file.close()
        return np.frombuffer(data, dtype, offset=len(self._head)).reshape(self._shape)


def _unused(files: list[bytes]) -> int | None:
    """Return where in the list a file is to which nobody else refers."""
    # Two references: the list's, and that of the call which counts them.
    return next((n for n in range(len(files)) if sys.getrefcount(files[n]) == 2), None)


def made(
    dtype: str, shape: tuple[int, ...], fill: Callable[[NDArray[Any]], object]
) -> NDArray[Any]:
    """Make an array in the bytes of its file.

    Parameters
    ----------
    dtype, shape
        Of the array.
    fill : callable
        Writes every entry of the array it is given, and keeps no reference to it.

    Returns
    -------
    ndarray
        Read-only; :func:`file_of` gives its file.
    """
    draft = Draft(dtype, shape)
    fill(draft.array)
    return draft.finish()


_LARGE = 16 << 20
_MADV_HUGEPAGE = 14


def _use_large_pages(view: memoryview) -> None:
    """Ask Linux for large pages where a large array is to be written, as NumPy does for its own.

    Page by page, the system is slow to hand out the memory.
    """
    advise = _madvise() if view.nbytes >= _LARGE else None
    if advise is None:
        return
    begin = np.frombuffer(view, np.uint8).ctypes.data
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    # Advice only: what comes of it does not matter.
    advise(first, (begin + view.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE, _MADV_HUGEPAGE)


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return cast(Callable[[int, int, int], int], advise)


def viewed(data: bytes) -> NDArray[Any] | None:
    """Look at the array in a file's bytes without a copy; None for what we leave to NumPy.

    What the bytes say counts: errors of NumPy's reader on damaged bytes are raised.
    """
    if data[:8] != _MAGIC:
        return None
    end = 10 + int.from_bytes(data[8:10], "little")
    form = _form(data[8:end]) if end <= _LONGEST_HEADER else None
    if form is None:
        return None
    dtype, shape = form
    return np.frombuffer(data, dtype, math.prod(shape), end).reshape(shape)


def file_of(array: NDArray[Any]) -> bytes | None:
    """Return the bytes of an array's file where the array is a whole file's; else None."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if not isinstance(base, bytes) or not array.flags.c_contiguous:
        return None
    head = header(str(array.dtype), array.shape)
    whole = len(base) == len(head) + array.nbytes and bool(head) and base.startswith(head)
    # Of that size and in those bytes, it is a view of all the values or of none.
    return base if whole else None


@lru_cache(maxsize=1024)
def _form(text: bytes) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    """Read dtype and shape from a header; None for what we leave to NumPy."""
    shape, fortran, dtype = npy.read_array_header_1_0(BytesIO(text))
    if fortran or dtype.hasobject or not math.prod(shape) or min(shape, default=1) < 0:
        return None
    return dtype, shape
