"""The runs of ``flwr-afuic bench segmentation``: each arm a file, none made twice."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flwr_afuic.app.demo import write_json
from flwr_afuic.bench.hippocampus import HippocampusSettings
from flwr_afuic.bench.runs import fingerprint
from flwr_afuic.bench.segmentation import ARMS, run_arm
from flwr_afuic.bench.segmentation_scores import AreaResult, ArmCurve
from flwr_afuic.errors import DataError

Told = Callable[[str], None]


class SegmentationRunner:
    """Run the arms that have not been run yet.

    Parameters
    ----------
    folder : pathlib.Path
        Holds one JSON file per finished arm.
    fresh : bool
        Repeat finished arms.
    told : callable
        Gets a line of text per arm.
    """

    def __init__(
        self, folder: Path, *, fresh: bool = False, told: Told = lambda line: None
    ) -> None:
        self._folder, self._fresh, self._told = folder, fresh, told

    def run(
        self,
        settings: HippocampusSettings,
        areas: Sequence[str],
        seeds: Sequence[int],
        arms: Sequence[str] = ARMS,
    ) -> dict[str, dict[int, AreaResult]]:
        """Run every arm of every area and seed; results by area and seed."""
        logging.getLogger("flwr").setLevel(logging.ERROR)
        found: dict[str, dict[int, AreaResult]] = {area: {} for area in areas}
        for seed in seeds:
            for area in areas:
                chosen = replace(settings, seed=seed)
                curves = {arm: self._arm(chosen, area, arm) for arm in arms}
                found[area][seed] = AreaResult(area, curves)
        return found

    def path(self, settings: HippocampusSettings, area: str, arm: str) -> Path:
        """Name the file of an arm: area, arm, seed and a digest of the settings it heeds."""
        asked = {**asdict(settings), "data_dir": "", "cache_dir": "", "area": area, "arm": arm}
        if arm != "afuic":  # how a site unlearns is nothing to the others
            asked = {k: v for k, v in asked.items() if not k.startswith(_OF_ERASURE)}
        digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:10]
        return self._folder / f"{area}-{arm}-s{settings.seed}-{digest}.json"

    def _arm(self, settings: HippocampusSettings, area: str, arm: str) -> ArmCurve:
        path = self.path(settings, area, arm)
        label = f"seed {settings.seed}, {area}, {arm}"
        if path.is_file() and not self._fresh:
            row = _read(path)
            note = "" if row.get("code") == fingerprint() else ", by another version of the code"
            self._told(f"{label}: taken from {path}{note}")
            return ArmCurve.from_json(row["curve"])
        self._told(f"{label}: runs")
        start, spent = time.monotonic(), time.process_time()
        with TemporaryDirectory(prefix="flwr-afuic-") as folder:
            curve = run_arm(settings, area, arm, Path(folder))
        seconds, spent = time.monotonic() - start, time.process_time() - spent
        curve = replace(curve, cpu_seconds=spent)
        self._told(f"{label}: {curve.state or 'done'} in {seconds:.0f} s, {spent:.0f} s of CPU")
        row = {"curve": curve.to_json(), "seconds": seconds, "code": fingerprint()}
        write_json(path, {**row, "settings": asdict(settings)})
        return curve


_OF_ERASURE = ("unlearning_", "distillation_", "proxies_", "max_cost", "protect_", "verify_")


def _read(path: Path) -> dict[str, Any]:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the arm {path} ({error}); delete it to repeat") from error
    if not isinstance(row, dict) or "curve" not in row:
        raise DataError(f"the arm {path} is damaged; delete it to repeat")
    return row
