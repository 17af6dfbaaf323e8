"""Reading the state directory through an open connection."""

from __future__ import annotations

import sqlite3
from contextlib import AbstractContextManager
from typing import Any

from flwr_afuic.erasure.ledger import Head, Row
from flwr_afuic.state import queries
from flwr_afuic.state.rows import (
    CertificateRow,
    Command,
    MetricRow,
    PurgeRow,
    RequestRow,
    VersionRow,
)


class Reader:
    """What can be asked of a state directory; every answer is a list or value of its own."""

    def _using(self) -> AbstractContextManager[sqlite3.Connection]:
        """Lend the connection to one thread at a time."""
        raise NotImplementedError

    def get(self, key: str, default: Any = None) -> Any:
        """Return what ``tx.set`` stored under a key, or ``default``."""
        with self._using() as connection:
            return queries.setting(connection, key, default)

    def versions(self) -> list[VersionRow]:
        """All versions, oldest first."""
        with self._using() as connection:
            return queries.versions(connection)

    def holdings(self) -> dict[tuple[str, str], str]:
        """What keeps a file of weights: (purpose, key) to digest."""
        with self._using() as connection:
            return queries.holdings(connection)

    def requests(self) -> list[RequestRow]:
        """All requests in the order they came in."""
        with self._using() as connection:
            return queries.requests(connection)

    def request(self, request_id: str) -> RequestRow | None:
        """One request, or None."""
        with self._using() as connection:
            return queries.request(connection, request_id)

    def ledger(self) -> list[Row]:
        """All rows of the ledger."""
        with self._using() as connection:
            return queries.ledger(connection)

    def row_hash(self, seq: int) -> str | None:
        """The hash of one row of the ledger, None if there is no such row."""
        with self._using() as connection:
            return queries.row_hash(connection, seq)

    def head(self) -> Head | None:
        """The newest signed head; None while the ledger is empty."""
        with self._using() as connection:
            return queries.head(connection)

    def events(self, limit: int | None = None) -> list[dict[str, Any]]:
        """The newest ``limit`` events (all if None), oldest first."""
        with self._using() as connection:
            return queries.events(connection, limit)

    def updates(self, limit: int | None = None) -> list[dict[str, Any]]:
        """The newest ``limit`` updates (all if None), oldest first."""
        with self._using() as connection:
            return queries.updates(connection, limit)

    def metrics(self) -> list[MetricRow]:
        """All measured numbers."""
        with self._using() as connection:
            return queries.metrics(connection)

    def purges(self) -> list[PurgeRow]:
        """What was deleted, oldest first."""
        with self._using() as connection:
            return queries.purges(connection)

    def certificates(self) -> list[CertificateRow]:
        """All issued certificates, oldest first."""
        with self._using() as connection:
            return queries.certificates(connection)

    def issues(self, request_id: str) -> int:
        """How many certificates a request has."""
        with self._using() as connection:
            return queries.issues(connection, request_id)

    def commands(self) -> list[Command]:
        """All commands in the order they were filed."""
        with self._using() as connection:
            return queries.commands(connection)
