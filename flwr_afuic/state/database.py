"""Opening a SQLite file that must survive crashes: pragmas and numbered migrations."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flwr_afuic.errors import AfuicError
from flwr_afuic.state.files import OWNER_FILE, make_folder

Migration = str | Callable[[sqlite3.Connection], None]
"""One step of a schema: SQL statements, or a function that runs inside the transaction."""

PATIENCE = 30.0
"""Seconds to wait for another process that is writing."""


def connect(
    path: str | Path,
    migrations: Sequence[Migration],
    *,
    error: type[AfuicError],
    application: int = 0,
    page_size: int = 0,
) -> sqlite3.Connection:
    """Open a database, making or upgrading it as needed.

    The connection is in autocommit mode: writes belong inside :func:`transaction`. It may
    be used by several threads, one at a time.

    Parameters
    ----------
    path : path
        SQLite file; a new one can be read by its owner only, and so can its WAL.
    migrations : sequence of (str or callable)
        Step ``i`` brings schema ``i`` to ``i + 1``, each in a transaction of its own.
        Never change one that was released; add another.
    error : type of AfuicError
        What to raise.
    application : int
        Marks whose file it is (``PRAGMA application_id``), so that no two kinds of file
        are taken for each other; 0 for files that carry no mark.
    page_size : int
        Bytes of a page of a new file; 0 for SQLite's own choice. A file that exists keeps its own.

    Raises
    ------
    AfuicError
        Of type ``error``, if the file is no database, is another kind of file, was written
        by a newer version of this program, or cannot be opened.
    """
    path = Path(path)
    connection = None
    try:
        make_folder(path.parent)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, OWNER_FILE))
        connection = sqlite3.connect(
            path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
        )
        connection.text_factory = readable
        _check_kind(connection, path, error, application)
        if page_size:
            connection.execute(f"PRAGMA page_size = {page_size:d}")
        _set_pragmas(connection)
        _migrate(connection, path, migrations, error, application)
    except (sqlite3.Error, OSError) as cause:
        if connection is not None:
            connection.close()
        raise error(
            f"{path} is not a usable database ({cause}); name another file, or restore a backup"
        ) from cause
    except BaseException:
        if connection is not None:
            connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Run a block as one transaction that takes the write lock at its start.

    Whatever leaves the block as an exception undoes all of it.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        commit(connection)
    except BaseException:
        # A failed COMMIT (a full disk) may have ended the transaction already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def commit(connection: sqlite3.Connection) -> None:
    """Make a transaction last."""
    connection.execute("COMMIT")


def readable(data: bytes) -> str:
    """Decode a stored text, tampered ones included, so that they can be compared and named."""
    return data.decode("utf-8", "surrogateescape")


def version_of(connection: sqlite3.Connection) -> int:
    """Return the number of migrations a database has been through."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def too_new(path: Path, found: int, known: int) -> str:
    """Say that a file was written by a newer version of this program."""
    return (
        f"{path} has schema {found}, this version of flwr-afuic knows {known}; "
        "update flwr-afuic, or restore a backup that this version made"
    )


def _check_kind(
    connection: sqlite3.Connection, path: Path, error: type[AfuicError], application: int
) -> None:
    # The number first: another process may be making the file, and sets both in one step.
    version = version_of(connection)
    found = int(connection.execute("PRAGMA application_id").fetchone()[0])
    # Files made before there were marks have neither mark nor number.
    if found != application and (found or version):
        raise error(
            f"{path} is another kind of file (application id {found}, not {application}); "
            "name another one"
        )


def _set_pragmas(connection: sqlite3.Connection) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as cause:
            # SQLite does not wait by itself when two processes make a new file at once.
            if "locked" not in str(cause) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA secure_delete=ON")
    connection.execute("PRAGMA foreign_keys=ON")


def _migrate(
    connection: sqlite3.Connection,
    path: Path,
    migrations: Sequence[Migration],
    error: type[AfuicError],
    application: int,
) -> None:
    while (done := version_of(connection)) != len(migrations):
        if done > len(migrations):
            raise error(too_new(path, done, len(migrations)))
        with transaction(connection):
            if version_of(connection) != done:
                continue  # another process was faster
            _apply(connection, migrations[done])
            connection.execute(f"PRAGMA application_id = {application:d}")
            connection.execute(f"PRAGMA user_version = {done + 1:d}")


def _apply(connection: sqlite3.Connection, migration: Migration) -> None:
    if not isinstance(migration, str):
        migration(connection)
        return
    # Not executescript: it commits what came before it.
    statement = ""
    for line in migration.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
    if statement.strip():
        raise sqlite3.ProgrammingError(f"a migration ends in the middle of: {statement.strip()!r}")
