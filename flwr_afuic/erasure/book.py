"""Erasure requests at the server: their states, and the one book that moves them.

The book is the interface behind which requests live; this one lives in memory. It never
decides anything about models: it says what may follow what, and keeps the history.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from flwr_afuic.errors import DuplicateRequestError, ErasureError, StateTransitionError
from flwr_afuic.unlearning.level import ForgetScore, LevelVerdict
from flwr_afuic.wire import ErasureNotice, Evidence


class State(StrEnum):
    """Where an erasure request stands."""

    RECEIVED = "received"
    DISPATCHED = "dispatched"
    UNLEARNED = "unlearned"
    HELD = "held"
    MERGED = "merged"
    VERIFYING = "verifying"
    COMPLETED = "completed"
    COMPLETED_UNVERIFIED = "completed-unverified"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"


FOLLOWS: dict[State, frozenset[State]] = {
    State.RECEIVED: frozenset(
        {State.DISPATCHED, State.MERGED, State.REFUSED, State.FAILED, State.CANCELLED}
    ),
    State.DISPATCHED: frozenset({State.UNLEARNED, State.RECEIVED, State.FAILED, State.CANCELLED}),
    State.UNLEARNED: frozenset({State.MERGED, State.HELD, State.FAILED, State.CANCELLED}),
    State.HELD: frozenset({State.MERGED, State.FAILED, State.CANCELLED}),
    State.MERGED: frozenset({State.VERIFYING}),
    State.VERIFYING: frozenset(
        {State.COMPLETED, State.COMPLETED_UNVERIFIED, State.RECEIVED, State.FAILED}
    ),
    State.COMPLETED: frozenset({State.VERIFYING}),
    State.COMPLETED_UNVERIFIED: frozenset({State.VERIFYING}),
    State.REFUSED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}
"""Which states may follow which. MEDU goes from received to merged; a forget level that is
not met goes from verifying back to received; a resurfacing reopens a completed request."""

CLOSED = frozenset(
    {
        State.COMPLETED,
        State.COMPLETED_UNVERIFIED,
        State.REFUSED,
        State.FAILED,
        State.CANCELLED,
    }
)


@dataclass(frozen=True)
class Step:
    """One entry of a request's history. ``time`` in seconds since the run's start."""

    state: State
    time: float
    round: int
    version: int
    text: str


@dataclass
class ErasureRecord:
    """One request and everything the server knows of it.

    ``merged_before`` is set at the first merge and stays: a request past it can no longer
    be cancelled, even when it is sent back for another attempt.
    """

    notice: ErasureNotice
    site: str
    state: State = State.RECEIVED
    history: list[Step] = field(default_factory=list)
    attempts: int = 0
    base_version: int | None = None
    merge_version: int | None = None
    merge_round: int | None = None
    verified_rounds: int = 0
    evidence: list[Evidence] = field(default_factory=list)
    scores: list[tuple[int, ForgetScore]] = field(default_factory=list)
    verdict: LevelVerdict | None = None
    reason: str = ""

    @property
    def request_id(self) -> str:
        """Identifier of the request."""
        return self.notice.request_id

    @property
    def merged_before(self) -> bool:
        """Whether a delta of this request has entered the model."""
        return self.merge_version is not None

    @property
    def open(self) -> bool:
        """Whether the request still moves."""
        return self.state not in CLOSED


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

    def __iter__(self) -> Iterator[ErasureRecord]:
        return iter(list(self._records.values()))

    def __len__(self) -> int:
        return len(self._records)

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
        time: float = 0.0,
        round: int = 0,
        version: int = 0,
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
        record = ErasureRecord(notice, site)
        record.history.append(Step(State.RECEIVED, time, round, version, "filed"))
        self._records[notice.request_id] = record
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
        record.history.append(Step(state, time, round, version, text))

    def of_site(self, site: str) -> list[ErasureRecord]:
        """Return every request of one site, oldest first."""
        return [record for record in self if record.site == site]

    def rename(self, old: str, new: str) -> None:
        """Follow a site whose name became known after it filed."""
        for record in self:
            if record.site == old:
                record.site = new
