"""The file behind a site's inbox: one SQLite database, opened anew for every step."""

from __future__ import annotations

import sqlite3
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
        with self.reading():
            pass

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Open the file."""
        opened = connect(
            self.path, schema.MIGRATIONS, error=ErasureError, application=schema.APPLICATION
        )
        with closing(opened) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Open the file and take the write lock; all of the block is on disk after it, or none."""
        with self.reading() as connection, transaction(connection):
            yield connection
