"""The runs of ``flwr-afuic bench latency``: each a file, none made twice."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flwr_afuic.app.demo import write_json
from flwr_afuic.app.local import SpeedModel
from flwr_afuic.app.summary import versions
from flwr_afuic.bench.latency import RETRAINED, LatencySettings, run_method
from flwr_afuic.bench.latency_sites import Memory
from flwr_afuic.errors import DataError

Run = dict[str, Any]
Told = Callable[[str], None]
Results = dict[str, dict[str, Run]]
"""Runs by federation and method."""

RETRAIN_ROUNDS = 40
_MOST_ROUNDS = 600
_UNLEARNING_STEPS = 180
_ROUND_SECONDS, _CLOCK_SECONDS = 0.8, 0.1


@dataclass(frozen=True)
class Wanted:
    """One run: a method in a federation, and about how many rounds it takes."""

    settings: LatencySettings
    method: str

    @property
    def rounds(self) -> int:
        """Rounds, estimated; of retraining, exactly."""
        if self.method in RETRAINED:
            return RETRAIN_ROUNDS
        app, settings = self.settings.app, self.settings
        known = app.request_round + settings.rounds_after
        if not self.method.startswith("afuic"):
            return known
        speed, slow = SpeedModel(), settings.straggler if settings.target_straggles else 1.0
        unlearning = slow * (speed.overhead + _UNLEARNING_STEPS * speed.seconds_per_step)
        return known + int(unlearning + settings.server_seconds(425))

    @property
    def seconds(self) -> float:
        """Estimated seconds on one core."""
        return self.rounds * (_CLOCK_SECONDS if self.settings.clock_only else _ROUND_SECONDS)


def plan(federations: Sequence[LatencySettings], methods: Sequence[str]) -> list[Wanted]:
    """List the runs: each method in each federation, and each retraining once.

    Where the target is slow, those who retrain are as fast as where nobody is: that retraining
    serves both.
    """
    found: dict[tuple[str, str], Wanted] = {}
    for settings in federations:
        for method in methods:
            one = Wanted(_retrained_in(settings) if method in RETRAINED else settings, method)
            found.setdefault((one.settings.key, method), one)
    # One federation after the other, since its runs share what they train before the request.
    order = list(dict.fromkeys(key for key, _ in found))
    return sorted(found.values(), key=lambda one: order.index(one.settings.key))


def retrained_key(settings: LatencySettings) -> str:
    """Name the federation whose retraining serves as this one's."""
    return _retrained_in(settings).key


def _retrained_in(settings: LatencySettings) -> LatencySettings:
    if not settings.target_straggles:
        return settings
    return replace(settings, straggler=1.0, target_straggles=False)


class LatencyRunner:
    """Run what has not been run yet.

    Parameters
    ----------
    folder : Path
        Holds one JSON file per finished run.
    fresh : bool
        Repeat finished runs.
    budget : float or None
        Begin no further run after so many seconds; what is left is told and stays to be done.
    told : callable
        Gets a line of text per run.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fresh: bool = False,
        budget: float | None = None,
        told: Told = lambda line: None,
    ) -> None:
        self._folder, self._fresh, self._budget, self._told = folder, fresh, budget, told
        self._began = time.monotonic()

    def missing(self, wanted: Sequence[Wanted]) -> list[Wanted]:
        """List the runs that have no file yet."""
        return [one for one in wanted if self._fresh or not self.path(one).is_file()]

    def run(self, wanted: Sequence[Wanted]) -> Results:
        """Run what is missing; return everything that is there."""
        logging.getLogger("flwr").setLevel(logging.ERROR)
        memory, federation = Memory(), ""
        missing = self.missing(wanted)
        for number, one in enumerate(missing, start=1):
            if self._budget is not None and time.monotonic() - self._began > self._budget:
                left = len(missing) - number + 1
                self._told(f"{left} runs are left; the same command goes on with them")
                break
            if one.settings.key != federation:
                memory, federation = Memory(), one.settings.key
            start = time.monotonic()
            with TemporaryDirectory(prefix="flwr-afuic-latency-") as folder:
                most = RETRAIN_ROUNDS if one.method in RETRAINED else _MOST_ROUNDS
                found = run_method(one.method, one.settings, Path(folder), memory, rounds=most)
            write_json(self.path(one), {**found, "versions_of": versions()})
            self._told(
                f"[{number}/{len(missing)}] {federation} {one.method}: "
                f"{time.monotonic() - start:.0f} s"
            )
        results: Results = {}
        for one in wanted:
            if self.path(one).is_file():
                results.setdefault(one.settings.key, {})[one.method] = read_run(self.path(one))
        return results

    def path(self, one: Wanted) -> Path:
        """Name the file of a run: data set, seed, federation, method, and a digest of settings."""
        settings = one.settings
        asked = asdict(settings)
        asked["app"]["data_dir"] = ""
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:10]
        clock = "clock-" if settings.clock_only else ""
        name = f"{clock}{Path(settings.app.dataset).stem}-s{settings.app.seed}"
        return self._folder / f"{name}-{settings.key}-{one.method}-{digest}.json"


def read_run(path: Path) -> Run:
    """Read the file of a finished run; DataError where it is damaged."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the run {path} ({error}); delete it to repeat") from error
    if not isinstance(run, dict) or not {"method", "versions", "scores"} <= run.keys():
        raise DataError(f"{path} is no run of bench latency; delete it to repeat")
    return run
