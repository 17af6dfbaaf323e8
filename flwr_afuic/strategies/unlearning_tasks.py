"""Unlearning tasks of a run: reference, dispatch to the site, and the merge of its delta."""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import MessageType

from flwr_afuic import wire
from flwr_afuic.calibration.basis import check_basis
from flwr_afuic.calibration.fidelity import confine
from flwr_afuic.erasure.book import ErasureRecord, State
from flwr_afuic.errors import StateTransitionError, WireError
from flwr_afuic.federation.journal import Span
from flwr_afuic.federation.layout import Arrays, Vector
from flwr_afuic.federation.roster import Member
from flwr_afuic.federation.worker import Job
from flwr_afuic.models.arrays import get_arrays, set_arrays
from flwr_afuic.models.reinitialise import reinitialise
from flwr_afuic.seeds import derive_seed
from flwr_afuic.strategies.calibrator import Calibrator
from flwr_afuic.strategies.codec import TrainReply
from flwr_afuic.strategies.dispatcher import Task
from flwr_afuic.strategies.erasure_desk import Attempt, ErasureDesk, MergeFacts
from flwr_afuic.strategies.gate import FidelityGate
from flwr_afuic.unlearning.local import STOP_DIVERGED
from flwr_afuic.unlearning.reference import distil_reference


class UnlearningTasks:
    """From a received request to a merged delta.

    Parameters
    ----------
    desk : ErasureDesk
        The run's requests.
    calibrator : Calibrator
        Is told of every merged delta.
    gate : FidelityGate
        Judges every merge before it is made.
    """

    def __init__(self, desk: ErasureDesk, calibrator: Calibrator, gate: FidelityGate) -> None:
        self._desk = desk
        self._calibrator = calibrator
        self._gate = gate

    def begin(self, record: ErasureRecord) -> Attempt | None:
        """Take the snapshot to unlearn from, unless another request of the site is at work.

        Requests of one site follow each other: a sample that two of them name would
        otherwise be unlearned twice over from the same snapshot.
        """
        desk, run = self._desk, self._desk.run
        for other in desk.book.of_site(record.site):
            if other is record:
                continue
            waiting = other.state is State.RECEIVED and other.request_id in desk.attempts
            if waiting or other.state in (State.DISPATCHED, State.UNLEARNED):
                return None
        if not gather_batch(desk, record):
            return None
        record.attempts += 1
        record.base_version = run.version
        record.verified_rounds = 0
        desk.settings.base_models.setdefault(run.version, run.arrays)
        attempt = Attempt(run.version, run.arrays, self._distil(), run.clock.now())
        desk.attempts[record.request_id] = attempt
        desk.refuse(record.site)
        return attempt

    def waits_for_company(self, record: ErasureRecord) -> bool:
        """Whether a request has not begun because small ones are unlearned together."""
        return self._desk.settings.batch_size > 1 and waits_for_company(self._desk, record)

    def _distil(self) -> Job[Arrays] | None:
        """Start making the proxy-distilled reference in the background."""
        settings, run = self._desk.settings, self._desk.run
        factory, proxies = settings.model_factory, settings.proxies
        if factory is None or proxies is None:
            return None
        snapshot, options = run.arrays, settings.distillation
        seed = derive_seed(run.settings.seed, "reference", run.version)

        def make() -> Arrays:
            teacher, student = factory(), factory()
            set_arrays(teacher, snapshot)
            reinitialise(student, seed=seed)
            with torch.enable_grad():
                distil_reference(teacher, student, proxies, settings=options, seed=seed)
            return get_arrays(student)

        return run.worker.submit(make, virtual_seconds=settings.virtual_reference_seconds)

    # ---- to the site ----------------------------------------------------------------

    def try_dispatch(self, record: ErasureRecord) -> None:
        """Send the unlearning task if the site is free and everything for it is ready."""
        desk = self._desk
        attempt = desk.attempts.get(record.request_id) or self.begin(record)
        member = desk.free_member(record.site)
        if attempt is None or member is None:
            return
        if member.protocol is None:
            self._ask_protocol(record, attempt, member)
            return
        job = attempt.reference_job
        if job is not None and not job.done():
            return
        extras: dict[str, Arrays] = {}
        if job is not None:
            try:
                extras["reference"] = job.result()
            except Exception as error:  # noqa: BLE001 - user code failed; training goes on
                text = f"the proxy-distilled reference could not be made: {error}"
                desk.close(record, State.FAILED, text)
                return
            self._note_reference(record, attempt, job)
        if desk.settings.proxies is not None:
            extras["proxies"] = [desk.settings.proxies.numpy()]
        self._send(record, attempt, member, extras)

    def _ask_protocol(self, record: ErasureRecord, attempt: Attempt, member: Member) -> None:
        """Fail a request whose site cannot erase; ask first where the node never spoke yet."""
        desk = self._desk
        plain = member.node_id in desk.heard
        if not plain and attempt.polls < desk.settings.max_attempts:
            attempt.polls += desk.poll(member)
            return
        why = "does not speak" if plain else "does not say whether it speaks"
        desk.close(
            record,
            State.FAILED,
            f"the site's client {why} the erasure protocol; derive it from ErasureClient, or "
            "use a method that needs nothing of the site",
        )

    def _note_reference(self, record: ErasureRecord, attempt: Attempt, job: Job[Arrays]) -> None:
        if attempt.reference_noted:
            return
        attempt.reference_noted = True
        run = self._desk.run
        start, end = job.start - run.started, job.end - run.started
        run.journal.server_spans.append(Span("server", "reference", start, end))
        run.note("reference", record.site, f"made in {job.end - job.start:.1f} s")

    def _send(
        self, record: ErasureRecord, attempt: Attempt, member: Member, extras: dict[str, Arrays]
    ) -> None:
        desk, run = self._desk, self._desk.run
        config = run.config_for(member, wire.TASK_UNLEARN, {})
        config[wire.VERSION] = attempt.version
        config[wire.REQUEST] = record.request_id
        config[wire.SCOPE] = record.notice.scope
        config[wire.SETTINGS] = desk.settings.unlearning_for(record.attempts).to_json()
        config[wire.PRIVACY] = desk.settings.privacy.to_json()
        config[wire.BASIS_RANK] = desk.settings.relearning_rank
        if record.batch:
            config[wire.BATCH] = ",".join((record.request_id, *record.batch))
        content = run.dialect.train(
            run.record_of(attempt.version, attempt.snapshot), config, extras
        )
        task = Task(member, "unlearn", attempt.version, run.round, request_id=record.request_id)
        if run.dispatcher.send(task, MessageType.TRAIN, content):
            text = f"unlearning from version {attempt.version}, attempt {record.attempts}"
            desk.move(record, State.DISPATCHED, text)

    def failed(self, record: ErasureRecord, reason: str) -> None:
        """Try an unlearning again after the site's backoff, a bounded number of times."""
        desk = self._desk
        attempt = desk.attempts.get(record.request_id)
        if attempt is None or record.state is not State.DISPATCHED:
            return
        attempt.failures += 1
        attempt.since = desk.run.clock.now()
        if attempt.failures > desk.settings.max_attempts:
            text = f"unlearning failed {attempt.failures} times: {reason}"
            desk.close(record, State.FAILED, text)
        else:
            desk.move(record, State.RECEIVED, f"unlearning failed: {reason}")

    # ---- back from the site ---------------------------------------------------------

    def accept(self, record: ErasureRecord, task: Task, reply: TrainReply) -> None:
        """Take the reply to an unlearning task; WireError if it is unusable."""
        desk, run = self._desk, self._desk.run
        if record.state is not State.DISPATCHED:
            run.roster.succeeded(task.member)
            run.note("late", record.site, f"a delta for a request that is {record.state}; dropped")
            return
        failure = reply.info.get(wire.FAILURE)
        if failure:
            run.roster.succeeded(task.member)
            text = f"the site cannot carry it out: {str(failure)[:300]}"
            desk.close(record, State.FAILED, text)
            return
        if reply.info.get(wire.KIND) != wire.KIND_ERASURE:
            raise WireError("the reply to an unlearning task is no erasure delta")
        if reply.info.get(wire.REQUEST) != record.request_id:
            raise WireError("the erasure delta names another request")
        evidence = wire.Evidence.from_json(reply.info.get(wire.EVIDENCE))
        arrays, basis = self._parts(record, reply)
        run.layout.check(arrays, f"erasure delta of {record.site}")
        if evidence.stop_reason == STOP_DIVERGED:
            # The site is back at the snapshot: a zero delta must not pass for an erasure.
            raise WireError("the unlearning diverged at the site")
        delta = run.layout.flatten(arrays)
        self._bound(delta)
        self._merged(record, delta)  # refuses what would not stay finite, before anything moves
        run.roster.succeeded(task.member)
        record.evidence.append(evidence)
        before, after = evidence.before, evidence.after
        desk.move(
            record,
            State.UNLEARNED,
            f"loss on the erased data {before.loss:.3f} -> {after.loss:.3f}, accuracy "
            f"{before.accuracy:.3f} -> {after.accuracy:.3f} in {evidence.steps} steps",
        )
        attempt = desk.attempts[record.request_id]
        attempt.delta, attempt.basis = delta, basis
        attempt.fidelity_job = self._calibrator.start_fidelity(delta)
        self.try_merge(record)

    def _parts(self, record: ErasureRecord, reply: TrainReply) -> tuple[Arrays, Vector | None]:
        """Tell the delta from the relearning basis that may follow it.

        The basis comes from one site and would steer every later version: it must have the shape
        and the rank asked for and orthonormal rows.
        """
        layout, rank = self._desk.run.layout, self._desk.settings.relearning_rank
        extra = len(reply.arrays) - len(layout.specs)
        if not rank or extra != 1:
            return reply.arrays, None  # the layout's check says what is wrong, if anything is
        basis = reply.arrays[-1]
        check_basis(basis, rank, layout.trained_size)
        return reply.arrays[:-1], np.asarray(basis, dtype=np.float64)

    def _bound(self, delta: Vector) -> None:
        """Refuse a delta that is out of all proportion to what retained sites send."""
        run, factor = self._desk.run, self._desk.settings.erasure_norm_factor
        typical = run.intake.screen.typical_norm
        norm = float(np.linalg.norm(delta))
        if typical is not None and norm > factor * typical:
            raise WireError(
                f"the erasure delta's norm {norm:.3g} is over {factor:g} times the median "
                f"{typical:.3g} of recent updates"
            )

    def resume(self, record: ErasureRecord) -> None:
        """Take up again a delta that an earlier run had received."""
        attempt = self._desk.attempts[record.request_id]
        if record.state is State.UNLEARNED and attempt.delta is not None:
            attempt.fidelity_job = self._calibrator.start_fidelity(attempt.delta)

    def try_merge(self, record: ErasureRecord) -> None:
        """Merge a delta once the fidelity steps for it are done and the gate lets it pass."""
        attempt = self._desk.attempts[record.request_id]
        job, delta = attempt.fidelity_job, attempt.delta
        if delta is None or (job is not None and not job.done()):
            return
        if record.state is State.HELD and not attempt.released:
            return
        if attempt.step is None and job is not None:
            attempt.step = self._calibrator.fidelity_step(job)
            attempt.fidelity_job = None
        try:
            merged = self._merged(record, delta, attempt.step)
        except WireError as error:  # it fitted the model at its arrival, but not this one
            self._desk.close(record, State.FAILED, str(error))
            return
        if attempt.released or self._passes(record, attempt, merged):
            self._adopt(record, delta, merged)

    def _passes(self, record: ErasureRecord, attempt: Attempt, merged: Arrays) -> bool:
        """Whether the gate lets a candidate pass now; a candidate it holds waits."""
        if attempt.gate is None:
            before = self._desk.run.arrays
            attempt.gate = self._gate.open(record.request_id, before, merged, record.site)
            if attempt.gate is None:
                return True
        verdict = self._gate.verdict(attempt.gate)
        if verdict is None:
            self._gate.ask(attempt.gate)
            return False
        attempt.verdict = verdict
        self._gate.note(verdict, record.site)
        if not verdict.held:
            return True
        bound = self._desk.settings.gate.max_cost
        text = f"{verdict.text}, more than {bound:g}; release it to merge it, or reject it"
        self._desk.move(record, State.HELD, text)
        if record.notice.scope == "samples":
            self._desk.readmit(record.site)
        return False

    def release(self, record: ErasureRecord) -> None:
        """Merge a held delta after all, on the operator's word."""
        if record.state is not State.HELD:
            raise StateTransitionError(
                f"request {record.request_id} is {record.state}; only a held one can be released"
            )
        self._desk.attempts[record.request_id].released = True
        self._desk.book.note(record, "released")
        self.try_merge(record)

    def reject(self, record: ErasureRecord) -> None:
        """Close a held request without merging it, on the operator's word."""
        if record.state is not State.HELD:
            raise StateTransitionError(
                f"request {record.request_id} is {record.state}; only a held one can be rejected"
            )
        self._desk.close(record, State.FAILED, "rejected by the operator; its delta is dropped")

    def _merged(self, record: ErasureRecord, delta: Vector, step: Vector | None = None) -> Arrays:
        """Merge the delta into the current model: ``w <- w_c + d``, not weighted by staleness.

        The fidelity ``step``, confined, comes on top. With ``merge="overwrite"``, the paper's
        rule, the model becomes ``w_s + d`` and what the retained sites learned since the
        snapshot is lost. What earlier erasures locked stays locked. Statistics and counters
        stay those of the current model: they carry no delta.
        """
        run, settings = self._desk.run, self._desk.settings
        layout = run.layout
        snapshot = layout.flatten(self._desk.attempts[record.request_id].snapshot)
        current = layout.flatten(run.arrays)
        start = snapshot if settings.merge == "overwrite" else current
        if step is not None:
            start = start + confine(step, delta=delta, progress=current - snapshot)
        with np.errstate(over="ignore"):
            vector = self._calibrator.allowed(start + delta)
            merged = layout.with_trained(vector, run.arrays)
        if layout.problems(merged):
            raise WireError("the erasure delta is so large that the merged model is not finite")
        return merged

    def _adopt(self, record: ErasureRecord, delta: Vector, merged: Arrays) -> None:
        desk, run = self._desk, self._desk.run
        attempt = desk.attempts[record.request_id]
        snapshot, current = (run.layout.flatten(a) for a in (attempt.snapshot, run.arrays))
        staleness = run.version - attempt.version
        # Noted first: whoever hears of the new version can no longer cancel.
        record.merge_version, record.merge_round = run.version + 1, run.round
        run.adopt(merged, "erasure", (record.site,))
        after = run.layout.flatten(run.arrays)
        facts = (snapshot, current, after, delta)
        desk.settings.merges.append(
            MergeFacts(record.request_id, attempt.version, run.version, staleness, *facts)
        )
        key = f"{record.request_id}/{record.attempts}"
        self._calibrator.hold(key, delta, after, current)
        if attempt.basis is not None:
            self._calibrator.hold_basis(key, attempt.basis, after)
        text = f"version {run.version}, staleness {staleness}, norm {np.linalg.norm(delta):.3f}"
        desk.move(record, State.MERGED, text)
        attempt.release()
        attempt.since = run.clock.now()
        attempt.next_verification = run.round
        desk.move(record, State.VERIFYING, "the site scores the model on the erased data")
        if record.notice.scope == "samples":
            desk.readmit(record.site)
        run.commit()


def gather_batch(desk: ErasureDesk, record: ErasureRecord) -> bool:
    """Whether a request may begin now, with the small ones of its site that join it.

    A small request alone would send a delta that is nearly one image's gradient. With batching
    on it waits for others of its site, and all are unlearned as one.
    """
    size, limit = desk.settings.batch_size, desk.settings.batch_seconds
    if size < 2 or record.batch or not is_small(desk, record):
        return True
    others = [
        other
        for other in desk.book.of_site(record.site)
        if other is not record and waits_for_company(desk, other)
    ]
    waited = desk.run.elapsed - record.history[0].time
    if len(others) + 1 < size and waited < limit:
        return False
    record.batch = tuple(other.request_id for other in others)
    for other in others:
        other.leader = record.request_id
        desk.book.note(other, "joined", leader=record.request_id)
    if others:
        desk.book.note(record, "batch", members=list(record.batch))
    return True


def is_small(desk: ErasureDesk, record: ErasureRecord) -> bool:
    """Whether a request names so few samples that it needs company, where batching is on."""
    return record.notice.scope == "samples" and record.notice.count < desk.settings.privacy.small


def waits_for_company(desk: ErasureDesk, record: ErasureRecord) -> bool:
    """Whether a small request has not begun, and carries and follows no other."""
    free = not record.leader and not record.batch and not record.attempts
    return free and record.state is State.RECEIVED and is_small(desk, record)
