"""A history on disk: an SQLite index and append-only files of records.

A window is committed in one transaction after its records were synced, so that a writer killed at
any moment leaves every window before the one it was writing.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import HistoryError, RecordError, StateError
from flwr_afuic.history import schema
from flwr_afuic.history.schema import STATUSES
from flwr_afuic.history.segments import WINDOWS_PER_FILE, Place, Segments
from flwr_afuic.history.store import (
    AGGREGATE,
    Deletion,
    Participant,
    Standing,
    UpdateStore,
    Window,
    WindowWriter,
    check_window,
)
from flwr_afuic.state.database import connect, transaction
from flwr_afuic.state.files import make_folder
from flwr_afuic.state.lock import RunLock
from flwr_afuic.state.vault import Vault

_MOST_EMPTY = 0.25
"""Share of the index that may be empty pages when it is opened."""


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
                schema.MIGRATIONS,
                error=HistoryError,
                application=schema.APPLICATION,
                page_size=schema.PAGE_SIZE,
            )
        except BaseException:
            self.close()
            raise
        self.segments = Segments(self.folder / "records")
        self._vault = Vault(self.folder / "arrays", clean=exclusive)
        if exclusive:
            self._clean()
            self._shrink()

    def _clean(self) -> None:
        """Remove files that a crash left behind, or left undeleted."""
        stored = self._rows(schema.STORED, {"windows": WINDOWS_PER_FILE})
        files = {Segments.file_of(site, part * WINDOWS_PER_FILE) for site, part in stored}
        self.segments.sweep(files | self.being_written)
        kept = {row[0] for row in self._rows("SELECT digest FROM arrays")}
        for digest in self._vault.digests() - kept:
            self._vault.delete(digest)

    def _shrink(self) -> None:
        """Give back the pages of the index that deletions, or an older schema, left empty."""
        ((empty,),), ((pages,),) = (
            self._rows("PRAGMA freelist_count"),
            self._rows("PRAGMA page_count"),
        )
        if empty > pages * _MOST_EMPTY:
            self._rows("VACUUM")

    def _rows(
        self, query: str, values: Sequence[Any] | Mapping[str, Any] = ()
    ) -> list[tuple[Any, ...]]:
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

    def ends(self, number: int) -> dict[str, int]:
        """Return where the indexed bytes of each site end, in the files of a window."""
        first = number // WINDOWS_PER_FILE * WINDOWS_PER_FILE
        values = {"first": first, "last": first + WINDOWS_PER_FILE - 1}
        return {site: int(end) for site, end in self._rows(schema.ENDS, values)}

    def add(self, window: Window, places: dict[str, Place]) -> None:
        """Put a window into the index, its records being written."""

        def place(site: str) -> tuple[int | None, int | None]:
            found = places.get(site)
            return (found.offset, found.length) if found else (None, None)

        with self._guard, transaction(self._database) as base:
            numbers = {name: number for number, name in base.execute("SELECT id, name FROM site")}
            for participant in window.participants:
                if participant.site not in numbers:
                    cursor = base.execute("INSERT INTO site (name) VALUES (?)", [participant.site])
                    numbers[participant.site] = int(cursor.lastrowid or 0)
            base.execute(
                "INSERT INTO window VALUES (?, ?, ?, ?, ?, ?)",
                (window.number, window.version, window.round, window.step, *place(AGGREGATE)),
            )
            base.executemany(
                "INSERT INTO participant VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        window.number, numbers[p.site], p.weight, p.norm,
                        STATUSES.index(p.status), *place(p.site),
                    )
                    for p in window.participants
                ],
            )  # fmt: skip

    # ---- reading --------------------------------------------------------------------

    def windows(self) -> Iterator[Window]:
        """See :meth:`UpdateStore.windows`."""
        numbers = self._rows("SELECT number, version, round, step FROM window ORDER BY number")
        for number, version, round_, step in numbers:
            participants = tuple(
                Participant(site, weight, norm, STATUSES[status])
                for site, weight, norm, status in self._rows(schema.PARTICIPANTS, [number])
            )
            yield Window(number, version, round_, step, participants)

    def record(self, number: int, site: str) -> bytes | None:
        """See :meth:`UpdateStore.record`."""
        if site == AGGREGATE:
            rows = self._rows(schema.PLACE_OF_AGGREGATE, [number])
        else:
            rows = self._rows(schema.PLACE, [number, site])
        if not rows:
            return None
        return self.segments.read(Place(Segments.file_of(site, number), *rows[0]))

    def standing(self, site: str) -> Standing:
        """See :meth:`UpdateStore.standing`."""
        if site == AGGREGATE:
            return Standing(*self._rows(schema.STANDING_OF_AGGREGATES)[0])
        return Standing(*self._rows(schema.STANDING, [site])[0])

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
        return self._delete(schema.OF_CLIENT, schema.MARK_PURGED, {"site": site})

    def retain(self, windows: int) -> list[Deletion]:
        """See :meth:`UpdateStore.retain`; a file goes once all its windows do."""
        if windows < 1:
            raise HistoryError(f"a history of {windows} windows cannot be kept; keep at least 1")
        return self._delete(schema.OLD, schema.MARK_RETIRED, {"windows": windows})

    def _delete(self, which: str, mark: str, values: dict[str, Any]) -> list[Deletion]:
        """Take records out of the index for good, then delete files nobody needs any more."""
        self._writable()
        with self._guard, transaction(self._database) as base:
            rows = base.execute(which, values).fetchall()
            base.executemany(
                schema.DROP_RECORD, [(window, site) for window, _, site, _ in rows if site]
            )
            base.executemany(
                schema.DROP_AGGREGATE, [(window,) for window, _, site, _ in rows if not site]
            )
            base.execute(mark, values)
        self._clean()
        return [
            Deletion(window, round_, site, length, f"records/{Segments.file_of(site, window)}")
            for window, round_, site, length in rows
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
        self._ends = store.ends(number)
        self._places: dict[str, Place] = {}

    def write(self, site: str, record: bytes) -> None:
        if site in self._places:
            raise RecordError(f"window {self.number} has a record of {site!r} already")
        file = Segments.file_of(site, self.number)
        self._store.being_written.add(file)
        place = self._store.segments.append(file, self._ends.get(site, 0), record)
        self._places[site] = place

    def commit(self, window: Window) -> None:
        check_window(window, self.number, set(self._places))
        self._store.add(window, self._places)
        self.abandon()

    def abandon(self) -> None:
        # What is not indexed lies behind the indexed bytes; the next record overwrites it.
        self._store.being_written.clear()
        self._places = {}
