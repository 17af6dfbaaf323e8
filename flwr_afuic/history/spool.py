"""Raw updates on disk, from their arrival to the end of their window."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import HistoryError
from flwr_afuic.history.store import UpdateStore

Sum = list[NDArray[np.float64]]

_OPEN = "open-window"
_SUFFIX = ".update"


@dataclass(frozen=True)
class Contribution:
    """One update in the spool, with its weight in the merge or, once merged, its share of it."""

    site: str
    file: str
    weight: float


@dataclass(frozen=True)
class Merge:
    """A merge of the open window: its step is ``factor`` times the weighted mean of its parts."""

    version: int
    round: int
    factor: float
    parts: tuple[Contribution, ...]


class UnreadableError(HistoryError):
    """A raw update cannot be read any more.

    Attributes
    ----------
    site : str
        Whose it was.
    """

    def __init__(self, site: str, text: str) -> None:
        super().__init__(text)
        self.site = site


class Spool:
    """The updates that no window of a store holds yet.

    What was merged survives the process: the store remembers it. What only waits for a merge does
    not, and neither do files that belong to nothing.

    Attributes
    ----------
    waiting : list of Contribution
        Updates that the next merge will contain.
    merges : list of Merge
        Merges of the open window.
    """

    def __init__(self, store: UpdateStore) -> None:
        self._store = store
        self._prefix = secrets.token_hex(4)
        self._counter = 0
        self.waiting: list[Contribution] = []
        self.merges = [
            Merge(**{**entry, "parts": tuple(Contribution(**part) for part in entry["parts"])})
            for entry in store.get(_OPEN, [])
        ]
        if self.merges or any(store.spool.glob(f"*{_SUFFIX}")):
            self.settle()

    def settle(self) -> None:
        """Remember the merges of the open window, and delete every other file."""
        self._store.set(_OPEN, [asdict(merge) for merge in self.merges])
        known = {part.file for part in [*self.parts(), *self.waiting]}
        for path in self._store.spool.glob(f"*{_SUFFIX}"):
            if path.name not in known:
                path.unlink(missing_ok=True)

    def parts(self, site: str | None = None) -> Iterator[Contribution]:
        """Yield the merged updates of the open window, or those of one site."""
        for merge in self.merges:
            yield from (part for part in merge.parts if site in (None, part.site))

    @property
    def sites(self) -> list[str]:
        """Sites with an update in the open window."""
        return sorted({part.site for part in self.parts()})

    def put(self, site: str, arrays: Sequence[NDArray[Any]], weight: float) -> None:
        """Write an update that waits for its merge."""
        self._counter += 1
        name = f"{self._prefix}-{self._counter}{_SUFFIX}"
        with (self._store.spool / name).open("wb") as file:
            for array in arrays:
                np.ascontiguousarray(array).tofile(file)
        self.waiting.append(Contribution(site, name, weight))

    def withdraw(self, site: str) -> int:
        """Delete the waiting updates of a site; return how many there were."""
        leaving = [part for part in self.waiting if part.site == site]
        self.waiting = [part for part in self.waiting if part.site != site]
        for part in leaving:
            (self._store.spool / part.file).unlink(missing_ok=True)
        return len(leaving)

    def merge(self, version: int, round_: int, factor: float) -> None:
        """Move every waiting update into the open window, as one merge."""
        total = sum(part.weight for part in self.waiting)
        parts = tuple(replace(part, weight=part.weight / total) for part in self.waiting)
        self.merges.append(Merge(version, round_, factor, parts))
        self.waiting = []
        self.settle()

    # ---- what the open window amounts to --------------------------------------------

    def weight(self, site: str) -> float:
        """Return a site's mean share of the window's merges, ``p_u``."""
        return sum(part.weight for part in self.parts(site)) / len(self.merges)

    def total(self, sites: Iterable[str]) -> Sum:
        """Return the sum of ``factor * share * d`` over the updates of some sites.

        Raises
        ------
        UnreadableError
            If an update cannot be read.
        """
        wanted = set(sites)
        total = [np.zeros(shape) for shape, _ in self._store.layout or ()]
        for merge in self.merges:
            for part in merge.parts:
                if part.site in wanted:
                    for target, array in zip(total, self._read(part), strict=True):
                        target += (merge.factor * part.weight) * array.astype(np.float64)
        return total

    def _read(self, part: Contribution) -> Iterator[NDArray[Any]]:
        path = self._store.spool / part.file
        try:
            with path.open("rb") as file:
                for shape, dtype in self._store.layout or ():
                    # The layout says what follows: a header for each array would take longer.
                    count = math.prod(shape)
                    array = np.fromfile(file, dtype=dtype, count=count)
                    if len(array) != count:
                        raise OSError("the file ends early")
                    yield array.reshape(shape)
        except OSError as error:
            raise UnreadableError(part.site, f"{path} cannot be read ({error})") from error
