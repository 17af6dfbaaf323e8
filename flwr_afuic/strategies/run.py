"""One run of a federation: the event loop over push and pull.

Every free client is sent the newest model; replies are screened, buffered and merged.
The loop never waits for one site. What a method adds to training (refusing a site,
unlearning tasks, calibration) it adds through :class:`RunHooks`.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from logging import INFO
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, ConfigRecord, MessageType
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from flwr.supercore import log

from flwr_afuic import wire
from flwr_afuic.federation.buffer import UpdateBuffer
from flwr_afuic.federation.clock import VirtualClock
from flwr_afuic.federation.journal import Counters, Event, Journal, VersionEntry
from flwr_afuic.federation.layout import Arrays, Layout
from flwr_afuic.federation.roster import Member, Roster
from flwr_afuic.federation.worker import Worker
from flwr_afuic.seeds import derive_seed
from flwr_afuic.strategies.averages import MetricAverages
from flwr_afuic.strategies.codec import (
    dialect_named,
    from_record,
    pack,
    to_record,
)
from flwr_afuic.strategies.dispatcher import Dispatcher, Task, clock_of
from flwr_afuic.strategies.durability import Durability
from flwr_afuic.strategies.ending import check_alive, drain
from flwr_afuic.strategies.evaluations import EvaluateFn, Evaluations
from flwr_afuic.strategies.hooks import RunHooks
from flwr_afuic.strategies.intake import Intake
from flwr_afuic.strategies.replies import Replies

if TYPE_CHECKING:
    from flwr_afuic.strategies.asynchronous import AsyncStrategy

VIRTUAL_IDLE_SECONDS = 60.0
_NODE_REFRESH_SECONDS = 2.0
_LONGEST_IDLE_SECONDS = 1.0
_IDLE_SHARE = 0.1  # of the time since anything happened


class FederationRun:
    """State and loop of one ``start()``.

    Public attributes are what hooks and reports use: ``arrays`` (the current global
    model), ``version``, ``round``, ``layout``, ``roster``, ``dispatcher``, ``journal``,
    ``clock``, ``intake``, ``replies``, ``buffer``, ``worker``, ``counters``.
    """

    def __init__(
        self,
        strategy: AsyncStrategy,
        hooks: RunHooks,
        grid: Grid,
        initial_arrays: ArrayRecord,
        *,
        num_rounds: int,
        timeout: float,
        train_config: ConfigRecord,
        evaluate_config: ConfigRecord,
        evaluate_fn: EvaluateFn | None,
    ) -> None:
        self.settings = strategy
        self.hooks = hooks
        self.grid = grid
        self.num_rounds = num_rounds
        self.timeout = timeout
        self.clock = clock_of(grid)
        self.started = self.clock.now()
        self.dialect = dialect_named(strategy.dialect)
        self.arrays = from_record(initial_arrays)
        self.layout = Layout.of(initial_arrays.keys(), self.arrays, strategy.array_kinds)
        self.layout.check(self.arrays, "initial_arrays")
        self.version = 0
        self.round = 0
        self.journal = Journal()
        self.counters = Counters()
        self.roster = Roster(
            self.clock,
            backoff=strategy.retry_backoff,
            max_backoff=strategy.max_backoff,
            max_failures=strategy.max_failures,
        )
        self.dispatcher = Dispatcher(grid, self.clock, timeout=timeout)
        self.worker = Worker(self.clock)
        self.result = Result(arrays=initial_arrays)
        self.intake = Intake(self)
        self.replies = Replies(self)
        self.evaluations = Evaluations(self.result, self.clock, evaluate_fn)
        self.train_config = dict(train_config)
        self._evaluate_config = dict(evaluate_config)
        self._record_cache: tuple[int, ArrayRecord] = (0, initial_arrays)
        self._round_progress = 0
        self._retained: tuple[object, list[Member]] | None = None
        self._refreshed = float("-inf")
        self._last_event = self.started
        self.last_able = self.started
        self._resumes = 0
        self.durability: Durability | None = None
        hooks.bind(self)
        if strategy.state_dir is not None:
            self.durability = Durability(
                strategy.state_dir, keep_checkpoints=strategy.keep_checkpoints
            )
            try:
                self.durability.open_run(self)
            except BaseException:
                self.durability.close()
                raise

    @property
    def idle_seconds(self) -> float:
        """How long to wait where there is nothing to do.

        On a real clock the longer, the longer nothing has happened: each look asks Flower for
        every message in flight, which costs it and us a part of a processor.
        """
        if self.clock.virtual:
            return VIRTUAL_IDLE_SECONDS
        share = _IDLE_SHARE * (self.clock.now() - self._last_event)
        return max(self.settings.poll_interval, min(_LONGEST_IDLE_SECONDS, share))

    # ---- what hooks use -------------------------------------------------------------

    @property
    def buffer(self) -> UpdateBuffer:
        """Accepted updates since the last merge."""
        return self.intake.buffer

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.clock.now() - self.started

    def note(self, kind: str, site: str = "", text: str = "", *, level: int = INFO) -> None:
        """Add an event to the journal and the log."""
        event = Event(self.elapsed, self.round, self.version, kind, site, text)
        self.journal.events.append(event)
        log(level, "[v%s r%s] %s %s %s", self.version, self.round, kind, site, text)
        if self.settings.on_event is not None:
            self.settings.on_event(event)

    def record_of(self, version: int, arrays: Arrays) -> ArrayRecord:
        """Encode a model once per version."""
        if self._record_cache[0] != version:
            self._record_cache = (version, to_record(self.layout.names, arrays))
        return self._record_cache[1]

    def config_for(self, member: Member, kind: str, base: dict[str, Any]) -> dict[str, Any]:
        """Compose the config of a task: the user's entries, then ours."""
        again = (self._resumes,) if self._resumes else ()
        seed = derive_seed(self.settings.seed, kind, member.site, member.tasks_sent, *again)
        return {
            **base,
            "server-round": self.round + 1,
            wire.TASK: kind,
            wire.VERSION: self.version,
            wire.SEED: seed,
            **self.hooks.task_config(member),
        }

    def retained(self) -> list[Member]:
        """Healthy members that may train; not to be changed."""
        refused = self.hooks.training_key()
        key = None if refused is None else (self.roster.changes, refused)
        if key is None or self._retained is None or self._retained[0] != key:
            found = [
                member
                for member in self.roster.members
                if self.roster.healthy(member) and self.hooks.may_train(member.site)
            ]
            self._retained = (key, found)
        return self._retained[1]

    def adopt(self, arrays: Arrays, cause: str, sites: tuple[str, ...] = ()) -> None:
        """Make ``arrays``, which are taken over, the next version of the global model."""
        self.version += 1
        self.arrays = arrays
        self._record_cache = (self.version, ArrayRecord())  # the last model goes before packing
        self.result.arrays = self._record_cache[1]
        self.result.arrays = pack(self.layout.names, arrays)
        self._record_cache = (self.version, self.result.arrays)
        entry = VersionEntry(self.version, self.round, self.elapsed, cause, sites)
        self.journal.versions.append(entry)
        if self.settings.on_version is not None:
            self.settings.on_version(entry, self.arrays)
        self.hooks.after_version(entry)

    @property
    def has_merged(self) -> bool:
        """Whether this run, not only an earlier one, has made a version."""
        return bool(self.journal.versions)

    # ---- on disk --------------------------------------------------------------------

    def commit(self) -> None:
        """Write what has changed to the state directory, where there is one."""
        if self.durability is not None:
            self.durability.commit(self)

    def capture(self) -> dict[str, Any]:
        """Return the engine's state for a checkpoint: plain values, ready for JSON."""
        return {
            "version": self.version,
            "round": self.round,
            "round_progress": self._round_progress,
            "elapsed": self.elapsed,
            "counters": asdict(self.counters),
            "norms": self.intake.screen.norms,
        }

    def restore(self, engine: dict[str, Any], resumes: int) -> None:
        """Go on from :meth:`capture`; ``resumes`` runs came before this one."""
        self.version, self.round = int(engine["version"]), int(engine["round"])
        self._round_progress = int(engine["round_progress"])
        self.started = self.clock.now() - float(engine["elapsed"])
        self.counters = Counters(**engine["counters"])
        # States of before sites were told apart hold bare norms.
        known = [("", row) if isinstance(row, float) else row for row in engine["norms"]]
        self.intake.screen.remember((str(site), float(norm)) for site, norm in known)
        self._resumes = resumes
        if self.settings.recorder is not None:
            self.settings.recorder.resume(self.version)
        self.result.arrays = to_record(self.layout.names, self.arrays)
        self._record_cache = (self.version, self.result.arrays)

    # ---- the loop -------------------------------------------------------------------

    def execute(self) -> Result:
        """Run to the last round and return Flower's result."""
        # An ExitStack, because each of these must happen whatever the others raise.
        with ExitStack() as ending:
            if self.durability is not None:
                ending.callback(self.durability.close)
            if self.settings.recorder is not None and not self._resumes:
                self.settings.recorder.start(self.layout.trained_names)
            ending.callback(self.buffer.clear)
            ending.callback(self.hooks.close)
            ending.callback(self.evaluations.close)
            ending.callback(self.evaluations.collect)
            ending.callback(self.worker.close)
            if isinstance(self.clock, VirtualClock):
                for source in (self.roster.next_event, self.dispatcher.next_deadline):
                    self.clock.watch(source)
                    ending.callback(self.clock.unwatch, source)
            if self.settings.on_version is not None:
                cause = "resumed" if self._resumes else "initial"
                entry = VersionEntry(self.version, self.round, self.elapsed, cause)
                self.settings.on_version(entry, self.arrays)
            self.evaluations.centrally(self.round, self.record_of(self.version, self.arrays))
            while not self._finished():
                if self._step():
                    self._last_event = self.clock.now()
                else:
                    self._idle()
            drain(self)
            self.commit()
        self.result.arrays = self.record_of(self.version, self.arrays)
        return self.result

    def _finished(self) -> bool:
        stop = self.settings.stop_when
        return self.round >= self.num_rounds or (stop is not None and stop(self))

    def _step(self) -> bool:
        self._refresh_nodes()
        self.hooks.before_dispatch()
        sent = self._dispatch()
        handled = False
        for task, message in self.dispatcher.replies():
            handled = True
            self.replies.handle(task, message)
            if self._finished():
                break
        merged = self.settings.mode == "sync" and self._close_sync_round()
        return sent or handled or merged

    def _idle(self) -> None:
        check_alive(self)
        self.clock.sleep(self.idle_seconds)

    def _refresh_nodes(self) -> None:
        if self.clock.now() - self._refreshed < _NODE_REFRESH_SECONDS:
            return
        self._refreshed = self.clock.now()
        nodes = sorted((int(node.node_id), str(node.name)) for node in self.grid.get_nodes())
        newcomers = self.roster.refresh(nodes)
        if self.enough_nodes() and any(self.hooks.may_train(m.site) for m in self.connected()):
            self.last_able = self._refreshed
        for member in newcomers:
            if self.dialect.name == "numpy" and self.settings.poll_newcomers:
                kind, content = self.dialect.poll({wire.TASK: "poll", wire.VERSION: self.version})
                task = Task(member, "poll", self.version, self.round)
                self.dispatcher.send(task, kind, content)

    def connected(self) -> list[Member]:
        """Members whose node is connected."""
        return [member for member in self.roster.members if member.connected]

    def enough_nodes(self) -> bool:
        """Whether as many nodes are connected as training needs."""
        # Training starts with so many; once it runs, a site that leaves must not end it.
        least = 1 if self.version else self.settings.min_available_nodes
        return self.roster.connected >= least

    def _dispatch(self) -> bool:
        if not self.enough_nodes() or self.hooks.stands_still():
            return False
        if self.settings.mode == "sync" and (self._round_under_way() or len(self.buffer)):
            return False
        free = [member for member in self.roster.free() if self.hooks.may_train(member.site)]
        if self.settings.mode == "sync" and any(member.due_evaluation for member in free):
            return self._send_evaluations(free)
        sent = False
        for member in free:
            # A slow site is due again by the time it has evaluated: training takes turns.
            evaluates = member.due_evaluation and not member.trains_next
            sent = (self.send_evaluation if evaluates else self._send_training)(member) or sent
        return sent

    def _round_under_way(self) -> bool:
        # Only the round's own tasks: nobody waits for a site that unlearns.
        return any(task.kind in ("train", "evaluate") for task in self.dispatcher.pending)

    def _send_evaluations(self, free: list[Member]) -> bool:
        """Ask those who can answer now; who cannot has no part in this round's evaluation."""
        sent = [self.send_evaluation(member) for member in free if member.due_evaluation]
        for member in self.roster.members:
            member.due_evaluation = 0
        return any(sent)

    def _send_training(self, member: Member) -> bool:
        if self.intake.send(member, self.train_config):
            return True
        task = Task(member, "train", self.version, self.round)
        self.replies.fail(task, "Flower took no message for the node")
        return False

    def send_evaluation(self, member: Member) -> bool:
        """Ask a member for the evaluation it is due for."""
        config = self.config_for(member, "evaluate", self._evaluate_config)
        config["server-round"] = member.due_evaluation
        task = Task(member, "evaluate", self.version, member.due_evaluation)
        member.due_evaluation, member.trains_next = 0, True
        content = self.dialect.evaluate(self.record_of(self.version, self.arrays), config)
        return self.dispatcher.send(task, MessageType.EVALUATE, content)

    # ---- versions and rounds --------------------------------------------------------

    def flush(self) -> None:
        """Merge what the buffer holds, however little that is."""
        if len(self.buffer):
            self.merge_buffer()

    def merge_buffer(self) -> None:
        """Make a version of the updates in the buffer."""
        sites = tuple(self.buffer.sites)
        factor = self.settings.server_lr * self.buffer.mean_factor
        merged = self.buffer.merge(self.arrays, server_lr=self.settings.server_lr)
        candidate = self.hooks.finish(self.arrays, merged)
        self._round_progress += len(sites)
        retained = max(1, len(self.retained()))
        completed, rest = divmod(self._round_progress, retained)
        if self.settings.mode == "sync":
            completed, rest = 1, 0
        self._round_progress = rest
        self.round += completed
        self.adopt(candidate, "merge", sites)
        # Before the commit: a history that is ahead of the model is cut back on resuming.
        self.intake.recorded(factor)
        if completed:
            self._close_round(completed)
        self.commit()

    def awaits_training(self) -> bool:
        """Whether a training task is under way, whose reply may come before the next merge."""
        return any(task.kind == "train" for task in self.dispatcher.pending)

    def _close_sync_round(self) -> bool:
        if self.awaits_training() or not len(self.buffer):
            return False
        self.merge_buffer()
        return True

    def _close_round(self, completed: int) -> None:
        if self.intake.metrics:
            self.result.train_metrics_clientapp[self.round] = self.intake.metrics.record()
        self.intake.metrics = MetricAverages()
        every = self.settings.evaluate_every
        if every and self.round // every > (self.round - completed) // every:
            for member in self.retained():
                member.due_evaluation = self.round
        self.evaluations.centrally(self.round, self.record_of(self.version, self.arrays))
        if self.settings.mode == "sync":
            self.evaluations.collect()
        log(INFO, "[ROUND %s/%s] version %s", self.round, self.num_rounds, self.version)
