"""One erasure request at the server: its states, its history, and its form on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from flwr_afuic.errors import StateError
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
        {
            State.DISPATCHED,
            State.HELD,
            State.MERGED,
            State.REFUSED,
            State.FAILED,
            State.CANCELLED,
        }
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
"""Which states may follow which. MEDU goes from received to merged,
or to held; a forget level that is
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
    """One entry of a request's history.

    ``time`` in seconds since the start of training, ``at`` in seconds since the epoch (0: unknown).
    """

    state: State
    time: float
    round: int
    version: int
    text: str
    at: float = 0.0


@dataclass
class ErasureRecord:
    """One request and everything the server knows of it.

    ``merged_before`` is set at the first merge and stays: a request past it can no longer
    be cancelled, even when it is sent back for another attempt. ``filed_by`` is ``site`` or
    ``operator``; ``batch`` names the other requests that are unlearned together with this one,
    and ``leader`` the request that carries a follower of such a batch. ``released`` says that
    the operator lets a held delta be merged, ``waiting`` that a small request waits for others.
    ``method`` is what the operator chose, or empty; ``level`` the forget level where the site did
    not unlearn itself; ``details`` what a method has to say of it in the certificate.
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
    filed_by: str = "site"
    batch: tuple[str, ...] = ()
    leader: str = ""
    certified: int = 0
    released: bool = False
    waiting: bool = False
    method: str = ""
    level: ForgetScore | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def request_id(self) -> str:
        """Identifier of the request."""
        return self.notice.request_id

    @property
    def merged_before(self) -> bool:
        """Whether a delta of this request has entered the model."""
        return self.merge_version is not None

    @property
    def failure(self) -> str:
        """Which of ``wire.FAILURE_CODES`` says why the request failed; empty if it did not.

        The reason itself may name other sites and stays at the server.
        """
        if self.state is not State.FAILED:
            return ""
        if self.merged_before:
            return "level-not-met"
        unlearned = any(step.state in (State.UNLEARNED, State.HELD) for step in self.history)
        return "merge-refused" if unlearned else "not-unlearned"

    @property
    def open(self) -> bool:
        """Whether the request still moves."""
        return self.state not in CLOSED

    @property
    def completions(self) -> int:
        """How often the request was completed; more than once if it resurfaced."""
        done = (State.COMPLETED, State.COMPLETED_UNVERIFIED)
        return sum(step.state in done for step in self.history)

    def to_dict(self) -> dict[str, Any]:
        """Return what :meth:`from_dict` reads, ready for JSON."""
        return {
            "notice": asdict(self.notice),
            "site": self.site,
            "state": str(self.state),
            "history": [{**asdict(step), "state": str(step.state)} for step in self.history],
            "attempts": self.attempts,
            "base_version": self.base_version,
            "merge_version": self.merge_version,
            "merge_round": self.merge_round,
            "verified_rounds": self.verified_rounds,
            "evidence": [evidence.to_json() for evidence in self.evidence],
            "scores": [[version, _score_to(score)] for version, score in self.scores],
            "verdict": None if self.verdict is None else asdict(self.verdict),
            "reason": self.reason,
            "filed_by": self.filed_by,
            "batch": list(self.batch),
            "leader": self.leader,
            "certified": self.certified,
            "released": self.released,
            "waiting": self.waiting,
            "method": self.method,
            "level": None if self.level is None else _score_to(self.level),
            "details": self.details,
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> ErasureRecord:
        """Read a stored record; StateError if it is damaged."""
        try:
            verdict = row["verdict"]
            return cls(
                notice=ErasureNotice(**row["notice"]),
                site=str(row["site"]),
                state=State(row["state"]),
                history=[
                    Step(**{**step, "state": State(step["state"])}) for step in row["history"]
                ],
                attempts=int(row["attempts"]),
                base_version=row["base_version"],
                merge_version=row["merge_version"],
                merge_round=row["merge_round"],
                verified_rounds=int(row["verified_rounds"]),
                evidence=[Evidence.from_json(text) for text in row["evidence"]],
                scores=[(int(version), _score_from(score)) for version, score in row["scores"]],
                verdict=None if verdict is None else LevelVerdict(**verdict),
                reason=str(row["reason"]),
                filed_by=str(row["filed_by"]),
                batch=tuple(row["batch"]),
                leader=str(row["leader"]),
                certified=int(row["certified"]),
                released=bool(row["released"]),
                waiting=bool(row["waiting"]),
                method=str(row["method"]),
                level=None if row["level"] is None else _score_from(row["level"]),
                details=dict(row["details"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"a stored erasure request is damaged: {error!r}") from error


def _score_to(score: ForgetScore) -> dict[str, Any]:
    """Return a score for JSON, which knows no infinity."""
    return {**asdict(score), "loss": score.loss if math.isfinite(score.loss) else None}


def _score_from(row: Mapping[str, Any]) -> ForgetScore:
    loss = math.inf if row["loss"] is None else float(row["loss"])
    name = str(row.get("name", "accuracy"))
    return ForgetScore(loss, float(row["accuracy"]), int(row["count"]), name)
