"""An erasure from a 3D segmentation, of a site or of one patient, judged by retraining."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.client import Client
from flwr.clientapp import ClientApp

from flwr_afuic.app.arms import Recorder
from flwr_afuic.app.federation import limit_threads
from flwr_afuic.app.local import LocalGrid, SpeedModel
from flwr_afuic.bench.hippocampus import (
    PROVENANCE,
    HippocampusData,
    HippocampusSettings,
    check_area,
    load_hippocampus,
)
from flwr_afuic.bench.segmentation_scores import AreaResult, VolumeScorer
from flwr_afuic.calibration.fidelity import FidelitySettings
from flwr_afuic.calibration.invariance import InvarianceSettings
from flwr_afuic.clients.clinical_client import ClinicalClient
from flwr_afuic.data.clinical import ClinicalSet
from flwr_afuic.erasure.inbox import SiteInbox
from flwr_afuic.errors import FederationError
from flwr_afuic.federation.journal import VersionEntry
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.models.arrays import set_arrays
from flwr_afuic.seeds import derive_seed
from flwr_afuic.strategies.afuic import AFUIC
from flwr_afuic.strategies.bounds import NoUnlearning, Retrain
from flwr_afuic.strategies.gate import GateSettings
from flwr_afuic.strategies.run import FederationRun
from flwr_afuic.unlearning.privacy import DeltaPrivacy
from flwr_afuic.unlearning.reference import DistillationSettings
from flwr_afuic.unlearning.settings import UnlearningSettings

_TIMEOUT = 3600.0
# Messages of megabytes cost more than the few local steps: an erasure then takes a few rounds, as
# it does where sites train for minutes a round.
_SPEED = SpeedModel(seconds_per_step=0.02, overhead=2.0)
_REFERENCE_SECONDS, _CALIBRATION_SECONDS = 3.0, 1.0
Told = Callable[[str], None]


def measure(
    settings: HippocampusSettings,
    area: str,
    folder: Path,
    *,
    arms: tuple[str, ...] = ("retrain", "retrain_floor", "no_unlearning"),
    told: Told = lambda line: None,
) -> AreaResult:
    """Run one erasure and its bounds, and score them.

    Parameters
    ----------
    settings : HippocampusSettings
    area : {"site", "patient"}
        What ``site-0`` erases.
    folder : pathlib.Path
        A fresh folder: inboxes, and the table.
    arms : tuple of str
        Beside AFU-IC; ``retrain`` is always needed.
    told : callable
        Hears of progress.

    Raises
    ------
    FederationError
        If the erasure was never merged.
    DataError
        If the data are not there.
    """
    check_area(area)
    limit_threads()
    data = load_hippocampus(settings, folder)
    scorer = VolumeScorer(settings, data, area)
    grid = _grid(settings, data, folder)
    told(f"{area}: AFU-IC")
    strategy, recorder = _run_afuic(settings, data, area, grid, folder)
    record = strategy.requests[0] if strategy.requests else None
    if record is None or record.merge_round is None:
        why = record.reason if record is not None else "the request never reached the server"
        raise FederationError(f"the erasure was not merged: {why}")
    base = strategy.journal.of_kind("request")[0]
    original = strategy.base_models[base.version]
    result = AreaResult(
        area, record.merge_round, record.state, record.reason, scorer.score(original)
    )
    total = strategy.run.round
    told(f"{area}: {record.state} ({record.reason}), merged in round {record.merge_round}")
    scorer.curve(result, "afuic", recorder)
    without = (settings.target,) if area == "site" else ()
    names = strategy.run.layout.names
    start = {
        "retrain": (Retrain, _initial(settings, settings.seed), 0),
        "retrain_floor": (Retrain, _initial(settings, derive_seed(settings.seed, "floor")), 0),
        "no_unlearning": (
            NoUnlearning,
            ArrayRecord(dict(zip(names, _tensors(settings, original), strict=True))),
            base.round,
        ),
    }
    for arm in arms:
        told(f"{area}: {arm}")
        method, arrays, first = start[arm]
        recorder = Recorder(first)
        trained = method(
            without=without,
            on_version=recorder,
            **_engine(settings, derive_seed(settings.seed, arm)),
        )
        trained.start(grid, arrays, num_rounds=total - first, timeout=_TIMEOUT)
        scorer.curve(result, arm, recorder)
    return result


def _grid(settings: HippocampusSettings, data: HippocampusData, folder: Path) -> LocalGrid:
    clinical = settings.clinical()

    def client_fn(context: Context) -> Client:
        partition = int(context.node_config["partition-id"])
        return ClinicalClient(clinical, data.sites[partition], context).to_client()

    inboxes = {i: {"inbox": str(_inbox(folder, i))} for i in range(settings.sites)}
    app = ClientApp(client_fn)
    return LocalGrid(app, settings.sites, node_configs=inboxes, speed=_SPEED)


def _inbox(folder: Path, partition: int) -> Path:
    return folder / f"site-{partition}" / "inbox.sqlite"


def _engine(settings: HippocampusSettings, seed: int) -> dict[str, object]:
    return {
        "buffer_size": settings.sites - 1,
        "server_lr": 1.0,
        "min_available_nodes": settings.sites,
        "evaluate_every": 0,
        "seed": seed,
    }


def make_strategy(settings: HippocampusSettings, proxies: ClinicalSet, **options: object) -> AFUIC:
    """Build AFU-IC for volumes: small batches, higher rates, proxies of no site."""
    size = settings.batch_size
    chosen: dict[str, object] = {
        "model_factory": settings.clinical().network,
        "proxies": proxies.images,
        "proxies_provenance": PROVENANCE,
        "unlearning": UnlearningSettings(
            steps=settings.unlearning_steps,
            lr=settings.unlearning_lr,
            batch_size=size,
            anchor_batch_size=size,
        ),
        "distillation": DistillationSettings(
            steps=settings.distillation_steps,
            lr=settings.distillation_lr,
            views=4,
            batch_size=size,
        ),
        "invariance": InvarianceSettings(steps=2, batch_size=size),
        "fidelity_settings": FidelitySettings(batch_size=size),
        "verify_rounds": settings.verify_rounds,
        "gate": GateSettings(max_cost=settings.max_cost),
        "virtual_reference_seconds": _REFERENCE_SECONDS,
        "virtual_invariance_seconds": _CALIBRATION_SECONDS,
        "privacy": DeltaPrivacy() if settings.protect_small else DeltaPrivacy(small=0),
        **_engine(settings, derive_seed(settings.seed, "afuic")),
        **options,
    }
    return AFUIC(**chosen)  # type: ignore[arg-type]


def _run_afuic(
    settings: HippocampusSettings,
    data: HippocampusData,
    area: str,
    grid: LocalGrid,
    folder: Path,
) -> tuple[AFUIC, Recorder]:
    recorder, inbox = Recorder(), SiteInbox(_inbox(folder, 0))

    def on_version(entry: VersionEntry, arrays: Arrays) -> None:
        recorder(entry, arrays)
        if entry.round >= settings.request_round and not inbox.requests():
            held = data.sites[0]
            inbox.file(
                scope="client" if area == "site" else "samples",
                sample_ids=(),
                held=held.ids,
                patients=() if area == "site" else [held.patients[0]],
            )

    def finished(run: FederationRun) -> bool:
        merges = [record.merge_round for record in strategy.requests]
        if not merges or any(record.open for record in strategy.requests):
            return False
        merged = [merge for merge in merges if merge is not None]
        return not merged or run.round >= max(merged) + settings.rounds_after

    strategy = make_strategy(settings, data.proxies, on_version=on_version, stop_when=finished)
    most = settings.request_round + settings.rounds_after + 20
    strategy.start(grid, _initial(settings, settings.seed), num_rounds=most, timeout=_TIMEOUT)
    return strategy, recorder


def _initial(settings: HippocampusSettings, seed: int) -> ArrayRecord:
    return ArrayRecord(settings.clinical().network(seed).state_dict())


def _tensors(settings: HippocampusSettings, arrays: Arrays) -> list[object]:
    model = settings.clinical().network()
    set_arrays(model, arrays)
    return list(model.state_dict().values())
