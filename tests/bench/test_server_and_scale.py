"""Logic of ``bench server`` and ``bench scale`` on tiny sizes; no clock decides a test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flwr_afuic.bench import scale_table, server_table
from flwr_afuic.bench.scale import Cost, Load, run_load, speeds
from flwr_afuic.bench.server import Timed
from flwr_afuic.bench.server_memory import Peak
from flwr_afuic.bench.server_sizes import ARRAYS, generated, interleaved, sizes_of
from flwr_afuic.cli import app
from flwr_afuic.errors import ConfigError


def test_generated_models_have_the_size_asked_for_and_differ_by_seed() -> None:
    one, two = generated(1003, seed=1), generated(1003, seed=2)
    assert sum(sizes_of(1003)) == one.parameters == 1003
    assert len(one.arrays) == ARRAYS
    assert one.bytes == 4012
    assert not np.array_equal(one.arrays[0], two.arrays[0])


def test_works_are_run_in_turn_and_the_warm_up_is_not_counted() -> None:
    order: list[str] = []
    found = interleaved({n: lambda n=n: order.append(n) for n in "ab"}, repeats=2)  # type: ignore[misc]
    assert order == ["a", "b"] * 3
    assert set(found) == {"a", "b"}


def test_the_server_bench_measures_keeps_and_prints(tmp_path: Path) -> None:
    arguments = ["bench", "server", "--parts", "merge,lock,wire,disk", "--parameters", "2000"]
    arguments += ["--ranks", "2", "--repeats", "1", "--out", str(tmp_path / "kept")]
    arguments += ["--json", str(tmp_path / "f.json")]
    wanted = server_table.Wanted(
        parts=["merge", "lock", "wire", "disk"], parameters=[2000], ranks=[2],
        lock_parameters=500, repeats=1,
    )  # fmt: skip
    said: list[str] = []
    server_table.run(wanted, tmp_path / "kept", told=said.append)
    assert len(said) == 4
    result = CliRunner().invoke(app, arguments)  # everything is kept: it only prints
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "f.json").read_text())["figures"]
    assert {"merge/2000/ratio_to_floor", "merge/2000/speedup_vs_flower"} <= set(figures)
    assert {"lock/2/ratio_to_floor", "disk/2000/checkpoint_vs_write"} <= set(figures)
    assert "**lock, rank 2** (parameters 500)" in result.output


def test_ratios_are_what_they_say() -> None:
    seconds = {"merge": 3.0, "floor": 2.0, "float64 floor": 6.0, "Flower": 9.0,
               "message to model": 4.5}  # fmt: skip
    results = server_table.Results([Timed("merge", 7, seconds)], [Peak("deltas", 10, 410, 100)])
    found = server_table.figures(results)
    assert found["merge/7/ratio_to_floor"] == 1.5
    assert found["merge/7/ratio_to_float64_floor"] == 0.5
    assert found["merge/7/speedup_vs_flower"] == 2.0
    assert found["memory/10/model_copies"] == 4.1
    assert "| deltas | 10 |" in server_table.markdown(results)


@pytest.mark.parametrize("parts", [[], ["merge", "speed"]])
def test_unknown_parts_are_refused(parts: list[str]) -> None:
    with pytest.raises(ConfigError, match="use some of merge"):
        server_table.Wanted(parts=parts)


def test_an_erasure_among_linear_sites_runs_to_its_end() -> None:
    cost = run_load(Load(clients=12, rounds=20, erasures=2))
    assert cost.overlapping == 2
    assert cost.completed == 2
    assert cost.in_flight == 12
    assert cost.events > 10 * 20
    assert 0 < cost.lock_seconds <= cost.erasure_seconds < cost.seconds


def test_no_two_sites_are_equally_fast() -> None:
    assert len(set(speeds(1000).values())) == 1000


def test_scale_figures_are_medians_against_a_hundred_clients() -> None:
    wanted = scale_table.Wanted((100, 1000), (0, 1), 10, 1)
    results = {
        "clients-100": [Cost(seconds=1.0, events=100), Cost(seconds=3.0, events=100)],
        "clients-1000": [Cost(seconds=22.0, events=1000, memory=5000)],
        "erasures-0": [Cost(seconds=1.0, events=100)],
        "erasures-1": [Cost(seconds=2.2, events=200, erasure_seconds=0.2, completed=1)],
        "calibrated-1": [Cost(seconds=4.0, events=10, steps_seconds=3.0)],
    }
    found = scale_table.figures(wanted, results)
    assert found["scale/100/events_per_s"] == pytest.approx(50.0)
    assert found["scale/1000/cost_vs_100"] == pytest.approx(1.1)
    assert found["scale/1000/bytes_per_client"] == 5.0
    assert found["erasure/1/cost_vs_none"] == pytest.approx(1.1)
    assert found["erasure/round_cost_ratio"] == pytest.approx(0.1)
    assert "3.00 s of the processor" in scale_table.markdown(wanted, results)
