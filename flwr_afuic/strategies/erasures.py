"""How a run takes erasure requests through their steps, beside training.

Training of the retained sites never waits here: each call does what can be done now and
returns. The steps are those of the design: received, reference, dispatched, unlearned,
merged, verifying, completed.
"""

from __future__ import annotations

import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import torch
from flwr.app import Message

from flwr_afuic import wire
from flwr_afuic.erasure.book import ErasureRecord, RequestBook, State
from flwr_afuic.errors import (
    ConfigError,
    DuplicateRequestError,
    ErasureError,
    LayoutError,
    UnknownSiteError,
)
from flwr_afuic.federation.journal import VersionEntry
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.federation.roster import Member
from flwr_afuic.models.arrays import set_arrays
from flwr_afuic.strategies.calibrator import Calibrator
from flwr_afuic.strategies.dispatcher import Task
from flwr_afuic.strategies.erasure_desk import Attempt, ErasureDesk, MergeFacts
from flwr_afuic.strategies.hooks import RunHooks
from flwr_afuic.strategies.run import FederationRun
from flwr_afuic.strategies.unlearning_tasks import UnlearningTasks
from flwr_afuic.strategies.verification import Verification
from flwr_afuic.unlearning.inference import predict

if TYPE_CHECKING:
    from flwr_afuic.strategies.afuic import AFUIC

__all__ = ["ErasureHooks", "MergeFacts"]


class ErasureHooks(RunHooks):
    """Erasure requests of one run.

    Requests may be filed and cancelled from any thread while the loop runs in its own; one
    lock keeps their steps apart.

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
        self._lock = threading.RLock()
        self._opened: set[str] = set()
        self._by_operator: set[str] = set()
        self._refused: set[tuple[str, str]] = set()
        self._told: set[str] = set()
        self._over = False

    def bind(self, run: FederationRun) -> None:
        """See :class:`RunHooks`; ConfigError if factory, proxies and model do not fit."""
        super().bind(run)
        settings = self.settings
        _check_factory(settings, run.arrays)
        self.calibrator = Calibrator(
            run,
            lock=settings.lock,
            phi=settings.phi,
            factory=settings.model_factory,
            proxies=settings.proxies,
            settings=settings.invariance,
            fidelity=settings.fidelity_steps,
            virtual_seconds=settings.virtual_invariance_seconds,
            learn_signature=settings.learns_signature,
        )
        self.desk = ErasureDesk(settings, self.book, run)
        self.tasks = UnlearningTasks(self.desk, self.calibrator)
        self.verification = Verification(self.desk, self.tasks.begin)

    def close(self) -> None:
        """See :class:`RunHooks`; from now on nothing can be filed."""
        with self._lock:
            self._over = True

    # ---- requests come in -----------------------------------------------------------

    def file_for(self, site: str, reason: str) -> str:
        """File a client-scope erasure for a site; may be called from any thread."""
        if reason not in wire.REASON_CODES:
            raise ErasureError(f"reason is {reason!r}; use one of {', '.join(wire.REASON_CODES)}")
        with self._lock:
            if self._over:
                raise ErasureError(
                    f"the run has ended, nobody would carry out an erasure of {site!r}; call "
                    "start() and file it while that runs, or file it in the site's inbox"
                )
            if self.run.roster.of_site(site) is None:
                known = ", ".join(sorted({m.site for m in self.run.roster.members}))
                raise UnknownSiteError(
                    f"no site {site!r} in this federation; it has: {known or 'none yet'}"
                )
            notice = wire.ErasureNotice(str(uuid.uuid4()), "client", 1, "", reason, time.time())
            self._by_operator.add(notice.request_id)
            self.book.file(notice, site, **self.desk.now())
            # The loop takes the snapshot when it comes by; the site trains no more already.
            self.desk.refuse(site)
            return notice.request_id

    def cancel(self, request_id: str) -> None:
        """Cancel a request that is not merged yet; may be called from any thread."""
        with self._lock:
            self.desk.close(self.book.get(request_id), State.CANCELLED, "cancelled")

    def on_info(self, member: Member, info: dict[str, Any]) -> None:
        """Take in the requests a site reports with any reply. A site speaks for itself only."""
        with self._lock:
            self.desk.heard.add(member.node_id)
            self._follow(member)
            if wire.PENDING in info:
                for notice in wire.decode_notices(info[wire.PENDING]):
                    self._receive(notice, member.site)

    def _follow(self, member: Member) -> None:
        """Move requests that were filed under a node's makeshift name to its site's name."""
        makeshift = f"node-{member.node_id}"
        if member.site != makeshift and self.book.of_site(makeshift):
            self.book.rename(makeshift, member.site)
            if makeshift in self.desk.withdrawn:
                self.desk.withdrawn.discard(makeshift)
                self.desk.withdraw(member.site)

    def _receive(self, notice: wire.ErasureNotice, site: str) -> None:
        known = notice.request_id in self._by_operator
        if known and self.book.get(notice.request_id).site == site:
            return  # the site's own entry of what the operator filed for it
        try:
            record, new = self.book.file(notice, site, **self.desk.now())
        except DuplicateRequestError as error:
            if (notice.request_id, site) not in self._refused:
                self._refused.add((notice.request_id, site))
                self.run.note("refused-request", site, str(error))
            return
        if new:
            self._open(record)

    def _open(self, record: ErasureRecord) -> None:
        """Withdraw the site from training and take the snapshot to unlearn from."""
        self._opened.add(record.request_id)
        withdrawn = self.desk.withdraw(record.site)
        text = f"erasure {record.request_id} ({record.notice.scope}, {record.notice.reason})"
        if withdrawn:
            text += f"; {withdrawn} unmerged update(s) of the site discarded"
        self.run.note("request", record.site, text)
        self.tasks.begin(record)

    # ---- training -------------------------------------------------------------------

    def may_train(self, site: str) -> bool:
        """Whether a site trains: not while, and with client scope never after, it is erased."""
        return site not in self.desk.withdrawn

    def task_config(self, member: Member) -> dict[str, wire.Scalar]:
        """Tell a site which of its requests the server knows and which are closed."""
        return self.desk.news_for(member)

    def finish(self, previous: Arrays, candidate: Arrays) -> Arrays:
        """See :class:`Calibrator`."""
        return self.calibrator.finish(candidate)

    def after_version(self, entry: VersionEntry) -> None:
        """See :class:`Calibrator`."""
        self.calibrator.after_version()

    # ---- requests move on -----------------------------------------------------------

    def before_dispatch(self) -> None:
        """Move every request as far as it can go now."""
        with self._lock:
            for record in self.book:
                if record.state is State.RECEIVED:
                    if record.request_id not in self._opened:
                        self._open(record)
                    self.tasks.try_dispatch(record)
                elif record.state is State.UNLEARNED:
                    self.tasks.try_merge(record)
                elif record.state in (State.VERIFYING, State.COMPLETED):
                    self.verification.try_send(record)
                if record.open:
                    self._give_up_if_gone(record)
                else:
                    self._tell_released(record)

    def on_reply(self, task: Task, message: Message) -> None:
        """Handle the reply to an unlearning or a verification, and what else it reports."""
        with self._lock:
            record, dialect = self.book.get(task.request_id), self.run.dialect
            if task.kind == "unlearn":
                delta = dialect.read_train(message.content)
                self.tasks.accept(record, task, delta)
                info = delta.info
            else:
                score = dialect.read_evaluate(message.content)
                self.verification.accept(record, task, score)
                info = score.info
            self.on_info(task.member, info)

    def on_failure(self, task: Task, reason: str) -> None:
        """Try an unlearning again; a verification is due again anyway."""
        with self._lock:
            if task.kind == "unlearn":
                self.tasks.failed(self.book.get(task.request_id), reason)

    def _give_up_if_gone(self, record: ErasureRecord) -> None:
        """Close a request whose site has not answered for too long while it was asked to."""
        attempt = self.desk.attempts.get(record.request_id)
        if attempt is None:
            return  # another request of the site comes first
        now, limit = self.run.clock.now(), self.settings.site_timeout
        if not self._waits_for_site(record, attempt):
            attempt.since = now
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
        """Tell a site that gets no tasks any more, once, that its request is closed."""
        if record.request_id in self._told or self.may_train(record.site):
            return
        member = self.desk.free_member(record.site)
        if member is None or member.protocol is None:
            return
        if self.desk.poll(member):
            self._told.add(record.request_id)


def _check_factory(settings: AFUIC, arrays: Arrays) -> None:
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
