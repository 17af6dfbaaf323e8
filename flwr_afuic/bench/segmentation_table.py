"""The tables of ``flwr-afuic bench segmentation``: models, figures beside bounds and floors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from flwr_afuic.app.verdicts import Bound, Verdict
from flwr_afuic.bench.segmentation_scores import SCORE_NAMES, AreaResult

BEGIN = "<!-- table: flwr-afuic bench segmentation -->"

Results = Mapping[str, Mapping[int, AreaResult]]
"""By area and seed."""

BOUNDS = {
    "dice_gap": Bound(0.01, two_sided=True),
    "forget_dice_gap": Bound(0.02, two_sided=True),
    "resurfacing_mean": Bound(0.02, two_sided=True),
    "kept_dice_gap": Bound(0.01, two_sided=True),
}
_WORDS = {
    "dice_gap": "mean Dice on cases of no site, minus retraining's",
    "forget_dice_gap": "mean Dice on the erased cases, minus retraining's",
    "resurfacing_mean": "the same, mean over all rounds since the merge",
    "kept_dice_gap": "mean Dice on the site's other cases, minus retraining's",
}
_MODELS = {
    "no_unlearning": "no unlearning",
    "retrain": "retrained without the erased cases",
    "retrain_floor": "retrained, another seed",
    "afuic": "**AFU-IC**",
}


def figures(results: Results) -> dict[str, float]:
    """Mean over the seeds of every figure that all of them have, and ``holds`` as 0 or 1."""
    flat: dict[str, float] = {}
    for area, runs in results.items():
        each = [result.figures() for result in runs.values()]
        for key in (key for key in each[0] if all(key in found for found in each)):
            flat[key] = float(np.mean([found[key] for found in each]))
        flat[f"hippocampus/{area}/runs"] = float(len(each))
        for verdict in verdicts(area, runs):
            flat[f"hippocampus/{area}/holds/{verdict.name}"] = float(verdict.holds)
    return flat


def verdicts(area: str, runs: Mapping[int, AreaResult]) -> list[Verdict]:
    """Judge the mean of the seeds: a bound holds, or lies below the floor of retraining twice."""
    judged = []
    each = [result.figures() for result in runs.values()]
    start = f"hippocampus/{area}/"
    for name, bound in BOUNDS.items():
        if any(start + name not in found for found in each):
            continue
        value = float(np.mean([found[start + name] for found in each]))
        floors = [found.get(f"{start}floor/{name}") for found in each]
        known = [floor for floor in floors if floor is not None]
        floor = float(np.mean(known)) if len(known) == len(each) else None
        excused = floor is not None and not bound.met(floor)
        judged.append(Verdict(name, value, str(bound), floor, bound.met(value) or excused))
    return judged


def markdown(results: Results) -> str:
    """Write the tables of every area."""
    return "\n".join(_section(area, runs) for area, runs in results.items())


def _section(area: str, runs: Mapping[int, AreaResult]) -> str:
    seeds = ", ".join(str(seed) for seed in sorted(runs))
    ended = [result.curves["afuic"] for result in runs.values()]
    states = ", ".join(sorted({arm.state for arm in ended}))
    merges = ", ".join(str(arm.attempts) for arm in ended)
    what = "all cases of site-0" if area == "site" else "one patient of site-0"
    lines = [
        f"**hippocampus, {area}** ({what} erased), virtual engine, seeds {seeds}: {states}; "
        f"merges: {merges}",
        "",
        "| mean of the seeds, last five rounds | test Dice | forget Dice | kept Dice | "
        "membership AUC | Hausdorff 95 (voxels) |",
        "| --- | --- | --- | --- | --- | --- |",
        _row("original, at the request", [_before(runs, name) for name in SCORE_NAMES]),
    ]
    for arm, words in _MODELS.items():
        if all(arm in result.curves for result in runs.values()):
            values = [[r.last(arm, name) for r in runs.values()] for name in SCORE_NAMES]
            distances = [r.curves[arm].hausdorff for r in runs.values()]
            lines.append(_row(words, [*values, distances]))
    lines += ["", "| figure | mean | bound | floor (retraining twice) | no unlearning | holds |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    each = [result.figures() for result in runs.values()]
    for verdict in verdicts(area, runs):
        plain = [found.get(_plain(area, verdict.name)) for found in each]
        known = [value for value in plain if value is not None]
        without = f"{np.mean(known):+.4f}" if known else "-"
        floor = "-" if verdict.floor is None else f"{verdict.floor:+.4f}"
        lines.append(
            f"| {_WORDS[verdict.name]} | {verdict.value:+.4f} | {verdict.bound} | {floor} | "
            f"{without} | {'yes' if verdict.holds else '**no**'} |"
        )
    minutes = [found.get(f"hippocampus/{area}/cpu_minutes") for found in each]
    if all(minutes):
        spent = ", ".join(f"{value:.1f}" for value in minutes if value is not None)
        lines += ["", f"Minutes of CPU for all of it, each seed: {spent}."]
    return "\n".join([*lines, ""])


def _plain(area: str, name: str) -> str:
    return f"hippocampus/{area}/no_unlearning/{name}"


def _before(runs: Mapping[int, AreaResult], name: str) -> list[float]:
    models = [result.curves["afuic"].before for result in runs.values()]
    values = [None if model is None else getattr(model, name) for model in models]
    return [math.nan if value is None else value for value in values]


def _row(words: str, scores: list[list[float]]) -> str:
    cells = [_spread(values) for values in scores]
    return f"| {words} | {' | '.join([*cells, *['-'] * (5 - len(cells))])} |"


def _spread(values: list[float]) -> str:
    if not all(math.isfinite(value) for value in values):
        return "-"
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"
