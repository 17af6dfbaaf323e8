"""A hospital's table as a federation's client."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from flwr.app.user_config import UserConfig

from flwr_afuic import wire
from flwr_afuic.clients.clinical_client import ClinicalClient, ClinicalSettings, hold_out
from flwr_afuic.data.clinical import Preparation
from flwr_afuic.data.clinical.source import ClinicalSet
from flwr_afuic.errors import ConfigError
from flwr_afuic.models.arrays import get_arrays
from tests.data.clinical.files import SIZE as FILE_SIZE
from tests.data.clinical.files import mask, nifti, sample, table

SIZE = (8, 8, 8)
SETTINGS = ClinicalSettings(
    task="segmentation",
    classes=("background", "anterior", "posterior"),
    preparation=Preparation(size=SIZE),
    model="unet",
    local_steps=3,
)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    rows = []
    for n in range(6):
        nifti(tmp_path / f"image_{n}.nii.gz")
        mask(tmp_path / f"mask_{n}.nii.gz")
        rows.append(
            {
                "path": f"image_{n}.nii.gz",
                "patient_id": f"p{n // 2}",
                "mask_path": f"mask_{n}.nii.gz",
            }
        )
    table(tmp_path / "table.csv", rows)
    return tmp_path


def client(site: Path, settings: ClinicalSettings = SETTINGS) -> ClinicalClient:
    config = {
        "partition-id": 2,
        "inbox": str(site / "inbox.sqlite"),
        "table": str(site / "table.csv"),
        "cache": str(site / "cache"),
    }
    context = Context(1, 7, UserConfig(config), RecordDict(), UserConfig({}))
    return ClinicalClient.of_node(settings, context)


def test_it_trains_on_every_patient_and_on_none_that_was_erased(site: Path) -> None:
    start = get_arrays(SETTINGS.network())
    delta, examples, metrics = client(site).fit(start, {wire.SEED: 1})
    assert examples == 6
    assert metrics[wire.STEPS] == 3
    assert 0 <= float(metrics["train_accuracy"]) <= 1
    assert any(float(abs(array).max()) > 0 for array in delta)
    steward = client(site)
    steward.inbox.file(scope="samples", sample_ids=(), held=steward.sample_ids(), patients=["p1"])
    _, examples, _ = client(site).fit(start, {wire.SEED: 2})
    assert examples == 4


def test_an_image_that_comes_later_of_an_erased_patient_does_not_train(site: Path) -> None:
    start = get_arrays(SETTINGS.network())
    first = client(site)
    first.fit(start, {wire.SEED: 1})
    first.inbox.file(scope="samples", sample_ids=(), held=first.sample_ids(), patients=["p1"])
    nifti(site / "late.nii.gz")
    with (site / "table.csv").open("a") as file:
        file.write("late.nii.gz,p1,mask_0.nii.gz\n")
    again = client(site)
    assert len(again.sample_ids()) == 7
    _, examples, _ = again.fit(start, {wire.SEED: 2})
    assert examples == 4


def test_an_unlearning_task_of_a_segmentation(site: Path) -> None:
    steward = client(site)
    held = steward.sample_ids()
    steward.inbox.note_held(held, steward.sample_patients())
    notice = steward.inbox.file(scope="samples", sample_ids=(), held=held, patients=["p0"])
    start = get_arrays(SETTINGS.network())
    config = {
        wire.TASK: wire.TASK_UNLEARN,
        wire.REQUEST: notice.request_id,
        wire.SCOPE: "samples",
        wire.SEED: 1,
        wire.SETTINGS: '{"steps": 3, "attempts": 1, "batch_size": 2, "anchor_batch_size": 2}',
        wire.EXTRAS: f'{{"reference": {len(start)}}}',
    }
    reference = get_arrays(SETTINGS.network(seed=5))
    _, _, metrics = client(site).fit([*start, *reference], config)
    assert wire.FAILURE not in metrics, metrics
    evidence = wire.Evidence.from_json(str(metrics[wire.EVIDENCE]))
    assert evidence.before.count == 2
    assert evidence.reference is not None
    assert 0 <= evidence.after.accuracy <= 1


def test_bad_rows_are_named_in_one_report_and_the_rest_trains(
    site: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample("MR_small.dcm").save_as(site / "whole.dcm")
    content = (site / "whole.dcm").read_bytes()
    (site / "cut.dcm").write_bytes(content[: len(content) // 2])
    moved, strange = np.eye(4), np.zeros(FILE_SIZE, np.uint8)
    moved[0, 3], strange[0, 0, 0] = 5.0, 7
    nifti(site / "image_1.nii.gz", affine=moved)
    mask(site / "mask_3.nii.gz", strange)
    with (site / "table.csv").open("a", encoding="utf-8") as file:
        file.write("cut.dcm,p9,mask_0.nii.gz\n")
    caplog.set_level(logging.WARNING, logger="flwr")
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    _, examples, _ = client(site).fit(get_arrays(SETTINGS.network()), {wire.SEED: 1})
    assert examples == 4
    (report,) = [r.getMessage() for r in caplog.records if "rows can be used" in r.getMessage()]
    assert "4 of 7 rows" in report
    assert "line 3 (image_1.nii.gz): affine" in report
    assert "line 5 (image_3.nii.gz): label" in report
    assert "line 8 (cut.dcm): unreadable" in report


def test_whole_patients_are_held_out_and_stay_so(site: Path) -> None:
    patients = tuple(f"p{n // 2}" for n in range(400))
    loaded = ClinicalSet(
        torch.zeros(400, 1, 1, 1), torch.zeros(400), tuple(map(str, range(400))), patients, ()
    )
    chosen = hold_out(loaded, 0.3, seed=1)
    assert 80 <= len(chosen) <= 160
    assert all(i ^ 1 in chosen for i in chosen)
    fewer = ClinicalSet(
        loaded.images[:20], loaded.targets[:20], loaded.ids[:20], loaded.patients[:20], ()
    )
    assert hold_out(fewer, 0.3, seed=1) == {i for i in chosen if i < 20}
    assert hold_out(loaded, 0.0, seed=1) == set()


def test_a_node_needs_a_table() -> None:
    context = Context(1, 7, UserConfig({}), RecordDict(), UserConfig({}))
    with pytest.raises(ConfigError, match="'table'"):
        ClinicalClient.of_node(SETTINGS, context)
    with pytest.raises(ConfigError, match="holdout"):
        ClinicalSettings(
            task="segmentation",
            classes=("a", "b"),
            preparation=Preparation(size=SIZE),
            model="unet",
            holdout=1.0,
        )
