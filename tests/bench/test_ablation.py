"""The ablation on a tiny federation: forks are what their names say, and none is made twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from flwr_afuic.bench import ablation as study
from flwr_afuic.bench.ablation import CALIBRATIONS, Ablation, AblationSettings, Cell, cells, compare
from flwr_afuic.bench.ablation_table import BEGIN, flat_figures, markdown, run_cells
from flwr_afuic.bench.ablation_training import Calibration
from flwr_afuic.bench.kept import Keeper
from flwr_afuic.cli.bench import app as bench
from flwr_afuic.errors import ConfigError, DataError
from flwr_afuic.metrics import Scores
from tests.app import tiny

SHORT = {"request_round": 2, "local_steps": 4, "objective": "ascent"}


def settings(**changes: Any) -> AblationSettings:
    values = {"staleness": (0, 1), "rounds_after": 2, **changes}
    return AblationSettings(app=tiny.settings(**SHORT), **values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ablation")


@pytest.fixture(scope="module")
def made(folder: Path) -> Ablation:
    return Ablation(settings(), folder, lambda line: None)


def test_every_calibration_meets_the_default_rule_and_the_middle_staleness_comes_first() -> None:
    found = cells(AblationSettings(), full=False)
    assert found[0] == Cell("delta", "none", 3)
    for tau in (0, 3, 8):
        names = [c.calibration for c in found if c.merge == "delta" and c.staleness == tau]
        assert names == list(CALIBRATIONS)
    assert not [c for c in found if c.staleness == 0 and c.merge in ("damped", "overwrite")]
    assert len(cells(AblationSettings(), full=True)) == 11 * (2 + 4 + 4)


def test_merge_rules_by_their_formulas(made: Ablation) -> None:
    flat = made.layout.flatten
    current, snapshot = flat(made.plain[1]), flat(made.original)
    assert float(np.linalg.norm(made.delta)) > 0
    for merge, expected in (
        ("delta", current + made.delta),
        ("damped", current + made.delta / 2),
        ("overwrite", snapshot + made.delta),
    ):
        assert np.allclose(flat(made.merged(merge, 1)), expected, atol=1e-6)
    kept = flat(made.merged("fidelity", 1)) - current - made.delta
    assert np.linalg.norm(kept) > 0
    assert abs(kept @ (current - snapshot)) < 1e-3 * np.linalg.norm(kept)
    with pytest.raises(ConfigError, match="unknown merge rule"):
        made.merged("average", 1)


def test_the_identity_is_no_calibration(made: Ablation) -> None:
    plain = made.run(Cell("delta", "none", 1))
    assert made.run(Cell("delta", "identity", 1))["figures"] == plain["figures"]
    assert set(plain["figures"]) >= {"resurfacing_mean", "test_mean", "average_gap"}
    assert [int(r) for r in plain["scores"]] == [3, 4, 5]
    assert made.bases[4].shape[0] <= 4


def test_what_is_there_is_not_made_again(
    made: Ablation, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(study, "train_models", refuse)
    again = Ablation(settings(), folder, lambda line: None)
    assert again.retrained.keys() == made.retrained.keys() == {0, 1, 2, 3, 4, 5}


def test_a_fork_against_retraining_by_hand() -> None:
    def scores(test: float, success: float) -> Scores:
        return Scores(test=test, forget=0.5, membership_auc=0.5, backdoor_success=success)

    own = {3: scores(0.7, 0.1), 4: scores(0.8, 0.2), 5: scores(0.9, 0.4)}
    again = {r: scores(0.8, 0.1) for r in (3, 4, 5)}
    found = compare(own, again, 3)
    assert found["test_at_merge"] == 0.7
    assert found["test_mean"] == pytest.approx(0.85)
    assert found["resurfacing_mean"] == pytest.approx(0.2)
    assert found["resurfacing_max"] == pytest.approx(0.3)
    assert found["asr_gap_at_merge"] == 0.0
    assert found["average_gap"] == pytest.approx((0.1 + 0.0 + 0.0 + 0.3) / 4)


def test_a_spent_budget_leaves_forks_and_tables_take_what_there_is(tmp_path: Path) -> None:
    told: list[str] = []
    keeper = Keeper(tmp_path, budget=-1.0, told=told.append)
    assert run_cells(settings(), tmp_path, keeper, full=False, told=told.append) == []
    assert keeper.left == len(cells(settings()))
    runs = [
        {
            "dataset": "x.npz", "objective": "ascent", "seed": seed,
            "cell": {"merge": "delta", "calibration": "lock_4", "staleness": 3},
            "figures": {"resurfacing_mean": 0.1 * seed},
        }
        for seed in (1, 3)
    ]  # fmt: skip
    flat = flat_figures(runs)
    assert flat == {"ablation/x/ascent/delta/lock_4/staleness-3/resurfacing_mean": 0.2}
    assert "+0.200 ± 0.141" in markdown(runs)
    assert "seeds 1, 3" in markdown(runs)


def test_results_are_kept_and_damage_is_told(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    assert keeper.once("a", {"x": 1}, lambda: {"y": 2}) == {"y": 2}
    assert keeper.once("a", {"x": 1}, lambda: {"y": 3}) == {"y": 2}
    assert keeper.once("a", {"x": 2}, lambda: {"y": 3}) == {"y": 3}
    keeper.path("a", {"x": 1}).write_text("[]")
    with pytest.raises(DataError, match="delete it"):
        keeper.once("a", {"x": 1}, lambda: {"y": 3})


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="lock=True"):
        Calibration(rank=4)
    with pytest.raises(ConfigError, match="staleness"):
        settings(staleness=(-1,))
    with pytest.raises(ConfigError, match="scope=client"):
        AblationSettings(app=tiny.settings(scope="samples"))


def test_the_command_plans_and_fills_from_what_is_there(tmp_path: Path) -> None:
    options = ["ablation", "--out", str(tmp_path), "--staleness", "0,3"]
    planned = CliRunner().invoke(bench, [*options, "--plan"])
    assert planned.exit_code == 0, planned.output
    assert "pneumoniamnist ascent seed 0: 30 forks are missing" in planned.output
    document = tmp_path / "r.md"
    document.write_text(f"{BEGIN}\n<!-- /table -->\n")
    empty = [*options, "--budget", "-1", "--quiet", "--markdown", str(document)]
    assert CliRunner().invoke(bench, empty).exit_code == 0
    wrong = CliRunner().invoke(bench, ["ablation", "--staleness", "few"])
    assert isinstance(wrong.exception, ConfigError)
