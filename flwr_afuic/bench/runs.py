"""Runs of an experiment: each in a process of its own, each result a file, none made twice."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from flwr_afuic.app.engines import check_engine
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.errors import AfuicError, ConfigError, DataError, FederationError

Summary = dict[str, Any]
Told = Callable[[str], None]

_MOST_SEEDS = 40
_NOT_RESULTS = ("bench", "cli", "report")


@dataclass(frozen=True)
class Plan:
    """Runs of one data set: the settings of seed 0, and which seeds are wanted.

    Attributes
    ----------
    settings : AppSettings
        Of every run; ``seed`` is replaced.
    planted : int or None
        Take seeds 0, 1, 2, ... until so many have planted their backdoor. Where the scenario
        plants none, every seed counts.
    seeds : tuple of int
        Where ``planted`` is None: exactly these.
    """

    settings: AppSettings
    planted: int | None = 3
    seeds: tuple[int, ...] = ()


@dataclass
class Outcome:
    """Summaries by seed: ``counted``, those ``left_out`` (not planted), and errors."""

    plan: Plan
    counted: dict[int, Summary]
    left_out: dict[int, Summary]
    errors: dict[int, AfuicError]


class Runner:
    """Run plans in worker processes.

    Parameters
    ----------
    folder : Path
        Holds one JSON file per finished run; a run whose file is there is not repeated.
    engine : str
        See :func:`flwr_afuic.app.engines.run_engine`.
    workers : int
        Runs at once.
    fresh : bool
        Repeat finished runs.
    told : callable
        Gets one line of text per run.
    """

    def __init__(
        self,
        folder: Path,
        *,
        engine: str = "virtual",
        workers: int = 1,
        fresh: bool = False,
        told: Told = lambda line: None,
    ) -> None:
        if workers < 1:
            raise ConfigError(f"workers is {workers}; it must be at least 1")
        check_engine(engine)
        self._folder, self._engine, self._workers = folder, engine, workers
        self._fresh, self._told = fresh, told

    def run(self, plans: Sequence[Plan]) -> list[Outcome]:
        """Run every plan; a failed run is reported in its outcome and ends its plan."""
        outcomes = [Outcome(plan, {}, {}, {}) for plan in plans]
        pool = ProcessPoolExecutor(
            self._workers, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
        )
        flying: dict[Future[Summary], tuple[Outcome, int]] = {}
        try:
            while True:
                busy = len(flying)
                for outcome in outcomes:
                    under_way = [seed for other, seed in flying.values() if other is outcome]
                    while busy < self._workers:
                        seed = next_seed(outcome, under_way)
                        if seed is None:
                            break
                        if self._known(outcome, seed):
                            continue
                        flying[self._submit(pool, outcome.plan, seed)] = (outcome, seed)
                        under_way.append(seed)
                        busy += 1
                if not flying:
                    return outcomes
                for future in wait(flying, return_when=FIRST_COMPLETED).done:
                    self._take(*flying.pop(future), future)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def path(self, settings: AppSettings) -> Path:
        """Name the file of a run: data set, scenario, seed and a digest of all settings."""
        text = json.dumps({**asdict(settings), "data_dir": "", "engine": self._engine})
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        name = Path(settings.dataset).stem
        return self._folder / f"{name}-{settings.scenario}-s{settings.seed}-{digest}.json"

    def _known(self, outcome: Outcome, seed: int) -> bool:
        path = self.path(replace(outcome.plan.settings, seed=seed))
        if self._fresh or not path.is_file():
            return False
        summary = read_summary(path)
        note = "" if summary.get("code") == fingerprint() else ", by another version of the code"
        self._sort(outcome, seed, summary, f"taken from {path}{note}")
        return True

    def _submit(self, pool: ProcessPoolExecutor, plan: Plan, seed: int) -> Future[Summary]:
        settings = replace(plan.settings, seed=seed)
        return pool.submit(one_run, settings, self._engine, self.path(settings))

    def _take(self, outcome: Outcome, seed: int, future: Future[Summary]) -> None:
        try:
            summary = future.result()
        except AfuicError as error:
            outcome.errors[seed] = error
            self._told(f"{outcome.plan.settings.dataset} seed {seed}: error: {error}")
            return
        self._sort(outcome, seed, summary, f"{summary['wall_seconds']:.0f} s")

    def _sort(self, outcome: Outcome, seed: int, summary: Summary, how: str) -> None:
        left_out = outcome.plan.planted is not None and summary["planted"] is False
        (outcome.left_out if left_out else outcome.counted)[seed] = summary
        word = "left out, backdoor not planted" if left_out else summary["erasure"]["state"]
        self._told(f"{summary['dataset']} seed {seed}: {word} ({how})")


def next_seed(outcome: Outcome, under_way: Sequence[int]) -> int | None:
    """Return the next seed to start, or None while no further one is needed.

    Seeds are started in order and never more than could still be needed, so that the ones
    counted are the first planted ones whatever the number of workers.
    """
    plan = outcome.plan
    begun = {*outcome.counted, *outcome.left_out, *outcome.errors, *under_way}
    if plan.planted is None:
        return next((seed for seed in plan.seeds if seed not in begun), None)
    if outcome.errors or len(outcome.counted) + len(under_way) >= plan.planted:
        return None
    seed = next(seed for seed in range(len(begun) + 1) if seed not in begun)
    if seed >= _MOST_SEEDS:
        outcome.errors[seed] = FederationError(
            f"only {len(outcome.counted)} of {_MOST_SEEDS} seeds planted their backdoor on "
            f"{plan.settings.dataset}; raise poison_fraction or request_round"
        )
        return None
    return seed


def one_run(settings: AppSettings, engine: str, path: Path) -> Summary:
    """Run the demo's pipeline and write its summary; called in a worker process."""
    from flwr_afuic.app.demo import run_demo, write_json

    logging.getLogger("flwr").setLevel(logging.ERROR)
    summary = {**run_demo(settings, engine=engine).summary, "code": fingerprint()}
    write_json(path, summary)
    return summary


def read_summary(path: Path) -> Summary:
    """Read the file of a finished run; DataError where it is damaged."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the run {path} ({error}); delete it to repeat") from error
    missing = [
        key
        for key in ("dataset", "planted", "erasure", "models", "verdicts", "figures")
        if not isinstance(summary, dict) or key not in summary
    ]
    if missing:
        raise DataError(f"the run {path} lacks {', '.join(missing)}; delete it to repeat")
    return dict(summary)


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """Digest of the code that makes results, to tell when a stored run is from other code."""
    digest = hashlib.sha256()
    root = Path(str(resources.files("flwr_afuic")))
    for file in sorted(root.rglob("*.py")):
        if file.relative_to(root).parts[0] not in _NOT_RESULTS:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
