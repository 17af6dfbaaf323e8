"""Tables and flat figures of ``flwr-afuic bench latency``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr_afuic.app.summary import versions
from flwr_afuic.bench.latency import RETRAINED, LatencySettings
from flwr_afuic.bench.latency_figures import (
    TRAINED_ROUNDS,
    Figures,
    Yardstick,
    erasing_figures,
    retraining_figures,
    yardstick,
)
from flwr_afuic.bench.latency_runs import Results, retrained_key

BEGIN = "<!-- table: flwr-afuic bench latency -->"
CAPTION = "How long retraining takes beside AFU-IC, by the length of the training it repeats"
NAMES = {
    "afuic": "**AFU-IC**",
    "afuic_sync": "AFU-IC, synchronous rounds",
    "pga": "PGA",
    "federaser": "FedEraser",
    "fedosd": "FedOSD",
    "not": "NoT",
    "fcu": "FCU",
    "proxy_distill": "ProxyDistill",
    "retrain": "Retraining",
    "retrain_floor": "Retraining again",
    "retrain_sync": "Retraining, synchronous rounds",
}
_OWN = ("afuic", "afuic_sync")
_WITHIN, _THROUGHPUT = 1.2, 0.9


@dataclass
class LatencyResults:
    """Everything that was run, and the federations it was run in.

    Attributes
    ----------
    federations : list of LatencySettings
    learned : dict
        Runs with training, by federation and method.
    clock : dict
        Runs of time alone.
    """

    federations: list[LatencySettings]
    learned: Results = field(default_factory=dict)
    clock: Results = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The site that is erased."""
        return self.federations[0].app.target

    @property
    def request_round(self) -> int:
        """Rounds of training before the request."""
        return self.federations[0].app.request_round

    def measure(self, settings: LatencySettings) -> Yardstick | None:
        """Return the yardstick of a federation; None where nobody retrained there."""
        runs = self.learned.get(retrained_key(settings), {})
        floors = (of["retrain_floor"] for of in self.learned.values() if "retrain_floor" in of)
        return yardstick(runs["retrain"], next(floors, None)) if "retrain" in runs else None

    def figures(self, settings: LatencySettings) -> dict[str, Figures]:
        """Compute the figures of each method in a federation; of time alone where so run."""
        found = self._of(self.clock, settings, None)
        return found | self._of(self.learned, settings, self.measure(settings))

    def _of(
        self, results: Results, settings: LatencySettings, measure: Yardstick | None
    ) -> dict[str, Figures]:
        runs = {
            **{m: r for m, r in results.get(settings.key, {}).items() if m not in RETRAINED},
            **{m: r for m, r in results.get(retrained_key(settings), {}).items() if m in RETRAINED},
        }
        return {
            method: retraining_figures(runs[method], self.request_round)
            if method in RETRAINED
            else erasing_figures(runs[method], self.target, measure)
            for method in NAMES
            if method in runs and method != "retrain_floor"
        }


def flat_figures(results: LatencyResults) -> dict[str, float]:
    """Name every figure ``latency/STRAGGLER/METHOD/figure``; what was not reached is left out."""
    return {
        f"latency/{settings.key}/{method}/{name}": value
        for settings in results.federations
        for method, figures in results.figures(settings).items()
        for name, value in figures.items()
        if value is not None
    } | {
        f"latency/{settings.key}/advantage/{name}": value
        for settings in results.federations
        for name, value in advantages(results.figures(settings)).items()
    }


def advantages(figures: Mapping[str, Figures]) -> dict[str, float]:
    """Divide every other time to forget by AFU-IC's, and retraining's for longer training, too.

    Methods that never came to the forget level have no time and are left out. Where nothing was
    learned, AFU-IC's time to the erased model stands for it, beside retraining alone.
    """
    afuic = figures.get("afuic", {})
    own = afuic.get("time_to_forget", afuic.get("time_to_model"))
    if own is None:
        return {}
    found = {}
    for method, values in figures.items():
        if method in _OWN:
            continue
        names = ["time_to_forget"]
        if method in RETRAINED:
            names = [f"time_to_forget_{number}_rounds" for number in TRAINED_ROUNDS]
        for name in names:
            value = values.get(name)
            if value is not None:
                found[method + name.removeprefix("time_to_forget")] = value / own
    return found


def verdicts(results: LatencyResults) -> dict[str, dict[str, bool]]:
    """Say for each federation which of AFU-IC's bounds hold, as far as they were measured."""
    found = {}
    for settings in results.federations:
        own = results.figures(settings).get("afuic")
        if own is None:
            continue
        verdict = {
            "stall": own["stall"] == 0,
            "retained_throughput": (own["retained_throughput"] or 0.0) >= _THROUGHPUT,
        }
        # Where nothing was learned, the time to the erased model stands for that to forget.
        timed = "time_to_forget" if "time_to_forget" in own else "time_to_model"
        time, floor = own[timed], own["floor"]
        verdict[f"{timed}_within_1.2_of_floor"] = (
            time is not None and floor is not None and time <= _WITHIN * floor
        )
        found[settings.key] = verdict
    return found


def content(results: LatencyResults) -> dict[str, Any]:
    """Build the JSON file."""
    first = results.federations[0]
    settings = {k: v for k, v in vars(first.app).items() if k not in ("seed", "data_dir")}
    return {
        "figures": flat_figures(results),
        "verdicts": verdicts(results),
        "settings": {
            **settings,
            "server_speed": first.server_speed,
            "rounds_after": first.rounds_after,
            "pareto_tail": next((s.tail for s in results.federations if s.tail is not None), None),
        },
        "seeds": [first.app.seed],
        "versions": versions(),
    }


def markdown(results: LatencyResults) -> str:
    """Write every table."""
    first = results.federations[0]
    parts = [
        f"**{first.app.dataset}**, {first.app.scenario}, {first.app.sites} sites, virtual engine, "
        f"seed {first.app.seed}; request after {first.app.request_round} rounds; server "
        f"{first.server_speed:g} times as fast as a site."
    ]
    parts += [_learned(results, s) for s in results.federations if s.key in results.learned]
    parts.append(_advantage(results))
    parts.append(_clock(results))
    return "\n\n".join(part for part in parts if part)


def describe(settings: LatencySettings) -> str:
    """Say in words who is slow."""
    speeds = "fixed speeds" if settings.tail is None else f"Pareto times (index {settings.tail:g})"
    if settings.straggler == 1:
        return f"nobody is slow, {speeds}"
    who = "the target" if settings.target_straggles else "one retained site"
    return f"{who} is {settings.straggler:g} times as slow, {speeds}"


def _learned(results: LatencyResults, settings: LatencySettings) -> str:
    measure = results.measure(settings)
    bounds = ""
    if measure is not None:
        bounds = (
            f"; within {measure.forget_bound:.3f} of retraining on the erased data and "
            f"{measure.test_bound:.3f} on test data"
        )
    head = [
        "seconds", "to the model", "floor", "to forget", "to recover", "stall",
        "retained throughput", "forget gap", "test gap at the end",
    ]  # fmt: skip
    rows = [head]
    for method, of in results.figures(settings).items():
        if method not in results.learned.get(settings.key, {}) and method != "retrain":
            continue
        cells = [of.get(n) for n in ("time_to_model", "floor", "time_to_forget", "time_to_recover")]
        row = [NAMES[method], *(_number(cell, 1, "never") for cell in cells)]
        row += [_number(of.get("stall"), 1), _number(of.get("retained_throughput"), 2)]
        row += [_signed(of.get("forget_gap_at_end")), _signed(of.get("test_gap_at_end"))]
        rows.append(row)
    return f"*{describe(settings)}{bounds}*\n\n{_table(rows)}"


def _advantage(results: LatencyResults) -> str:
    found = {s.key: (s, advantages(results.figures(s))) for s in results.federations}
    named = [name for _, of in found.values() for name in of]
    columns = [c for c in _columns() if c in named]
    if not columns:
        return ""
    rows = [["time to forget over AFU-IC's", *(_title(column) for column in columns)]]
    for settings, of in found.values():
        if of:
            cells = [_number(of.get(c), 2, "") for c in columns]
            alone = "" if "afuic" in results.learned.get(settings.key, {}) else " (time alone)"
            rows.append([describe(settings) + alone, *cells])
    said = "*Above 1: AFU-IC is sooner; empty: never at the forget level, or not run*"
    return f"{said}\n\n{_table(rows)}"


def _columns() -> list[str]:
    found = []
    for method in NAMES:
        if method in RETRAINED:
            found += [f"{method}_{number}_rounds" for number in TRAINED_ROUNDS]
        elif method not in _OWN:
            found.append(method)
    return found


def _title(column: str) -> str:
    if not column.endswith("_rounds"):
        return NAMES[column]
    method, number = column.removesuffix("_rounds").rsplit("_", 1)
    return f"{NAMES[method]}, {int(number):,} rounds"


def _clock(results: LatencyResults) -> str:
    federations = [s for s in results.federations if s.key in results.clock]
    if not federations:
        return ""
    tables = []
    for name, title, digits in (
        ("time_to_model", "seconds from the request to the erased model", 1),
        ("stall", "stall, seconds", 1),
        ("retained_throughput", "retained throughput", 2),
    ):
        rows = [[title, *(_short(s) for s in federations)]]
        for method in NAMES:
            cells = [results.figures(s).get(method, {}).get(name) for s in federations]
            if any(cell is not None for cell in cells):
                rows.append([NAMES[method], *(_number(cell, digits, "") for cell in cells)])
        tables.append(_table(rows))
    said = (
        "*Time alone: nobody trains, tasks take their time; retraining repeats the rounds so far*"
    )
    return "\n\n".join([said, *tables])


def _short(settings: LatencySettings) -> str:
    who = "nobody" if settings.straggler == 1 else f"x{settings.straggler:g}"
    if settings.target_straggles and settings.straggler != 1:
        who += " target"
    return who if settings.tail is None else f"{who}, Pareto"


def _number(value: float | None, digits: int, missing: str = "") -> str:
    return missing if value is None else f"{value:.{digits}f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])
