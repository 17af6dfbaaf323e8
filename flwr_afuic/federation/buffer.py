"""The buffer of accepted updates between two versions of the global model.

Updates are folded into one accumulator as they come, so that memory does not grow with
the number of clients. Sums are kept in compensated (two-float64) arithmetic, so that the
merged model does not depend on the order of arrival (exact while the terms of one entry
span less than 106 bits, which the screen's norm bound ensures in practice). One site's
updates can be taken out again without a trace, which an erasure request needs: the others
are summed anew. What that takes waits in a private folder on disk, not in memory.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.federation.layout import Arrays, Layout

FloatArray = NDArray[np.float64]


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


class CompensatedSum:
    """A sum of arrays in two-float64 arithmetic (Knuth's two-sum)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.high: FloatArray = np.zeros(shape)
        self.low: FloatArray = np.zeros(shape)

    def add(self, term: FloatArray) -> None:
        """Add ``term``, of the sum's shape, in place."""
        total = self.high + term
        shadow = total - self.high
        self.low += (self.high - (total - shadow)) + (term - shadow)
        self.high = total

    @property
    def value(self) -> FloatArray:
        """The sum, rounded once to float64."""
        return self.high + self.low


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
        self._reset()

    def _reset(self) -> None:
        self._sums = [CompensatedSum(spec.shape) for spec in self._layout.specs]
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
        """Fold one update in, with staleness weight ``factor`` in (0, 1]."""
        path = None
        if self._folder is not None:
            path = Path(self._folder.name) / f"{self._counter}.npz"
            self._counter += 1
            np.savez(path, *update.arrays)
        self._entries.append(_Entry(update.site, update.examples, factor, path))
        self._fold(update.arrays, update.examples * factor)

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
        self._reset()
        for entry in staying:
            # Summed anew: subtracting would leave the rounding of an outsized update behind.
            self._fold(self._stored(entry), entry.examples * entry.factor)
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
            The next global model, in the layout's dtypes. Counters are rounded to the
            nearest integer and keep their dtype.
        """
        if not self._entries:
            raise ValueError("the buffer is empty; there is nothing to merge")
        examples = float(sum(entry.examples for entry in self._entries))
        weight = math.fsum(entry.examples * entry.factor for entry in self._entries)
        share = min(1.0, server_lr) * weight / examples
        merged: Arrays = []
        for spec, total, array in zip(self._layout.specs, self._sums, current, strict=True):
            if spec.kind == "trained":
                step = total.value * (server_lr / examples)
                merged.append((array.astype(np.float64) + step).astype(spec.dtype))
                continue
            average = total.value / weight
            mixed = (1.0 - share) * array.astype(np.float64) + share * average
            if spec.kind == "counter":
                mixed = np.rint(mixed)
            merged.append(np.asarray(mixed).astype(spec.dtype))
        self.clear()
        return merged

    def clear(self) -> None:
        """Empty the buffer and delete what it kept on disk."""
        for entry in self._entries:
            if entry.path is not None:
                entry.path.unlink(missing_ok=True)
        self._reset()

    @staticmethod
    def _stored_path(entry: _Entry) -> Path:
        if entry.path is None:
            raise RuntimeError(f"no stored update for site {entry.site}")
        return entry.path

    def _stored(self, entry: _Entry) -> Arrays:
        with np.load(self._stored_path(entry), allow_pickle=False) as stored:
            return [stored[key] for key in stored.files]

    def _fold(self, arrays: Arrays, factor: float) -> None:
        for total, array in zip(self._sums, arrays, strict=True):
            total.add(np.asarray(array, dtype=np.float64) * factor)
