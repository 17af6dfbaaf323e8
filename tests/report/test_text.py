"""The terminal table: aligned, complete, harmless."""

from __future__ import annotations

from flwr_afuic.report import RunRecord, summary_table
from flwr_afuic.report.tables import number, plain
from tests.report.sample import sample_record
from tests.report.test_record import MINIMAL


def test_shows_models_metrics_and_verdicts() -> None:
    lines = summary_table(RunRecord.from_json(sample_record())).splitlines()
    assert lines[0].startswith("[Completed] site-0 was erased")
    row = next(line for line in lines if line.startswith("AFU-IC "))
    # |.899-.901|, |.861-.853|, |.037-.031|, |.514-.509| have the mean 0.00525
    assert row.split() == ["AFU-IC", "0.899", "0.861", "0.037", "0.514", "0.005"]
    floor = next(line for line in lines if line.startswith("retrain floor"))
    assert floor.split()[2:] == ["0.004", "0.008", "0.008", "0.006"]
    assert sum(line.endswith("holds") for line in lines) == 6


def test_a_failure_is_spelled_out() -> None:
    shown = summary_table(RunRecord.from_json(sample_record(state="not-met")))
    assert shown.startswith("[Not met]")
    assert "NOT MEASURED" in shown
    assert "  - forget accuracy, minus retraining: 0.068" in shown


def test_empty_record_and_control_characters() -> None:
    raw = {**MINIMAL, "sites": ["a\x1b[2Jb"], "target": "a\x1b[2Jb"}
    shown = summary_table(RunRecord.from_json(raw))
    assert "\x1b" not in shown
    assert "SYNTHETIC" in shown


def test_numbers_and_values_as_words() -> None:
    assert number(None) == "n/a"
    assert number(-0.0001) == "0.000"
    assert number(0.0042, sign=True) == "+0.004"
    assert number(-0.02, sign=True) == "-0.020"
    assert plain([True, None, 0.1, "x"]) == "yes, n/a, 0.1, x"
