"""The hospital's own inbox: erasures filed at the site, and what must never train again.

One SQLite file on the hospital's disk. Sample identifiers and free text stay in it; what
leaves is an :class:`~flwr_afuic.wire.ErasureNotice`. The key of the commitment is made
here, once, and never leaves either.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flwr_afuic.errors import DuplicateRequestError, ErasureError, UnknownSampleError
from flwr_afuic.wire import REASON_CODES, ErasureNotice, Scope

_SCHEMA = """
CREATE TABLE IF NOT EXISTS secret (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS request (
    id TEXT PRIMARY KEY,
    scope TEXT NOT NULL,
    count INTEGER NOT NULL,
    commitment TEXT NOT NULL,
    reason TEXT NOT NULL,
    note TEXT NOT NULL,
    filed_at REAL NOT NULL,
    status TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS erased (
    request_id TEXT NOT NULL REFERENCES request(id),
    sample_id TEXT NOT NULL,
    PRIMARY KEY (request_id, sample_id)
);
"""

_NOTICE = "id, scope, count, commitment, reason, filed_at"

FILED = "filed"
KNOWN = "known"
CLOSED = "closed"
CANCELLED = "cancelled"


class SiteInbox:
    """Erasure requests and tombstones of one site.

    Parameters
    ----------
    path : path
        SQLite file; its folder is made if needed, and a new file can be read by its owner
        only. Written in WAL mode, so that a steward can file a request while a client runs.

    Raises
    ------
    ErasureError
        If the file is no inbox.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # It names patients and holds the key: nobody else on the machine may read it.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            with self._connection() as connection:
                connection.executescript(_SCHEMA)
                connection.execute(
                    "INSERT OR IGNORE INTO secret VALUES ('commitment', ?)",
                    (secrets.token_bytes(32),),
                )
        except (sqlite3.DatabaseError, OSError) as error:
            raise ErasureError(
                f"{self.path} is not a usable inbox ({error}); name another file"
            ) from error

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=30.0)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            with connection:
                yield connection
        finally:
            connection.close()

    def file(
        self,
        *,
        scope: Scope,
        sample_ids: Sequence[str],
        held: Iterable[str],
        reason: str = "consent-withdrawn",
        note: str = "",
        request_id: str | None = None,
    ) -> ErasureNotice:
        """File an erasure; from this moment its samples train no more.

        Parameters
        ----------
        scope : {"client", "samples"}
            For ``client`` every held sample is erased and ``sample_ids`` must be empty.
        sample_ids : sequence of str
            What to erase with scope ``samples``.
        held : iterable of str
            Every sample id the site holds.
        reason : str
            A code of :data:`~flwr_afuic.wire.REASON_CODES`; travels to the server.
        note : str
            Free text; stays here.
        request_id : str, optional
            A UUID; made if not given. Filing the same request again returns it unchanged.

        Raises
        ------
        UnknownSampleError
            If a sample is not held; nothing is filed then.
        DuplicateRequestError
            If the id is on file with other samples.
        ErasureError
            If there is nothing to erase, or the reason is no code.
        """
        if reason not in REASON_CODES:
            raise ErasureError(f"reason is {reason!r}; use one of {', '.join(REASON_CODES)}")
        if scope == "client" and len(sample_ids):
            raise ErasureError(
                f"scope 'client' erases everything the site holds, but {len(sample_ids)} samples "
                "are listed; use scope 'samples' to erase these only"
            )
        holds = set(held)
        ids = sorted(holds if scope == "client" else set(sample_ids))
        missing = [sample for sample in ids if sample not in holds]
        if missing:
            raise UnknownSampleError(
                f"{len(missing)} of {len(ids)} samples are not held at this site, the first is "
                f"{missing[0]!r}; nothing was filed, correct the list and file it again"
            )
        if not ids:
            raise ErasureError("the request names no sample; nothing was filed")
        notice = ErasureNotice(
            request_id=request_id or str(uuid.uuid4()),
            scope=scope,
            count=len(ids),
            commitment=self._commit(ids),
            reason=reason,
            filed_at=time.time(),
        )
        return self._store(notice, ids, note)

    def adopt(self, request_id: str, held: Iterable[str]) -> list[str]:
        """Take in a client-scope request that the operator filed; return the erased ids."""
        if not self.knows(request_id):
            self.file(
                scope="client",
                sample_ids=(),
                held=held,
                reason="other",
                note="filed by the operator of the federation",
                request_id=request_id,
            )
            self.mark([request_id], KNOWN)
        return self.forget_set(request_id)

    def pending(self) -> list[ErasureNotice]:
        """Requests the server has not confirmed to know, oldest first."""
        return self._with_status(FILED)

    def unfinished(self) -> list[ErasureNotice]:
        """Requests not closed yet, confirmed or not, oldest first.

        A server that was started anew has forgotten what it confirmed; it is told again.
        """
        return self._with_status(FILED, KNOWN)

    def _with_status(self, *wanted: str) -> list[ErasureNotice]:
        marks = ",".join("?" * len(wanted))
        with self._connection() as connection:
            rows = connection.execute(
                f"SELECT {_NOTICE} FROM request WHERE status IN ({marks}) "  # noqa: S608
                "ORDER BY filed_at, id",
                wanted,
            ).fetchall()
        return [ErasureNotice(*row) for row in rows]

    def knows(self, request_id: str) -> bool:
        """Whether a request of that id is on file."""
        with self._connection() as connection:
            row = connection.execute("SELECT 1 FROM request WHERE id = ?", (request_id,)).fetchone()
        return row is not None

    def status(self, request_id: str) -> str:
        """Return ``filed``, ``known``, ``closed`` or ``cancelled``."""
        with self._connection() as connection:
            row = connection.execute(
                "SELECT status FROM request WHERE id = ?", (request_id,)
            ).fetchone()
        if row is None:
            raise ErasureError(f"no request {request_id!r} in {self.path}")
        return str(row[0])

    def mark(self, request_ids: Iterable[str], status: str) -> None:
        """Note what the server says of requests; ids that are not on file are ignored.

        A request only moves forward: filed, known, then closed or cancelled. The samples of
        a cancelled request may train again.
        """
        earlier = {KNOWN: (FILED,), CLOSED: (FILED, KNOWN), CANCELLED: (FILED, KNOWN)}[status]
        marks = ",".join("?" * len(earlier))
        with self._connection() as connection:
            connection.executemany(
                f"UPDATE request SET status = ? WHERE id = ? AND status IN ({marks})",  # noqa: S608
                [(status, request_id, *earlier) for request_id in request_ids],
            )

    def forget_set(self, request_id: str) -> list[str]:
        """Sample ids of one request, sorted."""
        with self._connection() as connection:
            rows = connection.execute(
                "SELECT sample_id FROM erased WHERE request_id = ? ORDER BY sample_id",
                (request_id,),
            ).fetchall()
        if not rows:
            raise ErasureError(f"no request {request_id!r} in {self.path}")
        return [str(row[0]) for row in rows]

    def tombstones(self) -> set[str]:
        """Ids of all samples that must never train again."""
        with self._connection() as connection:
            rows = connection.execute(
                "SELECT DISTINCT sample_id FROM erased JOIN request ON request.id = request_id "
                "WHERE status != ?",
                (CANCELLED,),
            ).fetchall()
        return {str(row[0]) for row in rows}

    def _commit(self, ids: Sequence[str]) -> str:
        with self._connection() as connection:
            key = connection.execute(
                "SELECT value FROM secret WHERE name = 'commitment'"
            ).fetchone()[0]
        return hmac.new(key, json.dumps(list(ids)).encode(), hashlib.sha256).hexdigest()

    def _store(self, notice: ErasureNotice, ids: Sequence[str], note: str) -> ErasureNotice:
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")  # the look and the entry are one step
            row = connection.execute(
                f"SELECT {_NOTICE} FROM request WHERE id = ?",  # noqa: S608
                (notice.request_id,),
            ).fetchone()
            if row is not None:
                known = ErasureNotice(*row)
                if (known.scope, known.commitment) != (notice.scope, notice.commitment):
                    raise DuplicateRequestError(
                        f"request {notice.request_id} is on file for other samples; "
                        "file a new one under a new id"
                    )
                return known
            connection.execute(
                "INSERT INTO request VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    notice.request_id,
                    notice.scope,
                    notice.count,
                    notice.commitment,
                    notice.reason,
                    note,
                    notice.filed_at,
                    FILED,
                ),
            )
            connection.executemany(
                "INSERT INTO erased VALUES (?, ?)", [(notice.request_id, i) for i in ids]
            )
        return notice
