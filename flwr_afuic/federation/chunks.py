"""Work on large arrays piece by piece: each piece stays in the processor's cache.

NumPy lets go of the interpreter's lock while it computes, so that threads share the pieces. What
is done to one entry does not depend on the pieces: results are the same bit by bit, whatever
their size and number.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.federation.kernels import compiled, fits

CHUNK = 1 << 15
"""Entries of a piece: a few float64 buffers of it fit a core's second-level cache."""

SHARED_FROM = 1 << 18
"""Entries of an array from which on threads share the work on it."""

_MOST_THREADS = 8
_UNSHARED = 1 << 13
_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None

Work = Callable[[Iterator[slice]], None]


def slices(start: int, stop: int) -> Iterator[slice]:
    """Yield the pieces from ``start`` to ``stop``, in order."""
    for first in range(start, stop, CHUNK):
        yield slice(first, min(stop, first + CHUNK))


def cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def spread(size: int, work: Work, *, whole_shares: bool = False) -> None:
    """Have every piece of ``size`` entries worked on, by several threads where that pays.

    Parameters
    ----------
    size : int
        Number of entries.
    work : callable
        Takes an iterator of slices; called once in each thread, so that it can make its scratch
        buffers once. Raises what it raises.
    whole_shares : bool
        Give each thread all of its share as one piece: for work that needs no scratch.
    """
    spread_all([(size, work)], whole_shares=whole_shares)


def spread_all(jobs: list[tuple[int, Work]], *, whole_shares: bool = False) -> None:
    """Have several arrays worked on, as :func:`spread` has one; a thread has a share of each.

    Parameters
    ----------
    jobs : list of (int, callable)
        Number of entries, and the work.
    whole_shares : bool
        As for :func:`spread`.
    """
    threads = min(cores(), _MOST_THREADS)
    if threads < 2 or sum(size for size, _ in jobs) < SHARED_FROM:
        for size, work in jobs:
            work(iter([slice(0, size)]) if whole_shares else slices(0, size))
        return

    def share(number: int) -> None:
        for size, work in jobs:
            whole = -(-size // CHUNK)  # a piece is the same piece however many threads there are
            edges = [min(size, CHUNK * (whole * n // threads)) for n in (number, number + 1)]
            if edges[0] < edges[1]:
                work(iter([slice(*edges)]) if whole_shares else slices(*edges))

    # Threads that are done may keep what they were given a moment longer: not the arrays.
    box = [share]
    try:
        started = [_threads(threads).submit(lambda n: box[0](n), n) for n in range(threads)]
        for done in started:
            done.result()
    finally:
        box.clear()


def _threads(number: int) -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(number, thread_name_prefix="flwr-afuic-chunks")
        return _pool


def squared_norm(array: NDArray[Any]) -> float:
    """Sum of squares of an array of real or complex numbers; not finite where an entry is not.

    Pieces of float32 are summed in float32 (relative error below 1e-6) and, where that overflows,
    again in float64; the pieces' sums are added in float64, in order.
    """
    flat = array.reshape(-1)
    if array.dtype.kind == "c":
        flat = np.ascontiguousarray(flat).view(flat.real.dtype)
    exact = flat.dtype in (np.float32, np.float64)
    found: list[tuple[int, float]] = []
    passes = compiled() if flat.size >= SHARED_FROM and fits(flat) else None
    if passes is not None:

        def at_once(pieces: Iterator[slice]) -> None:
            found.extend((piece.start, passes.square(flat[piece])) for piece in pieces)

        spread(flat.size, at_once, whole_shares=True)
        if math.isfinite(total := sum(value for _, value in sorted(found))):
            return total
        found.clear()

    def work(pieces: Iterator[slice]) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            for piece in pieces:
                part = flat[piece] if exact else flat[piece].astype(np.float64)
                value = _square(part)
                if not math.isfinite(value):
                    value = _square(part.astype(np.float64))
                found.append((piece.start, value))

    spread(flat.size, work)
    return sum(value for _, value in sorted(found))


def _square(part: NDArray[Any]) -> float:
    """Sum of squares, in pieces so small that BLAS starts no threads of its own."""
    total = 0.0
    for start in range(0, part.size, _UNSHARED):
        block = part[start : start + _UNSHARED]
        total += float(block.dot(block))
    return total
