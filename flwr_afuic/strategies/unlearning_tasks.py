"""Unlearning tasks of a run: the reference, the task to the site, and its delta back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from flwr.app import MessageType

from flwr_afuic import wire
from flwr_afuic.calibration.basis import check_basis
from flwr_afuic.erasure.book import ErasureRecord, State
from flwr_afuic.errors import WireError
from flwr_afuic.federation.journal import Span
from flwr_afuic.federation.layout import Arrays, Vector
from flwr_afuic.federation.roster import Member
from flwr_afuic.federation.worker import Job
from flwr_afuic.models.arrays import get_arrays, set_arrays
from flwr_afuic.models.reinitialise import reinitialise
from flwr_afuic.seeds import derive_seed
from flwr_afuic.strategies.batching import gather_batch, waits_for_company
from flwr_afuic.strategies.codec import TrainReply, to_record
from flwr_afuic.strategies.dispatcher import Task
from flwr_afuic.strategies.erasure_desk import Attempt, ErasureDesk
from flwr_afuic.strategies.merging import Merging
from flwr_afuic.strategies.run import FederationRun
from flwr_afuic.unlearning.local import STOP_DIVERGED
from flwr_afuic.unlearning.reference import distil_reference

if TYPE_CHECKING:
    from flwr_afuic.strategies.erasing import ErasureStrategy


class UnlearningTasks:
    """From a received request to a delta that can be merged.

    Parameters
    ----------
    desk : ErasureDesk
        The run's requests.
    merging : Merging
        Takes the deltas over.
    """

    def __init__(self, desk: ErasureDesk, merging: Merging) -> None:
        self._desk = desk
        self._merging = merging

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
        attempt = Attempt(
            run.version, run.arrays, start_reference(desk.settings, run), run.clock.now()
        )
        desk.attempts[record.request_id] = attempt
        desk.book.changed.add(record.request_id)  # record and attempt go to disk together
        desk.refuse(record.site)
        return attempt

    def waits_for_company(self, record: ErasureRecord) -> bool:
        """Whether a request has not begun because small ones are unlearned together."""
        return self._desk.settings.batch_size > 1 and waits_for_company(self._desk, record)

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
        config[wire.BASIS_RANK] = desk.settings.basis_rank(record)
        if record.batch:
            config[wire.BATCH] = ",".join((record.request_id, *record.batch))
        if attempt.taken_back is None:
            model = run.record_of(attempt.version, attempt.snapshot)
        else:  # the site goes on from where the server's own part ends
            vector = run.layout.flatten(attempt.snapshot) + attempt.taken_back
            model = to_record(run.layout.names, run.layout.with_trained(vector, attempt.snapshot))
        content = run.dialect.train(model, config, extras)
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
        evidence = read_evidence(record, reply)
        arrays, basis = self._parts(record, reply)
        run.layout.check(arrays, f"erasure delta of {record.site}")
        delta = run.layout.flatten(arrays)
        self._merging.check(record, delta)
        run.roster.succeeded(task.member)
        record.evidence.append(evidence)
        before, after = evidence.before, evidence.after
        desk.move(
            record,
            State.UNLEARNED,
            f"loss on the erased data {before.loss:.3f} -> {after.loss:.3f}, {after.name} "
            f"{before.accuracy:.3f} -> {after.accuracy:.3f} in {evidence.steps} steps",
        )
        if record.notice.scope == "samples":
            desk.readmit(record.site)
        self._merging.begin(record, delta, basis)

    def _parts(self, record: ErasureRecord, reply: TrainReply) -> tuple[Arrays, Vector | None]:
        """Tell the delta from the relearning basis that may follow it.

        The basis comes from one site and would steer every later version: it must have the shape
        and the rank asked for and orthonormal rows.
        """
        layout, rank = self._desk.run.layout, self._desk.settings.basis_rank(record)
        extra = len(reply.arrays) - len(layout.specs)
        if not rank or extra != 1:
            return reply.arrays, None  # the layout's check says what is wrong, if anything is
        basis = reply.arrays[-1]
        check_basis(basis, rank, layout.trained_size)
        return reply.arrays[:-1], np.asarray(basis, dtype=np.float64)


def start_reference(settings: ErasureStrategy, run: FederationRun) -> Job[Arrays] | None:
    """Start making the proxy-distilled reference of the current model in the background."""
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


def read_evidence(record: ErasureRecord, reply: TrainReply) -> wire.Evidence:
    """Read what a site says of its unlearning; WireError if the reply is none for this request."""
    if reply.info.get(wire.KIND) != wire.KIND_ERASURE:
        raise WireError("the reply to an unlearning task is no erasure delta")
    if reply.info.get(wire.REQUEST) != record.request_id:
        raise WireError("the erasure delta names another request")
    evidence = wire.Evidence.from_json(reply.info.get(wire.EVIDENCE))
    if evidence.stop_reason == STOP_DIVERGED:
        # The site is back at the snapshot: a zero delta must not pass for an erasure.
        raise WireError("the unlearning diverged at the site")
    return evidence
