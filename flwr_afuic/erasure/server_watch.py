"""What a site keeps of its server's ledger: the newest head, and alarms.

A server that is restored from an old backup, or whose ledger is cut or rewritten, cannot take
back the heads its sites have seen. What does not fit them is an alarm: kept for the
steward to read, while training goes on.
"""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass

from flwr_afuic.erasure import trust
from flwr_afuic.erasure.delivery import LedgerNotice
from flwr_afuic.erasure.inbox_file import InboxFile
from flwr_afuic.erasure.keys import key_id, verify
from flwr_afuic.erasure.ledger import Head
from flwr_afuic.erasure.trust import Server

Trouble = tuple[str, str, str]
"""Kind of an alarm, what tells it from others of its kind, and its text."""

_MOST_ALARMS = 100

KEY = "key"
SIGNATURE = "signature"
FEDERATION = "federation"
ROLLBACK = "rollback"
FORK = "fork"


@dataclass(frozen=True)
class Alarm:
    """Something the server said that cannot be right.

    Attributes
    ----------
    kind : str
        ``key`` (another key, without the old one's word), ``signature`` (a head not signed by
        its key), ``federation`` (another ledger), ``rollback`` (the ledger went back) or
        ``fork`` (two rows of one number).
    text : str
        One line, with the numbers.
    first_at, last_at : float
        Seconds since the epoch.
    times : int
        How often it was met.
    """

    kind: str
    text: str
    first_at: float
    last_at: float
    times: int


class ServerWatch:
    """The server's key, the newest head of its ledger, and alarms, in a site's inbox.

    Parameters
    ----------
    file : InboxFile
    """

    def __init__(self, file: InboxFile) -> None:
        self._file = file

    # ---- the key --------------------------------------------------------------------

    def server(self) -> Server | None:
        """Return the server as pinned, or None before it was first heard of."""
        with self._file.reading() as connection:
            return trust.pinned_server(connection)

    def known_keys(self) -> list[str]:
        """Return every key that is or was the server's: earlier certificates bear earlier ones."""
        with self._file.reading() as connection:
            return trust.keys(connection)

    def pin(self, key: str) -> None:
        """Trust this key, and those it hands over to, and nothing else.

        Naming the pinned key again changes nothing. Another one, unless it is the key in use
        now, stands for another server: what was seen of the old one's ledger is
        forgotten; alarms and certificates stay.

        Parameters
        ----------
        key : str
            Raw public key, 64 lowercase hexadecimal digits.
        """
        with self._file.writing() as connection:
            trust.pin(connection, key)

    def forget(self) -> None:
        """Let the next server heard of be trusted; alarms and certificates stay."""
        with self._file.writing() as connection:
            trust.forget(connection)

    # ---- heads ----------------------------------------------------------------------

    def take_head(self, notice: LedgerNotice) -> list[Alarm]:
        """Take in the head of the server's ledger.

        The first key met is pinned, unless one was configured; a later one must be handed
        over to by signed rotations. The newest head is kept.

        Returns
        -------
        list of Alarm
            Those met for the first time.
        """
        head = notice.head
        # Most tasks bring the head that is known already.
        if self.newest_head() == head.to_json():
            return []
        if not verify(head.key, head.signed(), head.signature):
            text = f"a head ({head.seq}) of the server's ledger is not signed by its key"
            return self._raise(SIGNATURE, key_id(head.key), text)
        with self._file.writing() as connection:
            trouble = _enter(connection, notice)
        return [] if trouble is None else self._raise(*trouble)

    def newest_head(self) -> dict[str, object] | None:
        """Return the newest head seen, as :meth:`Head.to_json` gives it."""
        with self._file.reading() as connection:
            row = connection.execute("SELECT json FROM head").fetchone()
        found: dict[str, object] | None = None if row is None else json.loads(row[0])
        return found

    # ---- alarms ---------------------------------------------------------------------

    def alarms(self) -> list[Alarm]:
        """Return what the server said that cannot be right, oldest first."""
        with self._file.reading() as connection:
            rows = connection.execute(
                "SELECT kind, text, first_at, last_at, times FROM alarm ORDER BY id"
            ).fetchall()
        return [Alarm(*row) for row in rows]

    def _raise(self, kind: str, about: str, text: str) -> list[Alarm]:
        now = time.time()
        with self._file.writing() as connection:
            again = connection.execute(
                "UPDATE alarm SET times = times + 1, last_at = ? WHERE kind = ? AND about = ?",
                (now, kind, about),
            ).rowcount
            if again:
                return []
            count = connection.execute("SELECT count(*) FROM alarm").fetchone()[0]
            if count < _MOST_ALARMS:  # a server that sends ever new nonsense must not fill a disk
                connection.execute(
                    "INSERT INTO alarm (kind, about, text, first_at, last_at, times) "
                    "VALUES (?, ?, ?, ?, ?, 1)",
                    (kind, about, text, now, now),
                )
        return [Alarm(kind, text, now, now, 1)]


def _enter(connection: sqlite3.Connection, notice: LedgerNotice) -> Trouble | None:
    """Keep a genuine head as the newest, or say what is wrong with it."""
    head = notice.head
    server = trust.trusted(connection, head.key, notice.rotations)
    if server is None:
        return _foreign_key(connection, head.key)
    server = Server(server.pinned, server.key, server.federation or head.federation)
    trust.remember(connection, server)
    trouble = _contradiction(connection, server, head)
    if trouble is None:
        connection.execute(
            "INSERT OR REPLACE INTO head VALUES (1, ?, ?, ?, ?)",
            (head.seq, head.hash, json.dumps(head.to_json()), time.time()),
        )
    return trouble


def _foreign_key(connection: sqlite3.Connection, key: str) -> Trouble:
    known = trust.pinned_server(connection)
    pinned = key_id(known.key) if known is not None else "none"
    return (
        KEY,
        key_id(key),
        f"the server shows key {key_id(key)} instead of {pinned}, and no signed rotation leads "
        "from one to the other",
    )


def _contradiction(connection: sqlite3.Connection, server: Server, head: Head) -> Trouble | None:
    """Say in what a genuine head contradicts those seen before."""
    if head.federation != server.federation:
        text = f"the server shows ledger {head.federation!r} instead of {server.federation!r}"
        return FEDERATION, head.federation, text
    row = connection.execute("SELECT seq, hash FROM head").fetchone()
    if row is None or head.seq > row[0]:
        return None
    if head.seq == row[0]:
        if head.hash == row[1]:
            return None
        text = (
            f"the server shows two different rows {head.seq} of its ledger: {row[1][:16]} was seen "
            f"first, now {head.hash[:16]}"
        )
        return FORK, f"{head.seq} {head.hash}", text
    text = (
        f"the server's ledger went back from row {row[0]} to row {head.seq}: it was restored from "
        "a backup, or cut"
    )
    return ROLLBACK, f"{row[0]} {row[1]}", text
