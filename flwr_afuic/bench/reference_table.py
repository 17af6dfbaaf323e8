"""Tables and flat figures of ``flwr-afuic bench reference``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flwr_afuic.bench.reference import HOLDOUT

BEGIN = "<!-- table: flwr-afuic bench reference -->"
_NAMES = {"phantoms": "phantoms (synthetic)", HOLDOUT: "no proxies: level of unseen data"}

Run = dict[str, Any]


def flat_figures(runs: Sequence[Run]) -> dict[str, float]:
    """Name figures ``reference/DATASET/SCENARIO/sites-N/seed-S/PROXIES/figure``."""
    found = {}
    for run in runs:
        where = f"{run['dataset']}/{run['scenario']}/sites-{run['sites']}/seed-{run['seed']}"
        for name, of in run["references"].items():
            for figure, value in of.items():
                found[f"reference/{where}/{name}/{figure}"] = float(value)
        for name, of in run["models"].items():
            for figure, value in of.items():
                found[f"reference/{where}/{name}/{figure}"] = float(value)
    return found


def markdown(runs: Sequence[Run]) -> str:
    """Write one table a data set and scenario; the columns are kinds of proxies."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run["dataset"], run["scenario"]), []).append(run)
    return "\n\n".join(_section(name, of) for name, of in groups.items())


def _section(name: tuple[str, str], runs: Sequence[Run]) -> str:
    kinds = list(dict.fromkeys(kind for run in runs for kind in run["references"]))
    head = ["seed, sites", "original", "retrained", "again", *(_title(kind) for kind in kinds)]
    rows = [head]
    for run in runs:
        models, cells = run["models"], []
        for kind in kinds:
            of = run["references"].get(kind)
            cells.append("" if of is None else _cell(of) + _mark(of))
        known = [_cell(models[name]) for name in ("original", "retrain", "retrain_floor")]
        rows.append([f"{run['seed']}, {run['sites']}", *known, *cells])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    table = "\n".join([lines[0], "|" + " --- |" * len(head), *lines[1:]])
    return f"**{name[0]}**, {name[1]}: accuracy / loss on the erased data\n\n{table}"


def _title(kind: str) -> str:
    if kind.startswith("other:"):
        return kind.removeprefix("other:")
    return _NAMES.get(kind, f"{kind} proxies")


def _cell(of: dict[str, float]) -> str:
    return f"{of['forget']:.2f} / {of['forget_loss']:.2f}"


def _mark(of: dict[str, Any]) -> str:
    """Mark a level that retraining itself would fail, and one that the original would pass."""
    strict = "" if of["retraining_passes"] else " (strict)"
    return strict + (" **(lax)**" if of["original_passes"] else "")
