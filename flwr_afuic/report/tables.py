"""The numbers of a report as rows: models against retraining, verdicts, facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr_afuic.report.look import model_name, printable
from flwr_afuic.report.record import METRICS, RunRecord

METRIC_NAMES = {
    "test_accuracy": "Test score",
    "forget_accuracy": "Forget score",
    "backdoor_success": "Backdoor success",
    "membership_auc": "Membership AUC",
}

_MEASURES = (
    ("resurfacing", "mean", "Resurfacing, mean: backdoor success minus retraining's"),
    ("resurfacing", "max", "Resurfacing, largest"),
    ("merge_dip", "", "Dip of the test score at the merge"),
    ("dip_rounds", "", "Rounds until the dip was gone"),
    ("stall_seconds", "", "Seconds that other sites waited because of the request"),
    ("retained_throughput", "", "Updates per second with the request open / before it"),
    ("lost_progress", "", "Share of the others' progress lost at the merge"),
    ("time_to_forget_seconds", "", "Seconds from the request until forgotten"),
)


@dataclass(frozen=True, slots=True)
class ModelRow:
    """Scores of one model in the order of ``METRICS``, and its mean distance to retraining."""

    key: str
    name: str
    scores: tuple[float | None, ...]
    average_gap: float | None


@dataclass(frozen=True, slots=True)
class MetricSense:
    """Whether a metric can tell the original model from a retrained one at all.

    ``floor`` is the difference between two retrainings; ``before`` and ``after`` are the
    differences to retraining of the original and of the unlearned model.
    """

    metric: str
    floor: float | None
    before: float | None
    after: float | None

    @property
    def tells(self) -> bool | None:
        """False where retraining changes the metric no more than another seed does."""
        if self.floor is None or self.before is None:
            return None
        return abs(self.before) > self.floor

    @property
    def within(self) -> bool | None:
        """Whether the unlearned model is as near to retraining as a second retraining is."""
        if self.floor is None or self.after is None:
            return None
        return abs(self.after) <= self.floor + 1e-12


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """Return a number for a table; ``n/a`` where it was not measured."""
    if value is None:
        return "n/a"
    shown = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return shown.replace("-", "", 1) if float(shown) == 0 and shown.startswith("-") else shown


def difference(record: RunRecord, model: str, metric: str) -> float | None:
    """Return a model's score minus retraining's."""
    ours, theirs = record.score(model, metric), record.score("retrain", metric)
    return None if ours is None or theirs is None else ours - theirs


def model_rows(record: RunRecord) -> list[ModelRow]:
    """Return one row a model; the average gap covers the metrics both models have."""
    rows: list[ModelRow] = []
    for key in record.models:
        gaps = [abs(g) for m in METRICS if (g := difference(record, key, m)) is not None]
        average = sum(gaps) / len(gaps) if gaps and key != "retrain" else None
        scores = tuple(record.score(key, metric) for metric in METRICS)
        rows.append(ModelRow(key, model_name(key), scores, average))
    return rows


def sense(record: RunRecord) -> list[MetricSense]:
    """Return for each metric what it can tell, in the order of ``METRICS``."""
    found: list[MetricSense] = []
    for metric in METRICS:
        again = difference(record, "retrain_floor", metric)
        found.append(
            MetricSense(
                metric=metric,
                floor=None if again is None else abs(again),
                before=difference(record, "original", metric),
                after=difference(record, "afuic", metric),
            )
        )
    return found


def measures(record: RunRecord) -> list[tuple[str, str]]:
    """Return what the erasure did to training, as words and number."""
    rows: list[tuple[str, str]] = []
    for first, second, words in _MEASURES:
        value = record.measure(first, second) if second else record.measure(first)
        digits = 1 if "seconds" in first else 3
        whole = value is not None and first == "dip_rounds" and value == int(value)
        rows.append((words, number(value, 0 if whole else digits)))
    return rows


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as rows of a dotted name and a printable value."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += flatten(value, f"{name}.")
        else:
            rows.append((printable(name), plain(value)))
    return rows


def plain(value: Any) -> str:
    """Return one JSON value as words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {words}" for name, words in flatten(value))
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "n/a" if value is None else printable(str(value))
