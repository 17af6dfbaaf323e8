"""What ``flwr-afuic bench forget`` runs: scenarios, methods, and one piece of work a method."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flwr_afuic.app.settings import AppSettings
from flwr_afuic.errors import ConfigError

SCENARIOS: dict[str, dict[str, Any]] = {
    "backdoor": {"scenario": "backdoor"},
    "mislabel": {"scenario": "mislabel"},
    "exclusive": {"scenario": "exclusive"},
    "clean": {"scenario": "clean"},
    "samples": {"scenario": "backdoor", "scope": "samples", "forget_fraction": 0.6},
    "patient": {"scenario": "patient", "scope": "samples"},
}
"""What is erased: a whole site but in the last two, where the site stays."""

BASES = ("original", "retrain", "retrain_floor")
"""What every method of a cell is judged by; made first, once."""

METHODS = (
    "afuic",
    "no_unlearning",
    "not",
    "pga",
    "fcu",
    "federaser",
    "proxy_distill",
    "fedosd",
    "medu",
)
SAMPLE_METHODS = ("afuic", "no_unlearning")
"""Those that can erase part of a site's samples; the others erase whole sites only."""

WINDOW = 30
JUDGED_ON = ("test", "tuning")
Constants = tuple[tuple[str, float | int | str], ...]
"""A method's own settings where they differ from its defaults, by name."""


@dataclass(frozen=True)
class Protocol:
    """How long is trained, and how late an asynchronous erasure comes.

    Attributes
    ----------
    staleness : int
        Rounds of the others during the erasing site's unlearning.
    rounds_after : int
        Rounds of every method after the request and that staleness. A few more than the 30 over
        which resurfacing is counted, for merges that come late.
    judged_on : {"test", "tuning"}
        Constants are chosen on the half of the validation split that no method sees; test data are
        for results.
    """

    staleness: int = 3
    rounds_after: int = 32
    judged_on: str = "test"

    def __post_init__(self) -> None:
        if self.judged_on not in JUDGED_ON:
            raise ConfigError(f"judged on {self.judged_on!r}; use {' or '.join(JUDGED_ON)}")
        if self.staleness < 0:
            raise ConfigError(f"staleness is {self.staleness}; it must be at least 0")
        if self.rounds_after < 1:
            raise ConfigError(f"rounds_after is {self.rounds_after}; it must be at least 1")

    def last_round(self, settings: AppSettings) -> int:
        """Return the round in which every method ends."""
        return settings.request_round + self.staleness + self.rounds_after


@dataclass(frozen=True)
class Piece:
    """One method on one data set, scenario and seed: the unit that is run and kept."""

    settings: AppSettings
    protocol: Protocol
    scenario: str
    method: str
    constants: Constants = ()

    def of(self, method: str) -> Piece:
        """Return another method's piece of the same cell, with its defaults."""
        return replace(self, method=method, constants=())

    @property
    def dataset(self) -> str:
        """The data set's name, or that of its file."""
        return Path(self.settings.dataset).stem

    @property
    def needs(self) -> tuple[str, ...]:
        """Pieces of the same cell that must be there first."""
        if self.method == "original":
            return ()
        return ("original",) if self.method == "retrain" else ("original", "retrain")

    @property
    def cell(self) -> str:
        """Name what methods share: data set, scenario, seed, and a digest of all settings."""
        settings = {**asdict(self.settings), "data_dir": ""}
        protocol = asdict(self.protocol)
        if self.protocol.judged_on == "test":
            del protocol["judged_on"]
        text = json.dumps({**settings, "protocol": protocol}, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return f"{self.dataset}-{self.scenario}-s{self.settings.seed}-{digest}"

    def result(self, folder: Path) -> Path:
        """Where its JSON is kept."""
        return folder / self.cell / f"{self._stem}.json"

    def arrays(self, folder: Path) -> Path:
        """Where its last model is kept."""
        return folder / self.cell / f"{self._stem}.safetensors"

    @property
    def _stem(self) -> str:
        if not self.constants:
            return self.method
        digest = hashlib.sha256(json.dumps(sorted(self.constants)).encode()).hexdigest()
        return f"{self.method}-{digest[:8]}"

    def replies(self, folder: Path) -> Path:
        """Where the training up to the request is kept, which all methods share."""
        return folder / self.cell / "prefix"


def cell_settings(dataset: str, scenario: str, changes: Mapping[str, Any]) -> AppSettings:
    """Build the settings of a scenario; ``changes`` win over the scenario's own.

    Raises
    ------
    ConfigError
        If the scenario is unknown or a setting out of range.
    """
    if scenario not in SCENARIOS:
        raise ConfigError(f"unknown scenario {scenario!r}; known: {', '.join(SCENARIOS)}")
    return AppSettings.from_mapping({**SCENARIOS[scenario], **changes, "dataset": dataset})


def read_constants(texts: Sequence[str]) -> dict[str, Constants]:
    """Read ``METHOD.NAME=VALUE`` texts: whole numbers, other numbers, or words, by method.

    Raises
    ------
    ConfigError
        If a text has another form or names no method.
    """
    found: dict[str, list[tuple[str, float | int | str]]] = {}
    for text in texts:
        key, mark, value = text.partition("=")
        method, dot, name = key.strip().partition(".")
        if not mark or not dot or not name or method not in METHODS:
            raise ConfigError(
                f"--constant {text!r}: write METHOD.NAME=VALUE, such as pga.lr=0.02; methods are "
                f"{', '.join(METHODS)}"
            )
        found.setdefault(method, []).append((name, _number(value.strip())))
    return {method: tuple(sorted(pairs)) for method, pairs in found.items()}


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def method_named(text: str, known: Sequence[str]) -> str:
    """Return the known method of a name that may be the strategy's class, such as FedOSD.

    Raises
    ------
    ConfigError
        If there is none.
    """
    plain = {name.replace("_", ""): name for name in known}
    found = plain.get(text.replace("_", "").lower())
    if found is None:
        raise ConfigError(f"unknown method {text!r}; known: {', '.join(known)}")
    return found


def check_methods(methods: list[str], scenario: str) -> tuple[str, ...]:
    """Return the methods to compare, bases left out; an empty list means all that can do it.

    Strategies' class names do as well.

    Raises
    ------
    ConfigError
        If one is unknown, or cannot erase what the scenario erases.
    """
    samples = SCENARIOS.get(scenario, {}).get("scope") == "samples"
    able = SAMPLE_METHODS if samples else METHODS
    known = (*METHODS, *BASES)
    methods = [method_named(name, known) for name in methods]
    for name in methods:
        if name not in BASES and name not in able:
            raise ConfigError(
                f"{name} erases whole sites only; scenario {scenario!r} erases samples, so use "
                f"{', '.join(able)}"
            )
    chosen = tuple(dict.fromkeys(name for name in methods if name not in BASES))
    return chosen if methods else able
