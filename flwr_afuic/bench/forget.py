"""The runs of ``flwr-afuic bench forget``: which, in what order, how long, and none twice."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flwr_afuic.app.settings import AppSettings
from flwr_afuic.bench.forget_protocol import BASES, Constants, Piece, Protocol
from flwr_afuic.bench.runs import fingerprint
from flwr_afuic.errors import AfuicError, ConfigError, DataError

Result = dict[str, Any]
Told = Callable[[str], None]

_MOST_SEEDS = 40
_GUESSES = {"original": 25.0, "fedosd": 150.0, "medu": 120.0, "afuic": 120.0}
_GUESS = 75.0


@dataclass(frozen=True)
class Plan:
    """One data set and scenario: the settings of any seed, methods, and which seeds.

    Attributes
    ----------
    settings : AppSettings
        Of every piece; ``seed`` is replaced.
    protocol : Protocol
    scenario : str
    methods : tuple of str
        Beside the bases, which are always made.
    planted : int or None
        Take seeds 0, 1, 2, ... until so many have planted their backdoor.
    seeds : tuple of int
        Where ``planted`` is None: these, less those that plant none.
    constants : mapping of str to tuple
        By method, where they differ from its defaults.
    """

    settings: AppSettings
    protocol: Protocol
    scenario: str
    methods: tuple[str, ...]
    planted: int | None = 3
    seeds: tuple[int, ...] = ()
    constants: Mapping[str, Constants] = field(default_factory=dict)

    def piece(self, seed: int, method: str) -> Piece:
        """Return one piece."""
        settings, constants = replace(self.settings, seed=seed), self.constants.get(method, ())
        return Piece(settings, self.protocol, self.scenario, method, constants)

    @property
    def all_methods(self) -> tuple[str, ...]:
        """Bases and methods."""
        return (*BASES, *self.methods)


@dataclass
class Cells:
    """What is there of a plan: results by seed and method, seeds left out, and errors."""

    plan: Plan
    counted: dict[int, dict[str, Result]] = field(default_factory=dict)
    left_out: list[int] = field(default_factory=list)
    errors: list[AfuicError] = field(default_factory=list)

    def complete(self, method: str) -> list[int]:
        """Return the seeds for which a method and its bases are there."""
        needed = {*BASES, method}
        return sorted(seed for seed, found in self.counted.items() if needed <= found.keys())


class ForgetRunner:
    """Run what is not there yet, seed by seed over all plans, so that whole seeds come first.

    Parameters
    ----------
    folder : Path
        Holds one JSON file per finished piece, and its last model.
    workers : int
        Pieces at once; with more than one, each in a process of its own.
    fresh : bool
        Repeat finished pieces.
    stop_after : float
        Seconds after which no further piece is started.
    told : callable
        Gets a line of text per piece.
    """

    def __init__(
        self,
        folder: Path,
        *,
        workers: int = 1,
        fresh: bool = False,
        stop_after: float = float("inf"),
        told: Told = lambda line: None,
    ) -> None:
        if workers < 1:
            raise ConfigError(f"workers is {workers}; it must be at least 1")
        if not stop_after > 0:
            raise ConfigError(f"stop_after is {stop_after}; it must be positive")
        self._folder, self._workers, self._fresh = folder, workers, fresh
        self._until, self._told = time.monotonic() + stop_after, told
        self._done: set[Path] = set()

    # ---- running --------------------------------------------------------------------

    def run(self, plans: Sequence[Plan]) -> list[Cells]:
        """Run every plan as far as time allows, and read all that is there."""
        failed: dict[Path, AfuicError] = {}
        while True:
            pieces = [p for p in self._pieces(plans) if not self._finished(p)]
            pieces = [p for p in pieces if not self._blocked(p, failed)]
            if not pieces or not self._time_left():
                return self.read(plans, failed)
            self._batch(pieces, failed)

    def read(
        self, plans: Sequence[Plan], failed: Mapping[Path, AfuicError] = MappingProxyType({})
    ) -> list[Cells]:
        """Read every finished piece of the plans."""
        cells = []
        for plan in plans:
            found = Cells(plan)
            for seed in self._seeds(plan):
                results = {}
                for method in plan.all_methods:
                    piece = plan.piece(seed, method)
                    if piece.result(self._folder).is_file():
                        results[method] = read_result(piece.result(self._folder))
                    elif piece.result(self._folder) in failed:
                        found.errors.append(failed[piece.result(self._folder)])
                if results.get("original", {}).get("planted") is False:
                    found.left_out.append(seed)
                elif results:
                    found.counted[seed] = results
            cells.append(found)
        return cells

    def plan(self, plans: Sequence[Plan]) -> list[tuple[Piece, float, bool]]:
        """Return every piece, in order, its estimated seconds, and whether it is there.

        Where it is not known yet which seeds plant their backdoor, the first ones are assumed to.
        """
        known = self._durations()
        return [
            (piece, _estimate(piece, known), self._finished(piece)) for piece in self._pieces(plans)
        ]

    def _pieces(self, plans: Sequence[Plan]) -> Iterator[Piece]:
        """Yield pieces in the order they are run: by rank of the seed, then by plan."""
        seeds = [self._seeds(plan) for plan in plans]
        for rank in range(max((len(s) for s in seeds), default=0)):
            for plan, mine in zip(plans, seeds, strict=True):
                if rank >= len(mine):
                    continue
                for method in plan.all_methods:
                    yield plan.piece(mine[rank], method)
                    if method == "original" and self._planted(plan, mine[rank]) is False:
                        break

    def _seeds(self, plan: Plan) -> list[int]:
        """Return the seeds to look at: those given, or as many as planting so many takes."""
        if plan.planted is None:
            return list(plan.seeds)
        seeds: list[int] = []
        planted = 0
        while planted < plan.planted and len(seeds) < _MOST_SEEDS:
            planted += self._planted(plan, len(seeds)) is not False
            seeds.append(len(seeds))
        return seeds

    def _planted(self, plan: Plan, seed: int) -> bool | None:
        """Whether a seed planted its backdoor; None while that is unknown, or nothing is."""
        path = plan.piece(seed, "original").result(self._folder)
        return read_result(path)["planted"] if path.is_file() else None

    def _batch(self, pieces: Sequence[Piece], failed: dict[Path, AfuicError]) -> None:
        """Run pieces whose needs are there; all of them, or until an original is new."""
        ready = [piece for piece in pieces if self._ready(piece)]
        if self._workers == 1:
            self._one(ready[0], failed)
            return
        pool = ProcessPoolExecutor(
            self._workers, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=4
        )
        flying: dict[Future[Result], Piece] = {}
        try:
            while ready or flying:
                while ready and len(flying) < self._workers and self._time_left():
                    piece = ready.pop(0)
                    flying[pool.submit(_work, piece, self._folder)] = piece
                if not flying:
                    return
                for future in wait(flying, return_when=FIRST_COMPLETED).done:
                    piece = flying.pop(future)
                    try:
                        self._tell(piece, future.result())
                    except AfuicError as error:
                        self._failed(piece, error, failed)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _one(self, piece: Piece, failed: dict[Path, AfuicError]) -> None:
        try:
            self._tell(piece, _work(piece, self._folder))
        except AfuicError as error:
            self._failed(piece, error, failed)

    def _ready(self, piece: Piece) -> bool:
        return all(self._finished(piece.of(name)) for name in piece.needs)

    def _blocked(self, piece: Piece, failed: dict[Path, AfuicError]) -> bool:
        """Whether a piece failed, or one that it needs."""
        names = (piece.method, *piece.needs)
        return any(piece.of(name).result(self._folder) in failed for name in names)

    def _finished(self, piece: Piece) -> bool:
        path = piece.result(self._folder)
        return path.is_file() and (not self._fresh or path in self._done)

    def _time_left(self) -> bool:
        return time.monotonic() < self._until

    def _tell(self, piece: Piece, result: Result) -> None:
        self._done.add(piece.result(self._folder))
        words = f"{result['seconds']['all']:.0f} s"
        if piece.method == "original" and result["planted"] is not None:
            words += ", planted" if result["planted"] else ", left out: no backdoor planted"
        if "erasure" in result:
            words += f", {result['erasure']['state']}"
        self._told(f"{_named(piece)}: {words}")

    def _failed(self, piece: Piece, error: AfuicError, failed: dict[Path, AfuicError]) -> None:
        failed[piece.result(self._folder)] = error
        self._told(f"{_named(piece)}: error: {error}")

    def _durations(self) -> dict[tuple[str, str], list[float]]:
        """Seconds of finished pieces by data set and method, of any data set under ''."""
        found: dict[tuple[str, str], list[float]] = {}
        for path in sorted(self._folder.glob("*/*.json")):
            result = read_result(path)
            seconds = float(result["seconds"]["all"])
            for dataset in (result["dataset"], ""):
                found.setdefault((dataset, result["method"]), []).append(seconds)
        return found


def _estimate(piece: Piece, known: dict[tuple[str, str], list[float]]) -> float:
    for dataset in (piece.dataset, ""):
        if (dataset, piece.method) in known:
            return statistics.median(known[dataset, piece.method])
    return _GUESSES.get(piece.method, _GUESS)


def _named(piece: Piece) -> str:
    return f"{piece.dataset} {piece.scenario} seed {piece.settings.seed} {piece.method}"


def _work(piece: Piece, folder: Path) -> Result:
    # Imported here: planning and tables need no torch, and workers start without it.
    from flwr_afuic.bench.forget_piece import run_piece

    return run_piece(piece, folder)


def read_result(path: Path) -> Result:
    """Read the file of a finished piece; DataError where it is damaged."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the run {path} ({error}); delete it to repeat") from error
    needed = {"dataset", "method", "seed", "curve", "merge", "seconds", "code"}
    if not isinstance(result, dict) or not needed <= result.keys():
        raise DataError(f"the run {path} is damaged; delete it to repeat")
    if result["method"] == "original" and "planted" not in result:
        raise DataError(f"the run {path} is damaged; delete it to repeat")
    return result


def other_code(cells: Sequence[Cells]) -> int:
    """Count the pieces made by another version of the code than this one."""
    results = [r for cell in cells for found in cell.counted.values() for r in found.values()]
    return sum(result["code"] != fingerprint() for result in results)
