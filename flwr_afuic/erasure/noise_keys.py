"""Keys of the noise on what leaves a site, one for each delta it gives out."""

from __future__ import annotations

import hmac
import json
import sqlite3
from collections.abc import Iterable

from flwr_afuic.erasure import inbox_schema as schema
from flwr_afuic.erasure.inbox_file import InboxFile
from flwr_afuic.errors import ErasureError

MOST_RELEASES = 32
"""Different deltas a site gives out for the same requests, each with noise of its own."""


def noise_key(file: InboxFile, request_ids: Iterable[str], delta: bytes) -> tuple[bytes, int]:
    """Return the secret from which the noise on a delta is made, and its number.

    The key is a MAC, under a key that stays here, of the requests, the number and the
    delta. The same delta sent again has the same noise, so that asking often averages
    nothing out; another one has other noise, so that their difference tells nothing either.

    Parameters
    ----------
    file : InboxFile
    request_ids : iterable of str
        The requests the delta erases.
    delta : bytes
        The delta before any protection.

    Returns
    -------
    (bytes, int)
        32 bytes, and how many different deltas of these requests this makes.

    Raises
    ------
    ErasureError
        If there were ``MOST_RELEASES`` already: each one more lets the server average
        some of the noise out.
    """
    label = ",".join(sorted(request_ids))
    with file.writing() as connection:
        content = label.encode() + b"\0" + delta
        digest = hmac.digest(schema.derived(connection, "release"), content, "sha256")
        row = connection.execute(
            "SELECT number FROM release WHERE requests = ? AND delta = ?", (label, digest)
        ).fetchone()
        number = row[0] if row is not None else 1 + _releases(connection, label)
        if number > MOST_RELEASES:
            raise ErasureError(
                f"{MOST_RELEASES} deltas of request {label} left this site already; protected "
                "ones are not given out without end, file the request anew"
            )
        if row is None:
            connection.execute("INSERT INTO release VALUES (?, ?, ?)", (label, digest, number))
        key = schema.derived(connection, "noise")
    return hmac.digest(key, json.dumps([label, number]).encode() + digest, "sha256"), number


def _releases(connection: sqlite3.Connection, label: str) -> int:
    found = connection.execute("SELECT count(*) FROM release WHERE requests = ?", (label,))
    return int(found.fetchone()[0])
