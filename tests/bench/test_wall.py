"""``bench wall``'s overhead: its clients do the same work, and its parts add up."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.app.user_config import UserConfig
from typer.testing import CliRunner

from flwr_afuic import wire
from flwr_afuic.bench.wall_overhead import Arm, Overhead, _node, _write_app, measure_overhead
from flwr_afuic.bench.wall_processes import running
from flwr_afuic.bench.wall_site import PARTS, _ours, _plain, _Watch, network
from flwr_afuic.cli import app
from flwr_afuic.errors import ConfigError, FederationError


@pytest.mark.parametrize("make", [_plain, _ours])
def test_both_clients_train_on_the_same_images_and_say_what_took_how_long(make, tmp_path: Path):
    node = _node(tmp_path / "site-0", 0)
    context = Context(1, 1, UserConfig(node), RecordDict(), UserConfig({}))
    watch = _Watch(time.time(), str(node["log"]))
    weights = [tensor.numpy() for tensor in network().state_dict().values()]
    client = make(context, watch)
    trained, examples, _ = client.fit(weights, {wire.TASK: wire.TASK_TRAIN, wire.VERSION: 0})
    assert examples == 2000
    assert not np.array_equal(trained[0], weights[0])
    (line,) = Path(node["log"]).read_text().splitlines()
    row = json.loads(line)
    assert set(row) == {*PARTS, "inside"}
    assert min(row.values()) >= 0
    assert sum(row[part] for part in PARTS) <= row["inside"] + 0.01
    assert row["data"] > 0
    assert row["train"] > 0


def test_inner_parts_are_no_part_of_the_outer_ones(tmp_path: Path) -> None:
    watch = _Watch(time.time(), str(tmp_path / "log"))
    with watch.part("codec"):
        with watch.part("train"), watch.part("data"):
            time.sleep(0.02)
        with watch.part("data"):
            time.sleep(0.01)
    watch.write()
    row = json.loads((tmp_path / "log").read_text())
    assert row["data"] >= 0.03
    assert row["codec"] < 0.01
    assert row["train"] < 0.01


def test_the_ratio_is_ours_over_flowers_own() -> None:
    parts = {"torch": 2.0, "library": 0.5, "start": 0.1, "data": 0.2, "codec": 0.1, "train": 1.0}
    plain = Arm(8, 6.0, 3.0, dict.fromkeys(PARTS, 0.0), 0.1)
    both = Overhead(plain, Arm(8, 7.0, 4.0, parts, 0.1), 4)
    found = both.figures()
    assert found["wall/overhead_ratio"] == pytest.approx(1.0 / 3.0)
    assert found["wall/message_vs_plain"] == pytest.approx(7 / 6)
    assert "| erasure client | 7.00 | 4.00 | 2.000 | 0.500 |" in both.markdown()


def test_the_app_is_a_thin_bundle(tmp_path: Path) -> None:
    folder = _write_app(tmp_path / "app")
    assert 'clientapp = "wall.client_app:app"' in (folder / "pyproject.toml").read_text()
    for name in ("server_app", "client_app"):
        compile((folder / "wall" / f"{name}.py").read_text(), name, "exec")


def test_processes_that_do_not_start_are_reaped_and_said(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("flwr_afuic.bench.wall_processes._STARTS", 0.5)
    monkeypatch.setattr("flwr_afuic.bench.wall_processes._program", lambda name: "/bin/echo")
    with (
        pytest.raises(FederationError, match="until the SuperLink listens"),
        running(tmp_path / "p", {}),
    ):
        pass


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match="rounds is 0"):
        measure_overhead(rounds=0)
    result = CliRunner().invoke(app, ["bench", "wall", "--parts", "cold"])
    assert isinstance(result.exception, ConfigError)
