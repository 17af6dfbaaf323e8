"""Run one server function on one of the engines."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, get_args

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from flwr_afuic.app.local import LocalGrid, SpeedModel
from flwr_afuic.app.server_app import make_server_app
from flwr_afuic.app.settings import Engine
from flwr_afuic.errors import ConfigError, FederationError

_MOST_ACTORS = 8
_INTERPRETER_TURN_SECONDS = 0.0005


def run_engine(
    engine: str,
    main: Callable[[Grid], None],
    client_app: ClientApp,
    sites: int,
    *,
    speed: SpeedModel | None = None,
) -> None:
    """Run ``main(grid)`` against ``sites`` nodes of ``client_app``.

    Parameters
    ----------
    engine : {"local", "virtual", "simulation"}
        ``local`` and ``virtual`` run in this process under a deterministic virtual clock,
        ``virtual`` with the given speeds; ``simulation`` is Flower's own runtime on Ray.
    main : callable
        Takes the Grid; usually starts strategies.
    client_app : ClientApp
        What every node runs.
    sites : int
        Number of nodes.
    speed : SpeedModel, optional
        Durations on the ``virtual`` engine.

    Raises
    ------
    ConfigError
        If the engine is unknown, or needs an extra that is not installed.
    """
    check_engine(engine)
    if engine == "simulation":
        _simulate(main, client_app, sites)
        return
    grid = LocalGrid(client_app, sites, speed=speed if engine == "virtual" else None)
    try:
        main(grid)
    finally:
        grid.close()


def check_engine(engine: str) -> None:
    """Raise ConfigError if the engine is unknown, or needs an extra that is not installed."""
    if engine not in get_args(Engine):
        raise ConfigError(
            f"unknown engine {engine!r}; use one of {', '.join(get_args(Engine))}, or "
            "deployment by hand as the documentation describes"
        )
    if engine == "simulation" and importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "the simulation engine needs Ray: pip install 'flwr-afuic[simulation]', or use "
            "--engine local"
        )


def _simulate(main: Callable[[Grid], None], client_app: ClientApp, sites: int) -> None:
    """Run on Ray, one actor per site, so that every site works at once as hospitals do.

    Ray's CPUs are tokens for its scheduler, not cores: a token per actor gives each site its
    own process on any machine, and one thread each.
    """
    for name in ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_USAGE_STATS_ENABLED"):
        os.environ.setdefault(name, "0")
    from flwr.simulation import run_simulation

    failures: list[BaseException] = []
    ended = threading.Event()

    def guarded(grid: Grid) -> None:
        try:
            main(_EndingGrid(grid, ended))
        except BaseException as error:
            failures.append(error)
            raise

    actors = min(sites, max(_MOST_ACTORS, os.cpu_count() or 1))
    backend: Any = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {
            "num_cpus": actors,
            "include_dashboard": False,
            "logging_level": logging.ERROR,
            "log_to_driver": False,
        },
    }
    # Flower's workers, the event loop and the server's own computation share one interpreter
    # here: with its usual 5 ms turns a loop among them can wait for a fifth of a second.
    turns = sys.getswitchinterval()
    sys.setswitchinterval(_INTERPRETER_TURN_SECONDS)
    server = make_server_app(guarded)
    try:
        with _interruptible(ended):
            run_simulation(server, client_app, num_supernodes=sites, backend_config=backend)
    except Exception:
        if failures and not isinstance(failures[0], _SimulationEnded):
            raise failures[0] from None
        raise
    finally:
        ended.set()
        sys.setswitchinterval(turns)


@contextmanager
def _interruptible(ended: threading.Event) -> Iterator[None]:
    """Let Ctrl-C end the run: Flower's runtime would first wait for the server's thread.

    The first one sets ``ended`` and lets the runtime close down; a second one waits for nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True
        ended.set()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception:
        if interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted:
        raise KeyboardInterrupt


class _SimulationEnded(FederationError):
    """Flower's simulation runtime is gone, so no reply will ever come."""


class _EndingGrid(Grid):
    """A grid that refuses service once the simulation runtime has ended.

    Flower runs the server in a thread of its own, which would otherwise wait for replies, and
    keep the process alive, long after Ray failed to start or the user pressed Ctrl-C.
    """

    def __init__(self, grid: Grid, ended: threading.Event) -> None:
        self._grid = grid
        self._ended = ended

    def _inner(self) -> Grid:
        if self._ended.is_set():
            raise _SimulationEnded("the simulation runtime ended before the run; see the log above")
        return self._grid

    def set_run(self, run: Run) -> None:
        self._inner().set_run(run)

    @property
    def run(self) -> Run:
        return self._inner().run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return self._inner().create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self._inner().get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        return self._inner().get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._inner().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._inner().pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self._inner().send_and_receive(messages, timeout=timeout)
