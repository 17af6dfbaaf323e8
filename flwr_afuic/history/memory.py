"""A history in memory, for tests and short runs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import HistoryError
from flwr_afuic.history.store import (
    AGGREGATE,
    Deletion,
    Participant,
    Standing,
    Status,
    UpdateStore,
    Window,
    WindowWriter,
    check_window,
)


class MemoryStore(UpdateStore):
    """Everything in memory but the raw updates, which wait in a private temporary folder."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="flwr-afuic-history-")
        self.spool = Path(self._folder.name)
        self._windows: dict[int, Window] = {}
        self._records: dict[tuple[int, str], bytes] = {}
        self._settings: dict[str, str] = {}
        self._arrays: dict[str, list[NDArray[Any]]] = {}

    def begin(self) -> WindowWriter:
        """See :meth:`UpdateStore.begin`."""
        return _MemoryWriter(self, max(self._windows, default=0) + 1)

    def add(self, window: Window, records: dict[str, bytes]) -> None:
        """Take a whole window in."""
        self._windows[window.number] = window
        self._records |= {(window.number, site): data for site, data in records.items()}

    def windows(self) -> Iterator[Window]:
        """See :meth:`UpdateStore.windows`."""
        yield from list(self._windows.values())

    def record(self, number: int, site: str) -> bytes | None:
        """See :meth:`UpdateStore.record`."""
        return self._records.get((number, site))

    def standing(self, site: str) -> Standing:
        """See :meth:`UpdateStore.standing`."""
        sizes = {number: len(data) for (number, s), data in self._records.items() if s == site}
        return Standing(len(sizes), sum(sizes.values()), max(sizes, default=None))

    def bytes_stored(self) -> int:
        """See :meth:`UpdateStore.bytes_stored`; the records alone."""
        return sum(len(data) for data in self._records.values())

    def delete_client(self, site: str) -> list[Deletion]:
        """See :meth:`UpdateStore.delete_client`."""
        if site == AGGREGATE:
            raise HistoryError("a client without a name cannot be deleted")
        gone = []
        for window in self.windows():
            others = {p.site for p in window.participants if p.status != "purged"} - {site}
            if site in (p.site for p in window.participants):
                gone += self._drop(window, {site} if others else {site, AGGREGATE}, "purged")
        return gone

    def retain(self, windows: int) -> list[Deletion]:
        """See :meth:`UpdateStore.retain`."""
        if windows < 1:
            raise HistoryError(f"a history of {windows} windows cannot be kept; keep at least 1")
        gone = []
        for window in list(self._windows.values())[:-windows]:
            sites = {p.site for p in window.participants}
            gone += self._drop(window, sites | {AGGREGATE}, "retired")
        return gone

    def _drop(self, window: Window, sites: set[str], status: Status) -> list[Deletion]:
        gone = [
            Deletion(window.number, window.round, site, len(data), "")
            for site in sorted(sites)
            if (data := self._records.pop((window.number, site), None)) is not None
        ]

        def after(participant: Participant) -> Participant:
            known = participant.site in sites and participant.status != "purged"
            return replace(participant, status=status) if known else participant

        self._windows[window.number] = replace(
            window, participants=tuple(after(p) for p in window.participants)
        )
        return gone

    def truncate(self, version: int) -> int:
        """See :meth:`UpdateStore.truncate`."""
        late = [w.number for w in self._windows.values() if w.version > version]
        for number in late:
            del self._windows[number]
        self._records = {k: v for k, v in self._records.items() if k[0] in self._windows}
        return len(late)

    def get(self, key: str, default: Any = None) -> Any:
        """See :meth:`UpdateStore.get`."""
        return json.loads(self._settings[key]) if key in self._settings else default

    def set(self, key: str, value: Any) -> None:
        """See :meth:`UpdateStore.set`."""
        self._settings[key] = json.dumps(value)

    def put_arrays(self, name: str, arrays: Sequence[NDArray[Any]] | None) -> None:
        """See :meth:`UpdateStore.put_arrays`."""
        self._arrays.pop(name, None)
        if arrays is not None:
            self._arrays[name] = [np.array(array) for array in arrays]

    def arrays(self, name: str) -> list[NDArray[Any]] | None:
        """See :meth:`UpdateStore.arrays`."""
        found = self._arrays.get(name)
        return None if found is None else [array.copy() for array in found]

    def close(self) -> None:
        """See :meth:`UpdateStore.close`."""
        self._folder.cleanup()


class _MemoryWriter(WindowWriter):
    def __init__(self, store: MemoryStore, number: int) -> None:
        self._store = store
        self.number = number
        self._records: dict[str, bytes] = {}

    def write(self, site: str, record: bytes) -> None:
        self._records[site] = bytes(record)

    def commit(self, window: Window) -> None:
        check_window(window, self.number, set(self._records))
        self._store.add(window, self._records)

    def abandon(self) -> None:
        self._records = {}
