"""What a record must hold, and what a damaged one says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from flwr_afuic.errors import DataError
from flwr_afuic.report.record import RunRecord
from tests.report.sample import sample_record

MINIMAL: dict[str, Any] = {
    "dataset": "phantoms", "synthetic": True, "engine": "local", "seed": 0, "rounds": 3,
    "scenario": "ordinary", "sites": ["a"], "target": "a",
}  # fmt: skip


def test_survives_the_way_through_json() -> None:
    record = RunRecord.from_json(sample_record())
    again = RunRecord.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False)))
    assert again == record
    assert record.state == "completed"
    assert record.score("retrain", "backdoor_success") == 0.031
    assert record.measure("resurfacing", "max") == 0.018
    assert record.measure("merge_dip") == 0.011
    assert record.measure("unheard", "of") is None


def test_everything_but_the_heading_may_be_missing() -> None:
    record = RunRecord.from_json(MINIMAL)
    assert record.state == ""
    assert record.models == ()
    assert record.curves == {}


def test_numbers_that_are_not_finite_count_as_not_measured() -> None:
    raw = sample_record()
    raw["curves"]["afuic"]["test_accuracy"][3] = math.nan
    raw["curves"]["afuic"]["test_accuracy"][4] = None
    raw["summary"]["time_to_forget_seconds"] = math.inf
    raw["verdicts"][0]["value"] = math.nan
    record = RunRecord.from_json(raw)
    x, y = record.curves["afuic"].points("test_accuracy")
    assert len(x) == len(y) == 48
    assert record.measure("time_to_forget_seconds") is None
    assert not record.verdicts[0].met, "without a value nothing holds"


def _set(raw: dict[str, Any], value: Any, *path: Any) -> None:
    for key in path[:-1]:
        raw = raw[key]
    raw[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("seed",), "zero", "seed is 'zero', expected a whole number"),
        (("seed",), True, "seed is True, expected a whole number"),
        (("synthetic",), 0, "synthetic is 0, expected true or false"),
        (("target",), "site-9", "target is 'site-9', which is not among the sites"),
        (("sites",), ["site-0", 3], "sites holds 3"),
        (("sites", 1), "site-0", "sites names one site twice"),
        (("curves", "afuic", "round"), [1, 2], "curves.afuic has series of different lengths"),
        (("curves", "afuic", "test_accuracy", 2), 91.4, "test_accuracy[2] is 91.4, expected a sha"),
        (("curves", "afuic", "round", 0), "1", "curves.afuic.round[0] is '1', expected a number"),
        (("curves", "afuic"), [1], "curves.afuic is [1], expected an object"),
        (("events", 1), "merge", "events[1] is 'merge', expected an object"),
        (("spans", 0, "end"), -5.0, "spans[0] ends (-5) before it starts"),
        (("spans", 0, "start"), None, "spans[0].start is not a finite number"),
        (("spans", 0, "site"), "site-77", "spans name the site 'site-77'"),
        (("verdicts", 0, "holds"), "yes", "verdicts[0].holds is 'yes', expected true or false"),
        (("summary", "models", "afuic"), 3, "summary.models.afuic is 3, expected an object"),
        (("summary", "models", "afuic", "membership_auc"), 51, "membership_auc is 51, expected"),
        (("settings", "where"), Path("here"), "which is not plain JSON"),
    ],
)
def test_each_damage_gives_one_clear_line(path: tuple[Any, ...], value: Any, words: str) -> None:
    raw = sample_record()
    _set(raw, value, *path)
    with pytest.raises(DataError) as caught:
        RunRecord.from_json(raw)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_every_missing_field_but_not_endlessly() -> None:
    with pytest.raises(DataError, match=r"dataset is missing; .*; and 3 more"):
        RunRecord.from_json({})
    with pytest.raises(DataError, match="expected a JSON object"):
        RunRecord.from_json([])  # type: ignore[arg-type]


def test_loads_a_file_or_says_why_not(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    with pytest.raises(DataError, match="cannot read run record"):
        RunRecord.load(path)
    path.write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        RunRecord.load(path)
    path.write_text(json.dumps(sample_record()))
    assert RunRecord.load(path).target == "site-0"


def test_events_of_other_sites_do_not_mark_this_erasure() -> None:
    raw = sample_record()
    raw["events"].insert(
        0, {"time": 1.0, "round": 0, "kind": "request", "site": "site-3", "text": ""}
    )
    assert [e.time for e in RunRecord.from_json(raw).happened({"request"})] == [36.4]
