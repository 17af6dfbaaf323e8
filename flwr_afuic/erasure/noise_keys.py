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
"""Different deltas (or bases) a site gives out for one request, each with noise of its own."""


def noise_key(
    file: InboxFile, request_ids: Iterable[str], content: bytes, rule: str, purpose: str
) -> tuple[bytes, int]:
    """Return the secret from which the noise on something that leaves is made, and its number.

    The key is a MAC, under a key that stays here, of the requests, the number, the content and
    the rule. The same delta sent again has the same noise, so that asking often averages
    nothing out. Another one, or the same under another rule, has other noise: with one
    noise at two strengths, both could be worked out.

    Parameters
    ----------
    file : InboxFile
    request_ids : iterable of str
        The requests it erases.
    content : bytes
        What leaves, before any protection.
    rule : str
        How it is protected.
    purpose : str
        What it is: a delta or a basis.

    Returns
    -------
    (bytes, int)
        32 bytes, and how many different ones of these requests this makes.

    Raises
    ------
    ErasureError
        If there were ``MOST_RELEASES`` already: each one more lets the server average
        some of the noise out.
    """
    label = f"{purpose} {','.join(sorted(request_ids))}"
    with file.writing() as connection:
        about = f"{label}\0{rule}\0".encode()
        digest = hmac.digest(schema.derived(connection, "release"), about + content, "sha256")
        row = connection.execute(
            "SELECT number FROM release WHERE requests = ? AND delta = ?", (label, digest)
        ).fetchone()
        number = row[0] if row is not None else 1 + _releases(connection, label)
        if number > MOST_RELEASES:
            raise ErasureError(
                f"{MOST_RELEASES} different answers ({label}) left this site already; protected "
                "ones are not given out without end, file the request anew"
            )
        if row is None:
            connection.execute("INSERT INTO release VALUES (?, ?, ?)", (label, digest, number))
        key = schema.derived(connection, "noise")
    return hmac.digest(key, json.dumps([label, number]).encode() + digest, "sha256"), number


def _releases(connection: sqlite3.Connection, label: str) -> int:
    found = connection.execute("SELECT count(*) FROM release WHERE requests = ?", (label,))
    return int(found.fetchone()[0])
