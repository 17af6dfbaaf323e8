"""The demo's pipeline from data to summary."""

import json
import math
import os
import subprocess
import sys

import pytest

from flwr_afuic.app.demo import DemoResult, certificate_of, write_demo
from flwr_afuic.app.engines import run_engine
from flwr_afuic.erasure.certificate import verify_certificate
from flwr_afuic.erasure.keys import load_public
from flwr_afuic.errors import AfuicError, ConfigError
from flwr_afuic.report import RunRecord
from tests.app import tiny
from tests.erasure_helpers import federate, request_id
from tests.strategies.lives import file_at, three

SCORES = {"test_accuracy", "forget_accuracy", "backdoor_success", "membership_auc"}
KEYS = {
    "dataset",
    "synthetic",
    "engine",
    "seed",
    "rounds",
    "models",
    "resurfacing",
    "merge_dip",
    "dip_rounds",
    "stall_seconds",
    "retained_throughput",
    "lost_progress",
    "time_to_forget_seconds",
    "erasure",
    "figures",
    "settings",
    "seeds",
    "versions",
}


@pytest.mark.slow
def test_the_summary_holds_everything_a_reader_is_promised():
    summary = tiny.once().summary
    assert summary.keys() >= KEYS
    assert summary["engine"] == "local"
    assert summary["dataset"] == "ours"
    assert summary["models"].keys() == {
        "original",
        "no_unlearning",
        "retrain",
        "retrain_floor",
        "afuic",
    }
    for scores in summary["models"].values():
        assert scores.keys() == SCORES
        assert all(0 <= score <= 1 for score in scores.values())
    assert summary["resurfacing"].keys() >= {"mean", "max"}
    assert summary["erasure"].keys() >= {"request_id", "state"}


@pytest.mark.slow
def test_the_flat_figures_are_the_same_numbers():
    summary = tiny.once().summary
    figures = summary["figures"]
    assert all(isinstance(value, float) and math.isfinite(value) for value in figures.values())
    for model, scores in summary["models"].items():
        for name, score in scores.items():
            assert figures[f"ours/backdoor/{model}/{name}"] == score
    for name in ("merge_dip", "stall_seconds", "retained_throughput", "lost_progress"):
        assert figures[f"ours/backdoor/afuic/{name}"] == summary[name]
    assert figures["ours/backdoor/afuic/resurfacing_mean"] == summary["resurfacing"]["mean"]


@pytest.mark.slow
def test_the_erasure_was_merged_and_nothing_was_lost_or_stalled():
    summary = tiny.once().summary
    assert summary["erasure"]["merge_round"] > summary["settings"]["request_round"]
    assert summary["stall_seconds"] == 0
    assert summary["retained_throughput"] >= 0.9
    assert abs(summary["lost_progress"]) < 1e-6
    assert summary["overwrite"]["lost_progress"] == pytest.approx(1)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers_twice():
    first, second = tiny.once(), tiny.run()
    assert first.summary["figures"] == second.summary["figures"]
    assert first.record["curves"] == second.record["curves"]
    assert first.summary["erasure"] == second.summary["erasure"]


@pytest.mark.slow
def test_written_files_are_strict_json_and_make_a_record(tmp_path):
    write_demo(tiny.once(), tmp_path)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    for name in ("summary", "record"):
        text = (tmp_path / f"{name}.json").read_text()
        assert json.loads(text, parse_constant=refuse)
    record = RunRecord.load(tmp_path / "record.json")
    assert record.target == "site-0"
    assert not list(tmp_path.glob(".*")), "no half-written file stays"


def test_an_unknown_engine_is_refused():
    with pytest.raises(ConfigError, match="unknown engine 'kubernetes'"):
        run_engine("kubernetes", lambda grid: None, None, 3)


def test_a_server_that_fails_on_the_local_engine_fails_the_run():
    from flwr_afuic.app.client_app import make_client_app

    def main(grid):
        raise AfuicError("nothing works")

    with pytest.raises(AfuicError, match="nothing works"):
        run_engine("local", main, make_client_app(tiny.settings(), tiny.data_file().parent), 3)


RAY_RUN = """\
from tests.app import tiny
from flwr_afuic.app.demo import run_demo
if __name__ == "__main__":
    with tiny.shortened():
        settings = tiny.settings(request_round=3, rounds_after=2, max_rounds=8, local_steps=8)
        result = run_demo(settings, engine="simulation")
    import ray
    assert not ray.is_initialized(), "Ray is still up"
    assert result.summary["engine"] == "simulation"
    assert result.summary["rounds"] >= 3
    assert result.summary["erasure"]["request_id"]
    print("the run on Ray ended well")
"""
RAY_FAILURE = """\
from tests.app import tiny
from flwr_afuic.app.client_app import make_client_app
from flwr_afuic.app.engines import run_engine
from flwr_afuic.errors import FederationError
def main(grid):
    raise FederationError("the server gave up")
if __name__ == "__main__":
    run_engine("simulation", main, make_client_app(tiny.settings(), tiny.data_file().parent), 1)
"""


def python(script: str) -> subprocess.CompletedProcess[str]:
    # Ray's workers are nice to other programs by default: beside other tests they would not move.
    ray = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    env = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", **ray}
    return subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=500
    )


@pytest.mark.slow
def test_the_simulation_engine_runs_on_ray_and_shuts_it_down():
    pytest.importorskip("ray")
    done = python(RAY_RUN)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the run on Ray ended well" in done.stdout


@pytest.mark.slow
def test_a_server_that_fails_on_ray_fails_the_process():
    pytest.importorskip("ray")
    done = python(RAY_FAILURE)
    assert done.returncode != 0
    assert "the server gave up" in done.stderr


def test_the_certificate_verifies_and_carries_what_was_measured(tmp_path):
    sites = three()
    outcome = federate(sites, at=file_at(3, sites[0]), state_dir=tmp_path / "server")
    summary = {
        "figures": {"ours/backdoor/afuic/average_gap": 0.01},
        "settings": {"dataset": "ours"},
        "seeds": [0],
        "versions": {"flwr": "1.41.0"},
        "erasure": {"request_id": outcome.record.request_id},
    }
    files = certificate_of(tmp_path / "server", summary)
    write_demo(DemoResult(summary, {}, files), tmp_path)
    verdict = verify_certificate(
        (tmp_path / "certificate.json").read_bytes(),
        (tmp_path / "certificate.json.sig").read_text(),
        load_public(tmp_path / "server.pub"),
    )
    assert verdict.valid, verdict.problems
    document = json.loads((tmp_path / "certificate.json").read_text())
    assert document["metrics"]["figures"] == summary["figures"]
    assert outcome.record.request_id in (tmp_path / "certificate.html").read_text()


def test_an_erasure_that_was_not_completed_has_no_certificate(tmp_path):
    outcome = federate(three(), rounds=2, state_dir=tmp_path)
    assert outcome.strategy.requests == []
    summary = {key: {} for key in ("figures", "settings", "seeds", "versions")}
    assert certificate_of(tmp_path, {**summary, "erasure": {"request_id": request_id()}}) == {}
