"""One arm of ``flwr-afuic bench multimodal``: a federation of image-text sites, and an erasure.

Original and history are made once a seed by the real strategy, with its state on disk; every arm
that needs them resumes a copy. What is measured is retrieval among all clients' pairs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.clientapp import ClientApp
from torch import nn

from flwr_afuic.app.local import LocalGrid, SpeedModel
from flwr_afuic.bench.multimodal_scores import Curve, Point
from flwr_afuic.calibration.exclusive import GsdSettings
from flwr_afuic.clients.erasure_client import ErasureClient
from flwr_afuic.clients.multimodal_client import MultimodalClient, PairData
from flwr_afuic.data.multimodal import (
    CLIENTS,
    ImageTextSet,
    load_covid_cxr_text,
    make_pair_phantoms,
    split_places,
)
from flwr_afuic.erasure.inbox import SiteInbox
from flwr_afuic.errors import ConfigError
from flwr_afuic.federation.journal import VersionEntry
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.metrics import recall
from flwr_afuic.models.arrays import get_arrays, set_arrays
from flwr_afuic.models.clip import SmallCLIP
from flwr_afuic.models.pretraining import Pretraining, pretrain
from flwr_afuic.seeds import derive_seed
from flwr_afuic.strategies import EASE, AsyncStrategy, NoUnlearning, Retrain
from flwr_afuic.strategies.codec import to_record
from flwr_afuic.strategies.comparators.fedosd import FedOSD
from flwr_afuic.strategies.erasing import ErasureStrategy
from flwr_afuic.strategies.gate import GateSettings
from flwr_afuic.unlearning.excision import ExcisionSettings
from flwr_afuic.unlearning.pairs import Pairs, embed

ARMS = (
    "original",
    "retrained",
    "retrained_again",
    "no_unlearning",
    "ease",
    "excision_only",
    "no_lock",
    "vision_only",
    "vision_only_no_lock",
    "text_only",
    "text_only_no_lock",
    "ascent",
    "fedosd",
)
SIDES = {"vision_only": "vision", "text_only": "text"}
_MOST_WAITING = 30  # rounds an erasure may take to be merged
PHANTOM_CLIENTS = ("north", "east", "south", "west")


@dataclass(frozen=True, kw_only=True)
class MultimodalSettings:
    """What is run.

    Parameters
    ----------
    dataset : {"covid_cxr_text", "phantoms"}
        Real pairs, or generated ones, marked as synthetic.
    target : str
        The place whose pairs are erased.
    rounds, after : int
        Rounds up to the request, and retained-only rounds after it.
    rank, local_epochs, batch_size, lr : int, int, int, float
        Of adapters and their training.
    pretraining_steps : int
        Of the base model, on places that are no clients.
    excision_steps, excision_lr, tolerance : int, float, float
        Of the excision.
    excision_attempts : int
        Most excisions: another, of twice the steps, follows where the site finds that its forget
        level is not met.
    ascent_steps, ascent_lr : int, float
        Of ascent.
    osd_rounds, osd_lr : int, float
        Of FedOSD.
    lam, tau, energy : float
        Of lock and decomposition.
    width, size : int
        Of the small CLIP, and of its images.
    seed : int
    data_dir : str
    """

    dataset: str = "covid_cxr_text"
    target: str = "United Kingdom"
    rounds: int = 20
    after: int = 30
    rank: int = 8
    local_epochs: int = 4
    batch_size: int = 32
    lr: float = 0.01
    pretraining_steps: int = 200
    excision_steps: int = 60
    excision_lr: float = 0.1
    excision_attempts: int = 3
    tolerance: float = 0.01
    ascent_steps: int = 20
    ascent_lr: float = 0.1
    osd_rounds: int = 20
    osd_lr: float = 1.0
    lam: float = 10.0
    tau: float = 0.3
    energy: float = 0.99
    width: int = 64
    size: int = 64
    seed: int = 0
    data_dir: str = ""

    def __post_init__(self) -> None:
        if self.dataset not in ("covid_cxr_text", "phantoms"):
            raise ConfigError(f"dataset is {self.dataset!r}; use covid_cxr_text or phantoms")
        if self.target not in self.places:
            raise ConfigError(
                f"target is {self.target!r}; the clients are {', '.join(self.places)}"
            )
        if self.rounds < 1 or self.after < 1:
            raise ConfigError(f"rounds {self.rounds} and after {self.after} must be at least 1")

    @property
    def places(self) -> tuple[str, ...]:
        """The clients, by place."""
        return CLIENTS if self.dataset == "covid_cxr_text" else PHANTOM_CLIENTS

    def load(self, warm: Path) -> ImageTextSet:
        """Load the pairs of every place; prepared images are kept in ``warm``."""
        if self.dataset == "phantoms":
            return make_pair_phantoms(self.seed, size=self.size)
        folder = self.data_dir or None
        return load_covid_cxr_text(folder, size=self.size, cache_dir=warm / "images")[0]


class Setup:
    """Base model, pairs and sites of a seed.

    Parameters
    ----------
    settings : MultimodalSettings
    warm : pathlib.Path
        Where the base model and prepared images are kept.
    """

    def __init__(self, settings: MultimodalSettings, warm: Path) -> None:
        torch.set_num_threads(1)
        self.settings = settings
        everything = settings.load(warm)
        federation = split_places(everything, settings.places)
        shape = SmallCLIP(image_size=settings.size, width=settings.width, length=48)
        plan = Pretraining(shape=shape, steps=settings.pretraining_steps)
        backbone = pretrain(federation.public, plan, seed=settings.seed, cache_dir=warm)
        rows = [i for i, place in enumerate(everything.places) if place in settings.places]
        self.all = everything.take(rows)
        self.pairs: Pairs = backbone.encode(self.all)
        self.model = backbone.with_adapters(rank=settings.rank, seed=settings.seed)
        self.initial = get_arrays(self.model)
        self.names = list(self.model.state_dict())

    def rows(self, *, forget: bool) -> list[int]:
        """Return the rows of the erased place, or of all others."""
        places = self.all.places
        return [i for i, place in enumerate(places) if (place == self.settings.target) == forget]

    def point(self, version: int, round_: int, arrays: Arrays) -> Point:
        """Score a model on erased and retained pairs, in the gallery of all."""
        set_arrays(self.model, arrays)
        v, t = embed(self.model, self.pairs)
        groups = self.pairs.groups.numpy()
        found: dict[str, dict[str, Any]] = {}
        for name, forget in (("forget", True), ("retain", False)):
            result = recall(v.numpy(), t.numpy(), groups, self.rows(forget=forget))
            found[name] = dict(result.table())
            found[name]["hits"] = [[float(h) for h in result.hits(k)] for k in (1, 5, 10)]
        return Point(version, round_, found["forget"], found["retain"])


class PlaceClient(MultimodalClient):
    """A place's site; every site of the process takes turns with one model."""

    def __init__(self, setup: Setup, place: str, inbox: Path) -> None:
        ErasureClient.__init__(self, inbox=SiteInbox(inbox), site=place)
        self._setup, self._place = setup, place
        self.lr, self.batch_size = setup.settings.lr, setup.settings.batch_size
        self.local_epochs = setup.settings.local_epochs

    def data(self) -> PairData:
        """See :class:`MultimodalClient`."""
        everything = self._setup.all
        rows = everything.rows(place=self._place)
        mine = everything.take(rows)
        pairs = self._setup.pairs.take(rows)
        return PairData(pairs, mine.ids, patients=mine.patients, classes=mine.findings)

    def model(self) -> nn.Module:
        """See :class:`MultimodalClient`."""
        return self._setup.model


def run_arm(setup: Setup, arm: str, folder: Path, work: Path) -> Curve:
    """Run one arm.

    Parameters
    ----------
    setup : Setup
    arm : str
        One of :data:`ARMS`.
    folder : pathlib.Path
        Of the seed: the original's state and history are kept here.
    work : pathlib.Path
        An empty folder for what is not kept.
    """
    settings = setup.settings
    clients = {
        n: PlaceClient(setup, place, work / f"{n}.sqlite")
        for n, place in enumerate(settings.places)
    }
    app = ClientApp(lambda context: clients[int(context.node_config["partition-id"])].to_client())
    points: list[Point] = []
    asked: list[str] = []

    def on_version(entry: VersionEntry, arrays: Arrays) -> None:
        points.append(setup.point(entry.version, entry.round, arrays))
        if not isinstance(strategy, ErasureStrategy) or arm == "original" or asked:
            return
        if entry.cause == "merge":
            asked.append(strategy.request_erasure(settings.target))

    strategy = _strategy(settings, arm, folder, work, on_version)
    start, rounds = setup.initial, settings.rounds + settings.after
    if arm == "original":
        rounds = settings.rounds
    elif arm in ("no_unlearning", "fedosd"):
        start, rounds = _original(setup, folder), settings.after
    if isinstance(strategy, ErasureStrategy) and arm != "original":
        rounds += _MOST_WAITING
        strategy.stop_when = lambda run: _enough(strategy, run.round, settings.after)
    speed = SpeedModel(seconds_per_step=0.001)  # asynchrony is not what is measured here
    grid = LocalGrid(app, len(clients), speed=speed, threads=1)
    try:
        result = strategy.start(
            grid, to_record(setup.names, start), num_rounds=rounds, timeout=3600.0
        )
    finally:
        grid.close()
    if arm == "original":
        arrays = [array.numpy() for array in result.arrays.values()]
        np.savez(folder / "original.npz", *arrays)
    return _curve(strategy, arm, points)


def _enough(strategy: AsyncStrategy, round_: int, after: int) -> bool:
    """Whether an erasure is merged, or over, and so many rounds have passed since."""
    record = next(iter(getattr(strategy, "requests", [])), None)
    if record is None:
        return False
    merged = record.merge_round
    return not record.open if merged is None else round_ >= merged + after


def _strategy(
    settings: MultimodalSettings,
    arm: str,
    folder: Path,
    work: Path,
    on_version: Callable[[VersionEntry, Arrays], None],
) -> AsyncStrategy:
    retrained_again = arm == "retrained_again"
    engine: dict[str, Any] = {
        "mode": "sync",
        "seed": derive_seed(settings.seed, "again") if retrained_again else settings.seed,
        "evaluate_every": 0,
        "min_available_nodes": len(settings.places),
        "on_version": on_version,
    }
    left = (settings.target,)
    if arm in ("retrained", "retrained_again"):
        return Retrain(without=left, **engine)
    if arm == "no_unlearning":
        return NoUnlearning(without=left, **engine)
    engine["gate"] = GateSettings(by="off")
    if arm == "fedosd":
        return FedOSD(
            unlearning_rounds=settings.osd_rounds, unlearning_lr=settings.osd_lr, **engine
        )
    state, history = folder / "state", folder / "history"
    if arm != "original":
        if not (folder / "original.npz").is_file():
            raise ConfigError(f"the original of seed {settings.seed} is missing; run it first")
        state, history = work / "state", work / "history"
        shutil.copytree(folder / "state", state)
        shutil.copytree(folder / "history", history)
    base = arm.removesuffix("_no_lock") if arm != "no_lock" else "no_lock"
    locked = not arm.endswith("no_lock") and arm != "ascent"
    return EASE(
        history=history,
        state_dir=state,
        excision=_excision(settings, base),
        project=locked,
        take_back=arm not in ("excision_only", "ascent"),
        lam=settings.lam if locked else 0.0,
        gsd=GsdSettings(tau=settings.tau, energy=settings.energy),
        virtual_decomposition_seconds=0.1,
        max_attempts=1 if arm == "ascent" else settings.excision_attempts,
        erasure_norm_factor=1e6,
        **engine,
    )


def _excision(settings: MultimodalSettings, arm: str) -> ExcisionSettings:
    if arm == "ascent":
        return ExcisionSettings(
            objective="pairs-ascent", steps=settings.ascent_steps, lr=settings.ascent_lr, gamma=0.0
        )
    return ExcisionSettings(
        sides=SIDES.get(arm, "both"),  # type: ignore[arg-type]
        steps=settings.excision_steps,
        lr=settings.excision_lr,
        tolerance=settings.tolerance,
    )


def _original(setup: Setup, folder: Path) -> Arrays:
    path = folder / "original.npz"
    if not path.is_file():
        raise ConfigError(f"the original of seed {setup.settings.seed} is missing; run it first")
    with np.load(path, allow_pickle=False) as stored:
        return [stored[name] for name in stored.files]


def _curve(strategy: AsyncStrategy, arm: str, points: list[Point]) -> Curve:
    requests = getattr(strategy, "requests", [])
    if not requests:
        return Curve(arm, points)
    record = requests[0]
    evidence = record.evidence[-1] if record.evidence else None
    return Curve(
        arm,
        points,
        merge_version=record.merge_version or 0,
        state=str(record.state),
        reason=record.reason,
        steps=0 if evidence is None else evidence.steps,
        subspaces=record.details.get("subspaces", {}),
    )
