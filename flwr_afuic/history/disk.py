"""A history on disk: an SQLite index and append-only files of records.

A window is committed in one transaction after its records were synced, so that a writer killed at
any moment leaves every window before the one it was writing.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import HistoryError, RecordError, StateError
from flwr_afuic.history.segments import Place, Segments
from flwr_afuic.history.store import (
    AGGREGATE,
    Deletion,
    Participant,
    UpdateStore,
    Window,
    WindowWriter,
    check_window,
)
from flwr_afuic.state.database import connect, transaction
from flwr_afuic.state.files import make_folder
from flwr_afuic.state.lock import RunLock
from flwr_afuic.state.vault import Vault

APPLICATION = 0x41465548
"""Marks ``history.sqlite`` as such ("AFUH")."""

_MIGRATIONS = [
    """
CREATE TABLE setting (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE window (
    number INTEGER PRIMARY KEY, version INTEGER NOT NULL, round INTEGER NOT NULL, step REAL NOT NULL
);
CREATE TABLE participant (
    window INTEGER NOT NULL REFERENCES window(number) ON DELETE CASCADE,
    site TEXT NOT NULL, weight REAL NOT NULL, norm REAL NOT NULL, status TEXT NOT NULL,
    PRIMARY KEY (window, site)
);
CREATE INDEX participant_site ON participant (site);
CREATE TABLE record (
    window INTEGER NOT NULL REFERENCES window(number) ON DELETE CASCADE,
    site TEXT NOT NULL, file TEXT NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL,
    PRIMARY KEY (window, site)
);
CREATE INDEX record_file ON record (file, offset);
CREATE TABLE arrays (name TEXT PRIMARY KEY, digest TEXT NOT NULL);
"""
]

_OF_CLIENT = """
SELECT r.window, w.round, r.site, r.length, r.file FROM record r
JOIN window w ON w.number = r.window
WHERE r.site = :site OR (r.site = '' AND r.window IN (
    SELECT window FROM participant GROUP BY window
    HAVING MAX(site = :site) AND MIN(site = :site OR status = 'purged')))
ORDER BY r.window, r.site
"""
_OLD = """
SELECT r.window, w.round, r.site, r.length, r.file FROM record r
JOIN window w ON w.number = r.window
WHERE r.window NOT IN (SELECT number FROM window ORDER BY number DESC LIMIT :windows)
ORDER BY r.window, r.site
"""
_MARK_PURGED = "UPDATE participant SET status = 'purged' WHERE site = :site"
_MARK_RETIRED = """
UPDATE participant SET status = 'retired' WHERE status != 'purged'
AND window NOT IN (SELECT number FROM window ORDER BY number DESC LIMIT :windows)
"""


class DiskStore(UpdateStore):
    """A history in a folder.

    Parameters
    ----------
    folder : path
        Made if needed: ``history.sqlite``, ``records/``, ``arrays/`` and ``spool/``, which only
        their owner can read.
    exclusive : bool
        For the one process that writes; without it the history can only be read.

    Raises
    ------
    HistoryError
        If the folder holds no history and cannot, or another process is writing it.
    """

    def __init__(self, folder: str | Path, *, exclusive: bool = True) -> None:
        self.folder = Path(folder)
        self.spool = self.folder / "spool"
        self.being_written: set[str] = set()
        self._exclusive = exclusive
        self._lock: RunLock | None = None
        self._guard = threading.RLock()
        if not exclusive and not (self.folder / "history.sqlite").exists():
            raise HistoryError(f"{self.folder} holds no history; name the folder of one")
        try:
            make_folder(self.folder)
            make_folder(self.spool)
            if exclusive:
                self._lock = RunLock(self.folder / "history.lock")
        except (OSError, StateError) as cause:
            raise HistoryError(
                f"the history in {self.folder} cannot be opened ({cause})"
            ) from cause
        try:
            self._database = connect(
                self.folder / "history.sqlite",
                _MIGRATIONS,
                error=HistoryError,
                application=APPLICATION,
            )
        except BaseException:
            self.close()
            raise
        self.segments = Segments(self.folder / "records")
        self._vault = Vault(self.folder / "arrays", clean=exclusive)
        if exclusive:
            self._clean()

    def _clean(self) -> None:
        """Remove files that a crash left behind, or left undeleted."""
        files = {row[0] for row in self._rows("SELECT DISTINCT file FROM record")}
        self.segments.sweep(files | self.being_written)
        kept = {row[0] for row in self._rows("SELECT digest FROM arrays")}
        for digest in self._vault.digests() - kept:
            self._vault.delete(digest)

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._guard:
            return self._database.execute(query, values).fetchall()

    def _writable(self) -> None:
        if not self._exclusive:
            raise HistoryError(
                f"the history in {self.folder} was opened for reading; open it with exclusive=True"
            )

    # ---- writing --------------------------------------------------------------------

    def begin(self) -> WindowWriter:
        """See :meth:`UpdateStore.begin`."""
        self._writable()
        ((last,),) = self._rows("SELECT COALESCE(MAX(number), 0) FROM window")
        return _DiskWriter(self, int(last) + 1)

    def end_of(self, file: str) -> int:
        """Return where the indexed bytes of a record file end."""
        ((end,),) = self._rows(
            "SELECT COALESCE(MAX(offset + length), 0) FROM record WHERE file = ?", (file,)
        )
        return int(end)

    def add(self, window: Window, places: dict[str, Place]) -> None:
        """Put a window into the index, its records being written."""
        with self._guard, transaction(self._database) as base:
            base.execute(
                "INSERT INTO window VALUES (?, ?, ?, ?)",
                (window.number, window.version, window.round, window.step),
            )
            base.executemany(
                "INSERT INTO participant VALUES (?, ?, ?, ?, ?)",
                [(window.number, p.site, p.weight, p.norm, p.status) for p in window.participants],
            )
            base.executemany(
                "INSERT INTO record VALUES (?, ?, ?, ?, ?)",
                [
                    (window.number, site, place.file, place.offset, place.length)
                    for site, place in places.items()
                ],
            )

    # ---- reading --------------------------------------------------------------------

    def windows(self) -> Iterator[Window]:
        """See :meth:`UpdateStore.windows`."""
        numbers = self._rows("SELECT number, version, round, step FROM window ORDER BY number")
        for number, version, round_, step in numbers:
            rows = self._rows(
                "SELECT site, weight, norm, status FROM participant WHERE window = ? ORDER BY site",
                (number,),
            )
            participants = tuple(Participant(*row) for row in rows)
            yield Window(number, version, round_, step, participants)

    def record(self, number: int, site: str) -> bytes | None:
        """See :meth:`UpdateStore.record`."""
        rows = self._rows(
            "SELECT file, offset, length FROM record WHERE window = ? AND site = ?", (number, site)
        )
        return self.segments.read(Place(*rows[0])) if rows else None

    def bytes_stored(self) -> int:
        """See :meth:`UpdateStore.bytes_stored`: the sizes of all its files but the spool's."""
        with self._guard:
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return sum(
            path.stat().st_size
            for path in self.folder.rglob("*")
            if path.is_file() and self.spool not in path.parents
        )

    # ---- deleting -------------------------------------------------------------------

    def delete_client(self, site: str) -> list[Deletion]:
        """See :meth:`UpdateStore.delete_client`.

        The files are unlinked, not overwritten. What a crash leaves undeleted is deleted when the
        history is opened next.
        """
        if site == AGGREGATE:
            raise HistoryError("a client without a name cannot be deleted")
        return self._delete(_OF_CLIENT, _MARK_PURGED, {"site": site})

    def retain(self, windows: int) -> list[Deletion]:
        """See :meth:`UpdateStore.retain`; a file goes once all its windows do."""
        if windows < 1:
            raise HistoryError(f"a history of {windows} windows cannot be kept; keep at least 1")
        return self._delete(_OLD, _MARK_RETIRED, {"windows": windows})

    def _delete(self, which: str, mark: str, values: dict[str, Any]) -> list[Deletion]:
        """Take records out of the index for good, then delete files nobody needs any more."""
        self._writable()
        with self._guard, transaction(self._database) as base:
            rows = base.execute(which, values).fetchall()
            base.executemany(
                "DELETE FROM record WHERE window = ? AND site = ?",
                [(window, site) for window, _, site, _, _ in rows],
            )
            base.execute(mark, values)
        self._clean()
        return [
            Deletion(window, round_, site, length, f"records/{file}")
            for window, round_, site, length, file in rows
        ]

    def truncate(self, version: int) -> int:
        """See :meth:`UpdateStore.truncate`."""
        self._writable()
        with self._guard, transaction(self._database) as base:
            count = base.execute("DELETE FROM window WHERE version > ?", (version,)).rowcount
        self._clean()
        return int(count)

    # ---- what else belongs to a history ---------------------------------------------

    def get(self, key: str, default: Any = None) -> Any:
        """See :meth:`UpdateStore.get`."""
        rows = self._rows("SELECT value FROM setting WHERE key = ?", (key,))
        return json.loads(rows[0][0]) if rows else default

    def set(self, key: str, value: Any) -> None:
        """See :meth:`UpdateStore.set`."""
        self._writable()
        with self._guard, transaction(self._database) as base:
            base.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (key, json.dumps(value)))

    def put_arrays(self, name: str, arrays: Sequence[NDArray[Any]] | None) -> None:
        """See :meth:`UpdateStore.put_arrays`."""
        self._writable()
        digest = None
        if arrays is not None:
            digest = self._vault.put({str(i): np.asarray(array) for i, array in enumerate(arrays)})
        with self._guard, transaction(self._database) as base:
            base.execute("DELETE FROM arrays WHERE name = ?", (name,))
            if digest is not None:
                base.execute("INSERT INTO arrays VALUES (?, ?)", (name, digest))
        self._clean()

    def arrays(self, name: str) -> list[NDArray[Any]] | None:
        """See :meth:`UpdateStore.arrays`."""
        rows = self._rows("SELECT digest FROM arrays WHERE name = ?", (name,))
        return list(self._vault.get(rows[0][0]).values()) if rows else None

    def close(self) -> None:
        """See :meth:`UpdateStore.close`."""
        if hasattr(self, "_database"):
            self._database.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None


class _DiskWriter(WindowWriter):
    def __init__(self, store: DiskStore, number: int) -> None:
        self._store = store
        self.number = number
        self._places: dict[str, Place] = {}

    def write(self, site: str, record: bytes) -> None:
        if site in self._places:
            raise RecordError(f"window {self.number} has a record of {site!r} already")
        file = Segments.file_of(site, self.number)
        self._store.being_written.add(file)
        place = self._store.segments.append(file, self._store.end_of(file), record)
        self._places[site] = place

    def commit(self, window: Window) -> None:
        check_window(window, self.number, set(self._places))
        self._store.add(window, self._places)
        self.abandon()

    def abandon(self) -> None:
        # What is not indexed lies behind the indexed bytes; the next record overwrites it.
        self._store.being_written.clear()
        self._places = {}
