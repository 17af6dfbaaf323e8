"""An open state directory: its lock, its connection, its transactions."""

from __future__ import annotations

import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from flwr_afuic.erasure.keys import KeyRing
from flwr_afuic.errors import StateError
from flwr_afuic.state import certificates, database, queries, sweeping
from flwr_afuic.state.files import make_folder
from flwr_afuic.state.lock import RunLock
from flwr_afuic.state.reader import Reader
from flwr_afuic.state.rows import Command
from flwr_afuic.state.schema import APPLICATION, MIGRATIONS
from flwr_afuic.state.transaction import Transaction
from flwr_afuic.state.vault import Vault


class OpenState(Reader):
    """A state directory that this process has open; see :class:`StateStore`.

    One connection serves all threads, one at a time.
    """

    def __init__(
        self, directory: str | Path, *, exclusive: bool = False, create: bool = True
    ) -> None:
        self.directory = Path(directory)
        if not create and not (self.directory / "state.sqlite").exists():
            raise StateError(f"{self.directory} is no state directory; check the path")
        self._guard = threading.RLock()
        self._inside = False
        self._pending: list[Command] | None = None
        self._seen_change = -1
        self._run_lock: RunLock | None = None
        try:
            make_folder(self.directory)
        except OSError as cause:
            raise StateError(f"{self.directory} cannot be used ({cause})") from cause
        if exclusive:
            self._run_lock = RunLock(self.directory / "run.lock")
        try:
            self._open(clean=exclusive)
        except BaseException:
            self.close()
            raise

    def _open(self, *, clean: bool) -> None:
        self._connection: sqlite3.Connection | None = database.connect(
            self.directory / "state.sqlite", MIGRATIONS, error=StateError, application=APPLICATION
        )
        self.vault = Vault(self.directory / "weights", clean=clean)
        self.keys = KeyRing(self.directory / "keys")
        certificates.prepare(self.directory / "certificates", clean=clean)
        self.federation = self._name()
        self._record_rotations()
        if clean:
            with self._writing() as connection:
                sweeping.settle(connection, self.vault)

    def _name(self) -> str:
        """Return the federation's id, made by whoever opens the directory first."""
        with self._using() as connection:
            if not queries.named(connection):
                with self._writing():
                    connection.execute(
                        "INSERT OR IGNORE INTO meta VALUES ('federation', ?)", (str(uuid.uuid4()),)
                    )
            return queries.federation(connection)

    def _record_rotations(self) -> None:
        """Note rotations that a crash kept from being noted."""
        if not self.keys.rotations:
            return
        noted = {row.body.get("new") for row in self.ledger() if row.kind == "key-rotated"}
        lacking = [entry for entry in self.keys.rotations if entry.new_key not in noted]
        if lacking:
            with self.transaction() as change:
                for rotation in lacking:
                    change.append("key-rotated", rotation.to_json())

    def close(self) -> None:
        """Close the database and free the lock; closing twice is fine."""
        with self._guard:
            connection, self._connection = getattr(self, "_connection", None), None
            if connection is not None:
                connection.close()
            if self._run_lock is not None:
                self._run_lock.release()
                self._run_lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Write several things as one: all of them last, or none.

        Raises
        ------
        StateError
            If the database refuses, or another transaction of this thread is open.
        """
        with self._writing() as connection:
            change = Transaction(connection, self.vault, self.keys, self.federation)
            yield change
            change.seal()
        self.vault.settle(change.held)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._using() as connection:
            if self._inside:
                raise StateError("a transaction is open; transactions do not nest")
            self._inside = True
            self._pending = None
            try:
                with database.transaction(connection):
                    yield connection
            finally:
                self._inside = False
                self._pending = None

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._guard:
            if self._connection is None:
                raise StateError(f"{self.directory} was closed; open it again")
            try:
                yield self._connection
            except (sqlite3.Error, OverflowError) as cause:
                raise StateError(
                    f"{self.directory / 'state.sqlite'} refused ({cause}); nothing was written"
                ) from cause

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep servers away meanwhile, unless this is the one."""
        with self._guard:
            if self._run_lock is not None:
                yield
                return
            lock = RunLock(self.directory / "run.lock")
            try:
                yield
            finally:
                lock.release()
