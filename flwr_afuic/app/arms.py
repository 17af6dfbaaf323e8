"""The arms of a comparison on one grid: AFU-IC, no unlearning, retraining, and its floor.

They run one after the other on the same nodes. AFU-IC comes first: the data steward's
request is filed in the target's inbox in the middle of it, as in a hospital, and how long
it trained decides how long the others train.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from flwr_afuic.app.client_app import inbox_path
from flwr_afuic.app.federation import build_federation, limit_threads
from flwr_afuic.app.server_app import engine_settings, initial_arrays, make_strategy
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.erasure.inbox import SiteInbox
from flwr_afuic.errors import FederationError
from flwr_afuic.federation.journal import Journal, VersionEntry
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.seeds import derive_seed
from flwr_afuic.strategies.afuic import AFUIC
from flwr_afuic.strategies.bounds import NoUnlearning, Retrain
from flwr_afuic.strategies.codec import to_record
from flwr_afuic.strategies.run import FederationRun

_TIMEOUT = 600.0
ARMS = ("afuic", "no_unlearning", "retrain", "retrain_floor")

Progress = Callable[[str, int, int], None]


@dataclass
class Recorder:
    """Keep the last model of each round, and each erasure's model with the one before it."""

    first_round: int = 0
    versions: dict[int, tuple[VersionEntry, Arrays]] = field(default_factory=dict)
    _last_of_round: dict[int, int] = field(default_factory=dict)

    def __call__(self, entry: VersionEntry, arrays: Arrays) -> None:
        """Take one version in, as the strategy's ``on_version``."""
        old = self._last_of_round.get(entry.round)
        if old is not None and entry.cause == self.versions[old][0].cause == "merge":
            del self.versions[old]
        self._last_of_round[entry.round] = entry.version
        self.versions[entry.version] = (entry, arrays)


@dataclass
class Arm:
    """One arm's models and journal; rounds count from the start of the whole protocol."""

    name: str
    recorder: Recorder
    journal: Journal
    rounds: int


STATE_FOLDER = "server"
"""Where the erasing arm keeps its state, beside the sites' inboxes."""


@dataclass
class ArmsResult:
    """What the arms left behind."""

    arms: dict[str, Arm]
    strategy: AFUIC
    original: Arrays
    request_round: int


def run_arms(
    grid: Grid, settings: AppSettings, inbox_folder: Path, progress: Progress
) -> ArmsResult:
    """Run every arm on ``grid``.

    Raises
    ------
    FederationError
        If the request never reached the server.
    """
    limit_threads()
    afuic, strategy = _run_afuic(grid, settings, inbox_folder, progress)
    requests = strategy.journal.of_kind("request")
    if not requests:
        raise FederationError("the erasure request never reached the server; see the log above")
    base_version, base_round = requests[0].version, requests[0].round
    original = strategy.base_models[base_version]
    arms = {"afuic": afuic}
    total = afuic.rounds
    if base_round >= total:
        raise FederationError(
            f"the erasure request arrived in round {base_round}, the last of {total}, so that "
            "nothing is left to compare; raise max_rounds"
        )
    left = (settings.target,) if settings.scope == "client" else ()
    names = strategy.run.layout.names
    plan = [
        ("no_unlearning", NoUnlearning, to_record(names, original), base_round, "no-unlearning"),
        ("retrain", Retrain, initial_arrays(settings), 0, "run"),
        ("retrain_floor", Retrain, floor_arrays(settings), 0, "floor"),
    ]
    for name, method, arrays, first_round, purpose in plan:
        recorder = Recorder(first_round)
        seed = derive_seed(settings.seed, purpose)
        options = engine_settings(settings, seed)
        rounds = total - first_round
        trained = method(
            without=left,
            on_version=_reporting(recorder, name, first_round, total, progress),
            **options,
        )
        trained.start(grid, arrays, num_rounds=rounds, timeout=_TIMEOUT)
        arms[name] = Arm(name, recorder, trained.journal, total)
    return ArmsResult(arms, strategy, original, base_round)


def _run_afuic(
    grid: Grid, settings: AppSettings, inbox_folder: Path, progress: Progress
) -> tuple[Arm, AFUIC]:
    recorder = Recorder()
    steward = Steward(settings, inbox_folder)
    report = _reporting(recorder, "afuic", 0, settings.max_rounds, progress)

    def on_version(entry: VersionEntry, arrays: Arrays) -> None:
        report(entry, arrays)
        if entry.round >= settings.request_round:
            steward.file_once()

    def finished(run: FederationRun) -> bool:
        merges = [record.merge_round for record in strategy.requests]
        if not merges or any(merge is None for merge in merges):
            return not any(record.open for record in strategy.requests) and bool(merges)
        latest = max(merge for merge in merges if merge is not None)
        settled = not any(record.open for record in strategy.requests)
        return settled and run.round >= latest + settings.rounds_after

    strategy = make_strategy(
        settings,
        on_version=on_version,
        stop_when=finished,
        state_dir=inbox_folder / STATE_FOLDER,
    )
    strategy.start(grid, initial_arrays(settings), num_rounds=settings.max_rounds, timeout=_TIMEOUT)
    return Arm("afuic", recorder, strategy.journal, strategy.run.round), strategy


class Steward:
    """The hospital's data steward: files one request at the site, and goes home."""

    def __init__(self, settings: AppSettings, inbox_folder: Path) -> None:
        self._settings = settings
        self._inbox = SiteInbox(inbox_path(inbox_folder, 0))
        self._filed = False

    def file_once(self) -> None:
        """File the request, at the first call."""
        if self._filed:
            return
        self._filed = True
        data = build_federation(self._settings)
        scope = self._settings.scope
        digest = sha256(f"demo-request-{self._settings.seed}".encode()).digest()
        self._inbox.file(
            scope=scope,
            sample_ids=() if scope == "client" else data.forget.ids,
            held=data.sites[0].ids,
            reason="consent-withdrawn",
            request_id=str(uuid.UUID(bytes=digest[:16], version=4)),
        )


def floor_arrays(settings: AppSettings) -> ArrayRecord:
    """Make the initial model of the second retraining."""
    return initial_arrays(settings, derive_seed(settings.seed, "floor-model"))


def _reporting(
    recorder: Recorder, name: str, first_round: int, total: int, progress: Progress
) -> Callable[[VersionEntry, Arrays], None]:
    def report(entry: VersionEntry, arrays: Arrays) -> None:
        recorder(entry, arrays)
        progress(name, first_round + entry.round, total)

    return report
