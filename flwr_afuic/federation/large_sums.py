"""Weighted sums of large float32 updates, in memory that becomes the next model.

What such a sum costs is the memory it touches. A sum lies in 48 bits an entry
(:mod:`flwr_afuic.federation.kernels`), two thirds of them in the new model's own bytes. Those are
the bytes in which the first update came, if nobody else refers to them any more, and a copy of
them otherwise. The first is weighed together with the second, and the last is added together
with the step of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.federation.chunks import Work, spread_all
from flwr_afuic.federation.kernels import passes
from flwr_afuic.federation.layout import ArraySpec
from flwr_afuic.federation.packing import Draft, file_of, viewed

T = TypeVar("T")


class LargeSum:
    """A sum of weighted lists of float32 arrays.

    Updates are added in the order of arrival, and the sum is rounded to 48 bits after each. The
    newest is held as it came until :meth:`settle` or the next one; that changes no bit.

    Memory: 6 bytes an entry, of which 4 are the first update's and become the new model's, and the
    update that is held.

    Parameters
    ----------
    specs : sequence of ArraySpec
        Of the arrays of one update, all of them float32.
    """

    def __init__(self, specs: Sequence[ArraySpec]) -> None:
        self._sums = [_ArraySum(spec) for spec in specs]
        self._held: list[Box] = []
        self._factor = 0.0

    def add(self, arrays: Sequence[NDArray[Any]], factor: float) -> None:
        """Add ``factor`` times ``arrays``, which must not change before the sum is settled.

        The first update's memory is taken over then, unless somebody else refers to it.
        """
        self.settle()
        self._held = [[array] for array in arrays]
        self._factor = float(factor)

    def settle(self) -> None:
        """Add the update that is held, and let go of it."""
        if self._held:
            _work([one.add(box, self._factor) for one, box in self._pairs()])
            self._held = []

    def finish(self, old: Sequence[NDArray[Any]], rate: float) -> list[NDArray[Any]]:
        """Return ``old + rate * sum`` as new arrays, and empty the sum."""
        if not all(one.weighed for one in self._sums):
            self.settle()
        if not all(one.weighed for one in self._sums):
            _work([one.weigh() for one in self._sums])
        models = zip(self._pairs(), old, strict=True)
        _work([one.step(box, self._factor, array, rate) for (one, box), array in models])
        self._held = []
        return [one.finish() for one in self._sums]

    def clear(self) -> None:
        """Empty the sum."""
        self._held = []
        for one in self._sums:
            one.clear()

    def _pairs(self) -> Iterator[tuple[_ArraySum, Box]]:
        """Yield each array's sum with its array of the update that is held, if any is."""
        return zip(self._sums, self._held or [[] for _ in self._sums], strict=True)


Box = list[NDArray[Any]]
"""One array, or none: so that its memory can go with its last use."""

Job = tuple[int, Work]


class _ArraySum:
    """The sum of one array; as long as it is of one update, that update as it came."""

    def __init__(self, spec: ArraySpec) -> None:
        self._spec = spec
        self._draft: Draft | None = None
        self._lone: float | None = None  # the factor of a first update that is not weighed yet
        self._low: NDArray[np.uint16] | None = None

    @property
    def weighed(self) -> bool:
        """Whether it is a sum, and no longer one update as it came."""
        return self._draft is not None and self._lone is None

    def clear(self) -> None:
        self._draft, self._lone = None, None

    def add(self, box: Box, factor: float) -> Job:
        if self._draft is None:
            self._draft, self._lone = self._begun(box), factor
            return 0, lambda pieces: None
        first, self._lone = self._lone, None
        if first is not None:
            return self._job(passes().pair, first, box.pop(), factor)
        return self._job(passes().fold, box.pop(), factor)

    def weigh(self) -> Job:
        first, self._lone = self._lone, None
        return self._job(passes().weigh, first)

    def step(self, last: Box, factor: float, old: NDArray[Any], rate: float) -> Job:
        if last:
            return self._job(passes().finish, last.pop(), factor, old, rate)
        return self._job(passes().step, old, rate)

    def finish(self) -> NDArray[Any]:
        draft = self._draft
        self.clear()
        if draft is None:
            raise RuntimeError("nothing was added to the sum")
        return draft.finish()

    def _begun(self, box: Box) -> Draft:
        """Take over the memory of the first update's array, or copy it."""
        shape, dtype = self._spec.shape, self._spec.dtype
        files = [file for file in [file_of(box[0])] if file is not None]
        if not files:
            draft = Draft(dtype, shape)
            draft.array[...] = box.pop()
            return draft
        box.clear()  # now the list may be the only one to refer to the file
        draft = Draft(dtype, shape, files)
        for file in files:
            draft.array[...] = viewed(file)
        return draft

    def _job(self, one: Callable[..., None], *arguments: Any) -> Job:
        """Return work on the sum and on what belongs to its entries."""
        if self._draft is None:
            raise RuntimeError("nothing was added to the sum")
        if self._low is None:
            self._low = np.empty(self._spec.size, np.uint16)
        flat = [a.reshape(-1) if isinstance(a, np.ndarray) else a for a in arguments]
        parts = (self._draft.array.reshape(-1), self._low, *flat)

        def work(pieces: Iterator[slice]) -> None:
            for piece in pieces:
                one(*(p[piece] if isinstance(p, np.ndarray) else p for p in parts))

        return self._spec.size, work


def _work(jobs: list[Job]) -> None:
    spread_all(jobs, whole_shares=passes().whole)


def summed_large(specs: Sequence[ArraySpec], least_bytes: int) -> set[int]:
    """Return which arrays a :class:`LargeSum` is for: the trained float32 ones of a large model."""
    if sum(spec.size * np.dtype(spec.dtype).itemsize for spec in specs) <= least_bytes:
        return set()
    return {
        index
        for index, spec in enumerate(specs)
        if spec.kind == "trained" and spec.dtype == "float32" and spec.size
    }


def parted(rows: Sequence[T], large: Container[int]) -> tuple[list[T], list[T]]:
    """Return what is at the large places, and the others."""
    inside = [row for index, row in enumerate(rows) if index in large]
    return inside, [row for index, row in enumerate(rows) if index not in large]
