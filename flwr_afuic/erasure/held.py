"""What a site holds, and which of it is erased and must never train again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping

from flwr_afuic.erasure import inbox_schema as schema
from flwr_afuic.erasure.inbox_file import InboxFile
from flwr_afuic.errors import ErasureError, UnknownSampleError


class HeldSamples:
    """The samples in a site's inbox.

    Parameters
    ----------
    file : InboxFile
    """

    def __init__(self, file: InboxFile) -> None:
        self._file = file

    def note_held(
        self, sample_ids: Iterable[str], patients: Mapping[str, str] | None = None
    ) -> None:
        """Note every sample the site holds now; cheap if nothing changed.

        The client does this with each task, so that the steward's commands need not load the
        data. What was erased is recognised among the samples even if one comes back later, and
        so is a new sample of an erased patient.

        Parameters
        ----------
        sample_ids : iterable of str
        patients : mapping, optional
            Whose each sample is; samples it leaves out are of no patient.
        """
        ids = set(sample_ids)
        whose = {sample: patient for sample, patient in (patients or {}).items() if sample in ids}
        pairs = (json.dumps(pair) for pair in whose.items())
        digest = schema.digest_of([*ids, *pairs])
        with self._file.reading() as connection:
            if _setting(connection, "held") == digest:
                return
        with self._file.writing() as connection:
            known = {str(row[0]) for row in connection.execute("SELECT sample_id FROM held")}
            gone = [(sample,) for sample in known - ids]
            connection.executemany("DELETE FROM held WHERE sample_id = ?", gone)
            schema.hold(connection, ids - known)
            connection.execute("UPDATE held SET patient_id = NULL, patient_mark = NULL")
            schema.name_patients(connection, whose.items())
            connection.execute("INSERT OR REPLACE INTO setting VALUES ('held', ?)", (digest,))

    def held(self) -> list[str] | None:
        """Return every sample the site holds, sorted; None before a client noted them."""
        with self._file.reading() as connection:
            if _setting(connection, "held") is None:
                return None
            rows = connection.execute("SELECT sample_id FROM held ORDER BY sample_id").fetchall()
        return [str(row[0]) for row in rows]

    def forget_set(self, request_id: str) -> list[str]:
        """Sample ids of one request, sorted.

        Raises
        ------
        ErasureError
            If there is no such request.
        UnknownSampleError
            If the site holds some of its samples no longer.
        """
        with self._file.reading() as connection:
            count = connection.execute(
                "SELECT count(*) FROM erased WHERE request_id = ?", (request_id,)
            ).fetchone()[0]
            rows = connection.execute(
                "SELECT sample_id FROM erased JOIN held USING (mark) WHERE request_id = ? "
                "ORDER BY sample_id",
                (request_id,),
            ).fetchall()
        if not count:
            raise ErasureError(f"no request {request_id!r} in {self._file.path}")
        if len(rows) < count:
            raise UnknownSampleError(
                f"{count - len(rows)} of the {count} samples of request {request_id} are no longer "
                "held at this site; nothing can be unlearned from or scored on them"
            )
        return [str(row[0]) for row in rows]

    def tombstones(self) -> set[str]:
        """Ids of all held samples that must never train again."""
        with self._file.reading() as connection:
            rows = connection.execute(
                "SELECT sample_id FROM erased JOIN held USING (mark) "
                "JOIN request ON request.id = request_id WHERE status != 'cancelled' "
                "UNION SELECT sample_id FROM erased_patient "
                "JOIN held ON held.patient_mark = erased_patient.mark "
                "JOIN request ON request.id = request_id WHERE status != 'cancelled'",
            ).fetchall()
        return {str(row[0]) for row in rows}

    def of_patients(self, patients: Iterable[str]) -> set[str]:
        """Ids of all held samples of these patients, wherever they stand.

        Raises
        ------
        UnknownSampleError
            If the site holds nothing of one of them.
        """
        wanted = set(patients)
        found: set[str] = set()
        missing = []
        with self._file.reading() as connection:
            for patient in sorted(wanted):
                rows = connection.execute(
                    "SELECT sample_id FROM held WHERE patient_id = ?", (patient,)
                ).fetchall()
                found |= {str(row[0]) for row in rows}
                missing += [] if rows else [patient]
        if missing:
            raise UnknownSampleError(
                f"{len(missing)} of {len(wanted)} patients have no sample at this site, the first "
                f"is {missing[0]!r}; nothing was filed. The site's client notes whose each sample "
                "is when it runs"
            )
        return found


def _setting(connection: sqlite3.Connection, name: str) -> str | None:
    row = connection.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])
