"""Table and flat figures of ``flwr-afuic bench membership``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BEGIN = "<!-- table: flwr-afuic bench membership -->"


def flat_figures(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Name figures ``membership/DATASET/PRESET/seed-S/MODEL/figure``."""
    return {
        f"membership/{run['dataset']}/{run['preset']}/seed-{run['seed']}/{model}/{name}": float(v)
        for run in runs
        for model, of in run["models"].items()
        for name, v in of.items()
    }


def markdown(runs: Sequence[dict[str, Any]]) -> str:
    """Write one table: a row a model of each setting."""
    head = [
        "data set, setting, seed", "model", "likelihood-ratio AUC", "TPR at 5 % FPR",
        "loss AUC", "accuracy on the erased data", "test",
    ]  # fmt: skip
    rows = [head]
    for run in runs:
        where = f"{run['dataset']}, {run['preset']}, {run['seed']}"
        for model, of in run["models"].items():
            names = ("lira_auc", "lira_tpr", "loss_auc", "forget", "test")
            rows.append([where, model.replace("_", " "), *(f"{of[n]:.3f}" for n in names)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(head), *lines[1:]])
