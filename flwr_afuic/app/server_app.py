"""The ready-made ServerApp: AFUIC on the demo's model and proxies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from flwr_afuic.app.client_app import network
from flwr_afuic.app.federation import build_federation, limit_threads
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.seeds import derive_seed
from flwr_afuic.strategies.afuic import AFUIC
from flwr_afuic.unlearning.settings import UnlearningSettings

_NODE_TIMEOUT = 3600.0
_POLL_SECONDS = 0.5  # each look for replies is a request to the SuperLink


def engine_settings(settings: AppSettings, seed: int) -> dict[str, Any]:
    """Settings every strategy of a comparison shares."""
    return {
        "buffer_size": settings.buffer_size,
        "server_lr": settings.server_lr,
        "min_available_nodes": settings.sites,
        "evaluate_every": 0,
        "seed": seed,
    }


def make_strategy(settings: AppSettings, **options: Any) -> AFUIC:
    """Build AFUIC with the demo's model factory and its proxies."""
    data = build_federation(settings)
    return AFUIC(
        model_factory=lambda: network(settings),
        proxies=data.proxies.images,
        proxies_provenance=f"{data.dataset.source}; {data.dataset.licence}; validation split",
        merge=settings.merge,  # type: ignore[arg-type]
        lock=settings.lock,
        fidelity=settings.fidelity,
        prediction_invariance=settings.prediction_invariance,
        phi=settings.phi,
        unlearning=UnlearningSettings(objective=settings.objective),
        verify_rounds=settings.verify_rounds,
        **{**engine_settings(settings, derive_seed(settings.seed, "run")), **options},
    )


def initial_arrays(settings: AppSettings, seed: int | None = None) -> ArrayRecord:
    """Make the initial model; another seed makes the retrain floor's."""
    return ArrayRecord(network(settings, seed).state_dict())


def make_server_app(main: Callable[[Grid], None]) -> ServerApp:
    """Wrap a function of the grid as a ServerApp."""
    server = ServerApp()

    @server.main()
    def run(grid: Grid, context: Context) -> None:
        main(grid)

    return server


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train; erasures are filed at the sites or by the operator while it runs."""
    limit_threads()
    settings = AppSettings.from_mapping(dict(context.run_config))
    strategy = make_strategy(
        settings,
        evaluate_every=1,
        state_dir=settings.state_dir or None,
        poll_interval=_POLL_SECONDS,
    )
    strategy.start(
        grid, initial_arrays(settings), num_rounds=settings.max_rounds, timeout=_NODE_TIMEOUT
    )
    for record in strategy.requests:
        print(f"erasure {record.request_id} of {record.site}: {record.state}: {record.reason}")
