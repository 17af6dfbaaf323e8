"""Which key a site takes for its server's: pinned once, then handed on by signed rotations."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from flwr_afuic.erasure.keys import Rotation


@dataclass(frozen=True)
class Server:
    """The server as pinned.

    Attributes
    ----------
    pinned : str
        Key trusted first: met first, or configured. Raw public key, lowercase hex.
    key : str
        Key trusted now, reached from it by signed rotations.
    federation : str
        Id of its ledger; empty while none was seen.
    """

    pinned: str
    key: str
    federation: str


def pinned_server(connection: sqlite3.Connection) -> Server | None:
    """Return the server, or None before it was first heard of."""
    row = connection.execute("SELECT pinned, key, federation FROM server").fetchone()
    return None if row is None else Server(*row)


def remember(connection: sqlite3.Connection, server: Server) -> None:
    """Enter the server, and its keys among those it has had."""
    connection.execute(
        "INSERT OR REPLACE INTO server VALUES (1, ?, ?, ?)",
        (server.pinned, server.key, server.federation),
    )
    _had(connection, [server.pinned, server.key])


def pin(connection: sqlite3.Connection, key: str) -> None:
    """Trust this key and those it hands over to; see :meth:`ServerWatch.pin`."""
    known = pinned_server(connection)
    if known is not None and known.pinned == key:
        return
    if known is not None and known.key == key:
        remember(connection, Server(key, key, known.federation))
        return
    forget(connection)
    remember(connection, Server(key, key, ""))


def forget(connection: sqlite3.Connection) -> None:
    """Let the next server heard of be trusted."""
    for table in ("server", "server_key", "head"):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608


def trusted(
    connection: sqlite3.Connection, key: str, rotations: Sequence[Rotation] = ()
) -> Server | None:
    """Return the server if this is its key; the first key met is pinned.

    Parameters
    ----------
    connection : sqlite3.Connection
        In a transaction.
    key : str
        The key shown.
    rotations : sequence of Rotation
        Oldest first; as :func:`~flwr_afuic.erasure.keys.follows` reads them.

    Returns
    -------
    Server or None
        With its key and what it was called before; None if the key is not its own.
    """
    known = pinned_server(connection)
    if known is None:
        known = Server(key, key, "")
    present, passed = known.key, [known.key]
    for rotation in rotations:
        if present == key:
            break
        if rotation.old_key == present and rotation.genuine:
            present = rotation.new_key
            passed.append(present)
    if present != key:
        return None
    _had(connection, passed)
    return Server(known.pinned, key, known.federation)


def keys(connection: sqlite3.Connection) -> list[str]:
    """Return every key that is or was the server's."""
    return [str(row[0]) for row in connection.execute("SELECT key FROM server_key ORDER BY key")]


def was_key(connection: sqlite3.Connection, key: str) -> bool:
    """Whether this key is or was the server's; the first key met is pinned."""
    if pinned_server(connection) is None:
        remember(connection, Server(key, key, ""))
    found = connection.execute("SELECT 1 FROM server_key WHERE key = ?", (key,)).fetchone()
    return found is not None


def _had(connection: sqlite3.Connection, keys: Sequence[str]) -> None:
    connection.executemany("INSERT OR IGNORE INTO server_key VALUES (?)", [(k,) for k in keys])
