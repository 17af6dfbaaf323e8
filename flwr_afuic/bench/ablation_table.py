"""Tables and flat figures of ``flwr-afuic bench ablation``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from flwr_afuic.bench.ablation import Ablation, AblationSettings, Cell, cells
from flwr_afuic.bench.kept import Keeper

BEGIN = "<!-- table: flwr-afuic bench ablation -->"
MERGE_NAMES = {
    "delta": "w_c + d",
    "fidelity": "w_c + d, fidelity steps",
    "damped": "w_c + d / (1 + tau)",
    "overwrite": "w_s + d (overwrite)",
}
CALIBRATION_NAMES = {
    "none": "none",
    "identity": "KL, identity (control)",
    "augmentation": "KL, augmentation",
    "signature": "KL, learned signature",
    "direction": "lock, one direction",
    "lock_1": "lock, rank 1",
    "lock_4": "lock, rank 4",
    "lock_8": "lock, rank 8",
    "lock_16": "lock, rank 16",
    "per_layer": "lock, per layer",
    "lock_kl": "lock + KL, augmentation",
}
_COLUMNS = {
    "asr_gap_at_merge": "backdoor gap at merge",
    "resurfacing_mean": "resurfacing mean",
    "resurfacing_max": "worst",
    "forget_gap_at_merge": "forget gap at merge",
    "test_at_merge": "test at merge",
    "test_mean": "mean test after",
    "retrain_test_mean": "retraining's",
    "average_gap": "average gap",
}
_UNSIGNED = ("test_at_merge", "test_mean", "retrain_test_mean", "average_gap")
_CELL_SECONDS, _SHARED_SECONDS = 15.0, 90.0

Run = dict[str, Any]


def run_cells(
    settings: AblationSettings,
    folder: Path,
    keeper: Keeper,
    *,
    full: bool,
    told: Callable[[str], None],
) -> list[Run]:
    """Run what is missing of one seed's forks; return what is there."""
    made: list[Ablation] = []

    def ablation() -> Ablation:
        if not made:
            made.append(Ablation(settings, folder / "models", told))
        return made[0]

    found = []
    for cell in cells(settings, full=full):
        name, asked = _name(settings, cell), _asked(settings, cell)
        run = keeper.once(name, asked, lambda cell=cell: _one(ablation(), cell))  # type: ignore[misc]
        if run is not None:
            found.append(run)
    return found


def missing_seconds(settings: AblationSettings, keeper: Keeper, *, full: bool) -> tuple[int, float]:
    """Count the forks that have no file, and estimate their seconds on one core."""
    count = sum(
        not keeper.path(_name(settings, cell), _asked(settings, cell)).is_file()
        for cell in cells(settings, full=full)
    )
    return count, count * _CELL_SECONDS + (_SHARED_SECONDS if count else 0.0)


def _one(ablation: Ablation, cell: Cell) -> Run:
    app = ablation.app
    where = {"dataset": app.dataset, "scenario": app.scenario, "seed": app.seed}
    return {**where, **ablation.run(cell)}


def _name(settings: AblationSettings, cell: Cell) -> str:
    app = settings.app
    stem = f"{Path(app.dataset).stem}-{app.scenario}-s{app.seed}-{app.objective}"
    return f"{stem}-{cell.merge}-{cell.calibration}-{cell.staleness}"


def _asked(settings: AblationSettings, cell: Cell) -> Run:
    values = asdict(settings)
    values["app"]["data_dir"] = ""
    del values["staleness"]  # which others are asked for changes no fork
    return {**values, "longest": max(settings.staleness), "cell": asdict(cell)}


def flat_figures(runs: Sequence[Run]) -> dict[str, float]:
    """Name means ``ablation/DATASET/OBJECTIVE/MERGE/CALIBRATION/staleness-T/figure``."""
    found = {}
    for key, group in _grouped(runs).items():
        dataset, objective, merge, calibration, staleness = key
        where = f"ablation/{dataset}/{objective}/{merge}/{calibration}/staleness-{staleness}"
        for name in _COLUMNS:
            values = [r["figures"][name] for r in group if name in r["figures"]]
            if values:
                found[f"{where}/{name}"] = float(mean(values))
    return found


def markdown(runs: Sequence[Run]) -> str:
    """Write one table a data set, objective and staleness; means and deviations over seeds."""
    tables: dict[tuple[str, str, int], list[list[str]]] = {}
    seeds: dict[tuple[str, str, int], set[int]] = {}
    for key, group in _grouped(runs).items():
        dataset, objective, merge, calibration, staleness = key
        place = (dataset, objective, staleness)
        seeds.setdefault(place, set()).update(int(run["seed"]) for run in group)
        head = ["merge", "calibration", *_COLUMNS.values()]
        rows = tables.setdefault(place, [head])
        row = [MERGE_NAMES[merge], CALIBRATION_NAMES[calibration]]
        rows.append([*row, *(_spread(group, name) for name in _COLUMNS)])
    parts = []
    for place, rows in tables.items():
        dataset, objective, staleness = place
        named = ", ".join(str(seed) for seed in sorted(seeds[place]))
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        table = "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])
        said = f"**{dataset}**, {objective}, merged {staleness} rounds after the snapshot"
        parts.append(f"{said}, seeds {named}\n\n{table}")
    return "\n\n".join(parts)


def _grouped(runs: Sequence[Run]) -> dict[tuple[str, str, str, str, int], list[Run]]:
    found: dict[tuple[str, str, str, str, int], list[Run]] = {}
    for run in runs:
        cell = run["cell"]
        key = (
            Path(run["dataset"]).stem,
            run["objective"],
            cell["merge"],
            cell["calibration"],
            int(cell["staleness"]),
        )
        found.setdefault(key, []).append(run)
    return found


def _spread(group: Sequence[Run], name: str) -> str:
    values = [float(run["figures"][name]) for run in group if name in run["figures"]]
    if not values:
        return ""
    sign = "" if name in _UNSIGNED else "+"
    text = f"{mean(values):{sign}.3f}"
    return text if len(values) < 2 else f"{text} ± {stdev(values):.3f}"
