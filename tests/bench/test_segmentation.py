"""The segmentation scenario on tiny made-up volumes: it runs through, and its figures are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flwr_afuic.bench.hippocampus import HippocampusSettings, load_hippocampus, write_table
from flwr_afuic.bench.segmentation_scores import AreaResult, VolumeScores, summary
from flwr_afuic.errors import ConfigError, DataError
from tests.data.clinical.files import mask, nifti

TINY = {
    "cases": 14,
    "size": (8, 8, 8),
    "sites": 3,
    "tests": 4,
    "proxies": 3,
    "request_round": 2,
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


def scores(value: float) -> VolumeScores:
    return VolumeScores(value, value - 0.1, value - 0.2, 0.5)


def test_figures_are_differences_from_retraining() -> None:
    result = AreaResult("patient", 4, "completed", "held for 5 rounds", scores(0.9))
    result.curves = {
        "afuic": {r: scores(0.80) for r in range(4, 12)},
        "retrain": {r: scores(0.78) for r in range(4, 12)},
    }
    result.hausdorff = {"afuic": 2.0}
    found = result.figures()
    assert found["hippocampus/patient/dice_gap"] == pytest.approx(0.02)
    assert found["hippocampus/patient/forget_dice_gap"] == pytest.approx(0.02)
    assert found["hippocampus/patient/kept_dice_gap"] == pytest.approx(0.02)
    assert found["hippocampus/patient/resurfacing_mean"] == pytest.approx(0.02)
    assert found["hippocampus/patient/afuic/hausdorff95"] == 2.0
    assert "hippocampus/patient/floor/dice_gap" not in found
    text = summary(result)
    assert "| afuic | 0.800 | 0.700 | 0.600 | 0.500 | 2.000 |" in text


@pytest.mark.slow
@pytest.mark.parametrize("area", ["site", "patient"])
def test_an_erasure_runs_through(folder: Path, tmp_path: Path, area: str) -> None:
    from flwr_afuic.bench.segmentation import measure

    result = measure(settings(folder), area, tmp_path, arms=("retrain",))
    assert set(result.curves) == {"afuic", "retrain"}
    figures = result.figures()
    wanted = {"dice_gap", "forget_dice_gap", "resurfacing_mean"}
    wanted |= {"kept_dice_gap"} if area == "patient" else set()
    assert {f"hippocampus/{area}/{name}" for name in wanted} <= set(figures)
    assert all(np.isfinite(value) for value in figures.values())
    assert result.merge_round >= 2
