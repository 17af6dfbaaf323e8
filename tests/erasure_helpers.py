"""Federations small enough to follow by hand: scripted NumPy sites, tiny torch sites, a spy."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from torch import nn

from flwr_afuic import wire
from flwr_afuic.app.local import LocalGrid, SpeedModel
from flwr_afuic.clients import ErasureClient, SiteData, TorchClient, message_app
from flwr_afuic.erasure.inbox import SiteInbox
from flwr_afuic.strategies.afuic import AFUIC
from flwr_afuic.strategies.codec import to_record
from flwr_afuic.strategies.gate import GateSettings
from flwr_afuic.unlearning.level import ForgetScore
from flwr_afuic.unlearning.privacy import NO_PRIVACY, DeltaPrivacy

torch.set_num_threads(1)

LEVEL = ForgetScore(1.0, 0.5, 4)
FORGOTTEN = ForgetScore(1.1, 0.4, 4)
REMEMBERED = ForgetScore(0.1, 1.0, 4)
REQUEST = "0b6e7a3c-0000-4000-8000-00000000000{}"


def request_id(number: int = 1) -> str:
    return REQUEST.format(number)


def new_inbox() -> SiteInbox:
    return SiteInbox(Path(tempfile.mkdtemp(prefix="afuic-test-")) / "inbox.sqlite")


@dataclass
class Site:
    """What a scripted site holds and does; tests change its fields."""

    number: int = 0
    inbox: SiteInbox = field(default_factory=new_inbox)
    ids: list[str] = field(default_factory=list)
    step: float = 0.1
    delta: Sequence[float] = (0.0, 0.0, -1.0)
    kinds: list[str] | None = None
    level: ForgetScore | None = LEVEL
    scores: Callable[[], ForgetScore] = lambda: FORGOTTEN
    on_train: Callable[[], None] = lambda: None
    on_unlearn: Callable[[], None] = lambda: None
    on_test: Callable[[], None] = lambda: None
    stop_reason: str = "budget"
    unlearning_steps: int = 10
    spoil: Callable[[list], list] = lambda arrays: arrays
    trained_on: list[list[str]] = field(default_factory=list)
    unlearned: list = field(default_factory=list)
    verified: int = 0
    plain: bool = False
    name: str = ""
    privacy: DeltaPrivacy = NO_PRIVACY

    def __post_init__(self):
        self.name = self.name or f"site-{self.number}"
        self.ids = self.ids or [f"patient-{self.number}-{row}" for row in range(4)]

    def file(self, samples: Sequence[str] = (), number: int | None = None) -> str:
        return self.inbox.file(
            scope="samples" if samples else "client",
            sample_ids=list(samples),
            held=self.ids,
            request_id=None if number is None else request_id(number),
        ).request_id


class ScriptedClient(ErasureClient):
    """Trains by a constant step and unlearns by the delta its site says."""

    def __init__(self, site: Site) -> None:
        super().__init__(inbox=site.inbox, site=site.name, privacy=site.privacy)
        self.script = site

    def sample_ids(self):
        return self.script.ids

    def array_kinds(self):
        return self.script.kinds

    def train(self, parameters, config):
        self.script.trained_on.append(self.retained_ids())
        self.script.on_train()
        noise = np.random.default_rng(config[wire.SEED]).normal(size=3) / 100
        new = [np.array(array) for array in parameters]
        new[0] = (new[0] + self.script.step + noise).astype(np.float32)
        for array in new[1:]:
            array += 1
        return new, len(self.retained_ids()), {"loss": 1.0, wire.STEPS: 8}

    def test(self, parameters, config):
        self.script.on_test()
        return 0.5, 4, {"accuracy": 0.5}

    def unlearn(self, task):
        self.script.unlearned.append(task)
        self.script.on_unlearn()
        new = [np.array(array) for array in task.snapshot]
        new[0] = (new[0] + np.asarray(self.script.delta)).astype(np.float32)
        evidence = wire.Evidence(
            before=REMEMBERED,
            after=FORGOTTEN,
            reference=None,
            holdout=self.script.level,
            steps=self.script.unlearning_steps,
            stop_reason=self.script.stop_reason,
            delta_norm=1.0,
        )
        return self.script.spoil(new), evidence

    def score(self, parameters, sample_ids):
        self.script.verified += 1
        return self.script.scores()


class PlainClient(NumPyClient):
    """What a Flower user writes today; knows nothing of erasure."""

    def __init__(self, site: Site) -> None:
        self.script = site

    def fit(self, parameters, config):
        self.script.trained_on.append(list(self.script.ids))
        new = [np.array(array) for array in parameters]
        new[0] = (new[0] + self.script.step).astype(np.float32)
        return new, len(self.script.ids), {}

    def evaluate(self, parameters, config):
        return 0.5, 4, {"accuracy": 0.5}


def app_of(sites: Sequence[Site], dialect: str = "numpy") -> ClientApp:
    def make(context):
        site = sites[int(context.node_config["partition-id"])]
        return PlainClient(site) if site.plain else ScriptedClient(site)

    if dialect == "message":
        return message_app(make)
    return ClientApp(lambda context: make(context).to_client())


class SpyGrid(LocalGrid):
    """Keeps a copy of every message that crosses, both ways."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.crossed = []

    def push_messages(self, messages):
        messages = list(messages)
        self.crossed += messages
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        found = list(super().pull_messages(message_ids))
        self.crossed += found
        return found

    def everything(self) -> bytes:
        """All bytes and strings of every message, errors included."""
        parts = []
        for message in self.crossed:
            if message.has_error():
                parts.append(repr(message.error.reason).encode())
                continue
            for record in message.content.values():
                for key, value in record.items():
                    parts.append(str(key).encode())
                    data = getattr(value, "data", value)
                    parts.append(data if isinstance(data, bytes) else repr(data).encode())
        return b"\n".join(parts)


def arrays_record(with_norm: bool = False) -> ArrayRecord:
    names, arrays = ["w"], [np.zeros(3, np.float32)]
    if with_norm:
        names += ["norm.running_mean", "norm.num_batches_tracked"]
        arrays += [np.zeros(2, np.float32), np.array(0, np.int64)]
    return to_record(names, arrays)


@dataclass
class Outcome:
    strategy: AFUIC
    grid: SpyGrid
    result: object
    models: dict[int, list]
    entries: list

    @property
    def record(self):
        return self.strategy.requests[0]

    def states(self, number: int = 0) -> list[str]:
        return [str(step.state) for step in self.strategy.requests[number].history]

    def events(self, kind: str) -> list:
        return self.strategy.journal.of_kind(kind)

    def final(self) -> list:
        return [array.numpy() for array in self.strategy.arrays.values()]


def federate(
    sites: Sequence[Site],
    *,
    rounds: int = 14,
    at: dict[int, Callable[[AFUIC], object]] | None = None,
    initial: ArrayRecord | None = None,
    app: ClientApp | None = None,
    factors: dict[int, float] | None = None,
    dialect: str = "numpy",
    grid: SpyGrid | None = None,
    strategy_type: type[AFUIC] = AFUIC,
    names: list[str] | None = None,
    timeout: float = 600.0,
    on_grid: Callable[[SpyGrid], None] = lambda grid: None,
    **options,
) -> Outcome:
    """Run AFUIC over scripted sites; ``at`` maps versions to what happens right after them."""
    models, entries, seen = {}, [], set()

    def on_version(entry, arrays):
        models[entry.version] = [np.array(a) for a in arrays]
        entries.append(entry)
        if entry.version in (at or {}) and entry.version not in seen:
            seen.add(entry.version)
            at[entry.version](strategy)

    settings = {
        "buffer_size": 2,
        "server_lr": 1.0,
        "min_available_nodes": len(sites),
        "evaluate_every": 0,
        "verify_rounds": 2,
        "norm_factor": 1e6,
        "privacy": NO_PRIVACY,
        "gate": GateSettings(by="off"),
        "dialect": dialect,
        "on_version": on_version,
        **options,
    }
    strategy = strategy_type(**settings)
    own = grid is None
    if own:
        speed = SpeedModel(factors=factors)
        client_app = app or app_of(sites, dialect)
        grid = SpyGrid(client_app, len(sites), speed=speed, names=names)
    on_grid(grid)
    try:
        record = initial or arrays_record()
        result = strategy.start(grid, record, num_rounds=rounds, timeout=timeout)
    finally:
        if own:
            grid.close()
    return Outcome(strategy, grid, result, models, entries)


# ---- torch ---------------------------------------------------------------------------


def toy_data(seed: int, n: int = 24, flip: bool = False):
    """Two classes, told apart by the sign of the first column. # shape: (n, 1, 4, 4)"""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 1, 4, 4, generator=generator)
    labels = (images[:, 0, :, 0].mean(1) > 0).long()
    return images, 1 - labels if flip else labels


def toy_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))


def norm_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48, 2),
        )


class ToyClient(TorchClient):
    """A small torch site; site 0's labels are flipped, so that forgetting shows."""

    batch_size = 8
    local_steps = 4

    def __init__(self, site: Site, build: Callable[[], nn.Module] = toy_model) -> None:
        ErasureClient.__init__(self, inbox=site.inbox, site=site.name, privacy=site.privacy)
        self.script, self.build = site, build

    def data(self) -> SiteData:
        images, labels = toy_data(self.script.number, flip=self.script.number == 0)
        hold_images, hold_labels = toy_data(100 + self.script.number)
        ids = [f"patient-{self.script.number}-{row}" for row in range(len(images))]
        return SiteData(images, labels, ids, hold_images, hold_labels)

    def model(self) -> nn.Module:
        return self.build()

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def toy_sites(count: int = 3) -> list[Site]:
    return [Site(n, ids=[f"patient-{n}-{row}" for row in range(24)]) for n in range(count)]


def toy_app(sites: Sequence[Site], build=toy_model, dialect: str = "numpy") -> ClientApp:
    def make(context):
        return ToyClient(sites[int(context.node_config["partition-id"])], build)

    if dialect == "message":
        return message_app(make)
    return ClientApp(lambda context: make(context).to_client())
