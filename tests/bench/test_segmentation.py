"""The segmentation scenario on tiny made-up volumes: it runs through, and its figures are right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flwr_afuic.bench.hippocampus import HippocampusSettings, load_hippocampus, write_table
from flwr_afuic.bench.segmentation_figure import draw
from flwr_afuic.bench.segmentation_runs import SegmentationRunner
from flwr_afuic.bench.segmentation_scores import AreaResult, ArmCurve, VolumeScores
from flwr_afuic.bench.segmentation_table import figures, markdown, verdicts
from flwr_afuic.errors import ConfigError, DataError
from tests.data.clinical.files import mask, nifti

TINY = {
    "cases": 14,
    "size": (8, 8, 8),
    "sites": 3,
    "tests": 4,
    "proxies": 3,
    "request_round": 2,
    "rounds_for_erasure": 5,
    "rounds_after": 3,
    "verify_rounds": 1,
    "local_steps": 2,
    "distillation_steps": 5,
    "unlearning_steps": 3,
    "max_cost": 1.0,  # a model of a few steps changes much with any merge
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with volumes whose bright part is the structure."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for number in range(1, 17):
        values = rng.normal(0, 0.1, (8, 8, 8)).astype(np.float32)
        truth = np.zeros((8, 8, 8), np.uint8)
        start = int(rng.integers(0, 4))
        truth[start : start + 3, 2:5, 2:6] = 1
        truth[start : start + 3, 5:7, 2:6] = 2
        name = f"hippocampus_{number:03d}.nii.gz"
        nifti(root / "msd_hippocampus" / "images" / name, values + truth)
        mask(root / "msd_hippocampus" / "labels" / name, truth)
    return root


def settings(folder: Path, **changes: object) -> HippocampusSettings:
    return HippocampusSettings(**{"data_dir": str(folder), **TINY, **changes})  # type: ignore[arg-type]


def test_cases_are_divided_and_none_is_twice_anywhere(folder: Path, tmp_path: Path) -> None:
    data = load_hippocampus(settings(folder), tmp_path)
    parts = [*data.sites, data.test, data.proxies]
    ids = [sample for part in parts for sample in part.ids]
    assert len(ids) == len(set(ids)) == 14
    assert len(data.test) == 4
    assert len(data.proxies) == 3
    assert data.forget("site") is data.sites[0]
    assert data.kept("site") is None
    assert data.forget("patient").ids + data.kept("patient").ids == data.sites[0].ids  # type: ignore[union-attr]
    again = load_hippocampus(settings(folder), tmp_path)
    assert [part.ids for part in again.sites] == [part.ids for part in data.sites]
    other = load_hippocampus(settings(folder, seed=1), tmp_path)
    assert [part.ids for part in other.sites] != [part.ids for part in data.sites]


def test_missing_data_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Task04"):
        write_table(tmp_path, tmp_path / "table.csv", 3)


@pytest.mark.parametrize(
    "changes", [{"sites": 2}, {"cases": 5}, {"tests": 0}, {"lr": 0.0}, {"rounds_after": 0}]
)
def test_settings_out_of_range(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        HippocampusSettings(**{**TINY, **changes})  # type: ignore[arg-type]


def test_test_cases_are_the_same_for_every_seed_and_unseen_while_tuning(
    folder: Path, tmp_path: Path
) -> None:
    first, second = (load_hippocampus(settings(folder, seed=n), tmp_path) for n in (0, 1))
    assert first.test.ids == second.test.ids
    tuned = load_hippocampus(settings(folder, tuning=True, tests=3, cases=16), tmp_path)
    fixed = load_hippocampus(settings(folder, tests=3, cases=16), tmp_path)
    seen = [*tuned.sites, tuned.test, tuned.proxies]
    assert len(tuned.test) == 3
    assert not {sample for part in seen for sample in part.ids} & set(fixed.test.ids)


def scores(value: float) -> VolumeScores:
    return VolumeScores(value, value - 0.1, value - 0.2, 0.5)


def result(afuic: float, floor: float | None = None) -> AreaResult:
    def arm(value: float) -> ArmCurve:
        return ArmCurve({r: scores(value) for r in range(2, 12)}, 2.0)

    found = {
        "afuic": ArmCurve(
            arm(afuic).rounds, 2.0, scores(0.9), 4, 1, "completed", "held for 5 rounds"
        ),
        "retrain": arm(0.78),
    }
    if floor is not None:
        found["retrain_floor"] = arm(floor)
    return AreaResult("patient", found)


def test_figures_are_differences_from_retraining() -> None:
    found = result(0.80).figures()
    assert found["hippocampus/patient/dice_gap"] == pytest.approx(0.02)
    assert found["hippocampus/patient/forget_dice_gap"] == pytest.approx(0.02)
    assert found["hippocampus/patient/kept_dice_gap"] == pytest.approx(0.02)
    assert found["hippocampus/patient/resurfacing_mean"] == pytest.approx(0.02)
    assert found["hippocampus/patient/afuic/hausdorff95"] == 2.0
    assert "hippocampus/patient/floor/dice_gap" not in found
    text = markdown({"patient": {0: result(0.80)}})
    assert "| **AFU-IC** | 0.800 | 0.700 | 0.600 | 0.500 | 2.000 |" in text


def test_a_bound_holds_if_met_or_below_the_floor() -> None:
    def held(runs: dict[int, AreaResult]) -> dict[str, bool]:
        return {verdict.name: verdict.holds for verdict in verdicts("patient", runs)}

    assert all(held({0: result(0.785)}).values())
    assert not held({0: result(0.80)})["dice_gap"]
    assert not held({0: result(0.80, floor=0.785)})["dice_gap"]
    assert held({0: result(0.80, floor=0.81)})["dice_gap"]
    # The mean of the seeds is judged.
    assert held({0: result(0.80), 1: result(0.77)})["dice_gap"]
    flat = figures({"patient": {0: result(0.80), 1: result(0.77)}})
    assert flat["hippocampus/patient/dice_gap"] == pytest.approx(0.005)
    assert flat["hippocampus/patient/holds/dice_gap"] == 1.0


def test_scores_of_an_arm_are_read_as_written() -> None:
    curve = result(0.8).curves["afuic"]
    assert ArmCurve.from_json(json.loads(json.dumps(curve.to_json()))) == curve
    with pytest.raises(DataError, match="damaged"):
        ArmCurve.from_json({"rounds": []})


@pytest.mark.slow
@pytest.mark.parametrize("area", ["site", "patient"])
def test_an_erasure_runs_through_once(folder: Path, tmp_path: Path, area: str) -> None:
    told: list[str] = []
    runner = SegmentationRunner(tmp_path, told=told.append)
    found = runner.run(settings(folder), [area], [0], ["afuic", "retrain", "no_unlearning"])
    arms = found[area][0].curves
    assert {max(arm.rounds) for arm in arms.values()} == {10}
    assert all(min(arm.rounds) <= 3 for arm in arms.values())
    flat = figures(found)
    wanted = {"dice_gap", "forget_dice_gap", "resurfacing_mean"}
    wanted |= {"kept_dice_gap"} if area == "patient" else set()
    assert {f"hippocampus/{area}/{name}" for name in wanted} <= set(flat)
    assert all(np.isfinite(value) for value in flat.values())
    assert found[area][0].merge_round >= 2
    again = SegmentationRunner(tmp_path, told=told.append)
    same = again.run(settings(folder), [area], [0], ["afuic", "retrain", "no_unlearning"])
    assert figures(same) == flat
    assert "taken from" in told[-1]
    assert draw(found, tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
