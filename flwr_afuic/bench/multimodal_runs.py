"""The runs of ``flwr-afuic bench multimodal``: each arm a file, none made twice."""

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
from flwr_afuic.bench.multimodal import ARMS, MultimodalSettings, Setup, run_arm
from flwr_afuic.bench.multimodal_scores import Curve
from flwr_afuic.bench.runs import fingerprint
from flwr_afuic.errors import ConfigError, DataError

Told = Callable[[str], None]
Results = dict[int, dict[str, Curve]]

_OF_ERASURE = (
    "excision_", "tolerance", "ascent_", "osd_", "lam", "tau", "energy", "after"
)  # fmt: skip


class MultimodalRunner:
    """Run the arms that have not been run yet.

    Parameters
    ----------
    folder : pathlib.Path
        Holds a file per finished arm, and the original of each seed with its history.
    fresh : bool
        Repeat finished arms.
    told : callable
        Gets a line of text per arm.
    """

    def __init__(
        self, folder: Path, *, fresh: bool = False, told: Told = lambda line: None
    ) -> None:
        self._folder, self._fresh, self._told = folder, fresh, told
        self._setups: dict[MultimodalSettings, Setup] = {}

    def run(
        self, settings: MultimodalSettings, seeds: Sequence[int], arms: Sequence[str] = ARMS
    ) -> Results:
        """Run every arm of every seed; the original always comes first.

        Raises
        ------
        ConfigError
            If an arm is unknown.
        """
        unknown = sorted(set(arms) - set(ARMS))
        if unknown:
            raise ConfigError(f"unknown arms {', '.join(unknown)}; known: {', '.join(ARMS)}")
        logging.getLogger("flwr").setLevel(logging.ERROR)
        wanted = [arm for arm in ARMS if arm in arms or arm == "original"]
        return {
            seed: {arm: self._arm(replace(settings, seed=seed), arm) for arm in wanted}
            for seed in seeds
        }

    def _arm(self, settings: MultimodalSettings, arm: str) -> Curve:
        home = self._home(settings)
        asked = {**asdict(settings), "data_dir": "", "arm": arm}
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:10]
        path = home / (f"{arm}.json" if arm == "original" else f"{arm}-{digest}.json")
        label = f"seed {settings.seed}, {arm}"
        if path.is_file() and not self._fresh:
            row = _read(path)
            note = "" if row.get("code") == fingerprint() else ", by another version of the code"
            self._told(f"{label}: taken from {path}{note}")
            return Curve.from_json(row["curve"])
        start = time.monotonic()
        home.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="flwr-afuic-") as work:
            curve = run_arm(self._setup(settings), arm, home, Path(work))
        seconds = time.monotonic() - start
        self._told(f"{label}: {curve.state or 'done'} in {seconds:.0f} s")
        write_json(path, {"curve": curve.to_json(), "seconds": seconds, "code": fingerprint()})
        return curve

    def _setup(self, settings: MultimodalSettings) -> Setup:
        if settings not in self._setups:
            self._setups = {settings: Setup(settings, self._folder / "warm")}
        return self._setups[settings]

    def _home(self, settings: MultimodalSettings) -> Path:
        """Name the folder of an original: what it was made with, without what comes after."""
        asked = {k: v for k, v in asdict(settings).items() if not k.startswith(_OF_ERASURE)}
        asked.pop("data_dir")
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:10]
        return self._folder / f"s{settings.seed}-{digest}"


def _read(path: Path) -> dict[str, Any]:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}; delete it, or run with --fresh") from error
    if not isinstance(row, dict) or "curve" not in row:
        raise DataError(f"{path} holds no arm; delete it, or run with --fresh")
    return row
