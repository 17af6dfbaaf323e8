"""The hospital's own inbox: erasures filed at the site, and what must never train again.

One SQLite file on the hospital's disk. Sample identifiers and free text stay in it; what
leaves is an :class:`~flwr_afuic.wire.ErasureNotice`. The key of the commitment is made
here, once, and never leaves either. The data steward's commands and the site's client use it
at the same time, from several processes.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from flwr_afuic.erasure import inbox_schema as schema
from flwr_afuic.erasure.filed import (
    BEFORE,
    CANCELLED,
    CANCELLING,
    CLOSED,
    FAILED,
    FILED,
    KNOWN,
    REFUSED,
    FiledRequest,
    enter,
    read,
    status_of,
)
from flwr_afuic.erasure.held import HeldSamples
from flwr_afuic.erasure.inbox_file import InboxFile
from flwr_afuic.erasure.noise_keys import noise_key
from flwr_afuic.erasure.received import ReceivedCertificate, ReceivedCertificates
from flwr_afuic.erasure.server_watch import Alarm, ServerWatch
from flwr_afuic.errors import ErasureError, StateTransitionError, UnknownSampleError
from flwr_afuic.wire import REASON_CODES, ErasureNotice, Scope

__all__ = [
    "CANCELLED",
    "CANCELLING",
    "CLOSED",
    "FAILED",
    "FILED",
    "KNOWN",
    "REFUSED",
    "FiledRequest",
    "SiteInbox",
]


class SiteInbox:
    """Erasure requests and tombstones of one site.

    A request is ``filed``, then ``known`` to the server, and ends ``closed``. The steward may
    take it back before it is merged: it is ``cancelling`` until the server confirms, then
    ``cancelled``, and only then do its samples train again. A request the server will not
    carry out is ``refused``; its samples stay erased, since consent was withdrawn all the
    same: the steward files it anew (an expired one), or cancels it.

    Everything is on disk before a method returns.

    Parameters
    ----------
    path : path
        SQLite file; its folder is made if needed, and a new file can be read by its owner
        only. Written in WAL mode, so that a steward can file a request while a client runs.

    Attributes
    ----------
    server : ServerWatch
        The server's key, its ledger's newest head, and alarms.
    certificates : ReceivedCertificates
        What the server certified.

    Raises
    ------
    ErasureError
        If the file is no inbox, or was made by a newer version.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = InboxFile(path)
        self._samples = HeldSamples(self._file)
        self.path = self._file.path
        self.server = ServerWatch(self._file)
        self.certificates = ReceivedCertificates(self._file)

    def kept_open(self) -> AbstractContextManager[None]:
        """Return a block whose steps share one connection to the file, as one message's do.

        Without it every step opens the file anew. Either way each step is on disk when it
        returns, and the steward's commands may come in between.
        """
        return self._file.kept_open()

    # ---- samples --------------------------------------------------------------------

    def note_held(
        self, sample_ids: Iterable[str], patients: Mapping[str, str] | None = None
    ) -> None:
        """Note every sample the site holds now: see :meth:`HeldSamples.note_held`."""
        self._samples.note_held(sample_ids, patients)

    def held(self) -> list[str] | None:
        """Return every sample the site holds, sorted; None before a client noted them."""
        return self._samples.held()

    def forget_set(self, request_id: str) -> list[str]:
        """Sample ids of one request, sorted: see :meth:`HeldSamples.forget_set`."""
        return self._samples.forget_set(request_id)

    def tombstones(self) -> set[str]:
        """Ids of all held samples that must never train again."""
        return self._samples.tombstones()

    # ---- filing and taking back -----------------------------------------------------

    def file(
        self,
        *,
        scope: Scope,
        sample_ids: Sequence[str],
        held: Iterable[str],
        reason: str = "consent-withdrawn",
        note: str = "",
        request_id: str | None = None,
        patients: Sequence[str] = (),
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
        patients : sequence of str
            With scope ``samples``: erase every sample of these patients too, and let none that
            comes later under their ids train.

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
        theirs = self._samples.of_patients(patients)
        listed = theirs.union(sample_ids)
        if scope == "client" and listed:
            raise ErasureError(
                f"scope 'client' erases everything the site holds, but {len(listed)} samples "
                "are listed; use scope 'samples' to erase these only"
            )
        holds = theirs.union(held)
        ids = sorted(holds if scope == "client" else listed)
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
            commitment=self._commitment(ids),
            reason=reason,
            filed_at=time.time(),
        )
        with self._file.writing() as connection:  # the look and the entry are one step
            return enter(connection, notice, ids, note, patients)

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

    def cancel(self, request_id: str) -> str:
        """Take a request back; return its status then.

        The server is told with every reply until it answers. Until it confirms, the samples
        stay out of training. If it answers that the erasure was merged already, the request
        goes on.

        Raises
        ------
        StateTransitionError
            If the request is closed or failed.
        ErasureError
            If there is no such request.
        """
        with self._file.writing() as connection:
            status = status_of(connection, request_id)
            if status in (CLOSED, FAILED):
                raise StateTransitionError(
                    f"request {request_id} is {status}: the server is done with it, and its "
                    "samples stay erased here; it can no longer be cancelled"
                )
            # The server will not touch what it refused: nothing to wait for.
            after = {FILED: CANCELLING, KNOWN: CANCELLING, REFUSED: CANCELLED}.get(status, status)
            connection.execute("UPDATE request SET status = ? WHERE id = ?", (after, request_id))
        return after

    # ---- where requests stand -------------------------------------------------------

    def pending(self) -> list[ErasureNotice]:
        """Requests the server has not confirmed to know, oldest first."""
        return self._with_status(FILED)

    def unfinished(self) -> list[ErasureNotice]:
        """Requests to be carried out, confirmed or not, oldest first.

        A server that was started anew has forgotten what it confirmed; it is told again.
        """
        return self._with_status(FILED, KNOWN)

    def closed(self) -> list[ErasureNotice]:
        """Requests the server has closed, those that failed included, oldest first."""
        return self._with_status(CLOSED, FAILED)

    def taken_back(self, known: Iterable[str] = ()) -> list[str]:
        """Ids of requests the server must be told are cancelled, oldest first.

        Parameters
        ----------
        known : iterable of str
            Requests the server says it knows: one that is cancelled here already reached it
            again by a late message, or from a backup.
        """
        again = set(known)
        notices = self._with_status(CANCELLING, CANCELLED)
        waiting = {notice.request_id for notice in self._with_status(CANCELLING)}
        return [n.request_id for n in notices if n.request_id in waiting | again]

    def _with_status(self, *wanted: str) -> list[ErasureNotice]:
        return [request.notice for request in self.requests() if request.status in wanted]

    def requests(self) -> list[FiledRequest]:
        """Return every request, oldest first."""
        with self._file.reading() as connection:
            return read(connection)

    def knows(self, request_id: str) -> bool:
        """Whether a request of that id is on file."""
        return any(request.notice.request_id == request_id for request in self.requests())

    def status(self, request_id: str) -> str:
        """Return where a request stands: see :class:`SiteInbox`."""
        with self._file.reading() as connection:
            return status_of(connection, request_id)

    def mark(self, request_ids: Iterable[str], status: str) -> None:
        """Note what the server says of requests; ids that are not on file are ignored.

        A request only moves forward: filed, known, then closed, cancelled or refused. The
        samples of a cancelled request may train again, those of a refused one may not.
        """
        self._move(request_ids, BEFORE[status], status)

    def fail(self, failures: Mapping[str, str]) -> None:
        """Note which requests failed at the server, with the code of why; their samples stay out.

        Parameters
        ----------
        failures : mapping of str to str
            By request id, one of ``wire.FAILURE_CODES``.
        """
        for code in sorted(set(failures.values())):
            ids = [request_id for request_id, why in failures.items() if why == code]
            moved = self._move(ids, BEFORE[FAILED], FAILED)
            if moved:
                with self._file.writing() as connection:
                    connection.executemany(
                        "UPDATE request SET failure = ? WHERE id = ?", [(code, i) for i in moved]
                    )

    def keep(self, request_ids: Iterable[str]) -> None:
        """Note that requests were cancelled too late: they are merged, and go on."""
        self._move(request_ids, (CANCELLING,), KNOWN)

    def _move(self, request_ids: Iterable[str], before: Sequence[str], after: str) -> list[str]:
        marks = ",".join("?" * len(before))
        chosen = set(request_ids)
        if chosen:
            chosen &= {r.notice.request_id for r in self.requests() if r.status in before}
        if not chosen:
            return []  # as with most tasks: nothing to write
        with self._file.writing() as connection:
            connection.executemany(
                f"UPDATE request SET status = ? WHERE id = ? AND status IN ({marks})",  # noqa: S608
                [(after, request_id, *before) for request_id in sorted(chosen)],
            )
        return sorted(chosen)

    # ---- what came from the server --------------------------------------------------

    def certificate(self, request_id: str) -> ReceivedCertificate | None:
        """Return the newest certificate of a request, or None."""
        return self.certificates.newest(request_id)

    def alarms(self) -> list[Alarm]:
        """Return what the server said that cannot be right, oldest first."""
        return self.server.alarms()

    def noise_key(
        self, request_ids: Iterable[str], content: bytes, rule: str, purpose: str = "delta"
    ) -> tuple[bytes, int]:
        """Return the secret of a delta's noise, and the delta's number: see ``noise_keys``."""
        return noise_key(self._file, request_ids, content, rule, purpose)

    def _commitment(self, ids: Sequence[str]) -> str:
        with self._file.reading() as connection:
            return schema.commitment(connection, ids)
