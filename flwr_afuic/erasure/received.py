"""Certificates a site received: only what the server signed, about the site's own requests."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass

from flwr_afuic.erasure import trust
from flwr_afuic.erasure.delivery import CertificateNotice
from flwr_afuic.erasure.inbox_file import InboxFile
from flwr_afuic.erasure.keys import key_id, verify

_MOST_NAMES = 200


@dataclass(frozen=True)
class ReceivedCertificate:
    """A certificate whose signature was checked on arrival; ``document`` is its exact bytes."""

    request_id: str
    issue: int
    document: bytes
    signature: str
    key: str
    received_at: float


class ReceivedCertificates:
    """The certificates in a site's inbox.

    Parameters
    ----------
    file : InboxFile
    """

    def __init__(self, file: InboxFile) -> None:
        self._file = file

    def take(self, notice: CertificateNotice) -> str | None:
        """Keep a certificate if it is the server's word on a request of this site.

        A certificate signed before the key was rotated stays good: any key that was trusted
        once will do.

        Returns
        -------
        str or None
            Why it was not kept.
        """
        document = notice.document.encode()
        if not verify(notice.key, document, notice.signature):
            return f"certificate {notice.name} does not match its signature"
        if notice.request_id not in notice.document:
            return f"certificate {notice.name} is about another request"
        with self._file.writing() as connection:
            if not _on_file(connection, notice.request_id):
                return f"certificate {notice.name} is about a request that is not on file here"
            if not trust.was_key(connection, notice.key):
                return (
                    f"certificate {notice.name} is signed by key {key_id(notice.key)}, which is "
                    "none of the server's"
                )
            connection.execute(
                "INSERT OR IGNORE INTO certificate VALUES (?, ?, ?, ?, ?, ?)",
                (
                    notice.request_id,
                    notice.issue,
                    document,
                    notice.signature,
                    notice.key,
                    time.time(),
                ),
            )
        return None

    def newest(self, request_id: str) -> ReceivedCertificate | None:
        """Return the newest certificate of a request, or None."""
        with self._file.reading() as connection:
            row = connection.execute(
                "SELECT request_id, issue, document, signature, key, received_at FROM certificate "
                "WHERE request_id = ? ORDER BY issue DESC LIMIT 1",
                (request_id,),
            ).fetchone()
        return None if row is None else ReceivedCertificate(*row)

    def names(self, most: int = _MOST_NAMES) -> list[str]:
        """Name the certificates received as ``id-issue``, the newest issue of each, newest first.

        Parameters
        ----------
        most : int
            How many at most; the server stops sending what it heard of once.
        """
        with self._file.reading() as connection:
            rows = connection.execute(
                "SELECT request_id, max(issue) FROM certificate GROUP BY request_id "
                "ORDER BY max(received_at) DESC, request_id LIMIT ?",
                (most,),
            ).fetchall()
        return [f"{request_id}-{issue}" for request_id, issue in rows]


def _on_file(connection: sqlite3.Connection, request_id: str) -> bool:
    found = connection.execute("SELECT 1 FROM request WHERE id = ?", (request_id,)).fetchone()
    return found is not None
