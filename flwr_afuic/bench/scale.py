"""What an event costs the engine, with many clients, many messages in flight, many erasures."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from flwr_afuic.app.local import LocalGrid, SpeedModel
from flwr_afuic.bench.linear_sites import CLASSES, SIDE, initial_arrays, linear_app
from flwr_afuic.erasure.book import State
from flwr_afuic.strategies.afuic import AFUIC
from flwr_afuic.strategies.hooks import RunHooks
from flwr_afuic.strategies.run import FederationRun

_HOOKS = (
    "may_train", "training_key", "stands_still", "take_update", "before_dispatch", "task_config",
    "training_extras", "on_trained", "on_info", "on_reply", "on_failure", "finish",
    "after_version",
)  # fmt: skip

_NO_LIMIT = 10**9
"""Of staleness: while one of 1,000 clients is at work, many more than 20 versions are made."""


@dataclass(frozen=True)
class Load:
    """One run of the virtual engine.

    Attributes
    ----------
    clients : int
        Connected sites; each has one message in flight nearly all the time.
    rounds : int
        Updates of each.
    erasures : int
        Erasures filed after the first round, by the operator, all at once.
    calibrated : bool
        With proxies, so that a reference is made and KL steps are taken, too.
    """

    clients: int
    rounds: int
    erasures: int = 0
    calibrated: bool = False


@dataclass
class Cost:
    """What a run took.

    Attributes
    ----------
    seconds : float
        Of the loop, from start to end: of the processor's time, which other programs on the
        machine do not change. All of it is spent in one thread.
    events : int
        Replies handled.
    versions : int
        Versions made.
    in_flight : int
        Most messages in flight.
    memory : int
        Bytes by which the process grew, grid and sites included.
    steps_seconds : float
        Of that, making references and KL steps, which real engines run beside the loop.
    erasure_seconds : float
        Of that, everything else that belongs to erasures: requests, tasks, deltas, locks.
    lock_seconds : float
        Of those, applying the locks to new versions.
    completed : int
        Erasures that ended completed.
    overlapping : int
        Most erasures open at once.
    """

    seconds: float = 0.0
    events: int = 0
    versions: int = 0
    in_flight: int = 0
    memory: int = 0
    steps_seconds: float = 0.0
    erasure_seconds: float = 0.0
    lock_seconds: float = 0.0
    completed: int = 0
    overlapping: int = 0

    @property
    def per_event(self) -> float:
        """Seconds an event takes the loop, without what runs beside it."""
        return (self.seconds - self.steps_seconds) / self.events

    @property
    def erasure_share(self) -> float:
        """What erasures add to the loop's time, over the time without them."""
        return self.erasure_seconds / (self.seconds - self.steps_seconds - self.erasure_seconds)


def _model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))


def speeds(clients: int) -> dict[int, float]:
    """Return slow-downs from 1 to 4, all different, so that replies come one by one."""
    drawn = np.random.default_rng(0).uniform(1.0, 4.0, clients)
    return {partition: float(factor) for partition, factor in enumerate(drawn)}


def warm_up() -> None:
    """Import and build what a first run would be charged with."""
    run_load(Load(clients=8, rounds=2, erasures=1))


def run_load(load: Load) -> Cost:
    """Run a federation under a virtual clock and take its time."""
    cost, watch = Cost(), _Stopwatch()
    proxies = torch.rand(32, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    extras: dict[str, Any] = (
        {"model_factory": _model, "proxies": proxies} if load.calibrated else {}
    )
    filed: list[str] = []

    def look(run: FederationRun) -> bool:
        cost.in_flight = max(cost.in_flight, run.dispatcher.in_flight)
        if run.round >= 1 and not filed:
            filed.extend(strategy.request_erasure(str(n)) for n in range(load.erasures))
        if filed and cost.overlapping < load.erasures:
            opened = sum(record.open for record in strategy.requests)
            cost.overlapping = max(cost.overlapping, opened)
        return False

    strategy = AFUIC(
        min_available_nodes=load.clients,
        max_staleness=_NO_LIMIT,
        evaluate_every=0,
        seed=0,
        stop_when=look,
        **extras,
    )
    strategy.make_hooks = watch.wrapping(strategy.make_hooks)  # type: ignore[method-assign]
    with quiet_log():
        before = resident()
        # Sites run in the loop's own thread: handing work to others would be what is measured.
        speed = SpeedModel(factors=speeds(load.clients))
        grid = LocalGrid(linear_app(), load.clients, speed=speed, threads=0)
        try:
            began = time.process_time()
            strategy.start(grid, initial_arrays(), num_rounds=load.rounds)
            cost.seconds = time.process_time() - began
        finally:
            grid.close()
        gc.collect()
        cost.memory = max(0, resident() - before)
    cost.events = len(strategy.journal.spans)
    cost.versions = strategy.run.version
    cost.steps_seconds = watch.steps
    cost.erasure_seconds = watch.total
    cost.lock_seconds = watch.seconds.get("finish", 0.0)
    cost.completed = sum(record.state is State.COMPLETED for record in strategy.requests)
    return cost


class _Stopwatch:
    """Takes the time of everything a method adds to the loop, nested calls once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.steps = 0.0
        self._depth = 0

    @property
    def total(self) -> float:
        return sum(self.seconds.values()) - self.steps

    def wrapping(self, make: Callable[[], RunHooks]) -> Callable[[], RunHooks]:
        def made() -> RunHooks:
            hooks = make()
            bind = hooks.bind

            def bound(run: FederationRun) -> None:
                bind(run)
                submit = run.worker.submit

                def timed(work: Callable[[], Any], **options: Any) -> Any:
                    began = time.process_time()
                    try:
                        return submit(work, **options)
                    finally:
                        self.steps += time.process_time() - began

                run.worker.submit = timed  # type: ignore[method-assign]

            hooks.bind = bound  # type: ignore[method-assign]
            for name in _HOOKS:
                setattr(hooks, name, self._timed(name, getattr(hooks, name)))
            return hooks

        return made

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began, self._depth = time.process_time(), self._depth + 1
            try:
                return call(*arguments)
            finally:
                self._depth -= 1
                if not self._depth:
                    took = time.process_time() - began
                    self.seconds[name] = self.seconds.get(name, 0.0) + took

        return timed


@contextmanager
def quiet_log() -> Iterator[None]:
    """Keep Flower's log still: writing it is no part of the engine."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def resident() -> int:
    """Return the resident set of this process in bytes; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
