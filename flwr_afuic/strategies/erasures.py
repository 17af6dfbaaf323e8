"""How a run takes erasure requests through their steps, beside training.

Training of the retained sites never waits here: each call does what can be done now and
returns. The steps are those of the design: received, reference, dispatched, unlearned,
merged, verifying, completed.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from flwr.app import Message

from flwr_afuic import wire
from flwr_afuic.erasure.book import ErasureRecord, RequestBook, State
from flwr_afuic.errors import ConfigError, ErasureError, LayoutError
from flwr_afuic.federation.journal import VersionEntry
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.federation.roster import Member
from flwr_afuic.models.arrays import set_arrays
from flwr_afuic.strategies.admission import Admission
from flwr_afuic.strategies.certification import Certification
from flwr_afuic.strategies.codec import EvaluateReply
from flwr_afuic.strategies.dispatcher import Task
from flwr_afuic.strategies.durability import Durability, Part
from flwr_afuic.strategies.erasure_desk import Attempt, ErasureDesk, MergeFacts
from flwr_afuic.strategies.gate import FidelityGate
from flwr_afuic.strategies.hooks import RunHooks
from flwr_afuic.strategies.merging import Merging
from flwr_afuic.strategies.operator_commands import OperatorCommands
from flwr_afuic.strategies.resumption import checkpoint, restore
from flwr_afuic.strategies.run import FederationRun
from flwr_afuic.strategies.unlearning_tasks import UnlearningTasks
from flwr_afuic.strategies.verification import Verification
from flwr_afuic.unlearning.inference import predict
from flwr_afuic.unlearning.level import ForgetScore

if TYPE_CHECKING:
    from flwr_afuic.strategies.erasing import ErasureStrategy

__all__ = ["ErasureHooks", "MergeFacts"]


class ErasureHooks(RunHooks):
    """Erasure requests of one run.

    Requests may be filed and cancelled from any thread while the loop runs in its own; one
    lock keeps their steps apart.

    Parameters
    ----------
    settings : ErasureStrategy
        The strategy.
    book : RequestBook
        Where requests live.
    """

    def __init__(self, settings: ErasureStrategy, book: RequestBook) -> None:
        self.settings = settings
        self.book = book
        self.opened: set[str] = set()
        self._lock = threading.RLock()
        self._told: dict[str, int] = {}
        self._over = False

    def bind(self, run: FederationRun) -> None:
        """See :class:`RunHooks`; ConfigError if factory, proxies and model do not fit."""
        super().bind(run)
        settings = self.settings
        _check_factory(settings, run.arrays)
        self.calibrator = settings.make_calibrator(run)
        self.desk = ErasureDesk(settings, self.book, run)
        self.admission = Admission(self.desk, settings.admission)
        gate = FidelityGate(
            run, settings.gate, factory=settings.model_factory, proxies=settings.proxies
        )
        self.gate = gate
        self.merging = self.make_merging(gate)
        self.tasks = UnlearningTasks(self.desk, self.merging)
        self.verification = Verification(self.desk, self.tasks.begin)
        self.certification = Certification(self.desk, self.calibrator)
        self.commands = OperatorCommands(self.desk, self.admission, self.merging)

    def make_merging(self, gate: FidelityGate) -> Merging:
        """Return what merges deltas."""
        return Merging(self.desk, self.calibrator, gate)

    def guard(self) -> AbstractContextManager[object]:
        """See :class:`RunHooks`: while a commit is made no other thread files or cancels."""
        return self._lock

    def checkpoint(self) -> Part:
        """See :class:`RunHooks`."""
        return checkpoint(self)

    def restore(self, state: dict[str, Any], durability: Durability) -> None:
        """See :class:`RunHooks`."""
        with self._lock:
            restore(self, state, durability)

    def close(self) -> None:
        """See :class:`RunHooks`; from now on nothing can be filed."""
        with self._lock:
            self._over = True

    # ---- requests come in -----------------------------------------------------------

    def file_for(self, site: str, reason: str) -> str:
        """File a client-scope erasure for a site; may be called from any thread."""
        with self._lock:
            if self._over:
                raise ErasureError(
                    f"the run has ended, nobody would carry out an erasure of {site!r}; call "
                    "start() and file it while that runs, or file it in the site's inbox"
                )
            record = self.admission.file_for(site, reason)
            self._save()
            return record.request_id

    def cancel(self, request_id: str) -> None:
        """Cancel a request the operator filed; may be called from any thread."""
        with self._lock:
            self.admission.cancel_for(request_id)
            self._save()

    def decide(self, request_id: str, *, release: bool) -> None:
        """Release or reject a held request; the loop merges it when it comes by."""
        with self._lock:
            record = self.book.get(request_id)
            (self.merging.release if release else self.merging.reject)(record)
            self._save()

    def _save(self) -> None:
        """Write what another thread has changed, before it is told that it is done."""
        durability = self.run.durability
        if durability is not None:
            records, entries = self.book.take_changes()
            durability.commit_requests(Part(records=records, entries=entries))

    def on_info(self, member: Member, info: dict[str, Any]) -> None:
        """Take in the requests a site reports with any reply. A site speaks for itself only."""
        with self._lock:
            self.desk.heard.add(member.node_id)
            self._follow(member)
            for record in self.admission.hear(member, info):
                self._open(record)
            self.certification.hear(member, info)
            self._commit()

    def on_forgery(self, member: Member, why: str) -> None:
        """See :class:`RunHooks`: the ledger says so, too."""
        with self._lock:
            self.admission.refuse(member.site, "", why)
            self._commit()

    def _commit(self) -> None:
        if self.book.unsaved or self.commands.outcomes:
            self.run.commit()

    def _follow(self, member: Member) -> None:
        """Move requests that were filed under a node's makeshift name to its site's name."""
        makeshift = f"node-{member.node_id}"
        if member.site != makeshift and self.book.of_site(makeshift):
            self.book.rename(makeshift, member.site)
            if makeshift in self.desk.withdrawn:
                self.desk.withdrawn.discard(makeshift)
                self.desk.withdraw(member.site)

    def _open(self, record: ErasureRecord) -> None:
        """Withdraw the site from training and take the snapshot to unlearn from."""
        self.opened.add(record.request_id)
        self._announce(record)
        if self.tasks.begin(record) is None and self.tasks.waits_for_company(record):
            record.waiting = True
            self.run.note("waits", record.site, "for other small requests of the site")
            self.desk.readmit(record.site)

    def _announce(self, record: ErasureRecord) -> None:
        """Withdraw the site from training and say so."""
        withdrawn = self.desk.withdraw(record.site)
        text = f"erasure {record.request_id} ({record.notice.scope}, {record.notice.reason})"
        if withdrawn:
            text += f"; {withdrawn} unmerged update(s) of the site discarded"
        self.run.note("request", record.site, text)

    # ---- training -------------------------------------------------------------------

    def may_train(self, site: str) -> bool:
        """Whether a site trains: not while, and with client scope never after, it is erased."""
        return site not in self.desk.withdrawn

    def training_key(self) -> Hashable | None:
        """See :class:`RunHooks`."""
        known = type(self).may_train is ErasureHooks.may_train
        return frozenset(self.desk.withdrawn) if known else None

    def task_config(self, member: Member) -> dict[str, wire.Scalar]:
        """Tell a site which of its requests the server knows and which are closed.

        What it is told is on disk before: a server that falls now must not contradict itself.
        """
        with self._lock:
            self._commit()
        return {**self.desk.news_for(member), **self.certification.news_for(member)}

    def training_extras(self, member: Member) -> tuple[dict[str, wire.Scalar], dict[str, Arrays]]:
        """See :class:`RunHooks`: what it scores first, and what it has to make up for.

        The trainings it missed while its erasure was under way are not to be lost to the data it
        keeps. [ours]
        """
        with self._lock:
            entries = self.verification.along_with_training(member)
            owed = self.desk.owed.get(member.site, 0)
            if owed and self.run.settings.mode == "async":  # in sync mode all would wait for it
                self.desk.owed[member.site] = owed - 1
                entries[wire.EFFORT] = wire.MOST_EFFORT
        return entries, {}

    def on_trained(self, task: Task, examples: int, scores: Mapping[str, ForgetScore]) -> None:
        """See :class:`RunHooks`: the scores that came with an update."""
        if task.note:
            with self._lock:
                self.verification.accept_along(task, examples, scores)
                self._commit()

    def finish(self, previous: Arrays, candidate: Arrays) -> Arrays:
        """See :class:`Calibrator`."""
        return self.calibrator.finish(candidate)

    def after_version(self, entry: VersionEntry) -> None:
        """See :class:`Calibrator`."""
        self.calibrator.after_version()

    # ---- requests move on -----------------------------------------------------------

    def before_dispatch(self) -> None:
        """Move every request as far as it can go now."""
        durable = self.run.durability is not None
        with self._lock:
            if durable:
                self.commands.take()
            if len(self.book):
                self._move_all()
            self._commit()
            if durable and self.certification.finish():
                self._commit()

    def _move_all(self) -> None:
        """Move what is open; then look further at what is completed."""
        moving: list[ErasureRecord] = []
        closed: list[ErasureRecord] = []
        for record in self.book:
            (moving if record.open else closed).append(record)
        for record in moving + closed:
            self._move_on(record)

    def _move_on(self, record: ErasureRecord) -> None:
        if not record.leader:
            self._advance(record)
        if record.open:
            self._give_up_if_gone(record)
        else:
            self._tell_released(record)

    def _advance(self, record: ErasureRecord) -> None:
        state = record.state
        if state is State.VERIFYING or state is State.COMPLETED:
            self.verification.try_send(record)
        elif state is State.RECEIVED:
            if record.request_id not in self.opened:
                self._open(record)
            self.tasks.try_dispatch(record)
        elif state is State.UNLEARNED or state is State.HELD:
            self.merging.try_merge(record)

    def on_reply(self, task: Task, message: Message) -> None:
        """Handle the reply to an unlearning or a verification, and what else it reports."""
        with self._lock:
            record, dialect = self.book.get(task.request_id), self.run.dialect
            if task.kind == "unlearn":
                delta = dialect.read_train(message.content)
                # First what the site says: it may cancel the very request, and what is refused
                # as malformed must not have moved the model.
                self.run.replies.learn(task.member, delta.info)
                self.tasks.accept(record, task, delta)
            else:
                score = dialect.read_evaluate(message.content)
                self.run.replies.learn(task.member, score.info)
                if task.kind == "gate":
                    self._judge(record, task, score)
                else:
                    self.verification.accept(record, task, score)
            self._commit()

    def _judge(self, record: ErasureRecord, task: Task, score: EvaluateReply) -> None:
        attempt = self.desk.attempts.get(record.request_id)
        self.run.roster.succeeded(task.member)
        if attempt is not None and attempt.gate is not None:
            self.gate.accept(attempt.gate, task, score)

    def on_failure(self, task: Task, reason: str) -> None:
        """Try an unlearning again; a verification is due again anyway."""
        with self._lock:
            if task.kind == "train":
                self.verification.lost(task)
                return
            record = self.book.get(task.request_id)
            if task.kind == "unlearn":
                self.tasks.failed(record, reason)
            attempt = self.desk.attempts.get(record.request_id)
            if task.kind == "gate" and attempt is not None and attempt.gate is not None:
                self.gate.lost(attempt.gate, task.member)
            self._commit()

    def _give_up_if_gone(self, record: ErasureRecord) -> None:
        """Close a request whose site has not answered for too long while it was asked to."""
        attempt = self.desk.attempts.get(record.notice.request_id)
        if attempt is None:
            return  # another request of the site comes first
        now, limit = self.run.clock.now(), self.settings.site_timeout
        if not self._waits_for_site(record, attempt):
            attempt.since = now
            return
        if now - attempt.since < limit or self.desk.busy(record.site):
            return  # a task in flight has a deadline of its own
        text = f"no usable word from the site for {limit:g} s"
        if record.state is State.VERIFYING:
            text += f"; {record.verified_rounds} rounds verified"
            self.desk.move(record, State.COMPLETED_UNVERIFIED, text)
        elif record.state is State.RECEIVED:
            self.desk.close(record, State.FAILED, text)

    def _waits_for_site(self, record: ErasureRecord, attempt: Attempt) -> bool:
        """Whether it is the site that keeps a request from moving on."""
        if record.state is State.VERIFYING:
            return self.run.round >= attempt.next_verification
        job = attempt.reference_job
        return (job is None or job.done()) and not self.desk.busy(record.site)

    def _tell_released(self, record: ErasureRecord) -> None:
        """Tell a site that gets no tasks any more that its request is closed.

        Once, and again, a bounded number of times, until it has taken its certificate.
        """
        times = self._told.get(record.notice.request_id, 0)
        if self.may_train(record.site) or times >= self.settings.max_attempts:
            return
        if times and not self.certification.owes(record):
            return
        member = self.desk.free_member(record.site)
        speaks = record.filed_by == "site" or bool(record.evidence)
        if member is None or (member.protocol is None and not speaks):
            return
        if self.desk.poll(member):
            self._told[record.request_id] = times + 1


def _check_factory(settings: ErasureStrategy, arrays: Arrays) -> None:
    """Find out before training, not at the first erasure, that the server cannot run the model."""
    if settings.model_factory is None:
        return
    model = settings.model_factory()
    try:
        set_arrays(model, arrays)
    except LayoutError as error:
        raise ConfigError(
            f"model_factory does not build the model of initial_arrays: {error}"
        ) from (error)
    if settings.proxies is None:
        return
    try:
        with torch.no_grad():
            predict(model, settings.proxies[:1])
    except (RuntimeError, ValueError) as error:
        shape = tuple(settings.proxies.shape)
        raise ConfigError(f"the model cannot run on proxies of shape {shape}: {error}") from error
