"""The server's state directory: one place, one writer, one transaction at a time."""

from __future__ import annotations

import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from flwr_afuic.erasure.keys import KeyRing, Rotation
from flwr_afuic.erasure.ledger import Head
from flwr_afuic.errors import StateError
from flwr_afuic.state import certificates, commands, database, queries, sweeping
from flwr_afuic.state.checking import verify_connection
from flwr_afuic.state.files import make_folder
from flwr_afuic.state.lock import RunLock
from flwr_afuic.state.reader import Reader
from flwr_afuic.state.rows import Command
from flwr_afuic.state.schema import APPLICATION, MIGRATIONS
from flwr_afuic.state.transaction import Transaction
from flwr_afuic.state.vault import Purged, Vault


class StateStore(Reader):
    """Everything a server must not forget, in one directory.

    Weights are written and synced first; one transaction then moves version, requests and
    ledger together, so that a crash leaves either the old state or the new one.

    Parameters
    ----------
    directory : path
        The state directory. It must be on a local disk: SQLite's WAL does not work on
        network file systems.
    exclusive : bool
        For a running server: nobody else may run on the directory meanwhile.
    create : bool
        Make the directory if there is none. Without it, a mistyped path is an error.

    Attributes
    ----------
    vault : Vault
        The weights.
    keys : KeyRing
        The server's signing key.
    federation : str
        A UUID made with the directory.

    Raises
    ------
    StateError
        If the directory is damaged, or was written by a newer version of this program.
    StateLockedError
        If another server runs on it.
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
        with self._writing() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO meta VALUES ('federation', ?)", (str(uuid.uuid4()),)
            )
            self.federation = queries.federation(connection)
        self._record_rotations()
        if clean:
            with self._writing() as connection:
                sweeping.settle(connection, self.vault)

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

    def checkpoint(self) -> bool:
        """Move the WAL into the database and empty it; False while somebody else reads.

        What was overwritten or deleted is then in no file of the directory any more.
        """
        with self._using() as connection:
            busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        return not busy

    def sweep(self, reason: str, request_id: str = "") -> list[Purged]:
        """Delete every file of weights that nothing keeps, and record each.

        A file is recorded before it is deleted; after a crash in between, the next sweep
        deletes it. Weights that were put and are not kept yet are spared.

        Parameters
        ----------
        reason : str
            Why, for the record.
        request_id : str
            The erasure it is done for, if any.

        Returns
        -------
        list of Purged
            What this call deleted.

        Raises
        ------
        StateLockedError
            If a server, and not this process, runs on the directory.
        """
        with self._alone():
            with self._writing() as connection:
                sweeping.record(connection, self.vault, reason, request_id)
            with self._writing() as connection:
                purged = sweeping.delete(connection, self.vault)
            self.checkpoint()
        return purged

    def rotate_key(self) -> Rotation:
        """Put a new signing key in place and note it in the ledger.

        Raises
        ------
        StateLockedError
            If a server, and not this process, runs on the directory.
        """
        with self._alone(), self.transaction() as change:
            rotation = self.keys.rotate()
            change.append("key-rotated", rotation.to_json())
        return rotation

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

    def verify(self, heads_seen: Iterable[tuple[str, Head]] = ()) -> list[str]:
        """Return everything that is wrong with the ledger; [] if it is whole.

        Parameters
        ----------
        heads_seen : iterable of (str, Head)
            Site and a head it has kept.
        """
        with self._using() as connection:
            return verify_connection(connection, self.keys.public_keys, heads_seen)

    def command(
        self,
        kind: str,
        request_id: str = "",
        site: str = "",
        reason: str = "",
        method: str = "",
        note: str = "",
    ) -> str:
        """File a command for the server that runs on this directory, or will.

        Parameters
        ----------
        kind : {"erase", "cancel", "release", "reject"}
            ``erase`` names a site and makes a request; the others name a request.
        request_id : str
            Which request; for ``erase`` it is made here.
        site : str
            For ``erase``: whose data.
        reason : str
            For ``erase``: one of :data:`~flwr_afuic.wire.REASON_CODES`, "other" if empty.
        method : str
            For ``erase``: how to unlearn, the server's choice if empty.
        note : str
            Free text for the record.

        Returns
        -------
        str
            The command's id; for ``erase`` it is the request's as well.

        Raises
        ------
        ErasureError
            If the command is none, or lacks what it needs.
        """
        with self._writing() as connection:
            return commands.file(connection, kind, request_id, site, reason, method, note)

    def pending_commands(self) -> list[Command]:
        """Commands that nobody has dealt with, oldest first; cheap while nothing changes."""
        with self._using() as connection:
            # Changes by others move this number; our own have emptied the cache.
            change = connection.execute("PRAGMA data_version").fetchone()[0]
            if self._pending is None or change != self._seen_change:
                self._pending = queries.commands(connection, pending=True)
                self._seen_change = change
            return list(self._pending)

    def next_issue(self, request_id: str) -> int:
        """Number the next certificate of a request will bear, from 1."""
        with self._using() as connection:
            newest = queries.newest_certificate(connection, request_id)
        return 1 if newest is None else newest.issue + 1

    def add_certificate(self, request_id: str, document: bytes, signature: str, html: str) -> Path:
        """Store a certificate and note it in the ledger.

        Parameters
        ----------
        request_id : str
            The request it is about.
        document : bytes
            The JSON document, exactly as signed.
        signature : str
            Hexadecimal.
        html : str
            The same for people.

        Returns
        -------
        Path
            The document's file; the signature's ends in ``.json.sig``, the page's in
            ``.html``.
        """
        folder = self.directory / "certificates"
        with self.transaction() as change:
            issue = self.next_issue(request_id)
            path = certificates.write(folder, request_id, issue, document, signature, html)
            change.certify(request_id, issue, path.name, certificates.digest(document))
        return path

    def certificate(self, request_id: str) -> tuple[bytes, str, Path] | None:
        """Return a request's newest certificate: document, signature and path.

        Raises
        ------
        StateError
            If a file is missing or its bytes are not those that were written.
        """
        with self._using() as connection:
            row = queries.newest_certificate(connection, request_id)
        if row is None:
            return None
        return certificates.read(self.directory / "certificates", row)
