"""The figures of ``flwr-afuic bench forget``: each method beside retraining, over the seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flwr_afuic.app.verdicts import Bound, Verdict
from flwr_afuic.bench.forget import Cells, Result
from flwr_afuic.bench.forget_protocol import WINDOW
from flwr_afuic.metrics import (
    Scores,
    average_gap,
    dip_rounds,
    gaps,
    merge_dip,
    relearn_ratio,
    resurfacing,
)

Values = dict[str, float | None]

FIGURES = (
    "average_gap",
    "asr_gap",
    "membership_gap",
    "test_gap",
    "resurfacing_mean",
    "resurfacing_max",
    "merge_dip",
    "dip_rounds",
    "relearn_ratio",
    "distance_ratio",
)
_SCORES = ("test", "forget", "membership_auc", "backdoor_success")
_BOUNDS = {"retrain", "retrain_floor", "no_unlearning", "original"}
_SILENT = 0.05


def figures(
    result: Result, retrain: Result, original: Result, floor: Result | None = None
) -> Values:
    """Compute the figures of one method and seed.

    Gaps are signed, unlearned minus retrained, in the last round both have; with ``_at_merge``,
    at the merge. Resurfacing is of backdoor success or, without a trigger, of the score on D_f,
    over the 30 rounds after the merge; what merges nothing is read over the last 30 rounds.

    Parameters
    ----------
    result, retrain, original : dict
        Of :func:`~flwr_afuic.bench.forget_piece.run_piece`, of one cell.
    floor : dict, optional
        The second retraining: a dip is over within its mean difference to the first.

    Returns
    -------
    dict of str to float or None
        None where a figure was not reached (a dip that does not end) or cannot tell (relearning
        where retraining knows D_f already).
    """
    ours, theirs = _curve(result), _curve(retrain)
    end = max(ours.keys() & theirs.keys())
    merge = result["merge"]
    start = end - WINDOW if merge is None else int(merge["round"])
    window = [r for r in range(start + 1, start + WINDOW + 1) if r in ours and r in theirs]
    gap = gaps(ours[end], theirs[end])
    values: Values = {
        "average_gap": average_gap(ours[end], theirs[end]),
        "asr_gap": gap.get("backdoor_success"),
        "membership_gap": gap["membership_auc"],
        "test_gap": gap["test"],
        "forget_gap": gap["forget"],
    }
    if window:
        score = "forget" if values["asr_gap"] is None else "backdoor_success"
        found = resurfacing(
            {r: ours[r].present()[score] for r in window},
            {r: theirs[r].present()[score] for r in window},
        )
        values["resurfacing_mean"], values["resurfacing_max"] = found.mean, found.max
        values["resurfacing_rounds"] = float(found.n_rounds)
    if merge is not None and start in theirs:
        again = ours if floor is None else _curve(floor)
        apart = [abs(again[r].test - theirs[r].test) for r in window if r in again]
        noise = 0.0 if floor is None or not apart else float(np.mean(apart))
        values |= _at_merge(merge, ours, theirs, noise)
        if "kept" in merge["after"]:
            there = retrain["curve"][str(start)]
            values["kept_gap_at_merge"] = float(merge["after"]["kept"] - there["kept"])
            if "kept" in merge["before"]:
                moved = merge["after"]["kept"] - merge["before"]["kept"]
                values["kept_change_at_merge"] = float(moved)
            beside = {} if floor is None else floor["curve"].get(str(start), {})
            for name in ("forget", "kept"):
                if name in beside:
                    values[f"{name}_floor_at_merge"] = float(beside[name] - there[name])
    values["relearn_ratio"] = relearn_ratio(
        result["relearn"], retrain["relearn"], original["relearn"][0]
    ).ratio
    if "distance_ratio" in result:
        for name in ("distance_ratio", "divergence_forget", "divergence_test"):
            values[name] = float(result[name])
    if "erasure" in result:
        values["silent_failure"] = float(_silent(result, values))
    return values


def _at_merge(
    merge: Mapping[str, Any], ours: dict[int, Scores], theirs: dict[int, Scores], noise: float
) -> Values:
    round_ = int(merge["round"])
    after = _scores(merge["after"])
    gap = gaps(after, theirs[round_])
    tests = {r: s.test for r, s in ours.items()} | {round_: after.test}
    back = dip_rounds(tests, {r: s.test for r, s in theirs.items()}, round_, floor=noise)
    return {
        "merge_dip": merge_dip(float(merge["before"]["test"]), after.test),
        "dip_rounds": None if back is None else float(back),
        "asr_gap_at_merge": gap.get("backdoor_success"),
        "forget_gap_at_merge": gap["forget"],
        "test_gap_at_merge": gap["test"],
    }


def _silent(result: Result, values: Values) -> bool:
    """Whether an erasure is called completed though the backdoor exceeds retraining's by > .05.

    Where there is no trigger, the score on the erased data is judged (our reading).
    """
    gap = "forget_gap" if values["asr_gap"] is None else "asr_gap"
    worst = [values.get(f"{gap}_at_merge"), values.get("resurfacing_mean")]
    most = max((v for v in worst if v is not None), default=0.0)
    return str(result["erasure"]["state"]).startswith("completed") and most > _SILENT


def _curve(result: Result) -> dict[int, Scores]:
    return {int(r): _scores(scores) for r, scores in result["curve"].items()}


def _scores(scores: Mapping[str, float | None]) -> Scores:
    return Scores(**{name: scores[name] for name in _SCORES})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Row:
    """One method over its seeds.

    Attributes
    ----------
    method : str
    seeds : tuple of int
    values : dict of str to list of float or None
        By figure, one value a seed.
    """

    method: str
    seeds: tuple[int, ...]
    values: dict[str, list[float | None]]

    def mean(self, name: str) -> float | None:
        """Mean over seeds; None where a seed has no value."""
        known = [v for v in self.values.get(name, []) if v is not None]
        if not known or len(known) < len(self.seeds):
            return None
        return float(np.mean(known))

    def deviation(self, name: str) -> float | None:
        """Standard deviation over seeds; None for fewer than two."""
        known = [v for v in self.values.get(name, []) if v is not None]
        if len(known) < 2 or len(known) < len(self.seeds):
            return None
        return float(np.std(known, ddof=1))

    def of(self, seeds: tuple[int, ...]) -> Row:
        """Return the row of some of its seeds."""
        kept = [i for i, seed in enumerate(self.seeds) if seed in seeds]
        values = {name: [found[i] for i in kept] for name, found in self.values.items()}
        return Row(self.method, tuple(self.seeds[i] for i in kept), values)


def rows(cells: Cells) -> list[Row]:
    """Compute one row a method that has any seed, retraining's floor and the bounds included."""
    found = []
    for method in ("retrain_floor", *cells.plan.methods):
        seeds = cells.complete(method)
        if not seeds:
            continue
        per_seed = []
        for seed in seeds:
            results = cells.counted[seed]
            per_seed.append(
                figures(
                    results[method],
                    results["retrain"],
                    results["original"],
                    results["retrain_floor"],
                )
            )
        names = dict.fromkeys(name for values in per_seed for name in values)
        lists = {name: [values.get(name) for values in per_seed] for name in names}
        found.append(Row(method, tuple(seeds), lists))
    return found


def verdicts(found: list[Row]) -> list[Verdict]:
    """Judge AFU-IC by the figures asked of it, each beside the floor of the same seeds."""
    ours = next((row for row in found if row.method == "afuic"), None)
    floor = next((row for row in found if row.method == "retrain_floor"), None)
    if ours is None or floor is None:
        return []
    floor = floor.of(ours.seeds)
    gap_bound = max(0.02, floor.mean("average_gap") or 0.0)
    asked = {
        "average_gap": Bound(gap_bound),
        "resurfacing_mean": Bound(0.02, two_sided=True),
        "resurfacing_max": Bound(0.05),
        "merge_dip": Bound(0.05),
        "dip_rounds": Bound(3),
    }
    judged = []
    for name, bound in asked.items():
        value, beside = ours.mean(name), floor.mean(name)
        excused = beside is not None and not bound.met(beside)
        met = value is not None and bound.met(value)
        judged.append(Verdict(name, value, str(bound), beside, met or excused))
    ratio, beside = ours.mean("relearn_ratio"), floor.mean("relearn_ratio")
    holds = ratio is not None and ratio >= min(0.8, beside if beside is not None else 0.8)
    judged.append(Verdict("relearn_ratio", ratio, ">= 0.8", beside, holds))
    return [*judged, *_of_samples(ours), *_best(found, ours)]


def _of_samples(ours: Row) -> list[Verdict]:
    """Judge the erasure of part of a site's data, as seen at the merge."""
    if "kept_gap_at_merge" not in ours.values:
        return []
    judged = []
    for what, limit in (("forget", 0.05), ("kept", 0.02)):
        value, bound = ours.mean(f"{what}_gap_at_merge"), Bound(limit, two_sided=True)
        held = value is not None and bound.met(value)  # no floor excuses it
        floor = ours.mean(f"{what}_floor_at_merge")
        judged.append(Verdict(f"{what}_gap_at_merge", value, str(bound), floor, held))
    silent = float(sum(value or 0.0 for value in ours.values.get("silent_failure", [])))
    judged.append(Verdict("silent_failures", silent, "none", None, silent == 0))
    return judged


def _best(found: list[Row], ours: Row) -> list[Verdict]:
    """Judge whether no other method resurfaces less by more than a standard deviation.

    Methods that lack one of AFU-IC's seeds are left out: seeds differ by more than methods do.
    """
    mine = ours.mean("resurfacing_mean")
    others = [
        (abs(mean), row.deviation("resurfacing_mean") or 0.0)
        for row in (other.of(ours.seeds) for other in found)
        if row.method not in _BOUNDS | {"afuic"}
        and row.seeds == ours.seeds
        and (mean := row.mean("resurfacing_mean")) is not None
    ]
    if mine is None or not others:
        return []
    least, spread = min(others)
    limit = least + max(spread, ours.deviation("resurfacing_mean") or 0.0)
    bound = f"|.| <= {limit:.4f}, the best other and one sd"
    return [Verdict("resurfacing_best", mine, bound, None, abs(mine) <= limit)]


def flat_figures(all_cells: Iterable[Cells]) -> dict[str, float]:
    """Mean of every figure as ``DATASET/SCENARIO/METHOD/FIGURE``, its ``_sd``, and ``seeds``."""
    flat: dict[str, float] = {}
    for cells in all_cells:
        found = rows(cells)
        for row in found:
            prefix = f"{cells.plan.piece(0, 'afuic').dataset}/{cells.plan.scenario}/{row.method}"
            flat[f"{prefix}/seeds"] = float(len(row.seeds))
            for name in row.values:
                mean, spread = row.mean(name), row.deviation(name)
                if mean is not None:
                    flat[f"{prefix}/{name}"] = mean
                if spread is not None:
                    flat[f"{prefix}/{name}_sd"] = spread
        for verdict in verdicts(found):
            prefix = f"{cells.plan.piece(0, 'afuic').dataset}/{cells.plan.scenario}/holds"
            flat[f"{prefix}/{verdict.name}"] = float(verdict.holds)
    return flat
