"""What a store of the update history offers, whatever it writes to.

A **window** is what MEDU calls a round: the updates of at least two sites that were merged together
(a window with one site is stored against zero). Of each window the store keeps who took part and
with which weight, the encoded deviations, and the window's encoded aggregate. Records go in and out
one at a time; the whole history is never in memory.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import HistoryError
from flwr_afuic.history.dither import dither_key

Status = Literal["stored", "not-drawn", "zero", "lost", "purged", "retired"]
"""What became of a participant's record.

``not-drawn``: left out by user sparsification; ``zero``: it deviated by nothing; ``lost``: its raw
update was damaged before the window was encoded; ``purged``: deleted with everything of its site;
``retired``: older than the history is kept.
"""

AGGREGATE = ""
"""Stands for a window's aggregate where a site is named."""

_SEED = "seed"
_LAYOUT = "layout"
_NAMES = "names"


@dataclass(frozen=True)
class Participant:
    """A site's part in a window.

    Attributes
    ----------
    site : str
        Its name.
    weight : float
        Its share of the window, ``p``; those of a window add up to 1.
    norm : float
        Norm of its deviation from the aggregate (of its update, in a window of one site).
    status : str
        What became of its record.
    """

    site: str
    weight: float
    norm: float
    status: Status


@dataclass(frozen=True)
class Window:
    """What is known of a window besides its records.

    Attributes
    ----------
    number : int
        Counts windows from 1; a number is never used for two windows that both lasted.
    version, round : int
        Version of the model after the window, and round it belongs to.
    step : float
        Norm of the aggregate.
    participants : tuple of Participant
        Who took part, by name.
    """

    number: int
    version: int
    round: int
    step: float
    participants: tuple[Participant, ...]

    @property
    def alone(self) -> bool:
        """Whether one site took part, whose update is then stored against zero."""
        return len(self.participants) == 1


@dataclass(frozen=True)
class Deletion:
    """A record that was taken out of the history.

    Attributes
    ----------
    window, round : int
        Where it belonged.
    site : str
        Whose it was; empty for a window's aggregate.
    bytes : int
        Its size.
    file : str
        The file it was in, relative to the store; empty in memory.
    """

    window: int
    round: int
    site: str
    bytes: int
    file: str


@dataclass(frozen=True)
class Standing:
    """What is stored of a site: records, their bytes, and the newest one's window."""

    records: int
    bytes: int
    newest: int | None


class WindowWriter(ABC):
    """Takes the records of one window, which exists once :meth:`commit` has returned.

    Attributes
    ----------
    number : int
        The window's number.
    """

    number: int

    @abstractmethod
    def write(self, site: str, record: bytes) -> None:
        """Store a site's record, or the aggregate's under :data:`AGGREGATE`."""

    @abstractmethod
    def commit(self, window: Window) -> None:
        """Make the window part of the history."""

    @abstractmethod
    def abandon(self) -> None:
        """Drop what was written, if the window was not committed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abandon()


class UpdateStore(ABC):
    """A history of updates.

    Attributes
    ----------
    spool : Path
        Folder in which raw updates wait for their window's end.
    """

    spool: Path

    # ---- writing --------------------------------------------------------------------

    @abstractmethod
    def begin(self) -> WindowWriter:
        """Return a writer for the next window; one window is written at a time."""

    # ---- reading --------------------------------------------------------------------

    @abstractmethod
    def windows(self) -> Iterator[Window]:
        """Yield every window, oldest first."""

    @abstractmethod
    def record(self, number: int, site: str) -> bytes | None:
        """Return a record's bytes, None if it is not stored.

        Raises
        ------
        RecordError
            If it should be there and cannot be read.
        """

    @abstractmethod
    def standing(self, site: str) -> Standing:
        """Return what is stored of a site, or of aggregates."""

    @abstractmethod
    def bytes_stored(self) -> int:
        """Return how many bytes the history takes where it is stored, index included."""

    # ---- deleting -------------------------------------------------------------------

    @abstractmethod
    def delete_client(self, site: str) -> list[Deletion]:
        """Delete every record of a site, and the aggregates of windows nobody else is left in.

        Who took part in which window, and its weight, remain: later deletions need
        them. The other participants' deviations remain as well; they are relative to an
        aggregate that the site was part of.

        Returns
        -------
        list of Deletion
            What was deleted; empty if nothing of the site is stored.
        """

    @abstractmethod
    def retain(self, windows: int) -> list[Deletion]:
        """Delete the records of all but the newest ``windows`` windows."""

    @abstractmethod
    def truncate(self, version: int) -> int:
        """Forget windows that made a version after ``version``; return how many.

        For a server that resumes at a version older than its history.
        """

    # ---- what else belongs to a history ---------------------------------------------

    @abstractmethod
    def get(self, key: str, default: Any = None) -> Any:
        """Return a setting."""

    @abstractmethod
    def set(self, key: str, value: Any) -> None:
        """Store a setting, any JSON value."""

    @abstractmethod
    def put_arrays(self, name: str, arrays: Sequence[NDArray[Any]] | None) -> None:
        """Store arrays under a name, replacing those of before; None deletes them."""

    @abstractmethod
    def arrays(self, name: str) -> list[NDArray[Any]] | None:
        """Return the arrays stored under a name, None if there are none."""

    @abstractmethod
    def close(self) -> None:
        """Release what the store holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def seed(self) -> int:
        """Root of the history's dither and draws, made once."""
        if self.get(_SEED) is None:
            self.set(_SEED, secrets.randbelow(2**62))
        return int(self.get(_SEED))

    def key(self, number: int, site: str) -> bytes:
        """Return the dither key of a record, which is also how a foreign record is told."""
        return dither_key(self.seed, number, site)

    @property
    def layout(self) -> list[tuple[tuple[int, ...], str]] | None:
        """Shapes and dtypes of the recorded arrays; None before the first window."""
        known = self.get(_LAYOUT)
        return None if known is None else [(tuple(shape), dtype) for shape, dtype in known]

    @property
    def names(self) -> tuple[str, ...] | None:
        """Names of the recorded arrays; None if nobody told them."""
        known = self.get(_NAMES)
        return None if known is None else tuple(known)

    def name_arrays(self, names: Sequence[str]) -> None:
        """Say what the recorded arrays are called, in order.

        Raises
        ------
        HistoryError
            If there are not as many as arrays, or they have other names.
        """
        if self.layout is not None and len(self.layout) != len(names):
            raise HistoryError(f"{len(names)} names for {len(self.layout)} recorded arrays")
        if self.names is None:
            self.set(_NAMES, list(names))
        elif self.names != tuple(names):
            raise HistoryError(
                f"the history's arrays are called {', '.join(self.names)}, not {', '.join(names)}; "
                "use a new history for another model"
            )

    def check_layout(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Fix the layout with the first arrays; later ones must have it, too.

        Raises
        ------
        HistoryError
            If they differ: the history is another model's.
        """
        found = [(tuple(int(n) for n in a.shape), str(a.dtype)) for a in arrays]
        if self.layout is None:
            self.set(_LAYOUT, found)
        elif self.layout != found:
            raise HistoryError(
                f"the history holds updates of {_words(self.layout)}, not of {_words(found)}; "
                "use a new history for another model"
            )

    def aggregate(self, number: int) -> bytes | None:
        """Return the record of a window's aggregate, None if it is not stored."""
        return self.record(number, AGGREGATE)


def _words(layout: Sequence[tuple[tuple[int, ...], str]]) -> str:
    entries = sum(int(np.prod(shape, dtype=np.int64)) for shape, _ in layout)
    dtypes = "/".join(sorted({dtype for _, dtype in layout}))
    return f"a model of {len(layout)} trained arrays, {entries} entries of {dtypes}"


def check_window(window: Window, number: int, records: set[str]) -> None:
    """Raise :class:`HistoryError` for a window that contradicts itself."""
    sites = [participant.site for participant in window.participants]
    stored = {p.site for p in window.participants if p.status == "stored"}
    total = sum(participant.weight for participant in window.participants)
    if window.number != number or not sites or len(set(sites)) < len(sites) or AGGREGATE in sites:
        raise HistoryError(f"window {number} names itself {window.number} and the sites {sites}")
    if abs(total - 1.0) > 1e-6 or min(p.weight for p in window.participants) < 0:
        raise HistoryError(f"the weights of window {number} add up to {total}, not to 1")
    if records - {AGGREGATE} != stored:
        raise HistoryError(
            f"window {number} has records of {sorted(records)}, its index says {sorted(stored)}"
        )
