"""Erasure requests met by a method's procedure, most of them while the federation stands still.

From a request on no training is sent out. Once every update in flight is in, the buffer is merged,
the way a synchronous round ends; then the procedure runs, and its result is the next version. The
same admission, book, verification, certificates and state directory as AFU-IC's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flwr.app import Message

from flwr_afuic.erasure.book import ErasureRecord, RequestBook, State
from flwr_afuic.errors import AfuicError, ErasureError
from flwr_afuic.federation.buffer import Update
from flwr_afuic.federation.journal import Span, VersionEntry
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.federation.worker import Job
from flwr_afuic.strategies.codec import TrainReply
from flwr_afuic.strategies.dispatcher import Task
from flwr_afuic.strategies.durability import Durability, Part
from flwr_afuic.strategies.erasure_desk import Attempt
from flwr_afuic.strategies.erasures import ErasureHooks
from flwr_afuic.strategies.errands import Errands
from flwr_afuic.strategies.procedure import Answers, Method, Procedure
from flwr_afuic.strategies.run import FederationRun
from flwr_afuic.strategies.verification import Verification

if TYPE_CHECKING:
    from flwr_afuic.strategies.comparators.base import Comparator

_METHOD = "method"


@dataclass
class _Work:
    """One erasure under way."""

    record: ErasureRecord
    procedure: Procedure
    errands: Errands
    began: float
    job: Job[Arrays] | None = None


class StandstillHooks(ErasureHooks):
    """Erasure requests of one run, one after another, each by the method's procedure.

    Parameters
    ----------
    settings : Comparator
        The strategy.
    book : RequestBook
        Where requests live.
    method : Method
        What meets them.
    """

    settings: Comparator

    def __init__(self, settings: Comparator, book: RequestBook, method: Method) -> None:
        super().__init__(settings, book)
        self.method = method
        self._work: _Work | None = None

    def bind(self, run: FederationRun) -> None:
        """See :class:`ErasureHooks`."""
        super().bind(run)
        # A request that is sent back is taken up by the loop like a new one.
        self.verification = Verification(self.desk, lambda record: None)
        self.method.bind(run)

    def close(self) -> None:
        """See :class:`ErasureHooks`."""
        super().close()
        self.method.close()

    # ---- training -------------------------------------------------------------------

    def stands_still(self) -> bool:
        """See :class:`RunHooks`: with an erasure to do, a synchronous method trains nobody."""
        return self.method.stops_training and any(_is_due(record) for record in self.book)

    def take_update(self, update: Update, weight: float) -> Update:
        """See :class:`RunHooks`."""
        return self.method.take_update(update, weight)

    def after_version(self, entry: VersionEntry) -> None:
        """See :class:`RunHooks`."""
        super().after_version(entry)
        self.method.after_version(entry)

    # ---- on disk --------------------------------------------------------------------

    def checkpoint(self) -> Part:
        """See :class:`RunHooks`; an erasure under way begins anew after a crash."""
        part = super().checkpoint()
        part.state[_METHOD] = self.method.state()
        names = self.run.layout.names
        for key, arrays in self.method.stored().items():
            part.blobs[_METHOD, key] = dict(zip(names, arrays, strict=True))
        return part

    def restore(self, state: dict[str, Any], durability: Durability) -> None:
        """See :class:`RunHooks`."""
        super().restore(state, durability)
        self.method.restore(
            state.get(_METHOD, {}), lambda key: list(durability.blob(_METHOD, key).values())
        )

    # ---- requests move on -----------------------------------------------------------

    def _open(self, record: ErasureRecord) -> None:
        """Withdraw the site from training; what is done for it begins when all is at rest."""
        self.opened.add(record.request_id)
        self.settings.base_models.setdefault(self.run.version, self.run.arrays)
        self._announce(record)
        self.method.withdrawn(record.site)
        if record.notice.scope != "client":
            name = type(self.settings).__name__
            text = f"{name} erases whole sites only; use AFUIC for part of a site's samples"
            self.desk.close(record, State.REFUSED, text)

    def before_dispatch(self) -> None:
        """See :class:`ErasureHooks`."""
        with self._lock:
            work = self._work
            if work is not None and not _is_due(work.record):  # cancelled, or given up
                work.procedure.close()
                self._work = None
                self.run.note("standstill-ended", work.record.site, str(work.record.state))
        super().before_dispatch()

    def _advance(self, record: ErasureRecord) -> None:
        if record.state in (State.VERIFYING, State.COMPLETED):
            self.verification.try_send(record)
            return
        if record.request_id not in self.opened and record.state is State.RECEIVED:
            self._open(record)
        if not _is_due(record):
            return
        if self._work is None and self._at_rest():
            self._begin(record)
        if self._work is not None and self._work.record is record:
            self._drive(self._work)

    def _at_rest(self) -> bool:
        """Whether the updates of those who stay are in and merged; merge what is in."""
        run = self.run
        if not self.method.stops_training:
            return True
        tasks = (task for task in run.dispatcher.pending if task.kind == "train")
        if any(self.may_train(task.member.site) for task in tasks):
            return False
        run.flush()
        return True

    def _begin(self, record: ErasureRecord) -> None:
        run, now = self.run, self.run.clock.now()
        record.attempts += 1
        record.base_version, record.verified_rounds = run.version, 0
        self.settings.base_models.setdefault(run.version, run.arrays)
        self.desk.attempts[record.request_id] = Attempt(run.version, run.arrays, None, now)
        self.book.changed.add(record.request_id)
        stops = "training waits" if self.method.stops_training else "training goes on"
        run.note("standstill", record.site, f"erasing from version {run.version}; {stops}")
        self._work = _Work(record, self.method.erase(record), Errands(self.desk, record), now)
        self._proceed(self._work, None)

    def _drive(self, work: _Work) -> None:
        """Take a procedure as far as it can go now."""
        while self._work is work:
            try:
                if work.job is None:
                    work.errands.send()
                    if not work.errands.done:
                        return
                    self._proceed(work, work.errands.answers)
                    continue
            except ErasureError as error:
                self._fail(work, str(error))
                return
            if not work.job.done():
                return
            try:
                result = work.job.result()
            except Exception as error:  # noqa: BLE001 - user code failed; training goes on
                self._fail(work, f"the server's computation failed: {error}")
                return
            self._proceed(work, result)

    def _proceed(self, work: _Work, value: Answers | Arrays | None) -> None:
        """Give a procedure what it asked for and take its next step."""
        try:
            step = work.procedure.send(value)
        except StopIteration as done:
            self._finish(work, done.value)
        except AfuicError as error:
            self._fail(work, str(error))
        else:
            work.job = step if isinstance(step, Job) else None
            work.errands.begin([] if isinstance(step, Job) else step)

    def _finish(self, work: _Work, arrays: Arrays) -> None:
        """Make the procedure's result the next version."""
        record, run = work.record, self.run
        try:
            run.layout.check(arrays, "the model after the erasure")
        except AfuicError as error:
            self._fail(work, str(error))
            return
        if not self.method.stops_training:
            self._refuse_older()
        if record.state is State.DISPATCHED:
            self.desk.move(record, State.UNLEARNED, "the method's procedure is complete")
        self._work = None
        self.method.erased(record)
        delta = run.layout.flatten(arrays) - run.layout.flatten(run.arrays)
        span = Span("server", "erasure", work.began - run.started, run.elapsed)
        run.journal.server_spans.append(span)
        self.merging.adopt(record, delta, arrays)
        attempt = self.desk.attempts[record.request_id]
        attempt.next_verification = run.round + self.settings.recovery_rounds
        run.note("standstill-ended", record.site, f"after {span.end - span.start:.1f} s")

    def _refuse_older(self) -> None:
        """Keep what was trained from older models out of the new one."""
        for task in self.run.dispatcher.pending:
            if task.kind == "train":
                task.refused = True
        self.run.buffer.clear()
        self.method.discarded()

    def _fail(self, work: _Work, text: str) -> None:
        self._work = None
        work.procedure.close()
        self.desk.close(work.record, State.FAILED, text)
        self.run.note("standstill-ended", work.record.site, "the erasure failed")

    # ---- answers --------------------------------------------------------------------

    def on_reply(self, task: Task, message: Message) -> None:
        """See :class:`ErasureHooks`."""
        if task.kind != "unlearn":
            super().on_reply(task, message)
            return
        with self._lock:
            reply = self.run.dialect.read_train(message.content)
            self.admission.hear_cancellations(task.member, reply.info)
            self._take(task, reply)
            self.on_info(task.member, reply.info)

    def _take(self, task: Task, reply: TrainReply) -> None:
        work = self._work
        if work is None or not work.errands.expects(task):
            self.run.roster.succeeded(task.member)
            text = "an answer for an erasure that is over; dropped"
            self.run.note("late", task.member.site, text)
            return
        try:
            work.errands.take(task, reply)
        except ErasureError as error:
            self._fail(work, str(error))

    def on_failure(self, task: Task, reason: str) -> None:
        """See :class:`ErasureHooks`: the erasing site is asked again, others are left out."""
        if task.kind != "unlearn":
            super().on_failure(task, reason)
            return
        with self._lock:
            work = self._work
            if work is not None and work.errands.expects(task):
                try:
                    work.errands.lost(task, reason)
                except ErasureError as error:
                    self._fail(work, str(error))
            self._commit()


def _is_due(record: ErasureRecord) -> bool:
    """Whether a request's erasure is still to be done."""
    client = record.notice.scope == "client"
    return client and record.state in (State.RECEIVED, State.DISPATCHED)
