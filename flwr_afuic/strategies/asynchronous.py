"""Asynchronous federated training as a Flower strategy: FedAsync and FedBuff in one engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from logging import INFO
from pathlib import Path
from typing import Literal, get_args

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore import log

from flwr_afuic import wire
from flwr_afuic.errors import ConfigError, WireError
from flwr_afuic.federation.buffer import Update, UpdateBuffer
from flwr_afuic.federation.journal import Event, Journal, VersionEntry
from flwr_afuic.federation.layout import ArrayKind, Arrays, Layout
from flwr_afuic.federation.staleness import StalenessRule, staleness_weight
from flwr_afuic.history.recorder import Recorder
from flwr_afuic.strategies.averages import MetricAverages
from flwr_afuic.strategies.codec import dialect_named, from_record, to_record
from flwr_afuic.strategies.evaluations import EvaluateFn
from flwr_afuic.strategies.hooks import RunHooks
from flwr_afuic.strategies.run import FederationRun

Mode = Literal["async", "sync"]
OnVersion = Callable[[VersionEntry, Arrays], None]


class AsyncStrategy(Strategy):
    """Asynchronous training over Flower's push and pull, with Flower's own ``start()``.

    Every free client is sent the newest model; ``buffer_size`` updates make one version.
    With ``buffer_size=1`` this is FedAsync (arXiv 1903.03934) on deltas, with more it is
    FedBuff (arXiv 2106.06639, algorithm 1) with example weights; ``mode="sync"`` waits for
    every client and equals FedAvg. Rounds, in ``num_rounds`` and in the keys of the
    result, count as many accepted updates as there are clients that train.

    Parameters
    ----------
    mode : {"async", "sync"}
        Whether merges wait for everybody.
    buffer_size : int
        Updates per version, at least 1 (``mode="async"``).
    server_lr : float, optional
        Factor on each merged step, in (0, 10]. By default 1 with ``mode="sync"``, as in
        FedAvg, and 0.5 with ``mode="async"``: a version made of some sites only jumps towards
        their data, and half the step both calms the model and lets it learn better on sites
        that differ (FedBuff's server learning rate plays the same part).
    staleness : {"polynomial", "constant", "hinge"}
        Weight of stale updates, see :func:`~flwr_afuic.federation.staleness.staleness_weight`.
    staleness_a, staleness_b : float
        Constants of that rule.
    max_staleness : int
        Updates more versions behind are dropped and counted.
    dialect : {"numpy", "message"}
        ``numpy`` for ``NumPyClient`` apps, ``message`` for ``@app.train()`` apps.
    max_snapshots : int
        Distinct base versions held for clients that return weights; beyond it such clients
        are sent the newest version already held.
    client_deltas : bool
        Let clients of ours return differences, for which the server keeps no snapshot.
        Turn it off where the sites run Flower's ``LocalDpMod`` or clipping mods: those
        take what a client returns for weights, and would clip a difference wrongly.
    min_available_nodes : int
        Training starts once this many nodes are connected.
    evaluate_every : int
        Federated evaluation each so many rounds; 0 turns it off.
    retry_backoff, max_backoff : float
        Seconds until a failing client is asked again: the first, and the most.
    max_failures : int
        Failures in a row after which rounds no longer count a client.
    norm_factor : float
        Updates whose norm exceeds this multiple of the recent median are quarantined.
    poll_interval : float
        Least seconds between looks for replies. Where nothing has happened for longer, a look
        comes every tenth of that time, and at least once a second.
    poll_newcomers : bool
        Ask a node who it is, and what it has to say, before its first task (``numpy`` only).
    drain_seconds : float
        Seconds to wait at the end for tasks still in flight.
    array_kinds : mapping of str to {"trained", "statistic", "counter"}, optional
        Where names and dtypes of the initial arrays do not tell.
    seed : int
        Root of every seed sent to clients.
    state_dir : path, optional
        Folder in which the server keeps its whole state, committed after every version. Where
        it holds the state of an earlier run of the same model, ``start()`` goes on from there.
    keep_checkpoints : int
        Models of so many newest versions stay in ``state_dir``.
    recorder : Recorder, optional
        Writes the history of updates that MEDU and FedEraser unlearn from; see
        :class:`~flwr_afuic.strategies.recording.Recording` for strategies that are not ours.
    on_version : callable, optional
        Called with (VersionEntry, arrays) for the first model and each version, before it is
        committed.
    on_event : callable, optional
        Called with each :class:`~flwr_afuic.federation.journal.Event`, before what it tells of
        is committed.
    stop_when : callable, optional
        Called with the run; ends it early when true.

    Raises
    ------
    ConfigError
        From the constructor, naming the setting, its value and its range.
    FederationError
        From ``start()``, if nobody is connected or nobody returns a usable update.
        ``strategy.arrays`` still holds the last model.
    """

    withdrawable_updates = False

    def __init__(
        self,
        *,
        mode: Mode = "async",
        buffer_size: int = 4,
        server_lr: float | None = None,
        staleness: StalenessRule = "polynomial",
        staleness_a: float = 0.5,
        staleness_b: float = 4.0,
        max_staleness: int = 20,
        dialect: str = "numpy",
        max_snapshots: int = 8,
        client_deltas: bool = True,
        min_available_nodes: int = 2,
        evaluate_every: int = 1,
        retry_backoff: float = 1.0,
        max_backoff: float = 60.0,
        max_failures: int = 5,
        norm_factor: float = 20.0,
        poll_interval: float = 0.05,
        poll_newcomers: bool = True,
        drain_seconds: float = 30.0,
        array_kinds: Mapping[str, ArrayKind] | None = None,
        seed: int = 0,
        state_dir: str | Path | None = None,
        keep_checkpoints: int = 3,
        recorder: Recorder | None = None,
        on_version: OnVersion | None = None,
        on_event: Callable[[Event], None] | None = None,
        stop_when: Callable[[FederationRun], bool] | None = None,
    ) -> None:
        self.mode = mode
        self.buffer_size = buffer_size
        self.server_lr = (0.5 if mode == "async" else 1.0) if server_lr is None else server_lr
        self.staleness = staleness
        self.staleness_a = staleness_a
        self.staleness_b = staleness_b
        self.max_staleness = max_staleness
        self.dialect = dialect
        self.max_snapshots = max_snapshots
        self.client_deltas = client_deltas
        self.min_available_nodes = min_available_nodes
        self.evaluate_every = evaluate_every
        self.retry_backoff = retry_backoff
        self.max_backoff = max_backoff
        self.max_failures = max_failures
        self.norm_factor = norm_factor
        self.poll_interval = poll_interval
        self.poll_newcomers = poll_newcomers
        self.drain_seconds = drain_seconds
        self.array_kinds = array_kinds
        self.seed = seed
        self.state_dir = state_dir
        self.keep_checkpoints = keep_checkpoints
        self.recorder = recorder
        self.on_version = on_version
        self.on_event = on_event
        self.stop_when = stop_when
        self._check_settings()
        self.staleness_of = staleness_weight(staleness, a=staleness_a, b=staleness_b)
        dialect_named(dialect)
        self._run: FederationRun | None = None
        self._global: ArrayRecord | None = None

    def _check_settings(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigError(f"mode is {self.mode!r}; use 'async' or 'sync'")
        at_least = {
            "buffer_size": 1,
            "max_staleness": 0,
            "max_snapshots": 1,
            "min_available_nodes": 1,
            "evaluate_every": 0,
            "max_failures": 1,
            "keep_checkpoints": 1,
        }
        for name, least in at_least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} is {value!r}; it must be an integer of at least {least}")
        if not 0 < self.server_lr <= 10:
            raise ConfigError(f"server_lr is {self.server_lr}; it must be in (0, 10]")
        if not 0 < self.retry_backoff <= self.max_backoff:
            raise ConfigError(
                f"retry_backoff ({self.retry_backoff}) must be positive and at most "
                f"max_backoff ({self.max_backoff})"
            )
        if not self.norm_factor > 1:
            raise ConfigError(f"norm_factor is {self.norm_factor}; it must exceed 1")
        if not self.poll_interval > 0 or not self.drain_seconds >= 0:
            raise ConfigError("poll_interval must be positive and drain_seconds not negative")

    # ---- running --------------------------------------------------------------------

    def make_hooks(self) -> RunHooks:
        """Return what this method adds to plain training; subclasses override it."""
        return RunHooks()

    @property
    def journal(self) -> Journal:
        """What happened when in the current or last run."""
        return self._current().journal

    @property
    def arrays(self) -> ArrayRecord:
        """The global model as it stands, also after an error ended the run."""
        run = self._current()
        return to_record(run.layout.names, run.arrays)

    @property
    def run(self) -> FederationRun:
        """The current or last run."""
        return self._current()

    def _current(self) -> FederationRun:
        if self._run is None:
            raise ConfigError("this strategy has not been started; call start() first")
        return self._run

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Train; arguments and result are those of Flower's ``Strategy.start``.

        ``timeout`` bounds each client's reply, in seconds; a late client is tried again
        and nobody waits for it. In asynchronous mode ``evaluate_fn`` runs in a background
        thread, so that evaluating the model holds up no client.
        """
        if num_rounds < 1 or timeout <= 0:
            raise ConfigError(
                f"num_rounds ({num_rounds}) must be at least 1 and timeout ({timeout}) positive"
            )
        log(INFO, "Starting %s strategy:", type(self).__name__)
        self.summary()
        began = time.monotonic()
        self._run = FederationRun(
            self,
            self.make_hooks(),
            grid,
            initial_arrays,
            num_rounds=num_rounds,
            timeout=timeout,
            train_config=train_config or ConfigRecord(),
            evaluate_config=evaluate_config or ConfigRecord(),
            evaluate_fn=evaluate_fn,
        )
        del initial_arrays  # a copy of the model less, unless the caller keeps it
        result = self._run.execute()
        counters = self._run.counters
        log(INFO, "Finished in %.1f s: %s", time.monotonic() - began, counters)
        return result

    def summary(self) -> None:
        """Log every setting; of arrays the shape alone, for images do not belong in a log."""
        for name, value in vars(self).items():
            if not name.startswith("_") and not callable(value):
                shape = getattr(value, "shape", None)
                shown = value if shape is None else f"of shape {tuple(shape)}"
                log(INFO, "\t├── %s: %s", name, shown)

    # ---- Flower's round interface, for wrappers that drive a strategy round by round --

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Build one train message per connected node."""
        self._global = arrays
        entries = {**config, "server-round": server_round, wire.TASK: wire.TASK_TRAIN}
        content = dialect_named(self.dialect).train(arrays, entries, {})
        return [
            Message(content, node, MessageType.TRAIN, group_id=str(server_round))
            for node in sorted(grid.get_node_ids())
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge one round's replies; malformed ones are left out and logged."""
        if self._global is None:
            raise ConfigError("aggregate_train() needs configure_train() before it")
        current = from_record(self._global)
        layout = Layout.of(self._global.keys(), current, self.array_kinds)
        buffer = UpdateBuffer(layout)
        averages = MetricAverages()
        for message in replies:
            try:
                if message.has_error():
                    raise WireError(f"error {message.error.code}: {message.error.reason}")
                reply = dialect_named(self.dialect).read_train(message.content)
                if layout.problems(reply.arrays) or reply.examples < 1:
                    raise WireError(f"{layout.problems(reply.arrays)}, {reply.examples} examples")
            except WireError as error:
                log(INFO, "reply of node %s left out: %s", message.metadata.src_node_id, error)
                continue
            update = layout.update_between(reply.arrays, current)
            buffer.add(Update("", server_round, reply.examples, update), 1.0)
            averages.add(reply.metrics, reply.examples)
        if not averages:
            return None, None
        merged = to_record(layout.names, buffer.merge(current, server_lr=self.server_lr))
        return merged, averages.record()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Build one evaluate message per connected node."""
        if not self.evaluate_every or server_round % self.evaluate_every:
            return []
        entries = {**config, "server-round": server_round}
        content = dialect_named(self.dialect).evaluate(arrays, entries)
        return [
            Message(content, node, MessageType.EVALUATE, group_id=str(server_round))
            for node in sorted(grid.get_node_ids())
        ]

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average one round's evaluation metrics by number of examples."""
        averages = MetricAverages()
        for message in replies:
            try:
                if message.has_error():
                    raise WireError(f"error {message.error.code}: {message.error.reason}")
                reply = dialect_named(self.dialect).read_evaluate(message.content)
            except WireError as error:
                log(INFO, "evaluation left out: %s", error)
                continue
            if reply.examples > 0:
                averages.add(reply.all_metrics, reply.examples)
        return averages.record() if averages else None
