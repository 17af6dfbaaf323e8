"""Erasure requests at the server: the one book that moves them.

The book never decides anything about models: it says what may follow what, keeps the history,
and gathers what has changed since it was last written down.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from flwr_afuic.erasure.record import CLOSED, FOLLOWS, ErasureRecord, State, Step
from flwr_afuic.errors import DuplicateRequestError, ErasureError, StateTransitionError
from flwr_afuic.wire import ErasureNotice

__all__ = ["CLOSED", "FOLLOWS", "ErasureRecord", "RequestBook", "State", "Step"]


class RequestBook:
    """All requests of a federation, each taking effect exactly once.

    Examples
    --------
    >>> from flwr_afuic.wire import ErasureNotice
    >>> book = RequestBook()
    >>> notice = ErasureNotice(
    ...     "0b6e7a3c-0000-4000-8000-000000000001", "client", 10, "", "consent-withdrawn", 0.0)
    >>> book.file(notice, "hospital-1")[1], book.file(notice, "hospital-1")[1]
    (True, False)
    """

    def __init__(self) -> None:
        self._records: dict[str, ErasureRecord] = {}
        self._by_site: dict[str, list[ErasureRecord]] = {}
        self.changed: set[str] = set()
        self.entries: list[tuple[str, dict[str, Any]]] = []

    def __iter__(self) -> Iterator[ErasureRecord]:
        return iter(list(self._records.values()))

    def __len__(self) -> int:
        return len(self._records)

    def find(self, request_id: str) -> ErasureRecord | None:
        """Return a request, or None."""
        return self._records.get(request_id)

    def get(self, request_id: str) -> ErasureRecord:
        """Return a request; ErasureError if there is none of that id."""
        try:
            return self._records[request_id]
        except KeyError:
            raise ErasureError(
                f"no erasure request {request_id!r}; {len(self._records)} are on file"
            ) from None

    def file(
        self,
        notice: ErasureNotice,
        site: str,
        *,
        filed_by: str = "site",
        time: float = 0.0,
        round: int = 0,
        version: int = 0,
        at: float = 0.0,
    ) -> tuple[ErasureRecord, bool]:
        """Take a request in; filing the same one again changes nothing.

        Returns
        -------
        (ErasureRecord, bool)
            The record, and whether it is new.

        Raises
        ------
        DuplicateRequestError
            If the id is on file with other content or for another site.
        """
        known = self._records.get(notice.request_id)
        if known is not None:
            if known.notice != notice or known.site != site:
                raise DuplicateRequestError(
                    f"request {notice.request_id} is on file for {known.site} with other content; "
                    "file a new request under a new id"
                )
            return known, False
        record = ErasureRecord(notice, site, filed_by=filed_by)
        record.history.append(Step(State.RECEIVED, time, round, version, "filed", at))
        self._records[notice.request_id] = record
        self._by_site.setdefault(site, []).append(record)
        self.note(record, "request", site=site, filed_by=filed_by, **asdict(notice))
        return record, True

    def move(
        self,
        record: ErasureRecord,
        state: State,
        text: str,
        *,
        time: float = 0.0,
        round: int = 0,
        version: int = 0,
        at: float = 0.0,
    ) -> None:
        """Move a request on; StateTransitionError if that state may not follow."""
        if state not in FOLLOWS[record.state]:
            allowed = ", ".join(sorted(FOLLOWS[record.state])) or "nothing"
            raise StateTransitionError(
                f"request {record.request_id} is {record.state}; {state} cannot follow "
                f"(allowed: {allowed})"
            )
        if state is State.CANCELLED and record.merged_before:
            raise StateTransitionError(
                f"request {record.request_id} was merged as version {record.merge_version}; "
                "only a request that is not yet merged can be cancelled"
            )
        record.state = state
        record.reason = text
        record.history.append(Step(state, time, round, version, text, at))
        self.note(record, "state", state=str(state), text=text, round=round, version=version)

    def note(self, record: ErasureRecord, kind: str, **body: Any) -> None:
        """Mark a record as changed, with an entry for the ledger."""
        self.changed.add(record.request_id)
        self.entries.append((kind, {"request": record.request_id, **body}))

    def say(self, kind: str, body: dict[str, Any]) -> None:
        """Add an entry for the ledger that concerns no record."""
        self.entries.append((kind, body))

    def load(self, records: Iterable[ErasureRecord]) -> None:
        """Take up the records of an earlier run."""
        self._records.update({record.request_id: record for record in records})
        self._sort_by_site()

    @property
    def unsaved(self) -> bool:
        """Whether something has changed since :meth:`take_changes`."""
        return bool(self.changed or self.entries)

    def take_changes(self) -> tuple[list[ErasureRecord], list[tuple[str, dict[str, Any]]]]:
        """Return the records changed since the last call, and the entries for the ledger."""
        records = [self._records[key] for key in sorted(self.changed)]
        entries, self.entries, self.changed = self.entries, [], set()
        return records, entries

    def of_site(self, site: str) -> list[ErasureRecord]:
        """Return every request of one site, oldest first."""
        return list(self._by_site.get(site, ()))

    def rename(self, old: str, new: str) -> None:
        """Follow a site whose name became known after it filed."""
        for record in self:
            if record.site == old:
                record.site = new
                self.note(record, "renamed", site=new)
        self._sort_by_site()

    def _sort_by_site(self) -> None:
        self._by_site = {}
        for record in self:
            self._by_site.setdefault(record.site, []).append(record)
