"""The latency study: figures by hand, a few runs of time alone, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from flwr_afuic import wire
from flwr_afuic.app.local import SpeedModel
from flwr_afuic.bench.latency import LatencySettings, run_method
from flwr_afuic.bench.latency_figures import (
    Yardstick,
    erasing_figures,
    retraining_figures,
    yardstick,
)
from flwr_afuic.bench.latency_runs import LatencyRunner, Wanted, plan, retrained_key
from flwr_afuic.bench.latency_sites import RememberingHospital
from flwr_afuic.bench.latency_table import BEGIN, LatencyResults, advantages, flat_figures, verdicts
from flwr_afuic.cli.bench import app as bench
from flwr_afuic.erasure.inbox import SiteInbox
from flwr_afuic.errors import ConfigError, DataError
from flwr_afuic.models.arrays import get_arrays
from tests.app import tiny


def clock(**changes: Any) -> LatencySettings:
    return LatencySettings(app=tiny.settings(), clock_only=True, rounds_after=6, **changes)


# ---- speeds ---------------------------------------------------------------------------------


def test_pareto_times_have_mean_one_a_least_and_repeat() -> None:
    speed = SpeedModel(tail=3.0, seed=1)
    draws = [speed.seconds(0, "train", 16, task) for task in range(4000)]
    assert np.mean(draws) == pytest.approx(1.0, abs=0.05)
    assert min(draws) >= 2 / 3
    assert max(draws) > 3
    assert draws[:5] == [speed.seconds(0, "train", 16, task) for task in range(5)]
    assert speed.seconds(1, "train", 16, 7) != speed.seconds(2, "train", 16, 7)


def test_a_tail_without_a_mean_is_refused() -> None:
    with pytest.raises(ConfigError, match="tail is 1"):
        SpeedModel(tail=1.0)
    with pytest.raises(ConfigError, match="straggler"):
        LatencySettings(straggler=0.5)


# ---- figures --------------------------------------------------------------------------------


def erased(**changes: Any) -> dict[str, Any]:
    """A run: sites train a second each, request at 4 s, erased model at 8 s, forgotten at 10 s."""
    train = [
        {"site": f"site-{n}", "kind": "train", "start": float(t), "end": t + 1.0}
        for n in (1, 2)
        for t in range(16)
    ]
    target = {"site": "site-0", "kind": "unlearn", "start": 6.0, "end": 8.0}
    scores = [
        {"version": v, "round": v, "time": 2.0 * v, "cause": "merge", "test": 0.8, "forget": f}
        for v, f in ((4, 0.7), (5, 0.5), (6, 0.5), (7, 0.5), (8, 0.5), (9, 0.5), (10, 0.5))
    ]
    scores[0]["cause"] = "erasure"
    return {
        "method": "afuic",
        "federation": "1",
        "requested": 4.0,
        "closed": 14.0,
        "spans": [*train, target],
        "server_spans": [{"site": "server", "kind": "reference", "start": 4.0, "end": 6.0}],
        "versions": [[v, v, 2.0 * v, "merge"] for v in range(1, 9)],
        "scores": scores,
        **changes,
    }


def retrained(**changes: Any) -> dict[str, Any]:
    return {
        "method": "retrain",
        "federation": "1",
        "versions": [[v, v, 3.0 * v, "merge"] for v in range(1, 11)],
        "scores": [{"round": r, "test": 0.81, "forget": 0.52} for r in range(4, 11)],
        **changes,
    }


def test_figures_of_an_erasure_by_hand() -> None:
    found = erasing_figures(erased(), "site-0", yardstick(retrained(), None))
    assert found["time_to_model"] == 4.0
    assert found["floor"] == 4.0  # two for the reference, two for the target
    assert found["time_to_forget"] == 6.0
    assert found["time_to_recover"] == 4.0
    assert found["stall"] == 0.0
    assert found["retained_throughput"] == pytest.approx(1.0)
    assert found["forget_gap_at_end"] == pytest.approx(-0.02)


def test_a_procedure_of_the_server_is_its_own_floor() -> None:
    span = {"site": "server", "kind": "erasure", "start": 5.5, "end": 8.0}
    assert erasing_figures(erased(server_spans=[span]), "site-0", None)["floor"] == 2.5


def test_what_never_comes_to_the_level_has_no_time() -> None:
    run = erased()
    for row in run["scores"]:
        row["forget"] = 0.9
    found = erasing_figures(run, "site-0", yardstick(retrained(), None))
    assert found["time_to_forget"] is None
    assert found["time_to_recover"] == 4.0


def test_without_scores_only_time_is_told() -> None:
    assert "time_to_forget" not in erasing_figures(erased(), "site-0", None)
    with pytest.raises(DataError, match="holds no erasure"):
        erasing_figures(erased(scores=[]), "site-0", None)


def test_two_retrainings_widen_the_bounds_and_the_last_rounds_stand_for_later_ones() -> None:
    other = [{"round": r, "test": 0.71, "forget": 0.54} for r in range(4, 11)]
    measure = yardstick(retrained(), retrained(scores=other))
    assert measure.test_bound == pytest.approx(0.1)
    assert measure.forget_bound == 0.05
    curve = Yardstick({r: r / 100 for r in range(1, 21)}, {1: 0.5})
    assert curve.at([3, 100])[0] == [0.03, pytest.approx(0.155)]


def test_retraining_takes_its_rounds_and_longer_training_by_rule() -> None:
    found = retraining_figures(retrained(), request_round=4)
    assert found["time_to_forget"] == 12.0
    assert found["time_to_forget_1000_rounds"] == 3000.0
    with pytest.raises(DataError, match="shorter"):
        retraining_figures(retrained(), request_round=11)


def test_names_advantages_and_bounds() -> None:
    base = LatencySettings()
    results = LatencyResults(
        [base, replace(base, straggler=10.0, target_straggles=True)],
        learned={
            "1": {"retrain": retrained(), "afuic": erased()},
            "10-target": {"afuic": erased(federation="10-target")},
        },
    )
    with pytest.raises(DataError, match="shorter"):  # ten rounds for a request after twelve
        flat_figures(results)
    results.learned["1"]["retrain"] = retrained(
        versions=[[v, v, 3.0 * v, "merge"] for v in range(1, 21)]
    )
    flat = flat_figures(results)
    assert flat["latency/1/afuic/time_to_forget"] == 6.0
    assert flat["latency/10-target/afuic/time_to_forget"] == 6.0
    assert flat["latency/10-target/advantage/retrain_100_rounds"] == 50.0
    assert flat["latency/1/retrain/time_to_forget"] == 36.0
    assert verdicts(results)["1"] == {
        "stall": True,
        "retained_throughput": True,
        "time_to_forget_within_1.2_of_floor": False,  # 6 s against 4
    }
    assert advantages({"afuic": {"time_to_forget": None, "time_to_model": 3.0}}) == {}
    timed = {
        "afuic": {"time_to_model": 4.0},
        "pga": {"time_to_model": 2.0},  # whether it ever forgets is not known
        "retrain": {"time_to_forget_100_rounds": 100.0},
    }
    assert advantages(timed) == {"retrain_100_rounds": 25.0}


def test_retraining_without_a_slow_target_is_run_once() -> None:
    federations = [clock(straggler=f, target_straggles=t) for f in (1, 10) for t in (False, True)]
    wanted = plan(federations, ["retrain", "afuic"])
    assert [(one.settings.key, one.method) for one in wanted] == [
        ("1", "retrain"),
        ("1", "afuic"),
        ("10", "retrain"),
        ("10", "afuic"),
        ("10-target", "afuic"),
    ]
    assert retrained_key(federations[3]) == "1"
    slow = Wanted(federations[3], "afuic")
    assert slow.rounds > Wanted(federations[2], "afuic").rounds


# ---- runs -----------------------------------------------------------------------------------


def test_afuic_stalls_nobody_where_a_stopping_method_waits_for_the_straggler(
    tmp_path: Path,
) -> None:
    settings = clock(straggler=10.0)
    found = {}
    for method in ("afuic", "pga"):
        run = run_method(method, settings, tmp_path / method, {}, rounds=80)
        found[method] = erasing_figures(run, "site-0", None)
    assert found["afuic"]["stall"] == 0.0
    assert found["afuic"]["retained_throughput"] >= 0.9
    assert found["afuic"]["time_to_model"] <= 1.2 * found["afuic"]["floor"]
    assert found["pga"]["stall"] > 1.0
    assert found["pga"]["retained_throughput"] < 0.9


def test_a_finished_run_is_kept_and_a_spent_budget_leaves_the_rest(tmp_path: Path) -> None:
    told: list[str] = []
    wanted = plan([clock()], ["retrain", "retrain_sync"])
    runner = LatencyRunner(tmp_path, budget=0.0, told=told.append)
    assert runner.run(wanted) == {}
    assert told == ["2 runs are left; the same command goes on with them"]
    path = runner.path(wanted[0])
    path.write_text(json.dumps(retrained()))
    assert set(LatencyRunner(tmp_path, budget=0.0).run(wanted)["1"]) == {"retrain"}
    path.write_text("{}")
    with pytest.raises(DataError, match="delete it"):
        LatencyRunner(tmp_path, budget=0.0).run(wanted)


def test_nobody_trains_twice_from_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, memory = tiny.settings(), {}

    def hospital(number: int) -> RememberingHospital:
        made = RememberingHospital(settings, number, SiteInbox(tmp_path / f"{number}.sqlite"))
        made.memory = memory
        return made

    arrays = get_arrays(hospital(1).model())
    first = hospital(1).train(arrays, {wire.SEED: 5})
    first[0][0][:] = 0.0  # whoever changes an answer does not change what is remembered
    assert len(memory) == 1
    again = hospital(1).train(arrays, {wire.SEED: 5})
    assert len(memory) == 1
    assert np.abs(again[0][0]).max() > 0
    for number, config in ((2, {wire.SEED: 5}), (1, {wire.SEED: 6})):
        hospital(number).train(arrays, config)
    hospital(1).train(arrays, {wire.SEED: 5, wire.EFFORT: 0.5})
    assert len(memory) == 4


# ---- the command ----------------------------------------------------------------------------


def test_the_command_plans_and_takes_what_was_run(tmp_path: Path) -> None:
    folder, document = tmp_path / "runs", tmp_path / "results.md"
    options = ["latency", "--stragglers", "1", "--tail", "0", "--out", str(folder)]
    options += ["--runs", "training", "--budget", "-1"]
    planned = CliRunner().invoke(bench, [*options, "--plan"])
    assert planned.exit_code == 0, planned.output
    assert "1 retrain_floor (with training)" in planned.output
    assert "9 runs are missing" in planned.output
    folder.mkdir()
    long = [[v, v, 3.0 * v, "merge"] for v in range(1, 21)]
    runner = LatencyRunner(folder)
    for method, run in (("retrain", retrained(versions=long)), ("afuic", erased())):
        runner.path(Wanted(LatencySettings(), method)).write_text(json.dumps(run))
    document.write_text(f"{BEGIN}\n<!-- /table -->\n")
    written = tmp_path / "l.json"
    done = CliRunner().invoke(
        bench, [*options, "--json", str(written), "--markdown", str(document)]
    )
    assert done.exit_code == 0, done.output
    assert "7 runs are left" in done.output
    assert "| **AFU-IC** | 4.0 | 4.0 | 6.0 |" in document.read_text()
    assert (tmp_path / "images" / "latency.png").stat().st_size > 1000
    figures = json.loads(written.read_text())["figures"]
    assert figures["latency/1/afuic/stall"] == 0.0
    assert figures["latency/1/advantage/retrain_1000_rounds"] == 500.0


@pytest.mark.parametrize(
    "wrong",
    [["--slow", "nobody"], ["--stragglers", "fast"], ["--runs", "x"], ["--methods", "magic"]],
)
def test_wrong_options_are_refused(wrong: list[str]) -> None:
    result = CliRunner().invoke(bench, ["latency", "--plan", *wrong])
    assert isinstance(result.exception, ConfigError)
