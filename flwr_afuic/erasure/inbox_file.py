"""The file behind a site's inbox: one SQLite database, opened for a step or for a message."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from flwr_afuic.erasure import inbox_schema as schema
from flwr_afuic.errors import ErasureError
from flwr_afuic.state.database import connect, transaction


class InboxFile:
    """Connections to an inbox; the steward's commands and the client use it at the same time.

    Parameters
    ----------
    path : path
        Made if needed, its folder too.

    Raises
    ------
    ErasureError
        If the file is no inbox, or was made by a newer version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._kept: dict[tuple[int, int], sqlite3.Connection] = {}
        with self.reading():
            pass

    def __reduce__(self) -> tuple[type[InboxFile], tuple[Path]]:
        return InboxFile, (self.path,)  # another process opens the file itself

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Open the file, unless :meth:`kept_open` has it open already."""
        kept = self._kept.get(_here())
        if kept is not None:
            yield kept
            return
        with closing(self._open()) as connection:
            yield connection

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """Have the steps of a block share one connection; opening it takes longer than most steps.

        It is this thread's and this process' only: others, one that was forked among them, open
        their own. Nothing is locked between steps.
        """
        here = _here()
        if here in self._kept:
            yield
            return
        with closing(self._open()) as connection:
            self._kept[here] = connection
            try:
                yield
            finally:
                del self._kept[here]

    def _open(self) -> sqlite3.Connection:
        return connect(
            self.path, schema.MIGRATIONS, error=ErasureError, application=schema.APPLICATION
        )

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Open the file and take the write lock; all of the block is on disk after it, or none."""
        with self.reading() as connection, transaction(connection):
            yield connection


def _here() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()
