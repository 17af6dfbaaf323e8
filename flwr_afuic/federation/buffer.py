"""The buffer of accepted updates between two versions of the global model.

Updates are summed as they come, so that memory does not grow with the number of clients
(:class:`~flwr_afuic.federation.summing.WeightedSum`,
:class:`~flwr_afuic.federation.large_sums.LargeSum`). One site's updates can be taken out again
without a trace, which an erasure request needs: the others are summed anew. What that takes
waits in a private folder on disk, not in memory.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.federation.chunks import slices, spread
from flwr_afuic.federation.large_sums import LargeSum, parted, summed_large
from flwr_afuic.federation.layout import Arrays, ArraySpec, Layout
from flwr_afuic.federation.packing import made
from flwr_afuic.federation.summing import HELD_BYTES, Scratch, WeightedSum


@dataclass(frozen=True)
class Update:
    """One accepted training result of one site.

    Attributes
    ----------
    site : str
        Who trained.
    base_version : int
        Version of the global model it started from.
    examples : int
        Number of training examples, at least 1.
    arrays : list of ndarray
        Differences of trained arrays; values of statistics and counters
        (:meth:`flwr_afuic.federation.layout.Layout.update_between`).
    """

    site: str
    base_version: int
    examples: int
    arrays: Arrays


@dataclass
class _Entry:
    site: str
    examples: int
    factor: float
    path: Path | None


class UpdateBuffer:
    """Weighted sum of the updates received since the last merge.

    The merged step is ``sum(n_i s_i d_i) / sum(n_i)`` over updates ``d_i`` with ``n_i``
    examples and staleness weight ``s_i``: FedBuff's buffer (arXiv 2106.06639, algorithm 1)
    with FedAvg's example weights; with one update it is FedAsync's step on the delta, and
    with all sites at staleness 0 it is FedAvg.

    Parameters
    ----------
    layout : Layout
        The model's arrays.
    withdrawable : bool
        Keep each update on disk until the merge, so that :meth:`withdraw` works.
    """

    def __init__(self, layout: Layout, *, withdrawable: bool = False) -> None:
        self._layout = layout
        self._folder = (
            tempfile.TemporaryDirectory(prefix="flwr-afuic-buffer-") if withdrawable else None
        )
        self._counter = 0
        self._places = summed_large(layout.specs, HELD_BYTES)
        inside, others = parted(layout.specs, self._places)
        self._large, self._sum = LargeSum(inside), WeightedSum(others)
        self._entries: list[_Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def sites(self) -> list[str]:
        """Sites with an update in the buffer, in order of arrival, repeats included."""
        return [entry.site for entry in self._entries]

    @property
    def mean_factor(self) -> float:
        """Mean staleness weight of the buffered updates, by examples."""
        examples = sum(entry.examples for entry in self._entries)
        return math.fsum(entry.examples * entry.factor for entry in self._entries) / examples

    def add(self, update: Update, factor: float) -> None:
        """Take one update in, with staleness weight ``factor`` in (0, 1].

        Its arrays must not change until the merge.
        """
        path = None
        if self._folder is not None:
            path = Path(self._folder.name) / f"{self._counter}.npy"
            self._counter += 1
            _write(path, update.arrays)
        self._entries.append(_Entry(update.site, update.examples, factor, path))
        self._take(update.arrays, update.examples * factor)

    def _take(self, arrays: Arrays, factor: float) -> None:
        inside, others = parted(arrays, self._places)
        self._large.add(inside, factor)
        self._sum.add(others, factor)

    def settle(self) -> None:
        """Let go of the newest update: more will come before the next merge.

        Of a large model it is held as it came until the next one comes; if none does, it is summed
        and merged in one pass.
        """
        self._large.settle()

    def withdraw(self, site: str) -> int:
        """Take every update of ``site`` out again; return how many there were.

        Raises
        ------
        RuntimeError
            If the buffer was made without ``withdrawable``.
        """
        if self._folder is None:
            raise RuntimeError("this buffer does not keep what withdraw() needs")
        leaving = [entry for entry in self._entries if entry.site == site]
        if not leaving:
            return 0
        staying = [entry for entry in self._entries if entry.site != site]
        self._empty()
        for entry in staying:
            # Summed anew: subtracting would leave the rounding of an outsized update behind.
            stored = _read(self._stored_path(entry), len(self._layout.specs))
            self._take(stored, entry.examples * entry.factor)
        self._entries = staying
        for entry in leaving:
            self._stored_path(entry).unlink()
        return len(leaving)

    def merge(self, current: Arrays, *, server_lr: float = 1.0) -> Arrays:
        """Apply the buffered step to ``current`` and empty the buffer.

        Parameters
        ----------
        current : list of ndarray
            The current global model.
        server_lr : float
            Factor on the step of trained arrays; statistics and counters move towards
            the sites' weighted average by at most all the way.

        Returns
        -------
        list of ndarray
            The next global model, in the layout's dtypes, read-only, in the bytes in which it
            travels. Counters are rounded to the nearest integer and keep their dtype.
        """
        if not self._entries:
            raise ValueError("the buffer is empty; there is nothing to merge")
        examples = float(sum(entry.examples for entry in self._entries))
        weight = math.fsum(entry.examples * entry.factor for entry in self._entries)
        share = min(1.0, server_lr) * weight / examples
        merged: Arrays = []
        rate = server_lr / examples
        inside, _ = parted(current, self._places)
        stepped = iter(self._large.finish(inside, rate) if inside else [])
        others = 0
        for index, (spec, array) in enumerate(zip(self._layout.specs, current, strict=True)):
            if index in self._places:
                merged.append(next(stepped))
                continue
            if spec.kind == "trained":
                merged.append(self._stepped(others, spec, array, rate))
            else:
                merged.append(self._mixed(others, spec, array, weight, share))
            others += 1
        self.clear()
        return merged

    def _stepped(
        self, index: int, spec: ArraySpec, array: NDArray[Any], rate: float
    ) -> NDArray[Any]:
        """Trained arrays: the current values plus the summed step, piece by piece."""
        old = array.reshape(-1)

        def fill(new: NDArray[Any]) -> None:
            out = new.reshape(-1)

            def work(pieces: Iterator[slice]) -> None:
                scratch = Scratch(spec.size)
                for piece in pieces:
                    size = piece.stop - piece.start
                    step, values = scratch.take("step", size), scratch.take("values", size)
                    self._sum.total(index, piece, step, scratch, rate)
                    values[...] = old[piece]  # in two steps: NumPy adds mixed types slowly
                    values += step
                    out[piece] = values

            spread(spec.size, work)

        return made(spec.dtype, spec.shape, fill)

    def _mixed(
        self, index: int, spec: ArraySpec, array: NDArray[Any], weight: float, share: float
    ) -> NDArray[Any]:
        """Statistics and counters: towards the weighted average."""
        total = np.empty(spec.size)
        scratch = Scratch(spec.size)
        for piece in slices(0, spec.size):
            self._sum.total(index, piece, total[piece], scratch)
        average = total.reshape(spec.shape) / weight
        mixed = (1.0 - share) * array.astype(np.float64) + share * average
        if spec.kind == "counter":
            mixed = np.rint(mixed)
        values = np.asarray(mixed).astype(spec.dtype)
        return made(spec.dtype, spec.shape, lambda new: np.copyto(new, values))

    def clear(self) -> None:
        """Empty the buffer and delete what it kept on disk."""
        for entry in self._entries:
            if entry.path is not None:
                entry.path.unlink(missing_ok=True)
        self._empty()
        self._entries = []

    def _empty(self) -> None:
        self._large.clear()
        self._sum.clear()

    @staticmethod
    def _stored_path(entry: _Entry) -> Path:
        if entry.path is None:
            raise RuntimeError(f"no stored update for site {entry.site}")
        return entry.path


def _write(path: Path, arrays: Arrays) -> None:
    """Write arrays one after another; no checksum, for nobody reads them after a crash."""
    with path.open("wb") as file:
        for array in arrays:
            np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


def _read(path: Path, number: int) -> Arrays:
    with path.open("rb") as file:
        return [np.lib.format.read_array(file, allow_pickle=False) for _ in range(number)]
