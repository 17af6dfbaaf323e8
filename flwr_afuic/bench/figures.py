"""The figures of the documentation: means over seeds beside bounds and retraining's floor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flwr_afuic.app.verdicts import Verdict, judge_mean
from flwr_afuic.bench.runs import Outcome, Summary
from flwr_afuic.errors import ConfigError, DataError

BEGIN = "<!-- table: flwr-afuic bench figures -->"
END = "<!-- /table -->"
_OPENING = "<!-- table:"

_MODELS = {
    "original": "original, at the request",
    "no_unlearning": "no unlearning",
    "retrain": "retrained without the erased data",
    "retrain_floor": "retrained, another seed",
    "afuic": "**AFU-IC**",
}
_SCORES = ("test_accuracy", "backdoor_success", "forget_accuracy", "membership_auc")
_FIGURES = {
    "asr_gap_at_merge": "backdoor success at the merge, minus retraining's",
    "test_gap_at_merge": "test score at the merge, minus that of no unlearning",
    "dip_rounds": "rounds until within .01 of retraining's test score",
    "forget_gap_at_merge": "forget accuracy at the merge, minus retraining's",
    "resurfacing_mean": "resurfacing, mean over the rounds after the merge",
    "resurfacing_max": "resurfacing, worst round",
    "test_shortfall_after_merge": "test score after the merge, retraining's minus ours",
    "average_gap": "average gap to retraining at the end",
    "stall_seconds": "seconds a retained site stood idle",
    "throughput_loss": "loss of retained throughput",
    "lost_progress": "lost progress",
}


def verdicts(outcome: Outcome) -> list[Verdict]:
    """Judge the mean of the counted runs' figures."""
    runs = [
        (
            {v["name"]: v["value"] for v in summary["verdicts"]},
            {v["name"]: v["floor"] for v in summary["verdicts"]},
        )
        for summary in outcome.counted.values()
    ]
    return judge_mean(_dataset(outcome), runs) if runs else []


def flat_figures(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """Mean of every figure that all counted runs have, and ``.../holds/<figure>`` as 0 or 1."""
    flat: dict[str, float] = {}
    for outcome in outcomes:
        runs = list(outcome.counted.values())
        if not runs:
            continue
        common = set.intersection(*(set(run["figures"]) for run in runs))
        for key in (key for key in runs[0]["figures"] if key in common):
            flat[key] = float(np.mean([run["figures"][key] for run in runs]))
        prefix = f"{_dataset(outcome)}/{outcome.plan.settings.scenario}"
        for verdict in verdicts(outcome):
            flat[f"{prefix}/holds/{verdict.name}"] = float(verdict.holds)
        flat[f"{prefix}/silent_failures"] = float(sum(run["silent_failure"] for run in runs))
        flat[f"{prefix}/runs"] = float(len(runs))
    return flat


def markdown(outcomes: Iterable[Outcome]) -> str:
    """Return the tables of every data set as Markdown."""
    return "\n".join(_section(outcome) for outcome in outcomes if outcome.counted)


def silent_failures(outcome: Outcome) -> str:
    """Return a Markdown table, one row a seed, that shows what was called complete and is not."""
    rows = [["seed", "planted", "state", "forget level", "backdoor gap", "silent failure"]]
    runs = sorted({**outcome.counted, **outcome.left_out}.items())
    for seed, run in runs:
        gap = next((v["value"] for v in run["verdicts"] if v["name"] == "asr_gap_at_merge"), None)
        rows.append(
            [
                str(seed),
                {True: "yes", False: "no", None: "-"}[run["planted"]],
                run["erasure"]["state"],
                str(run["erasure"]["reason"]).replace("|", "/"),
                _number(gap, sign=True),
                "**yes**" if run["silent_failure"] else "no",
            ]
        )
    count = sum(run["silent_failure"] for _, run in runs)
    head = f"**{_dataset(outcome)}**: {count} silent failures in {len(runs)} requests"
    return "\n".join([head, "", *_table(rows), ""])


def fill(document: Path, text: str, *, begin_mark: str = BEGIN) -> None:
    """Replace what stands between a marker of a Markdown file and the closing one after it.

    Raises
    ------
    ConfigError
        If the file cannot be written.
    DataError
        If it does not hold the marker once, with a closing one of its own after it.
    """
    try:
        old = document.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {document}: {error.strerror}") from error
    begin = old.find(begin_mark)
    end = old.find(END, begin)
    if old.count(begin_mark) != 1 or end < begin or _OPENING in old[begin + 1 : end]:
        raise DataError(f"{document} must hold one line {begin_mark!r} and after it a line {END!r}")
    new = old[: begin + len(begin_mark)] + "\n\n" + text.strip() + "\n\n" + old[end:]
    try:
        document.write_text(new, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {document}: {error.strerror}") from error


def _section(outcome: Outcome) -> str:
    settings, runs = outcome.plan.settings, list(outcome.counted.values())
    seeds = ", ".join(str(seed) for seed in sorted(outcome.counted))
    left = ", ".join(str(seed) for seed in sorted(outcome.left_out))
    synthetic = ", SYNTHETIC data" if runs[0]["synthetic"] else ""
    head = (
        f"**{_dataset(outcome)}**{synthetic}, {settings.scenario}, scope {settings.scope}, "
        f"{runs[0]['engine']} engine, seeds {seeds}"
    )
    if left:
        head += f" (left out, because no backdoor was planted: {left})"
    scores = [["mean of the seeds, end of the run", "test", "backdoor", "forget", "membership AUC"]]
    for model, name in _MODELS.items():
        scores.append([name, *(_spread(runs, model, score) for score in _SCORES)])
    judged = [["figure", "mean", "bound", "floor (retraining twice)", "holds"]]
    for verdict in verdicts(outcome):
        judged.append(
            [
                _FIGURES.get(verdict.name, verdict.name),
                _number(verdict.value, sign=True),
                verdict.bound,
                _number(verdict.floor, sign=True),
                "yes" if verdict.holds else "**no**",
            ]
        )
    return "\n".join([head, "", *_table(scores), "", *_table(judged), "", *_beside(runs)])


def _beside(runs: Sequence[Summary]) -> list[str]:
    """Say what happens without unlearning, and with the paper's merge rule."""
    lines = []
    plain = [run.get("resurfacing", {}).get("no_unlearning_mean") for run in runs]
    if plain and all(value is not None for value in plain):
        lines.append(f"Without unlearning the same resurfacing is {np.mean(plain):+.3f}.")
    costs = [run.get("overwrite") or {} for run in runs]
    if costs and all(costs):
        lost, price, stale = (
            float(np.mean([cost[key] for cost in costs]))
            for key in ("lost_progress", "test_cost", "staleness_versions")
        )
        lines.append(
            f"Had these merges overwritten the model, as the paper's rule does: lost progress "
            f"{lost:.3f}, test score lower by {price:.3f} than with the plain delta, at a "
            f"staleness of {stale:.0f} versions."
        )
    return [*lines, ""] if lines else []


def _spread(runs: Sequence[Summary], model: str, score: str) -> str:
    values: list[Any] = [run["models"][model][score] for run in runs]
    if any(value is None for value in values):
        return "-"
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def _number(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "-"
    text = f"{value:+.4f}" if sign else f"{value:.4f}"
    return text.replace("-0.0000", "0.0000").replace("+0.0000", "0.0000")


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return lines


def _dataset(outcome: Outcome) -> str:
    runs = [*outcome.counted.values(), *outcome.left_out.values()]
    return str(runs[0]["dataset"]) if runs else outcome.plan.settings.dataset
