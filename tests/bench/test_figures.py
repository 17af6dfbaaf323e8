"""Benches: which seeds count, what is kept, and the tables made from it."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest

from flwr_afuic.app.settings import AppSettings
from flwr_afuic.bench import figures
from flwr_afuic.bench.runs import Outcome, Plan, Runner, fingerprint, next_seed, read_summary
from flwr_afuic.cli.bench import read_seeds
from flwr_afuic.errors import ConfigError, DataError, FederationError
from tests.app import tiny


def summary(seed: int, *, planted: bool | None = True, gap: float = 0.01, silent: bool = False):
    """A finished run as its file holds it, with made-up numbers."""
    scores = {
        "test_accuracy": 0.8,
        "forget_accuracy": 0.5,
        "backdoor_success": 0.1 * seed,
        "membership_auc": None,
    }
    models = ("original", "no_unlearning", "retrain", "retrain_floor", "afuic")
    return {
        "dataset": "phantoms",
        "synthetic": True,
        "engine": "virtual",
        "scenario": "backdoor",
        "seed": seed,
        "planted": planted,
        "silent_failure": silent,
        "wall_seconds": 1.0,
        "code": fingerprint(),
        "erasure": {"state": "completed", "reason": "forget level met: loss 2 | accuracy .5"},
        "models": {name: dict(scores) for name in models},
        "verdicts": [
            {"name": "asr_gap_at_merge", "value": gap, "bound": "", "floor": 0.0, "holds": True},
            {"name": "dip_rounds", "value": None, "bound": "", "floor": 1.0, "holds": False},
        ],
        "figures": {
            "phantoms/backdoor/afuic/asr_gap_at_merge": gap,
            **({"phantoms/backdoor/afuic/only_once": 1.0} if seed == 0 else {}),
        },
    }


@pytest.fixture
def kept(tmp_path):
    """Put finished runs into a folder, and return it."""

    def put(runs, settings=AppSettings(dataset="phantoms")) -> Path:  # noqa: B008 - frozen
        runner = Runner(tmp_path)
        for run in runs:
            runner.path(replace(settings, seed=run["seed"])).write_text(json.dumps(run))
        return tmp_path

    return put


PHANTOMS = AppSettings(dataset="phantoms")


def test_the_first_planted_seeds_count_and_the_others_are_named(kept):
    lines: list[str] = []
    folder = kept([summary(0), summary(1, planted=False), summary(2), summary(3), summary(4)])
    (outcome,) = Runner(folder, told=lines.append).run([Plan(PHANTOMS, planted=3)])
    assert sorted(outcome.counted) == [0, 2, 3]
    assert sorted(outcome.left_out) == [1]
    assert any("seed 1: left out, backdoor not planted" in line for line in lines)
    assert "left out, because no backdoor was planted: 1" in figures.markdown([outcome])


def test_without_a_backdoor_every_seed_counts(kept):
    clean = replace(PHANTOMS, scenario="clean")
    folder = kept([summary(s, planted=None) for s in range(2)], clean)
    (outcome,) = Runner(folder).run([Plan(clean, planted=2)])
    assert sorted(outcome.counted) == [0, 1]


def test_exact_seeds_are_all_run_planted_or_not(kept):
    folder = kept([summary(4), summary(7, planted=False)])
    (outcome,) = Runner(folder).run([Plan(PHANTOMS, None, (4, 7))])
    assert sorted(outcome.counted) == [4, 7]


@pytest.mark.parametrize("under_way", [[], [0], [0, 1], [0, 1, 2]])
def test_never_more_seeds_are_started_than_could_be_needed(under_way):
    outcome = Outcome(Plan(PHANTOMS, planted=3), {}, {}, {})
    expected = len(under_way) if len(under_way) < 3 else None
    assert next_seed(outcome, under_way) == expected


def test_a_set_on_which_no_backdoor_takes_ends_with_an_error():
    outcome = Outcome(Plan(PHANTOMS, 3), {}, {seed: summary(seed) for seed in range(40)}, {})
    assert next_seed(outcome, []) is None
    assert isinstance(outcome.errors[40], FederationError)


def test_runs_with_other_settings_or_engines_are_other_files(tmp_path):
    paths = {
        Runner(tmp_path, engine=engine).path(settings)
        for engine in ("virtual", "local")
        for settings in (PHANTOMS, replace(PHANTOMS, seed=1), replace(PHANTOMS, merge="overwrite"))
    }
    assert len(paths) == 6
    there = replace(PHANTOMS, data_dir="/elsewhere")
    assert Runner(tmp_path).path(there) == Runner(tmp_path).path(PHANTOMS)


def test_a_run_of_other_code_is_taken_but_said(kept):
    lines: list[str] = []
    folder = kept([{**summary(0), "code": "old"}])
    Runner(folder, told=lines.append).run([Plan(PHANTOMS, planted=1)])
    assert "by another version of the code" in lines[0]


def test_a_damaged_run_is_refused(tmp_path):
    for content in ("{", "[]", '{"dataset": "x"}'):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(DataError, match="delete it to repeat"):
            read_summary(tmp_path / "run.json")


def outcome_of(*runs) -> Outcome:
    return Outcome(Plan(PHANTOMS), {run["seed"]: run for run in runs}, {}, {})


def test_figures_are_means_of_what_every_run_has():
    flat = figures.flat_figures([outcome_of(summary(0, gap=0.01), summary(1, gap=0.02))])
    assert flat["phantoms/backdoor/afuic/asr_gap_at_merge"] == pytest.approx(0.015)
    assert "phantoms/backdoor/afuic/only_once" not in flat
    assert flat["phantoms/backdoor/holds/asr_gap_at_merge"] == 1
    assert flat["phantoms/backdoor/holds/dip_rounds"] == 0, "a figure nobody reached does not hold"
    assert flat["phantoms/backdoor/silent_failures"] == 0
    assert flat["phantoms/backdoor/runs"] == 2


def test_the_mean_is_judged_not_each_run():
    good, bad = summary(0, gap=0.0), summary(1, gap=0.03)
    verdict = figures.verdicts(outcome_of(good, bad))[0]
    assert (verdict.value, verdict.holds) == (pytest.approx(0.015), True)
    assert not figures.verdicts(outcome_of(bad))[0].holds


def test_the_markdown_has_models_figures_and_what_does_not_hold():
    text = figures.markdown([outcome_of(summary(0, gap=0.5), summary(2, gap=0.5))])
    assert "SYNTHETIC data" in text
    assert "seeds 0, 2" in text
    assert "| **AFU-IC** | 0.800 ± 0.000 | 0.100 ± 0.141 |" in text
    assert "| +0.5000 | <= 0.02 | 0.0000 | **no** |" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_silent_failures_are_counted_and_cells_cannot_break_the_table():
    text = figures.silent_failures(outcome_of(summary(0), summary(1, silent=True, gap=0.4)))
    assert "1 silent failures in 2 requests" in text
    assert "| 1 | yes | completed |" in text
    assert "+0.4000 | **yes** |" in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {7}


def test_a_document_is_filled_between_its_markers_again_and_again(tmp_path):
    path = tmp_path / "doc.md"
    path.write_text(f"before\n{figures.BEGIN}\nold\n{figures.END}\nafter\n")
    for text in ("one", "two"):
        figures.fill(path, text)
    assert path.read_text() == f"before\n{figures.BEGIN}\n\ntwo\n\n{figures.END}\nafter\n"


@pytest.mark.parametrize(
    "content", ["", f"{figures.BEGIN}", f"{figures.END}{figures.BEGIN}", figures.BEGIN * 2]
)
def test_a_document_without_markers_is_left_alone(content, tmp_path):
    path = tmp_path / "doc.md"
    path.write_text(content)
    with pytest.raises(DataError, match="must hold one line"):
        figures.fill(path, "text")
    assert path.read_text() == content
    with pytest.raises(ConfigError, match="cannot read"):
        figures.fill(tmp_path / "missing.md", "text")


def test_seeds_are_read():
    assert read_seeds("0-3") == (0, 1, 2, 3)
    assert read_seeds("4, 1,3-4") == (4, 1, 3)
    for text in ("", "a", "3-1", "1,,2", "-1"):
        with pytest.raises(ConfigError, match="--seeds"):
            read_seeds(text)


@pytest.mark.slow
def test_runs_in_processes_are_kept_and_not_repeated(tmp_path):
    short = {"request_round": 2, "rounds_after": 1, "max_rounds": 6, "local_steps": 2}
    settings = tiny.settings(**short)
    runner = Runner(tmp_path, engine="local", workers=2)
    (outcome,) = runner.run([Plan(settings, None, (0, 1))])
    assert not outcome.errors
    assert {path.name.split("-")[2] for path in tmp_path.glob("*.json")} == {"s0", "s1"}
    before = copy.deepcopy(outcome.counted)
    (again,) = Runner(tmp_path, engine="local").run([Plan(settings, None, (0, 1))])
    assert again.counted == json.loads(json.dumps(before), object_hook=_with_numbers)
    (broken,) = runner.run([Plan(replace(settings, dataset="ghost"), None, (0,))])
    assert {type(error) for error in broken.errors.values()} == {DataError}


def _with_numbers(pairs: dict) -> dict:
    return {int(key) if key.isdigit() else key: value for key, value in pairs.items()}


def test_the_bound_and_the_papers_merge_rule_stand_beside_the_figures():
    cost = {"lost_progress": 1.0, "test_cost": 0.04, "staleness_versions": 14.0}
    runs = [{"resurfacing": {"no_unlearning_mean": 0.8}, "overwrite": cost}, {"overwrite": cost}]
    assert figures._beside(runs[:1])[0] == "Without unlearning the same resurfacing is +0.800."
    (line, _) = figures._beside(runs)
    assert "lost progress 1.000, test score lower by 0.040" in line
    assert figures._beside([{"overwrite": None}]) == []
