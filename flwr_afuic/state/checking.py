"""Everything that can be wrong with a state directory, found without changing it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from flwr_afuic.erasure.ledger import Head, verify_ledger
from flwr_afuic.erasure.signatures import verify
from flwr_afuic.errors import LedgerError, StateError
from flwr_afuic.state import certificates, queries
from flwr_afuic.state.vault import Vault


def ledger_problems(
    connection: sqlite3.Connection, keys: Sequence[str], heads_seen: Iterable[tuple[str, Head]]
) -> list[str]:
    """Return everything that is wrong with the ledger of an open database.

    Parameters
    ----------
    connection : sqlite3.Connection
        Is only read.
    keys : sequence of str
        The server's public keys, oldest first.
    heads_seen : iterable of (str, Head)
        Site and a head it has kept.
    """
    try:
        head, rows = queries.head(connection), queries.ledger(connection)
        federation = queries.federation(connection)
    except LedgerError as error:
        return [str(error)]
    except sqlite3.Error as error:
        return [f"the ledger cannot be read: {error}"]
    problems = verify_ledger(rows, federation, head, heads_seen, keys)
    return problems + list(_version_problems(connection))


def _version_problems(connection: sqlite3.Connection) -> Iterator[str]:
    """Compare the versions, which are not chained, with what the ledger says of them."""
    chained = {
        row.body.get("version"): row.body.get("model")
        for row in queries.ledger(connection)
        if row.kind == "version"
    }
    for version in queries.versions(connection):
        if chained.get(version.number, version.digest) != version.digest:
            yield f"version {version.number} has another fingerprint than in the ledger"


def file_problems(
    connection: sqlite3.Connection, directory: Path, keys: Sequence[str]
) -> list[str]:
    """Return everything that is wrong with weights and certificates of a state directory."""
    (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    problems = [] if verdict == "ok" else [f"state.sqlite is damaged: {verdict}"]
    problems += _weight_problems(connection, directory)
    problems += _certificate_problems(connection, directory, keys)
    return problems


def _weight_problems(connection: sqlite3.Connection, directory: Path) -> Iterator[str]:
    vault = Vault(directory / "weights", make=False)
    kept = set(queries.holdings(connection).values())
    for digest in sorted(kept):
        try:
            vault.check(digest)
        except StateError as error:
            yield str(error)
    for row in queries.purges(connection):
        if row.done and row.digest not in kept and row.digest in vault:
            yield f"{vault.path(row.digest)} was recorded as deleted and is there"


def _certificate_problems(
    connection: sqlite3.Connection, directory: Path, keys: Sequence[str]
) -> Iterator[str]:
    chained = {
        (row.body.get("request"), row.body.get("issue")): row.body.get("sha256")
        for row in queries.ledger(connection)
        if row.kind == "certificate"
    }
    listed = queries.certificates(connection)
    for row in listed:
        if chained.pop((row.request_id, row.issue), None) != row.sha256:
            yield f"certificate {row.file} is not the one in the ledger"
        try:
            document, signature, path = certificates.read(directory / "certificates", row)
        except StateError as error:
            yield str(error)
            continue
        if not any(verify(key, document, signature) for key in keys):
            yield f"{path}.sig is no signature of this server's"
    for request_id, issue in chained:
        yield f"certificate {request_id}-{issue} is in the ledger and not on file"
