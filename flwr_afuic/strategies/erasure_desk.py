"""What every step of an erasure shares: the requests of one run and the sites they concern."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING, Any

from flwr_afuic import wire
from flwr_afuic.erasure.book import ErasureRecord, RequestBook, State
from flwr_afuic.errors import StateTransitionError
from flwr_afuic.federation.layout import Arrays, Vector
from flwr_afuic.federation.roster import Member
from flwr_afuic.federation.worker import Job
from flwr_afuic.strategies.dispatcher import Task
from flwr_afuic.strategies.gate import GateCase
from flwr_afuic.strategies.run import FederationRun

if TYPE_CHECKING:
    from flwr_afuic.strategies.erasing import ErasureStrategy


@dataclass
class Attempt:
    """What one attempt at a request holds on to until it is verified.

    Attributes
    ----------
    version, snapshot : int, list of ndarray
        The model to unlearn from; dropped at the merge.
    reference_job : Job or None
        Making of the proxy-distilled reference.
    since : float
        From when on the site's silence counts (seconds, engine's clock).
    failures, polls : int
        Unlearning tasks that failed, and unanswered questions who the site is.
    delta, basis : ndarray of shape (p,) and (r, p), or None
        The site's delta, and its relearning basis where one was asked for.
    taken_back : ndarray of shape (p,), or None
        What the server adds to the model by itself with the merge; the site's delta is one from
        the snapshot with it.
    fidelity_job, gate : Job, GateCase or None
        The fidelity steps and the judgement its merge waits for.
    step : ndarray of shape (p,), or None
        What the fidelity steps came to.
    next_verification : int
        Round from which the site is asked for its next verification.
    """

    version: int
    snapshot: Arrays
    reference_job: Job[Arrays] | None
    since: float
    failures: int = 0
    polls: int = 0
    next_verification: int = 0
    reference_noted: bool = False
    delta: Vector | None = None
    basis: Vector | None = None
    taken_back: Vector | None = None
    fidelity_job: Job[Vector] | None = None
    step: Vector | None = None
    gate: GateCase | None = None

    def whole(self, delta: Vector) -> Vector:
        """Return the site's delta with what the server takes back by itself."""
        return delta if self.taken_back is None else delta + self.taken_back

    def release(self) -> None:
        """Let go of the models."""
        self.snapshot, self.reference_job = [], None
        self.delta, self.basis, self.step, self.taken_back = None, None, None, None
        self.fidelity_job, self.gate = None, None


@dataclass(frozen=True)
class MergeFacts:
    """One erasure merge, for lost progress (``decisions.md``); vectors of shape (p,)."""

    request_id: str
    base_version: int
    merge_version: int
    staleness: int
    base: Vector
    current: Vector
    after: Vector
    delta: Vector


class ErasureDesk:
    """Requests, attempts and withdrawn sites of one run.

    Attributes
    ----------
    attempts : dict of str to Attempt
        By request; a request without one waits until another of its site is merged.
    withdrawn : set of str
        Sites that may not train.
    heard : set of int
        Nodes that have answered at least once: what they did not say then, they cannot.
    refused, unheard : dict of str to set of str
        By site: ids of requests that are refused, and ids it cancelled that never came here.
    kept : set of str
        Requests whose site cancelled them too late.
    owed : dict of str to int
        By site: trainings it missed over its erasures and has not made up for yet.
    """

    def __init__(self, settings: ErasureStrategy, book: RequestBook, run: FederationRun) -> None:
        self.settings = settings
        self.book = book
        self.run = run
        self.attempts: dict[str, Attempt] = {}
        self.withdrawn: set[str] = set()
        self.heard: set[int] = set()
        self.refused: dict[str, set[str]] = {}
        self.unheard: dict[str, set[str]] = {}
        self.kept: set[str] = set()
        self.owed: dict[str, int] = {}
        self._away: dict[str, float] = {}

    def now(self) -> dict[str, Any]:
        """When it is, for the book."""
        run = self.run
        times = {"time": run.elapsed, "at": time.time()}
        return {**times, "round": run.round, "version": run.version}

    def move(self, record: ErasureRecord, state: State, text: str) -> None:
        """Move a request on, in the book and in the journal, and its batch with it."""
        self.book.move(record, state, text, **self.now())
        self.run.note(str(state), record.site, text)
        for follower in self.followers(record):
            for name in _SHARED:
                setattr(follower, name, getattr(record, name))
            self.book.move(follower, state, text, **self.now())

    def followers(self, record: ErasureRecord) -> list[ErasureRecord]:
        """Return the requests that are unlearned together with this one."""
        return [self.book.get(request_id) for request_id in record.batch]

    def cancel(self, record: ErasureRecord, text: str) -> None:
        """Cancel a request; StateTransitionError if it is too late."""
        if record.leader or record.batch:
            raise StateTransitionError(
                f"request {record.request_id} is {record.state} together with others of its site; "
                "it can no longer be cancelled"
            )
        self.close(record, State.CANCELLED, text)

    def close(self, record: ErasureRecord, state: State, text: str) -> None:
        """End a request before its delta is merged; a site that stays may train again."""
        self.move(record, state, text)
        attempt = self.attempts.get(record.request_id)
        if attempt is not None:
            attempt.release()
        self.readmit(record.site)

    def refuse(self, site: str) -> None:
        """Send a site no more tasks of training; an evaluation it was due for falls away."""
        self.withdrawn.add(site)
        self._away.setdefault(site, self.run.clock.now())
        for member in self.run.roster.all_of_site(site):
            member.due_evaluation = 0

    def withdraw(self, site: str) -> int:
        """Refuse a site's updates, those in flight and those not merged yet included.

        Returns
        -------
        int
            Number of unmerged updates discarded.
        """
        run = self.run
        self.refuse(site)
        for task in run.dispatcher.unjudged:
            if task.member.site == site and task.kind == "train":
                task.refused = True
        return run.intake.withdraw(site) if run.settings.withdrawable_updates else 0

    def readmit(self, site: str) -> None:
        """Let a site train again on its kept data, unless a request of its forbids it."""
        if any(blocks(record) for record in self.book.of_site(site)):
            return
        self.withdrawn.discard(site)
        since = self._away.pop(site, None)
        if since is not None:
            owed = self.owed.get(site, 0) + self._missed(site, since)
            self.owed[site] = min(owed, _MOST_OWED)

    def _missed(self, site: str, since: float) -> int:
        """Count the trainings a site missed: the one that was discarded, and those since then."""
        spans = (s for s in reversed(self.run.journal.spans) if s.site == site)
        took = [span.end - span.start for span in islice(spans, _LOOKED_AT) if span.kind == "train"]
        usual = median(took) if took else 0.0  # who has just asked did not train at all
        return 1 + int((self.run.clock.now() - since) / usual) if usual > 0 else 0

    def free_member(self, site: str) -> Member | None:
        """Return a node of the site that can be sent a message now."""
        return self.run.roster.free_of_site(site)

    def busy(self, site: str) -> bool:
        """Whether a connected node of the site has a task in flight, which has its own deadline."""
        return any(m.connected and m.busy for m in self.run.roster.all_of_site(site))

    def poll(self, member: Member) -> bool:
        """Ask a node who it is, and tell it what became of its requests."""
        run = self.run
        news = run.hooks.task_config(member)
        config = {wire.TASK: "poll", wire.VERSION: run.version, **news}
        kind, content = run.dialect.poll(config)
        return run.dispatcher.send(Task(member, "poll", run.version, run.round), kind, content)

    def news_for(self, member: Member) -> dict[str, wire.Scalar]:
        """Tell a site where its requests stand, as far as it has to know."""
        own = self.book.of_site(member.site)
        if not own and not self.unheard.get(member.site) and not self.refused.get(member.site):
            return _NO_NEWS  # nearly every task's
        groups: dict[str, set[str]] = {
            wire.KNOWN: set(),
            wire.CLOSED: set(),
            wire.CANCELLED: set(self.unheard.get(member.site, ())),
            wire.REFUSED: set(self.refused.get(member.site, ())),
            wire.KEPT: set(),
        }
        for record in own:
            key = wire.KNOWN if record.open else _NEWS.get(record.state, wire.CLOSED)
            groups[key].add(record.request_id)
            if record.request_id in self.kept:
                groups[wire.KEPT].add(record.request_id)
        news: dict[str, wire.Scalar] = {
            key: ",".join(sorted(ids)) for key, ids in groups.items() if ids or key in _NO_NEWS
        }
        # Named among the closed as well, which is all that older clients understand.
        failed = {r.request_id: r.failure for r in own if r.failure}
        if failed:
            news[wire.FAILED] = json.dumps(failed, sort_keys=True)
        return news


_NO_NEWS: dict[str, wire.Scalar] = {wire.KNOWN: "", wire.CLOSED: "", wire.CANCELLED: ""}
_MOST_OWED = 16
_LOOKED_AT = 7  # of the tasks of a site

_NEWS = {State.CANCELLED: wire.CANCELLED, State.REFUSED: wire.REFUSED}

_SHARED = (
    "attempts",
    "base_version",
    "merge_version",
    "merge_round",
    "verified_rounds",
    "evidence",
    "scores",
    "verdict",
)
"""What the requests of a batch have in common with the one that carries it."""


def blocks(record: ErasureRecord) -> bool:
    """Whether a request keeps its site from training.

    With scope ``client`` for good, unless it is cancelled or refused; with scope ``samples``
    until the site has unlearned, since it then trains again on its kept data. While a small
    request waits for others the site trains, too, without the samples it names.
    """
    if record.notice.scope == "client":
        return record.state not in (State.CANCELLED, State.REFUSED)
    return record.state in (State.RECEIVED, State.DISPATCHED) and not record.waiting
