"""Training tasks out, updates in: what is sent, what is refused, what enters the buffer."""

from __future__ import annotations

from logging import ERROR
from typing import TYPE_CHECKING, Any

from flwr.app import MessageType

from flwr_afuic import wire
from flwr_afuic.errors import HistoryError, WireError
from flwr_afuic.federation.buffer import Update, UpdateBuffer
from flwr_afuic.federation.journal import UpdateEntry
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.federation.roster import Member
from flwr_afuic.federation.screening import UpdateScreen
from flwr_afuic.federation.snapshots import SnapshotStore
from flwr_afuic.strategies.averages import MetricAverages
from flwr_afuic.strategies.codec import TrainReply
from flwr_afuic.strategies.dispatcher import Task

if TYPE_CHECKING:
    from flwr_afuic.strategies.run import FederationRun


class Intake:
    """Training of one run, from the task to the buffer.

    Attributes
    ----------
    buffer : UpdateBuffer
        Accepted updates since the last merge.
    screen : UpdateScreen
        Judges updates.
    snapshots : SnapshotStore
        Base versions of clients that return weights.
    metrics : MetricAverages
        Training metrics of the round under way.
    """

    def __init__(self, run: FederationRun) -> None:
        settings = run.settings
        self._run = run
        self.buffer = UpdateBuffer(run.layout, withdrawable=settings.withdrawable_updates)
        self.screen = UpdateScreen(run.layout, norm_factor=settings.norm_factor)
        self.snapshots = SnapshotStore()
        self.metrics = MetricAverages()

    def send(self, member: Member, base_config: dict[str, Any]) -> bool:
        """Send the newest model to a member for training; False if Flower took no message.

        Where as many base versions are held as allowed, a client that returns weights is sent
        the newest of those instead.
        """
        run, settings = self._run, self._run.settings
        member.trains_next = False
        version, arrays = run.version, run.arrays
        if not member.returns_delta:
            full = len(self.snapshots) >= settings.max_snapshots
            newest = self.snapshots.newest
            if full and newest is not None and version not in self.snapshots:
                version, arrays = newest, self.snapshots.get(newest)
            self.snapshots.acquire(version, arrays)
        config = run.config_for(member, wire.TASK_TRAIN, base_config)
        config[wire.VERSION] = version
        config[wire.WANT_DELTA] = settings.client_deltas
        entries, extras = run.hooks.training_extras(member)
        config |= entries
        content = run.dialect.train(run.record_of(version, arrays), config, extras)
        task = Task(member, "train", version, run.round, holds_snapshot=not member.returns_delta)
        task.note = str(entries.get(wire.SCORE_FOR, ""))
        if run.dispatcher.send(task, MessageType.TRAIN, content):
            return True
        self.release(task)
        return False

    def accept(self, task: Task, reply: TrainReply) -> bool:
        """Judge a training reply; True if its update is in the buffer now.

        Raises
        ------
        WireError, LayoutError
            If the reply is malformed: it is then quarantined with that reason.
        """
        run, member = self._run, task.member
        if task.refused or not run.hooks.may_train(member.site):
            run.counters.refused += 1
            run.roster.succeeded(member)
            why = "its erasure is under way; the update is discarded"
            run.note("update-refused", member.site, why)
            self.record(task, "refused", why, reply.examples)
            return False
        staleness, limit = run.version - task.version, run.settings.max_staleness
        if staleness > limit:
            run.counters.stale += 1
            run.roster.succeeded(member)
            why = f"staleness {staleness} exceeds {limit}; dropped"
            run.note("stale", member.site, why)
            self.record(task, "stale", why, reply.examples)
            return False
        squares: list[float] | None = run.layout.check(reply.arrays, f"update of {member.site}")
        if reply.info.get(wire.KIND) == wire.KIND_DELTA:
            update = reply.arrays
        elif task.holds_snapshot:
            update = run.layout.update_between(reply.arrays, self.snapshots.get(task.version))
            squares = None
        else:
            member.returns_delta = False
            raise WireError("the client returned weights where it returned deltas before")
        reason = self.screen.refuse(update, reply.examples, member.site, squares)
        if reason is not None:
            raise WireError(reason)
        run.roster.succeeded(member)
        run.counters.accepted += 1
        run.journal.accepted.append((run.elapsed, member.site))
        self.record(task, "accepted", "", reply.examples)
        self.metrics.add(reply.metrics, reply.examples)
        weight = run.settings.staleness_of(staleness)
        taken = Update(member.site, task.version, reply.examples, update)
        taken = run.hooks.take_update(taken, weight)
        self.buffer.add(taken, weight)
        self._record_history(member.site, taken.arrays, reply.examples * weight)
        return True

    def _record_history(self, site: str, update: Arrays, weight: float) -> None:
        recorder = self._run.settings.recorder
        if recorder is None:
            return
        try:
            recorder.add(site, self._run.layout.trained(update), weight)
        except HistoryError as error:  # a hole in the history, which its coverage will show
            self._run.note("not-recorded", site, str(error), level=ERROR)

    def recorded(self, factor: float) -> None:
        """Tell the history that the buffered updates were merged, times ``factor``."""
        recorder, run = self._run.settings.recorder, self._run
        if recorder is None:
            return
        try:
            recorder.merged(run.version, run.round, factor=factor)
        except HistoryError as error:
            run.note("not-recorded", "", str(error), level=ERROR)
            recorder.discard()

    def withdraw(self, site: str) -> int:
        """Take a site's unmerged updates out again, of the history too; return how many."""
        if self._run.settings.recorder is not None:
            self._run.settings.recorder.withdraw(site)
        return self.buffer.withdraw(site)

    def record(self, task: Task, fate: str, reason: str, examples: int = 0) -> None:
        """Write down what became of a training reply."""
        run = self._run
        run.journal.updates.append(
            UpdateEntry(
                run.elapsed,
                run.round,
                run.version,
                task.member.site,
                task.version,
                examples,
                fate,
                reason,
            )
        )

    def release(self, task: Task) -> None:
        """Give back the snapshot a task held, once."""
        if task.holds_snapshot:
            self.snapshots.release(task.version)
            task.holds_snapshot = False
