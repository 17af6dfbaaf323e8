"""The runs of ``flwr-afuic bench memory``: each result a file, none made twice.

A federation that was stopped goes on from the folder beside its file, form by form.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any

from flwr_afuic.app.demo import write_json
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.app.summary import versions
from flwr_afuic.bench.history_peak import HistorySize, history_peak
from flwr_afuic.bench.memory import MemorySettings, measure
from flwr_afuic.bench.rates import rate_distortion, speed
from flwr_afuic.bench.runs import fingerprint
from flwr_afuic.bench.storage import Form, forms
from flwr_afuic.errors import DataError

Result = dict[str, Any]
Told = Callable[[str], None]


@dataclass
class MemoryResults:
    """Everything that was measured.

    Attributes
    ----------
    runs : dict of str to list of dict
        By data set, one :func:`~flwr_afuic.bench.memory.measure` a seed.
    codec : dict
        ``points`` and ``speed``.
    histories : list of dict
        Sizes and peaks of generated histories.
    """

    runs: dict[str, list[Result]] = field(default_factory=dict)
    codec: Result = field(default_factory=dict)
    histories: list[Result] = field(default_factory=list)


class MemoryRunner:
    """Measure what has not been measured yet.

    Parameters
    ----------
    folder : Path
        Holds one JSON file per finished run.
    fresh : bool
        Repeat finished runs.
    told : callable
        Gets a line of text per step.
    """

    def __init__(
        self, folder: Path, *, fresh: bool = False, told: Told = lambda line: None
    ) -> None:
        self._folder, self._fresh, self._told = folder, fresh, told

    def federations(
        self, plans: Sequence[AppSettings], seeds: Sequence[int], memory: MemorySettings
    ) -> dict[str, list[Result]]:
        """Run every data set with every seed, one after the other."""
        logging.getLogger("flwr").setLevel(logging.ERROR)
        found: dict[str, list[Result]] = {}
        total, count = len(plans) * len(seeds), 0
        for seed in seeds:
            for settings in plans:
                count += 1
                run = self._federation(replace(settings, seed=seed), memory, f"{count}/{total}")
                found.setdefault(str(run["dataset"]), []).append(run)
        return found

    def _federation(self, settings: AppSettings, memory: MemorySettings, number: str) -> Result:
        compared = forms()
        named = f"{Path(settings.dataset).stem}-{settings.scenario}-s{settings.seed}"
        label = f"[{number}] {named}"

        def run(keep: Path) -> Result:
            return measure(
                settings, memory, compared, keep=keep,
                told=lambda step: self._told(f"{label}: {step}"),
            )  # fmt: skip

        asked = {**asdict(settings), "data_dir": "", "memory": asdict(memory)}
        return self._once(named, {**asked, "forms": _described(compared)}, run, label)

    def codec(self, seed: int = 0) -> Result:
        """Measure rates and speed of the codec."""

        def run(keep: Path) -> Result:
            return {
                "points": [asdict(point) for point in rate_distortion(seed)],
                "speed": asdict(speed(seed)),
                "versions": versions(),
            }

        return self._once("codec", {"seed": seed}, run, "rates and speed of the codec")

    def history(self, size: HistorySize) -> Result:
        """Measure the memory that unlearning from a generated history takes."""
        label = (
            f"a history of {size.clients} clients x {size.rounds} rounds x "
            f"{size.parameters} parameters"
        )

        def run(keep: Path) -> Result:
            with TemporaryDirectory(prefix="flwr-afuic-peak-") as folder:
                peak = history_peak(size, Path(folder))
            return {"size": asdict(size), **asdict(peak), "versions": versions()}

        name = f"history-{size.clients}x{size.rounds}x{size.parameters}"
        return self._once(name, asdict(size), run, label)

    def _once(
        self, name: str, asked: dict[str, Any], run: Callable[[Path], Result], label: str
    ) -> Result:
        digest = hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest()[:10]
        path = self._folder / f"{name}-{digest}.json"
        if path.is_file() and not self._fresh:
            result = _read(path)
            note = "" if result.get("code") == fingerprint() else ", by another version of the code"
            self._told(f"{label}: taken from {path}{note}")
            return result
        self._told(label)
        keep = path.with_suffix("")
        if self._fresh:
            rmtree(keep, ignore_errors=True)
        result = {**run(keep), "code": fingerprint()}
        write_json(path, result)
        rmtree(keep, ignore_errors=True)
        return result


def _described(compared: dict[str, tuple[str, Form]]) -> dict[str, str]:
    """Say what a form is in the name of a run; functions have no text of their own."""
    return {name: f"{words} {_settings(form)}" for name, (words, form) in compared.items()}


def _settings(form: Form) -> str:
    return repr(form) if hasattr(form, "codec") else ""


def _read(path: Path) -> Result:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the run {path} ({error}); delete it to repeat") from error
    if not isinstance(found, dict) or "versions" not in found:
        raise DataError(f"the run {path} is damaged; delete it to repeat")
    return found
