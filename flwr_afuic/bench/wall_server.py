"""The server of ``bench wall``: the whole engine, and how long a message took it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from flwr_afuic.bench.wall_site import network
from flwr_afuic.strategies.afuic import AFUIC
from flwr_afuic.strategies.run import FederationRun

POLL_SECONDS = 0.1
_TIMEOUT = 300.0


class _TimedGrid:
    """Flower's grid, and the seconds spent in it."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        if name in ("clock", "arrived"):
            raise AttributeError(name)
        found = getattr(self._grid, name)
        return self._timed(found) if callable(found) else found

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def make_app() -> ServerApp:
    """Return the ServerApp; it writes what it measured where its run config says."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        config = context.run_config
        timed, own = _TimedGrid(grid), [0.0]
        strategy = AFUIC(
            buffer_size=1,
            evaluate_every=0,
            poll_interval=POLL_SECONDS,
            min_available_nodes=int(config["sites"]),
            state_dir=str(config["state-dir"]),
        )
        make = strategy.make_hooks

        def made() -> Any:
            hooks = make()
            bind = hooks.bind

            def bound(run: FederationRun) -> None:
                bind(run)
                run.replies.handle = _timed(run.replies.handle, timed, own)  # type: ignore[method-assign]
                run.intake.send = _timed(run.intake.send, timed, own)  # type: ignore[method-assign]

            hooks.bind = bound  # type: ignore[method-assign]
            return hooks

        strategy.make_hooks = made  # type: ignore[method-assign]
        arrays = ArrayRecord(network().state_dict())
        strategy.start(timed, arrays, num_rounds=int(config["rounds"]), timeout=_TIMEOUT)  # type: ignore[arg-type]
        spans = [s.end - s.start for s in strategy.journal.spans if s.kind == "train"]
        report = {"messages": spans, "server": own[0] / max(1, len(strategy.journal.spans))}
        path = Path(str(config["report"]))
        path.with_suffix(".part").write_text(json.dumps(report), encoding="utf-8")
        path.with_suffix(".part").replace(path)

    return app


def _timed(call: Callable[..., Any], grid: _TimedGrid, own: list[float]) -> Callable[..., Any]:
    def timed(*arguments: Any, **options: Any) -> Any:
        began, elsewhere = time.perf_counter(), grid.seconds
        try:
            return call(*arguments, **options)
        finally:
            own[0] += time.perf_counter() - began - (grid.seconds - elsewhere)

    return timed
