"""Run one server function on one of the engines."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from typing import Any, get_args

from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from flwr_afuic.app.local import LocalGrid, SpeedModel
from flwr_afuic.app.server_app import make_server_app
from flwr_afuic.app.settings import Engine
from flwr_afuic.errors import ConfigError


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
    if engine in ("local", "virtual"):
        grid = LocalGrid(client_app, sites, speed=speed if engine == "virtual" else None)
        try:
            main(grid)
        finally:
            grid.close()
    elif engine == "simulation":
        _simulate(main, client_app, sites)
    else:
        raise ConfigError(
            f"unknown engine {engine!r}; use one of {', '.join(get_args(Engine))}, or "
            "deployment by hand as the documentation describes"
        )


def _simulate(main: Callable[[Grid], None], client_app: ClientApp, sites: int) -> None:
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "the simulation engine needs Ray: pip install 'flwr-afuic[simulation]', or use "
            "--engine local"
        )
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    from flwr.simulation import run_simulation

    failures: list[BaseException] = []

    def guarded(grid: Grid) -> None:
        try:
            main(grid)
        except BaseException as error:
            failures.append(error)
            raise

    backend: Any = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"logging_level": logging.ERROR, "log_to_driver": False},
    }
    try:
        run_simulation(
            make_server_app(guarded), client_app, num_supernodes=sites, backend_config=backend
        )
    except Exception:
        if failures:
            raise failures[0] from None
        raise
