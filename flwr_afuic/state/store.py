"""The server's state directory: one place, one writer, one transaction at a time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flwr_afuic.erasure.keys import Rotation
from flwr_afuic.erasure.ledger import Head
from flwr_afuic.errors import StateError
from flwr_afuic.state import certificates, commands, queries, sweeping
from flwr_afuic.state.base import OpenState
from flwr_afuic.state.checking import file_problems, ledger_problems
from flwr_afuic.state.rows import Command
from flwr_afuic.state.vault import Purged


class StateStore(OpenState):
    """Everything a server must not forget, in one directory.

    Weights are written and synced first; one transaction then moves version, requests and
    ledger together, so that a crash leaves either the old state or the new one.

    Parameters
    ----------
    directory : path
        The state directory. It must be on a local disk: SQLite's WAL does not work on
        network file systems.
    exclusive : bool
        For a running server: nobody else may run on the directory meanwhile.
    create : bool
        Make the directory if there is none. Without it, a mistyped path is an error.

    Attributes
    ----------
    vault : Vault
        The weights.
    keys : KeyRing
        The server's signing key.
    federation : str
        A UUID made with the directory.

    Raises
    ------
    StateError
        If the directory is damaged, or was written by a newer version of this program.
    StateLockedError
        If another server runs on it.
    """

    def checkpoint(self) -> bool:
        """Move the WAL into the database and empty it; False while somebody else reads.

        What was overwritten or deleted is then in no file of the directory any more.
        """
        with self._using() as connection:
            busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        return not busy

    def sweep(self, reason: str, request_id: str = "") -> list[Purged]:
        """Delete every file of weights that nothing keeps, and record each.

        A file is recorded before it is deleted; after a crash in between, the next sweep
        deletes it. Weights that were put and are not kept yet are spared.

        Parameters
        ----------
        reason : str
            Why, for the record.
        request_id : str
            The erasure it is done for, if any.

        Returns
        -------
        list of Purged
            What this call deleted.

        Raises
        ------
        StateLockedError
            If a server, and not this process, runs on the directory.
        """
        with self._alone():
            with self._writing() as connection:
                sweeping.record(connection, self.vault, reason, request_id)
            with self._writing() as connection:
                purged = sweeping.delete(connection, self.vault)
            self.checkpoint()
        return purged

    def rotate_key(self) -> Rotation:
        """Put a new signing key in place and note it in the ledger.

        Raises
        ------
        StateLockedError
            If a server, and not this process, runs on the directory.
        """
        with self._alone(), self.transaction() as change:
            rotation = self.keys.rotate()
            change.append("key-rotated", rotation.to_json())
        return rotation

    def verify(
        self, heads_seen: Iterable[tuple[str, Head]] = (), *, files: bool = False
    ) -> list[str]:
        """Return everything that is wrong with the ledger; [] if it is whole.

        Parameters
        ----------
        heads_seen : iterable of (str, Head)
            Site and a head it has kept.
        files : bool
            Check weights and certificates as well, which reads all of them.
        """
        keys = self.keys.public_keys
        with self._using() as connection:
            problems = ledger_problems(connection, keys, heads_seen)
            if files:
                problems += file_problems(connection, self.directory, keys)
        return problems

    def command(
        self,
        kind: str,
        request_id: str = "",
        site: str = "",
        reason: str = "",
        method: str = "",
        note: str = "",
    ) -> str:
        """File a command for the server that runs on this directory, or will.

        Parameters
        ----------
        kind : {"erase", "cancel", "release", "reject"}
            ``erase`` names a site and makes a request; the others name a request.
        request_id : str
            Which request; for ``erase`` it is made here.
        site : str
            For ``erase``: whose data.
        reason : str
            For ``erase``: one of :data:`~flwr_afuic.wire.REASON_CODES`, "other" if empty.
        method : str
            For ``erase``: how to unlearn, the server's choice if empty.
        note : str
            Free text for the record.

        Returns
        -------
        str
            The command's id; for ``erase`` it is the request's as well.

        Raises
        ------
        ErasureError
            If the command is none, or lacks what it needs.
        """
        with self._writing() as connection:
            return commands.file(connection, kind, request_id, site, reason, method, note)

    def pending_commands(self) -> list[Command]:
        """Commands that nobody has dealt with, oldest first; cheap while nothing changes."""
        with self._using() as connection:
            # Changes by others move this number; our own have emptied the cache.
            change = connection.execute("PRAGMA data_version").fetchone()[0]
            if self._pending is None or change != self._seen_change:
                self._pending = queries.commands(connection, pending=True)
                self._seen_change = change
            return list(self._pending)

    def next_issue(self, request_id: str) -> int:
        """Number the next certificate of a request will bear, from 1."""
        with self._using() as connection:
            newest = queries.newest_certificate(connection, request_id)
        return 1 if newest is None else newest.issue + 1

    def add_certificate(
        self,
        request_id: str,
        document: bytes,
        signature: str,
        html: str,
        *,
        issue: int | None = None,
    ) -> Path:
        """Store a certificate and note it in the ledger.

        Parameters
        ----------
        request_id : str
            The request it is about.
        document : bytes
            The JSON document, exactly as signed.
        signature : str
            Hexadecimal.
        html : str
            The same for people.
        issue : int, optional
            The number the document bears. Another process may have issued one meanwhile.

        Returns
        -------
        Path
            The document's file; the signature's ends in ``.json.sig``, the page's in
            ``.html``.

        Raises
        ------
        StateError
            If ``issue`` is not the next one any more; nothing is stored then.
        """
        folder = self.directory / "certificates"
        with self.transaction() as change:
            number = self.next_issue(request_id)
            if issue not in (None, number):
                raise StateError(
                    f"issue {issue} of {request_id} was made by another process; make it anew"
                )
            path = certificates.write(folder, request_id, number, document, signature, html)
            change.certify(request_id, number, path.name, certificates.digest(document))
        return path

    def certificate(self, request_id: str) -> tuple[bytes, str, Path] | None:
        """Return a request's newest certificate: document, signature and path.

        Raises
        ------
        StateError
            If a file is missing or its bytes are not those that were written.
        """
        with self._using() as connection:
            row = queries.newest_certificate(connection, request_id)
        if row is None:
            return None
        return certificates.read(self.directory / "certificates", row)
