"""What one transaction on the state directory may write."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flwr_afuic.erasure.canonical import canonical
from flwr_afuic.erasure.keys import KeyRing, verify
from flwr_afuic.erasure.ledger import Row, genesis, make_row, sign_head
from flwr_afuic.errors import LedgerError, StateError
from flwr_afuic.state import queries
from flwr_afuic.state.rows import RequestRow
from flwr_afuic.state.vault import Vault

_KINDS: dict[str, type] = {
    "time": float,
    "wall": float,
    "round": int,
    "version": int,
    "base_version": int,
    "staleness": int,
    "examples": int,
}
_OPTIONAL = {"site": "", "text": "", "reason": ""}


class Transaction:
    """Writes that happen together or not at all; made by ``StateStore.transaction()``."""

    def __init__(
        self, connection: sqlite3.Connection, vault: Vault, keys: KeyRing, federation: str
    ) -> None:
        self._connection = connection
        self._vault = vault
        self._keys = keys
        self._federation = federation
        self._last: Row | None = None
        self._live = True
        self.held: set[str] = set()

    def put_version(
        self,
        number: int,
        round: int,
        time: float,
        wall: float,
        cause: str,
        sites: Sequence[str],
        digest: str,
    ) -> None:
        """Record a merge; StateError if that number is recorded already.

        The digest is the version's fingerprint. What keeps the weights themselves is
        :meth:`hold`.
        """
        listed = json.dumps([str(site) for site in sites])
        self._execute(
            "INSERT INTO version VALUES (?, ?, ?, ?, ?, ?, ?)",
            int(number),
            int(round),
            float(time),
            float(wall),
            _text(cause),
            listed,
            digest,
        )

    def set(self, key: str, value: Any) -> None:
        """Store a JSON value under a key."""
        try:
            text = json.dumps(value)
        except (TypeError, ValueError, RecursionError) as cause:
            raise StateError(f"setting {key!r} is no JSON ({cause})") from cause
        self._execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", key, text)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a stored value, as this transaction has left it."""
        self._check()
        return queries.setting(self._connection, key, default)

    def hold(self, purpose: str, key: str, digest: str) -> None:
        """Keep a file of weights; what was kept under the same purpose and key is let go.

        Raises
        ------
        StateError
            If the vault has no such file.
        """
        if digest not in self._vault:
            raise StateError(
                f"there are no weights {digest[:16]}... to keep as {purpose}/{key}; put them first"
            )
        key = str(key)
        self._release(purpose, key, unless=digest)
        self._execute("INSERT OR REPLACE INTO holding VALUES (?, ?, ?)", purpose, key, digest)
        self.held.add(digest)

    def drop(self, purpose: str, key: str) -> None:
        """Let a file of weights go; the next sweep deletes it unless something else keeps it."""
        self._release(purpose, str(key))
        self._execute("DELETE FROM holding WHERE purpose = ? AND key = ?", purpose, str(key))

    def _release(self, purpose: str, key: str, unless: str = "") -> None:
        """Remember what a file was kept for, for the record of its deletion."""
        self._execute(
            "INSERT OR IGNORE INTO released SELECT digest, purpose, key FROM holding "
            "WHERE purpose = ? AND key = ? AND digest != ?",
            purpose,
            key,
            unless,
        )

    def put_request(self, request: RequestRow) -> None:
        """Store a request, new or changed."""
        try:
            body = json.dumps(request.body)
        except (TypeError, ValueError, RecursionError) as cause:
            raise StateError(f"the body of request {request.id} is no JSON ({cause})") from cause
        self._execute(
            "INSERT INTO request (id, site, scope, state, count, reason, filed_at, body) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET site = excluded.site, "
            "scope = excluded.scope, state = excluded.state, count = excluded.count, "
            "reason = excluded.reason, filed_at = excluded.filed_at, body = excluded.body",
            request.id,
            _text(request.site),
            str(request.scope),
            str(request.state),
            int(request.count),
            _text(request.reason),
            float(request.filed_at),
            body,
        )

    def append(self, kind: str, body: Mapping[str, Any]) -> Row:
        """Append a row to the ledger; the head is signed when the transaction ends.

        A number in ``body`` that is none (NaN, infinity) is written as its text, since a
        signed JSON document cannot hold it.

        Raises
        ------
        LedgerError
            If the body is no JSON.
        """
        self._check()
        last = self._last or self._signed_end()
        seq, previous = (
            (1, genesis(self._federation)) if last is None else (last.seq + 1, last.hash)
        )
        row = make_row(seq, time.time(), kind, _finite(dict(body)), previous)
        self._execute(
            "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?)",
            row.seq,
            row.time,
            row.kind,
            canonical(row.body).decode(),
            row.previous,
            row.hash,
        )
        self._last = row
        return row

    def _signed_end(self) -> Row | None:
        """Return the last row, if the head was signed over it.

        Appending signs a new head, and must not do so over rows that were cut or changed.
        """
        last, head = queries.last_row(self._connection), queries.head(self._connection)
        if last is None and head is None:
            return None
        self._keys.reload()
        if last is None or head is None or (head.seq, head.hash) != (last.seq, last.hash):
            why = "the row it ends with is not the one that was signed"
        elif head.federation != self._federation:
            why = "its head is of another federation"
        elif head.key not in self._keys.public_keys:
            why = "its head is signed by an unknown key"
        elif not verify(head.key, head.signed(), head.signature):
            why = "its head was changed"
        else:
            return last
        raise LedgerError(f"the ledger takes no more rows: {why}; verify it, and restore a backup")

    def log_events(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Append events: time, wall, round, version, kind, site, text."""
        self._log("event", queries.EVENT_COLUMNS, events)

    def log_updates(self, updates: Iterable[Mapping[str, Any]]) -> None:
        """Append the updates that arrived, each with its fate."""
        self._log("site_update", queries.UPDATE_COLUMNS, updates)

    def _log(
        self, table: str, columns: tuple[str, ...], entries: Iterable[Mapping[str, Any]]
    ) -> None:
        marks = ", ".join("?" * len(columns))
        for entry in entries:
            full = {"wall": time.time(), **_OPTIONAL, **entry}
            missing = [column for column in columns if column not in full]
            if missing:
                raise StateError(f"an entry of {table} lacks {', '.join(missing)}")
            self._execute(
                f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})",  # noqa: S608
                *(_KINDS.get(column, _text)(full[column]) for column in columns),
            )

    def put_metric(self, round: int, source: str, name: str, value: float) -> None:
        """Store a measured number; measuring it again replaces it."""
        self._execute(
            "INSERT OR REPLACE INTO metric VALUES (?, ?, ?, ?)",
            int(round),
            _text(source),
            name,
            float(value),
        )

    def finish_command(self, command_id: str, outcome: str) -> None:
        """Say what became of a command; StateError if there is none of that id."""
        done = self._execute(
            "UPDATE command SET outcome = ?, done_at = ? WHERE id = ?",
            _text(outcome),
            time.time(),
            command_id,
        )
        if done.rowcount != 1:
            raise StateError(f"there is no command {command_id!r}")

    def certify(self, request_id: str, issue: int, file: str, sha256: str) -> None:
        """Note a certificate whose files are written; see ``StateStore.add_certificate``."""
        self._execute(
            "INSERT INTO certificate VALUES (?, ?, ?, ?, ?)",
            request_id,
            issue,
            file,
            sha256,
            time.time(),
        )
        self.append("certificate", {"request": request_id, "issue": issue, "sha256": sha256})

    def seal(self) -> None:
        """Sign the head, if the ledger grew, and take no more writes."""
        if self._last is not None:
            self._keys.reload()
            head = sign_head(self._federation, self._last, self._keys)
            self._execute(
                "INSERT OR REPLACE INTO head VALUES (1, ?, ?, ?, ?, ?, ?)",
                head.federation,
                head.seq,
                head.hash,
                head.time,
                head.key,
                head.signature,
            )
        self._live = False

    def _execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        self._check()
        return self._connection.execute(statement, values)

    def _check(self) -> None:
        if not self._live:
            raise StateError("this transaction has ended; open another one")


def _text(value: object) -> str:
    """Return text that SQLite can store: half a surrogate pair is escaped."""
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
