"""What an operator asks of a running server, through the state directory."""

from __future__ import annotations

import sqlite3
import time
import uuid

from flwr_afuic.errors import ErasureError
from flwr_afuic.wire import REASON_CODES

COMMANDS = ("erase", "cancel", "release", "reject")
"""What an operator may ask of a server."""


def file(
    connection: sqlite3.Connection,
    kind: str,
    request_id: str,
    site: str,
    reason: str,
    method: str,
    note: str,
) -> str:
    """File a command and return its id; see ``StateStore.command``."""
    if kind not in COMMANDS:
        raise ErasureError(f"command is {kind!r}; use one of {', '.join(COMMANDS)}")
    command_id = str(uuid.uuid4())
    if kind == "erase":
        reason = reason or "other"
        if not site or request_id:
            raise ErasureError("the command 'erase' names a site, and no request: it makes one")
        if reason not in REASON_CODES:
            raise ErasureError(f"reason is {reason!r}; use one of {', '.join(REASON_CODES)}")
        request_id = command_id
    elif not request_id:
        raise ErasureError(f"the command {kind!r} names a request; give its id")
    connection.execute(
        "INSERT INTO command (id, kind, request_id, site, reason, method, note, filed_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (command_id, kind, request_id, site, reason, method, note, time.time()),
    )
    return command_id
