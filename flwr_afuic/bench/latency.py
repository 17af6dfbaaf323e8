"""How long methods take to forget where one site is slow: one method in one federation a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord

from flwr_afuic.app.client_app import inbox_path, network
from flwr_afuic.app.federation import build_federation, limit_threads
from flwr_afuic.app.local import LocalGrid, SpeedModel
from flwr_afuic.app.server_app import engine_settings, initial_arrays, make_strategy
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.bench.latency_sites import Memory, make_app
from flwr_afuic.calibration.fidelity import FidelitySettings
from flwr_afuic.calibration.invariance import InvarianceSettings
from flwr_afuic.erasure.inbox import SiteInbox
from flwr_afuic.errors import ConfigError, FederationError
from flwr_afuic.federation.journal import VersionEntry
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.models.arrays import set_arrays
from flwr_afuic.seeds import derive_seed
from flwr_afuic.strategies.asynchronous import AsyncStrategy
from flwr_afuic.strategies.bounds import Retrain
from flwr_afuic.strategies.comparators import FCU, PGA, FedEraser, FedOSD, NoT, ProxyDistill
from flwr_afuic.strategies.comparators.base import Comparator
from flwr_afuic.strategies.erasing import ErasureStrategy
from flwr_afuic.strategies.gate import GateSettings
from flwr_afuic.strategies.run import FederationRun
from flwr_afuic.unlearning.inference import score
from flwr_afuic.unlearning.reference import DistillationSettings

_TIMEOUT = 1e6  # virtual seconds: a straggler is slow, not gone
_TASKS = ("train", "unlearn", "verify")
_REFERENCE_STEPS, _CALIBRATION_STEPS = 425, 60

RIVALS: dict[str, type[Comparator]] = {
    "pga": PGA,
    "federaser": FedEraser,
    "fedosd": FedOSD,
    "not": NoT,
    "fcu": FCU,
    "proxy_distill": ProxyDistill,
}
RETRAINED = ("retrain", "retrain_floor", "retrain_sync")
METHODS = ("afuic", "afuic_sync", *RIVALS, *RETRAINED)
"""Every method; with ``_sync`` at the end, rounds wait for everybody."""


@dataclass(frozen=True, kw_only=True)
class LatencySettings:
    """One federation with one slow site.

    Attributes
    ----------
    app : AppSettings
        Data, sites, local training; ``site-0`` is the target of the erasure.
    straggler : float
        How many times as long as the others' the slow site's tasks take.
    target_straggles : bool
        Whether the slow site is the target, or ``site-1``, which stays.
    tail : float or None
        Pareto index of every task's duration (:class:`SpeedModel`); None for fixed speeds.
    server_speed : float
        How many times as fast as a site the server computes. One distillation is as much as 425
        steps of local training, and one calibration as 60, measured on one core with the default
        network and batch size.
    rounds_after : int
        Rounds after the erasure.
    clock_only : bool
        Sites train nothing and only take their time; scores mean nothing then.
    """

    app: AppSettings = field(default_factory=AppSettings)
    straggler: float = 1.0
    target_straggles: bool = False
    tail: float | None = None
    server_speed: float = 4.0
    rounds_after: int = 12
    clock_only: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.straggler < float("inf"):
            raise ConfigError(f"straggler is {self.straggler}; it must be at least 1")
        if not self.server_speed > 0 or self.rounds_after < 1:
            raise ConfigError(
                f"server_speed ({self.server_speed}) must be positive and rounds_after "
                f"({self.rounds_after}) at least 1"
            )
        self.speed()  # a wrong tail is refused here

    @property
    def key(self) -> str:
        """Short name of the federation, such as ``10``, ``10-target`` or ``10-pareto``."""
        target = "-target" if self.target_straggles and self.straggler != 1 else ""
        return f"{self.straggler:g}{target}" + ("" if self.tail is None else "-pareto")

    def speed(self) -> SpeedModel:
        """Return how long tasks take."""
        slow = 0 if self.target_straggles else 1
        seed = derive_seed(self.app.seed, "latency")
        return SpeedModel(factors={slow: self.straggler}, tail=self.tail, seed=seed)

    def server_seconds(self, steps: int) -> float:
        """Virtual seconds the server needs for as much as ``steps`` of local training."""
        return steps * SpeedModel().seconds_per_step / self.server_speed


def run_method(
    method: str, settings: LatencySettings, folder: Path, memory: Memory, *, rounds: int
) -> dict[str, Any]:
    """Run one method in one federation under the virtual clock.

    Parameters
    ----------
    method : str
        One of ``METHODS``.
    settings : LatencySettings
    folder : Path
        A fresh folder, for the sites' inboxes.
    memory : dict
        Local trainings of earlier runs of the same federation, which are not done again.
    rounds : int
        Most rounds; of retraining, all it does.

    Returns
    -------
    dict
        Plain values, ready for JSON: what happened when, and scores by version from the erasure
        on (of retraining, by round from the request's).

    Raises
    ------
    ConfigError
        If there is no such method.
    FederationError
        If the erasure was not merged.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    limit_threads()
    app = make_app(settings.app, folder, None if settings.clock_only else memory)
    grid = LocalGrid(app, settings.app.sites, speed=settings.speed())
    scorer = _Scorer(settings)
    try:
        trained: AsyncStrategy
        if method in RETRAINED:
            trained = _retrain(method, settings, scorer)
            arrays = _initial(method, settings.app)
        else:
            trained = _Erasing(method, settings, folder, scorer).strategy
            arrays = initial_arrays(settings.app)
        trained.start(grid, arrays, num_rounds=rounds, timeout=_TIMEOUT)
    finally:
        grid.close()
    found = _happened(trained)
    if isinstance(trained, ErasureStrategy):
        if scorer.erased_at is None:
            why = "; ".join(record.reason for record in trained.requests) or "no request came"
            raise FederationError(f"{method} merged no erasure in {rounds} rounds: {why}")
        found["state"] = str(trained.requests[0].state)
    return {"method": method, "federation": settings.key, **found, "scores": scorer.scores}


class _Scorer:
    """Scores versions as they are made: after an erasure, or from a round on."""

    def __init__(self, settings: LatencySettings) -> None:
        self._settings = settings
        self.erased_at: int | None = None
        self.scores: list[dict[str, Any]] = []
        self._rounds: set[int] = set()

    def __call__(self, entry: VersionEntry, arrays: Arrays) -> None:
        """Take one version in; a round's first is scored, and so is every erasure's."""
        if entry.cause == "erasure":
            self.erased_at = entry.version
        elif entry.round in self._rounds:
            return
        self._rounds.add(entry.round)
        row: dict[str, Any] = {k: getattr(entry, k) for k in ("version", "round", "time", "cause")}
        if not self._settings.clock_only:
            row |= score_model(self._settings.app, arrays)
        self.scores.append(row)


def score_model(settings: AppSettings, arrays: Arrays) -> dict[str, float]:
    """Score a model on the test data and on the erased data: accuracies."""
    data, model = build_federation(settings), network(settings)
    set_arrays(model, arrays)
    test = data.dataset.test
    return {
        "test": score(model, test.images, test.labels).accuracy,
        "forget": score(model, data.forget.images, data.forget.labels).accuracy,
    }


def _retrain(method: str, settings: LatencySettings, scorer: _Scorer) -> Retrain:
    app = settings.app

    def on_version(entry: VersionEntry, arrays: Arrays) -> None:
        if entry.round >= app.request_round:
            scorer(entry, arrays)

    seed = derive_seed(app.seed, "floor" if method == "retrain_floor" else "run")
    options = {**engine_settings(app, seed), "drain_seconds": _TIMEOUT}
    if method == "retrain_sync":
        options |= {"mode": "sync", "server_lr": None}
    return Retrain(without=(app.target,), on_version=on_version, **options)


def _initial(method: str, app: AppSettings) -> ArrayRecord:
    other = method == "retrain_floor"
    return initial_arrays(app, derive_seed(app.seed, "floor-model") if other else None)


class _Erasing:
    """A strategy that gets one request in the middle of its run, and ends some rounds after it."""

    def __init__(
        self, method: str, settings: LatencySettings, folder: Path, scorer: _Scorer
    ) -> None:
        self._settings, self._scorer = settings, scorer
        self._inbox = SiteInbox(inbox_path(folder, 0))
        self._filed = False
        self.strategy = _make(method, settings, self._on_version, self._finished)

    def _on_version(self, entry: VersionEntry, arrays: Arrays) -> None:
        if entry.round >= self._settings.app.request_round and not self._filed:
            self._filed = True
            held = build_federation(self._settings.app).sites[0].ids
            self._inbox.file(scope="client", sample_ids=(), held=held)
        if entry.cause == "erasure" or self._scorer.erased_at is not None:
            self._scorer(entry, arrays)

    def _finished(self, run: FederationRun) -> bool:
        records = self.strategy.requests
        merges = [r.merge_round for r in records if r.merge_round is not None]
        if not merges:
            return bool(records) and not any(record.open for record in records)
        return run.round >= max(merges) + self._settings.rounds_after


def _make(
    method: str,
    settings: LatencySettings,
    on_version: Callable[[VersionEntry, Arrays], None],
    finished: Callable[[FederationRun], bool],
) -> ErasureStrategy:
    app = settings.app
    options: dict[str, Any] = {
        "on_version": on_version,
        "stop_when": finished,
        "drain_seconds": _TIMEOUT,
        "site_timeout": _TIMEOUT,
    }
    reference = {"virtual_reference_seconds": settings.server_seconds(_REFERENCE_STEPS)}
    if settings.clock_only:
        reference["distillation"] = DistillationSettings(steps=1, views=1)  # type: ignore[assignment]
    if method in ("afuic", "afuic_sync"):
        if method == "afuic_sync":
            options |= {"mode": "sync", "server_lr": None}
        if settings.clock_only:
            options["invariance"] = InvarianceSettings(steps=1)
            options["fidelity_settings"] = FidelitySettings(steps=1)
            options["gate"] = GateSettings(by="off")  # there are no predictions worth comparing
        calibration = settings.server_seconds(_CALIBRATION_STEPS)
        return make_strategy(app, virtual_invariance_seconds=calibration, **reference, **options)
    engine = engine_settings(app, derive_seed(app.seed, "run"))
    if method == "proxy_distill":
        data = build_federation(app)
        engine |= {"model_factory": lambda: network(app), "proxies": data.proxies.images}
        engine |= reference
    return RIVALS[method](verify_rounds=app.verify_rounds, **engine, **options)


def _happened(strategy: AsyncStrategy) -> dict[str, Any]:
    """Give what the journal says, as plain values."""
    journal = strategy.journal
    closing = ("completed", "completed-unverified", "failed", "not-met")
    requests = journal.of_kind("request")
    found: Mapping[str, Any] = {
        "requested": requests[0].time if requests else None,
        "request_round": requests[0].round if requests else None,
        "closed": min((e.time for e in journal.events if e.kind in closing), default=None),
        "spans": [asdict(span) for span in journal.spans if span.kind in _TASKS],
        "server_spans": [asdict(s) for s in journal.server_spans if s.kind != "invariance"],
        "versions": [[e.version, e.round, e.time, e.cause] for e in journal.versions],
    }
    return dict(found)
