"""Looking at a state directory without its lock and without changing its data."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from flwr_afuic.erasure.ledger import Head, Row
from flwr_afuic.erasure.signatures import Rotation, read_public_keys, read_rotations
from flwr_afuic.errors import LedgerError, StateError
from flwr_afuic.state import queries
from flwr_afuic.state.checking import file_problems, ledger_problems
from flwr_afuic.state.database import PATIENCE, readable, too_new, version_of
from flwr_afuic.state.lock import read_pid
from flwr_afuic.state.rows import (
    CertificateRow,
    Command,
    MetricRow,
    PurgeRow,
    RequestRow,
    VersionRow,
)
from flwr_afuic.state.schema import APPLICATION, MIGRATIONS
from flwr_afuic.state.vault import Vault

T = TypeVar("T")
_TRIES = 20


@dataclass(frozen=True)
class StateView:
    """A state directory at one moment.

    Attributes
    ----------
    head : Head or None
        The newest signed head; None while there is none, or where it is malformed.
    weights : dict
        Digest of each file of weights to its size in bytes.
    public_keys : list of str
        The server's public keys, oldest first; the last one is in use.
    server : int or None
        Process id of the server that seems to run on the directory.
    """

    directory: Path
    federation: str
    versions: list[VersionRow]
    requests: list[RequestRow]
    ledger: list[Row]
    head: Head | None
    events: list[dict[str, Any]]
    updates: list[dict[str, Any]]
    metrics: list[MetricRow]
    purges: list[PurgeRow]
    certificates: list[CertificateRow]
    commands: list[Command]
    holdings: dict[tuple[str, str], str]
    settings: dict[str, Any]
    weights: dict[str, int] = field(default_factory=dict)
    public_keys: list[str] = field(default_factory=list)
    rotations: list[Rotation] = field(default_factory=list)
    server: int | None = None

    def request(self, request_id: str) -> RequestRow | None:
        """Return one request, or None."""
        return next((row for row in self.requests if row.id == request_id), None)


def read_state(directory: str | Path) -> StateView:
    """Read a state directory, whether a server runs on it or not.

    Nothing is locked, made or migrated. Beside a running server SQLite keeps its own
    bookkeeping (``-shm``), and that is all that is written.

    Raises
    ------
    StateError
        If there is no state directory, or it is damaged or of another version.
    """
    directory = Path(directory)

    def read(connection: sqlite3.Connection) -> StateView:
        return StateView(
            directory=directory,
            federation=queries.federation(connection),
            versions=queries.versions(connection),
            requests=queries.requests(connection),
            ledger=queries.ledger(connection),
            head=_head(connection),
            events=queries.events(connection),
            updates=queries.updates(connection),
            metrics=queries.metrics(connection),
            purges=queries.purges(connection),
            certificates=queries.certificates(connection),
            commands=queries.commands(connection),
            holdings=queries.holdings(connection),
            settings=queries.settings(connection),
            weights=sizes_of(directory),
            public_keys=read_public_keys(directory / "keys"),
            rotations=read_rotations(directory / "keys"),
            server=server_of(directory),
        )

    return snapshot(directory, read)


def verify_state(directory: str | Path, heads_seen: Iterable[tuple[str, Head]] = ()) -> list[str]:
    """Return everything that is wrong with a state directory; [] if it is whole.

    The ledger's chain and head, the weights' digests, the certificates' digests and
    signatures, and whether what was recorded as deleted is gone.

    Parameters
    ----------
    directory : path
        Is only read.
    heads_seen : iterable of (str, Head)
        Site and a head it has kept.

    Raises
    ------
    StateError
        If there is no state directory, or its database cannot be opened.
    """
    directory, heads = Path(directory), list(heads_seen)

    def read(connection: sqlite3.Connection) -> list[str]:
        keys = read_public_keys(directory / "keys")
        problems = ledger_problems(connection, keys, heads)
        return problems + file_problems(connection, directory, keys)

    return snapshot(directory, read)


def snapshot(directory: Path, read: Callable[[sqlite3.Connection], T]) -> T:
    """Run ``read`` on one consistent state of a directory's database, read-only.

    Raises
    ------
    StateError
        If there is no database, or it is damaged or of another version.
    """
    path = directory / "state.sqlite"
    if not path.is_file():
        raise StateError(f"{directory} is no state directory; check the path")
    try:
        for _ in range(_TRIES):
            before, alone = path.stat(), not _wal(path).exists()
            found = _read(path, read, alone=alone)
            after = path.stat()
            # Without a WAL nobody has the file open, and SQLite is told so; should a
            # server have started meanwhile, what was read may be torn.
            quiet = (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
            if not alone or (quiet and not _wal(path).exists()):
                return found
    except (sqlite3.Error, OSError) as cause:
        raise StateError(f"{path} cannot be read ({cause}); restore a backup") from cause
    raise StateError(f"{path} changes too quickly to be read; try again")


def _read(path: Path, read: Callable[[sqlite3.Connection], T], *, alone: bool) -> T:
    how = "immutable=1" if alone else "mode=ro"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{how}", uri=True, timeout=PATIENCE, isolation_level=None
    )
    connection.text_factory = readable
    try:
        connection.execute("BEGIN")
        _check_version(connection, path)
        return read(connection)
    finally:
        connection.close()


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    found, known = version_of(connection), len(MIGRATIONS)
    mark = int(connection.execute("PRAGMA application_id").fetchone()[0])
    if mark != APPLICATION:
        raise StateError(f"{path} is no server's database; check the path")
    if found > known:
        raise StateError(too_new(path, found, known))
    if found < known:
        raise StateError(
            f"{path} has schema {found}, this version of flwr-afuic reads {known}; "
            "start the server on it once, which brings it up to date"
        )


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _head(connection: sqlite3.Connection) -> Head | None:
    try:
        return queries.head(connection)
    except LedgerError:
        return None


def sizes_of(directory: Path) -> dict[str, int]:
    """Return the digest of each file of weights and its size in bytes."""
    vault = Vault(directory / "weights", make=False)
    sizes = {}
    for digest in sorted(vault.digests()):
        try:
            sizes[digest] = vault.size(digest)
        except StateError:
            continue  # a sweep was faster
    return sizes


def server_of(directory: Path) -> int | None:
    """Return the process id in the lock file, if there is such a process.

    Trying the lock could make a server that starts in this moment fail.
    """
    pid = read_pid(directory / "run.lock")
    if pid is None:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return pid
    return pid
