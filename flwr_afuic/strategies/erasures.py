"""How a run takes erasure requests through their steps, beside training.

Training of the retained sites never waits here: each call does what can be done now and
returns. The steps are those of the design: received, reference, dispatched, unlearned,
merged, verifying, completed.
"""

from __future__ import annotations

import queue
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import Message, MessageType

from flwr_afuic import wire
from flwr_afuic.erasure.book import ErasureRecord, RequestBook, State
from flwr_afuic.errors import AfuicError, DuplicateRequestError, UnknownSiteError, WireError
from flwr_afuic.federation.journal import Span, VersionEntry
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.federation.roster import Member
from flwr_afuic.federation.worker import Job
from flwr_afuic.models.arrays import get_arrays, set_arrays
from flwr_afuic.models.reinitialise import reinitialise
from flwr_afuic.seeds import derive_seed
from flwr_afuic.strategies.calibrator import Calibrator
from flwr_afuic.strategies.dispatcher import Task
from flwr_afuic.strategies.run import FederationRun, RunHooks
from flwr_afuic.unlearning.level import LevelVerdict, forget_level_met
from flwr_afuic.unlearning.reference import distil_reference

if TYPE_CHECKING:
    from flwr_afuic.strategies.afuic import AFUIC


@dataclass
class _Attempt:
    """What one attempt at a request holds on to until its delta is merged."""

    version: int
    snapshot: Arrays
    reference_job: Job[Arrays] | None
    since: float
    failures: int = 0
    next_verification: int = 0


class ErasureHooks(RunHooks):
    """Erasure requests of one run.

    Parameters
    ----------
    settings : AFUIC
        The strategy.
    book : RequestBook
        Where requests live.
    """

    def __init__(self, settings: AFUIC, book: RequestBook) -> None:
        self.settings = settings
        self.book = book
        self._operator: queue.SimpleQueue[tuple[wire.ErasureNotice, str]] = queue.SimpleQueue()
        self._attempts: dict[str, _Attempt] = {}
        self._withdrawn: set[str] = set()

    def bind(self, run: FederationRun) -> None:
        """See :class:`RunHooks`."""
        super().bind(run)
        settings = self.settings
        self.calibrator = Calibrator(
            run,
            lock=settings.lock,
            phi=settings.phi,
            factory=settings.model_factory,
            proxies=settings.proxies,
            settings=settings.invariance,
            virtual_seconds=settings.virtual_invariance_seconds,
        )

    # ---- requests come in -----------------------------------------------------------

    def file_for(self, site: str, reason: str) -> str:
        """File a client-scope erasure for a site; may be called from any thread."""
        member = self.run.roster.of_site(site)
        if member is None:
            known = ", ".join(sorted(m.site for m in self.run.roster.members)) or "none yet"
            raise UnknownSiteError(f"no site {site!r} in this federation; it has: {known}")
        notice = wire.ErasureNotice(str(uuid.uuid4()), "client", 1, "", reason, time.time())
        self._operator.put((notice, site))
        return notice.request_id

    def on_info(self, member: Member, info: dict[str, Any]) -> None:
        """Take in the requests a site reports with any reply. A site speaks for itself only."""
        if wire.PENDING not in info:
            return
        for notice in wire.decode_notices(info[wire.PENDING]):
            self._receive(notice, member.site)

    def _receive(self, notice: wire.ErasureNotice, site: str) -> None:
        try:
            record, new = self.book.file(notice, site, **self._now())
        except DuplicateRequestError as error:
            self.run.note("refused-request", site, str(error))
            return
        if new:
            self._open(record)

    def _open(self, record: ErasureRecord) -> None:
        """Withdraw the site from training and take the snapshot to unlearn from."""
        run, site = self.run, record.site
        self._withdrawn.add(site)
        for task in run.dispatcher.pending:
            if task.member.site == site and task.kind == "train":
                task.refused = True
        withdrawn = run.buffer.withdraw(site) if run.settings.withdrawable_updates else 0
        text = f"erasure {record.request_id} ({record.notice.scope}, {record.notice.reason})"
        if withdrawn:
            text += f"; {withdrawn} unmerged update(s) of the site discarded"
        run.note("request", site, text)
        self._begin_attempt(record)

    def _begin_attempt(self, record: ErasureRecord) -> None:
        run = self.run
        record.attempts += 1
        record.base_version = run.version
        self.settings.base_models.setdefault(run.version, run.arrays)
        record.verified_rounds = 0
        self._attempts[record.request_id] = _Attempt(
            run.version, run.arrays, self._distil(record), run.clock.now()
        )

    def _distil(self, record: ErasureRecord) -> Job[Arrays] | None:
        """Start making the proxy-distilled reference in the background."""
        factory, proxies = self.settings.model_factory, self.settings.proxies
        if factory is None or proxies is None:
            return None
        snapshot, settings = self.run.arrays, self.settings.distillation
        seed = derive_seed(self.run.settings.seed, "reference", self.run.version)

        def make() -> Arrays:
            teacher, student = factory(), factory()
            set_arrays(teacher, snapshot)
            reinitialise(student, seed=seed)
            with torch.enable_grad():
                distil_reference(teacher, student, proxies, settings=settings, seed=seed)
            return get_arrays(student)

        return self.run.worker.submit(make, virtual_seconds=self.settings.virtual_reference_seconds)

    # ---- training -------------------------------------------------------------------

    def may_train(self, site: str) -> bool:
        """Whether a site trains: not while, and with client scope never after, it is erased."""
        return site not in self._withdrawn

    def task_config(self, member: Member) -> dict[str, wire.Scalar]:
        """Tell a site which of its requests the server knows and which are closed."""
        records = self.book.of_site(member.site)
        known = [record.request_id for record in records if record.open]
        closed = [record.request_id for record in records if not record.open]
        return {wire.KNOWN: ",".join(known), wire.CLOSED: ",".join(closed)}

    def finish(self, previous: Arrays, candidate: Arrays) -> Arrays:
        """See :class:`Calibrator`."""
        return self.calibrator.finish(candidate)

    def after_version(self, entry: VersionEntry) -> None:
        """See :class:`Calibrator`."""
        self.calibrator.after_version()

    # ---- requests move on -----------------------------------------------------------

    def before_dispatch(self) -> None:
        """Move every open request as far as it can go now."""
        while not self._operator.empty():
            self._receive(*self._operator.get())
        for record in self.book:
            if record.state is State.RECEIVED:
                self._try_dispatch(record)
            elif record.state in (State.VERIFYING, State.COMPLETED):
                self._try_verify(record)
            if record.open:
                self._give_up_if_gone(record)

    def _try_dispatch(self, record: ErasureRecord) -> None:
        attempt = self._attempts[record.request_id]
        member = self._free_member(record.site)
        if member is None:
            return
        if member.protocol is None:
            self._fail(
                record,
                "the site's client does not speak the erasure protocol; derive it from "
                "ErasureClient, or use a method that needs nothing of the site",
            )
            return
        job = attempt.reference_job
        if job is not None and not job.done():
            return
        extras: dict[str, Arrays] = {}
        if job is not None:
            try:
                extras["reference"] = job.result()
            except AfuicError as error:
                self._fail(record, f"the proxy-distilled reference could not be made: {error}")
                return
            run = self.run
            start, end = job.start - run.started, job.end - run.started
            run.journal.server_spans.append(Span("server", "reference", start, end))
            run.note("reference", record.site, f"made in {job.end - job.start:.1f} s")
        if self.settings.proxies is not None:
            extras["proxies"] = [self.settings.proxies.numpy()]
        self._send_unlearning(record, attempt, member, extras)

    def _send_unlearning(
        self, record: ErasureRecord, attempt: _Attempt, member: Member, extras: dict[str, Arrays]
    ) -> None:
        run = self.run
        config = run.config_for(member, wire.TASK_UNLEARN, {})
        config[wire.VERSION] = attempt.version
        config[wire.REQUEST] = record.request_id
        config[wire.SCOPE] = record.notice.scope
        config[wire.SETTINGS] = self.settings.unlearning_for(record.attempts).to_json()
        content = run.dialect.train(
            run.record_of(attempt.version, attempt.snapshot), config, extras
        )
        task = Task(member, "unlearn", attempt.version, run.round, request_id=record.request_id)
        if run.dispatcher.send(task, MessageType.TRAIN, content):
            text = f"unlearning from version {attempt.version}, attempt {record.attempts}"
            self._move(record, State.DISPATCHED, text)

    def _try_verify(self, record: ErasureRecord) -> None:
        run, attempt = self.run, self._attempts.get(record.request_id)
        if attempt is None or run.round < attempt.next_verification:
            return
        if record.state is State.COMPLETED and record.notice.scope == "client":
            return  # released: the site owes the federation nothing more
        member = self._free_member(record.site)
        if member is None:
            return
        config = run.config_for(member, wire.TASK_VERIFY, {})
        config[wire.REQUEST] = record.request_id
        content = run.dialect.evaluate(run.record_of(run.version, run.arrays), config)
        task = Task(member, "verify", run.version, run.round, request_id=record.request_id)
        if run.dispatcher.send(task, MessageType.EVALUATE, content):
            done = record.state is State.COMPLETED
            attempt.next_verification = run.round + (self.settings.watch_every if done else 1)

    def on_reply(self, task: Task, message: Message) -> None:
        """Handle the reply to an unlearning or a verification."""
        record = self.book.get(task.request_id)
        if task.kind == "unlearn":
            self._accept_delta(record, task, message)
        else:
            self._accept_verification(record, task, message)

    def _accept_delta(self, record: ErasureRecord, task: Task, message: Message) -> None:
        run = self.run
        reply = run.dialect.read_train(message.content)
        if record.state is not State.DISPATCHED:
            run.note("late", record.site, f"a delta for a request that is {record.state}; dropped")
            return
        failure = reply.info.get(wire.FAILURE)
        if failure:
            self._fail(record, f"the site cannot carry it out: {str(failure)[:300]}")
            return
        if reply.info.get(wire.KIND) != wire.KIND_ERASURE:
            raise WireError("the reply to an unlearning task is no erasure delta")
        if reply.info.get(wire.REQUEST) != record.request_id:
            raise WireError("the erasure delta names another request")
        evidence = wire.Evidence.from_json(reply.info.get(wire.EVIDENCE))
        run.layout.check(reply.arrays, f"erasure delta of {record.site}")
        run.roster.succeeded(task.member)
        record.evidence.append(evidence)
        before, after = evidence.before, evidence.after
        self._move(
            record,
            State.UNLEARNED,
            f"loss on the erased data {before.loss:.3f} -> {after.loss:.3f}, accuracy "
            f"{before.accuracy:.3f} -> {after.accuracy:.3f} in {evidence.steps} steps",
        )
        self._merge(record, reply.arrays)

    def _merge(self, record: ErasureRecord, update: Arrays) -> None:
        """Merge the delta into the current model: ``w <- w_c + d``, not weighted by staleness.

        With ``merge="overwrite"``, the paper's rule, the model becomes ``w_s + d`` and what
        the retained sites learned since the snapshot is lost. Statistics and counters stay
        those of the current model: they carry no delta.
        """
        run = self.run
        layout, attempt = run.layout, self._attempts[record.request_id]
        current, delta = layout.flatten(run.arrays), layout.flatten(update)
        base = layout.flatten(attempt.snapshot)
        merged = (base if self.settings.merge == "overwrite" else current) + delta
        staleness = run.version - attempt.version
        run.adopt(layout.with_trained(merged, run.arrays), "erasure", (record.site,))
        after = layout.flatten(run.arrays)
        record.merge_version, record.merge_round = run.version, run.round
        self.settings.merges.append(
            MergeFacts(
                record.request_id,
                attempt.version,
                run.version,
                staleness,
                base,
                current,
                after,
                delta,
            )
        )
        self.calibrator.hold(f"{record.request_id}/{record.attempts}", delta, after)
        text = f"version {run.version}, staleness {staleness}, norm {np.linalg.norm(delta):.3f}"
        self._move(record, State.MERGED, text)
        attempt.snapshot, attempt.reference_job = [], None
        attempt.since = run.clock.now()
        attempt.next_verification = run.round
        self._move(record, State.VERIFYING, "the site scores the model on the erased data")
        if record.notice.scope == "samples":
            self._readmit(record.site)

    def _readmit(self, site: str) -> None:
        """Let a site train again on its kept data, unless another request of its forbids it."""
        blocking = [
            record
            for record in self.book.of_site(site)
            if (record.notice.scope == "client" and record.state is not State.CANCELLED)
            or record.state in (State.RECEIVED, State.DISPATCHED)
        ]
        if not blocking:
            self._withdrawn.discard(site)

    def _accept_verification(self, record: ErasureRecord, task: Task, message: Message) -> None:
        run = self.run
        reply = run.dialect.read_evaluate(message.content)
        if reply.info.get(wire.REQUEST) != record.request_id:
            raise WireError("the reply to a verification names another request")
        run.roster.succeeded(task.member)
        score = wire.read_score(reply.loss, reply.metrics.get("accuracy"), reply.examples)
        if record.state not in (State.VERIFYING, State.COMPLETED):
            return
        attempt = self._attempts[record.request_id]
        attempt.since = run.clock.now()
        record.scores.append((task.version, score))
        verdict = self._judge(record, score)
        record.verdict = verdict
        if verdict is None:
            self._move(record, State.FAILED, "the site sent no forget level to verify against")
        elif record.state is State.COMPLETED:
            if not verdict.met:
                self._move(record, State.VERIFYING, f"resurfaced: {verdict.text}")
                self._retry(record, verdict)
        elif verdict.met:
            self._confirm(record, verdict)
        else:
            self._retry(record, verdict)

    def _judge(self, record: ErasureRecord, score: Any) -> LevelVerdict | None:
        """Compare a score with the request's forget level: the reference's, else the hold-out's."""
        evidence = record.evidence[-1]
        level = evidence.reference or evidence.holdout
        return None if level is None else forget_level_met(score, level)

    def _confirm(self, record: ErasureRecord, verdict: LevelVerdict) -> None:
        record.verified_rounds += 1
        self.run.note("verified", record.site, f"round {record.verified_rounds}: {verdict.text}")
        if record.verified_rounds >= self.settings.verify_rounds:
            self._move(record, State.COMPLETED, verdict.text)
            self._attempts[record.request_id].next_verification = (
                self.run.round + self.settings.watch_every
            )

    def _retry(self, record: ErasureRecord, verdict: LevelVerdict) -> None:
        """Send a request whose level is not met back for another attempt, or report it."""
        if record.attempts >= self.settings.max_attempts:
            self._move(
                record, State.FAILED, f"not met after {record.attempts} attempts: {verdict.text}"
            )
            self.run.note("not-met", record.site, verdict.text)
            return
        self._move(record, State.RECEIVED, verdict.text)
        self._withdrawn.add(record.site)
        self._begin_attempt(record)

    def on_failure(self, task: Task, reason: str) -> None:
        """Try an unlearning again after the site's backoff, a bounded number of times."""
        record = self.book.get(task.request_id)
        attempt = self._attempts[record.request_id]
        attempt.failures += 1
        if record.state is not State.DISPATCHED:
            return
        if attempt.failures > self.settings.max_attempts:
            self._fail(record, f"unlearning failed {attempt.failures} times: {reason}")
        else:
            self._move(record, State.RECEIVED, f"unlearning failed: {reason}")

    def cancel(self, request_id: str) -> None:
        """Cancel a request that is not merged yet; its site trains again."""
        record = self.book.get(request_id)
        self._move(record, State.CANCELLED, "cancelled")
        self._readmit(record.site)

    def _give_up_if_gone(self, record: ErasureRecord) -> None:
        attempt = self._attempts[record.request_id]
        if self.run.clock.now() - attempt.since < self.settings.site_timeout:
            return
        waited = f"nothing heard of the site for {self.settings.site_timeout:g} s"
        if record.state is State.VERIFYING:
            text = f"{waited}; {record.verified_rounds} rounds verified"
            self._move(record, State.COMPLETED_UNVERIFIED, text)
        elif record.state is State.RECEIVED:
            self._fail(record, waited)

    # ---- small helpers --------------------------------------------------------------

    def _free_member(self, site: str) -> Member | None:
        found = [member for member in self.run.roster.free() if member.site == site]
        return found[0] if found else None

    def _fail(self, record: ErasureRecord, reason: str) -> None:
        self._move(record, State.FAILED, reason)
        attempt = self._attempts[record.request_id]
        attempt.snapshot, attempt.reference_job = [], None

    def _move(self, record: ErasureRecord, state: State, text: str) -> None:
        self.book.move(record, state, text, **self._now())
        self.run.note(str(state), record.site, text)

    def _now(self) -> dict[str, Any]:
        run = self.run
        return {"time": run.elapsed, "round": run.round, "version": run.version}


@dataclass(frozen=True)
class MergeFacts:
    """One erasure merge, for lost progress (``decisions.md``); vectors of shape (p,)."""

    request_id: str
    base_version: int
    merge_version: int
    staleness: int
    base: np.ndarray[Any, np.dtype[np.float64]]
    current: np.ndarray[Any, np.dtype[np.float64]]
    after: np.ndarray[Any, np.dtype[np.float64]]
    delta: np.ndarray[Any, np.dtype[np.float64]]
