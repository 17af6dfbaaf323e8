"""Verifying a state directory's ledger through an open connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from flwr_afuic.erasure.ledger import Head, verify_ledger
from flwr_afuic.errors import LedgerError
from flwr_afuic.state import queries


def verify_connection(
    connection: sqlite3.Connection, keys: Sequence[str], heads_seen: Iterable[tuple[str, Head]]
) -> list[str]:
    """Return everything that is wrong with the ledger of an open database."""
    problems = []
    try:
        head = queries.head(connection)
    except LedgerError as error:
        return [str(error)]
    try:
        rows = queries.ledger(connection)
    except sqlite3.Error as error:
        return [f"the ledger cannot be read: {error}"]
    problems += verify_ledger(rows, queries.federation(connection), head, heads_seen, keys)
    return problems
