"""An erasure from a 3D segmentation, of a site or of one patient, judged by retraining.

Every arm trains for the same number of rounds and can be run, and kept, by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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
from flwr_afuic.bench.segmentation_scores import AreaResult, ArmCurve, VolumeScorer
from flwr_afuic.calibration.fidelity import FidelitySettings
from flwr_afuic.calibration.invariance import InvarianceSettings
from flwr_afuic.clients.clinical_client import ClinicalClient
from flwr_afuic.data.clinical import ClinicalSet
from flwr_afuic.erasure.inbox import SiteInbox
from flwr_afuic.errors import ConfigError, FederationError
from flwr_afuic.federation.journal import VersionEntry
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.seeds import derive_seed
from flwr_afuic.strategies.afuic import AFUIC
from flwr_afuic.strategies.asynchronous import AsyncStrategy
from flwr_afuic.strategies.bounds import NoUnlearning, Retrain
from flwr_afuic.strategies.codec import to_record
from flwr_afuic.strategies.gate import GateSettings
from flwr_afuic.unlearning.privacy import DeltaPrivacy
from flwr_afuic.unlearning.reference import DistillationSettings
from flwr_afuic.unlearning.settings import UnlearningSettings

ARMS = ("afuic", "retrain", "retrain_floor", "no_unlearning")
_TIMEOUT = 3600.0
# Messages of megabytes cost more than the few local steps: an erasure then takes a few rounds, as
# it does where sites train for minutes a round. No two tasks take equally long: sites that kept
# step would be merged in the order of their names for ever, the first never with a stale update.
_SPEED = SpeedModel(seconds_per_step=0.02, overhead=2.0, tail=4.0)
_REFERENCE_SECONDS, _CALIBRATION_SECONDS = 3.0, 1.0
Told = Callable[[str], None]


def measure(
    settings: HippocampusSettings,
    area: str,
    folder: Path,
    *,
    arms: tuple[str, ...] = ARMS,
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
        Of :data:`ARMS`; ``afuic`` and ``retrain`` are always needed.
    told : callable
        Hears of progress.

    Raises
    ------
    FederationError
        If the erasure was never merged.
    DataError
        If the data are not there.
    """
    curves = {}
    for arm in arms:
        told(f"{area}: {arm}")
        curves[arm] = run_arm(settings, area, arm, folder / arm)
    return AreaResult(area, curves)


def run_arm(settings: HippocampusSettings, area: str, arm: str, folder: Path) -> ArmCurve:
    """Run one arm and score its models from the request on; raises as :func:`measure`.

    ``afuic`` erases; ``retrain`` and ``retrain_floor`` (another seed) train without the data from
    the beginning; ``no_unlearning`` trains on without them from the request on.
    """
    check_area(area)
    check_arm(arm)
    limit_threads()
    data = load_hippocampus(settings, folder)
    scorer = VolumeScorer(settings, data, area)
    run = _Run(settings, data, area, folder)
    if arm == "afuic":
        return run.afuic(scorer)
    if arm == "no_unlearning":
        return run.no_unlearning(scorer)
    return run.retrain(scorer, arm)


def check_arm(arm: str) -> None:
    """Raise ConfigError unless the arm is known."""
    if arm not in ARMS:
        raise ConfigError(f"arm is {arm!r}; use one of {', '.join(ARMS)}")


@dataclass
class _Run:
    """One arm on a grid of its own."""

    settings: HippocampusSettings
    data: HippocampusData
    area: str
    folder: Path

    def afuic(self, scorer: VolumeScorer) -> ArmCurve:
        recorder = Recorder()

        def on_version(entry: VersionEntry, arrays: Arrays) -> None:
            recorder(entry, arrays)
            if entry.round >= self.settings.request_round:
                self._file()

        strategy = make_strategy(self.settings, self.data.proxies, on_version=on_version)
        self._train(strategy, self._initial(self.settings.seed), self.settings.rounds)
        record = strategy.requests[0] if strategy.requests else None
        if record is None or record.merge_round is None:
            why = record.reason if record is not None else "the request never reached the server"
            raise FederationError(f"the erasure was not merged: {why}")
        base = strategy.journal.of_kind("request")[0]
        merges = [step.round for step in record.history if step.state == "merged"]
        return replace(
            scorer.curve(recorder, self.settings.request_round),
            before=scorer.score(strategy.base_models[base.version]),
            merge_round=record.merge_round,
            attempts=len(merges),
            state=str(record.state),
            reason=record.reason,
        )

    def retrain(self, scorer: VolumeScorer, arm: str) -> ArmCurve:
        seed = derive_seed(self.settings.seed, "floor" if arm == "retrain_floor" else "run")
        start = self.settings.seed if arm == "retrain" else seed
        recorder = Recorder()
        if self.area == "patient":
            self._file()  # its tombstones keep the patient out of the site's training
        without = (self.settings.target,) if self.area == "site" else ()
        strategy = Retrain(without=without, on_version=recorder, **_engine(self.settings, seed))
        self._train(strategy, self._initial(start), self.settings.rounds)
        return scorer.curve(recorder, self.settings.request_round)

    def no_unlearning(self, scorer: VolumeScorer) -> ArmCurve:
        # What the erasing arm trains until the request, again: an arm can be run by itself.
        before = Recorder()
        seed = derive_seed(self.settings.seed, "afuic")
        first = NoUnlearning(without=(), on_version=before, **_engine(self.settings, seed))
        self._train(first, self._initial(self.settings.seed), self.settings.request_round)
        names = first.run.layout.names
        start = before.versions[max(before.versions)][1]
        if self.area == "patient":
            self._file()
        without = (self.settings.target,) if self.area == "site" else ()
        recorder = Recorder(self.settings.request_round)
        seed = derive_seed(self.settings.seed, "no-unlearning")
        strategy = NoUnlearning(
            without=without, on_version=recorder, **_engine(self.settings, seed)
        )
        left = self.settings.rounds - self.settings.request_round
        self._train(strategy, to_record(names, start), left)
        return scorer.curve(recorder, self.settings.request_round)

    def _train(self, strategy: AsyncStrategy, arrays: ArrayRecord, rounds: int) -> None:
        grid = self._grid()
        try:
            strategy.start(grid, arrays, num_rounds=rounds, timeout=_TIMEOUT)
        finally:
            grid.close()

    def _grid(self) -> LocalGrid:
        clinical = self.settings.clinical()

        def client_fn(context: Context) -> Client:
            partition = int(context.node_config["partition-id"])
            return ClinicalClient(clinical, self.data.sites[partition], context).to_client()

        sites = range(self.settings.sites)
        inboxes = {i: {"inbox": str(self._inbox(i))} for i in sites}
        app = ClientApp(client_fn)
        return LocalGrid(app, self.settings.sites, node_configs=inboxes, speed=_SPEED)

    def _inbox(self, partition: int) -> Path:
        return self.folder / f"site-{partition}" / "inbox.sqlite"

    def _file(self) -> None:
        """File the erasure in the site's inbox, as its data steward would; once."""
        inbox, held = SiteInbox(self._inbox(0)), self.data.sites[0]
        if inbox.requests():
            return
        inbox.note_held(held.ids, dict(zip(held.ids, held.patients, strict=True)))
        inbox.file(
            scope="client" if self.area == "site" else "samples",
            sample_ids=(),
            held=held.ids,
            patients=() if self.area == "site" else [held.patients[0]],
        )

    def _initial(self, seed: int) -> ArrayRecord:
        return ArrayRecord(self.settings.clinical().network(seed).state_dict())


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
            anchor_weight=settings.unlearning_anchor,
        ),
        "distillation": DistillationSettings(
            steps=settings.distillation_steps,
            lr=settings.distillation_lr,
            views=settings.distillation_views,
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


def _engine(settings: HippocampusSettings, seed: int) -> dict[str, object]:
    return {
        "buffer_size": settings.sites - 1,
        "server_lr": 1.0,
        "min_available_nodes": settings.sites,
        "evaluate_every": 0,
        "seed": seed,
    }
