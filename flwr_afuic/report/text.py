"""The table of a run for a terminal, in plain characters."""

from __future__ import annotations

from collections.abc import Sequence

from flwr_afuic.report.look import printable
from flwr_afuic.report.record import METRICS, RunRecord
from flwr_afuic.report.tables import METRIC_NAMES, model_rows, number, sense
from flwr_afuic.report.words import not_met, outcome


def summary_table(record: RunRecord) -> str:
    """Return headline, models against metrics, and verdicts as text.

    Plain characters without markup or colour; site names are stripped of control characters.
    A caller that prints through rich passes it with ``markup=False``.
    """
    result = outcome(record)
    synthetic = ", SYNTHETIC data" if record.synthetic else ""
    head = f"{record.dataset}{synthetic}, {record.scenario}, {record.engine} engine"
    blocks = [
        f"[{result.mark}] {result.headline}",
        printable(f"{head}, seed {record.seed}, {record.rounds} rounds"),
        "",
        *_aligned(_model_table(record)),
    ]
    if record.verdicts:
        blocks += ["", *_aligned(_verdict_table(record))]
    missing = not_met(record)
    if missing and result.tone != "good":
        blocks += ["", "Not met:", *(f"  - {line}" for line in missing)]
    return "\n".join(blocks) + "\n"


def _model_table(record: RunRecord) -> list[list[str]]:
    rows = [["model", *(METRIC_NAMES[metric].lower() for metric in METRICS), "average gap"]]
    for row in model_rows(record):
        gap = "-" if row.key == "retrain" else number(row.average_gap)
        rows.append([row.name, *(number(score) for score in row.scores), gap])
    seen = sense(record)
    rows.append(["AFU-IC - retrained", *(number(s.after, sign=True) for s in seen), ""])
    rows.append(["retrain floor", *(number(s.floor) for s in seen), ""])
    return rows


def _verdict_table(record: RunRecord) -> list[list[str]]:
    rows = [["bound", "value", "limit", "floor", "verdict"]]
    for verdict in record.verdicts:
        floor = "-" if verdict.floor is None else number(verdict.floor)
        word = "holds" if verdict.met else "NOT MET"
        if verdict.value is None:
            word = "NOT MEASURED"
        name, bound = printable(verdict.name), printable(verdict.bound)
        rows.append([name, number(verdict.value), bound, floor, word])
    return rows


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines))
    return lines
