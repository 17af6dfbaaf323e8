"""Deleting weights that nothing keeps: recorded first, so that no deletion is unknown."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable

from flwr_afuic.state.vault import Purged, Vault


def record(connection: sqlite3.Connection, vault: Vault, reason: str, request_id: str) -> None:
    """Record every file that is to be deleted; those recorded before a crash stay so."""
    pending = {digest for (digest,) in _pending(connection)}
    for digest in sorted(_unkept(connection, vault, vault.digests()) - pending):
        kept_for = connection.execute(
            "SELECT purpose || '/' || key FROM released WHERE digest = ? ORDER BY purpose, key",
            (digest,),
        )
        connection.execute(
            "INSERT INTO purge (digest, file, bytes, purposes, reason, request_id, wall, done) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
            (
                digest,
                vault.path(digest).name,
                vault.size(digest),
                json.dumps([text for (text,) in kept_for]),
                reason,
                request_id,
                time.time(),
            ),
        )


def delete(connection: sqlite3.Connection, vault: Vault) -> list[Purged]:
    """Delete what is recorded and still unkept; return what was deleted."""
    purged = []
    for (digest,) in _pending(connection):
        with vault.guard:
            if not _unkept(connection, vault, [digest]):
                _forget(connection, digest)
                continue
            deleted = vault.delete(digest)
        _finish(connection, digest)
        if deleted is not None:
            purged.append(deleted)
    return purged


def settle(connection: sqlite3.Connection, vault: Vault) -> None:
    """Bring the records up to date after a crash: what is gone is deleted."""
    for (digest,) in _pending(connection):
        if digest not in vault:
            _finish(connection, digest)


def _pending(connection: sqlite3.Connection) -> list[tuple[str]]:
    return connection.execute("SELECT digest FROM purge WHERE done = 0 ORDER BY number").fetchall()


def _unkept(connection: sqlite3.Connection, vault: Vault, digests: Iterable[str]) -> set[str]:
    kept = {digest for (digest,) in connection.execute("SELECT digest FROM holding")}
    return {digest for digest in digests if digest not in kept and not vault.is_fresh(digest)}


def _finish(connection: sqlite3.Connection, digest: str) -> None:
    connection.execute("UPDATE purge SET done = 1 WHERE digest = ? AND done = 0", (digest,))
    connection.execute("DELETE FROM released WHERE digest = ?", (digest,))


def _forget(connection: sqlite3.Connection, digest: str) -> None:
    """Take back a record: the file is kept again and was never deleted."""
    connection.execute("DELETE FROM purge WHERE digest = ? AND done = 0", (digest,))
