from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flwr_afuic.data.clinical import ClinicalSource, Preparation
from flwr_afuic.errors import ConfigError, DataError
from tests.data.clinical.files import SIZE, mask, nifti, picture, table

CLASSES = ("background", "anterior", "posterior")


def cases(folder: Path, count: int = 3) -> list[dict[str, Any]]:
    rows = []
    for n in range(count):
        nifti(folder / f"image_{n}.nii.gz", np.full(SIZE, 10.0 * n + 1, np.float32))
        mask(folder / f"mask_{n}.nii.gz")
        rows.append(
            {
                "path": f"image_{n}.nii.gz",
                "patient_id": f"p{n // 2}",
                "mask_path": f"mask_{n}.nii.gz",
            }
        )
    return rows


def source(folder: Path, rows: list[dict[str, Any]], **options: Any) -> ClinicalSource:
    options = {"task": "segmentation", "classes": CLASSES, **options}
    preparation = options.pop(
        "preparation", Preparation(size=SIZE, fit="pad-crop", intensity="none")
    )
    return ClinicalSource(table(folder / "table.csv", rows), preparation, **options)


def kinds(report: Any) -> list[tuple[int, str]]:
    return [(problem.line, problem.kind) for problem in report.problems]


def test_a_segmentation_table(tmp_path: Path) -> None:
    loaded, report = source(tmp_path, cases(tmp_path)).load()
    assert loaded.images.shape == (3, 1, *SIZE)
    assert loaded.images.dtype == torch.float32
    assert loaded.targets.shape == (3, *SIZE)
    assert loaded.targets.dtype == torch.int64
    assert loaded.targets[0].unique().tolist() == [0, 1, 2]
    assert loaded.images[:, 0, 0, 0, 0].tolist() == [1, 11, 21]
    assert loaded.patients == ("p0", "p0", "p1")
    assert loaded.ids[0] == "image_0.nii.gz"
    assert report.problems == ()
    assert "3 of 3" in report.text()


def test_every_bad_row_is_named_at_once_and_the_rest_loads(tmp_path: Path) -> None:
    rows = cases(tmp_path, 3)
    content = nifti(tmp_path / "cut.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(content[: len(content) // 2])
    moved = np.eye(4)
    moved[0, 3] = 5.0
    mask(tmp_path / "moved.nii.gz", affine=moved)
    mask(tmp_path / "small.nii.gz", np.zeros((4, 4, 4), np.uint8))
    strange = np.zeros(SIZE, np.uint8)
    strange[0, 0, 0] = 7
    mask(tmp_path / "strange.nii.gz", strange)
    nifti(tmp_path / "four.nii.gz", np.zeros((*SIZE, 2), np.float32))
    for name in ("a", "b", "c", "d", "e", "f"):
        nifti(tmp_path / f"{name}.nii.gz")
    nan = np.zeros(SIZE, np.float32)
    nan[1, 1, 1] = np.nan
    nifti(tmp_path / "nan.nii.gz", nan)
    good_mask = "mask_0.nii.gz"
    rows += [
        {"path": "gone.nii.gz", "patient_id": "x", "mask_path": good_mask},  # line 5
        {"path": "cut.nii.gz", "patient_id": "x", "mask_path": good_mask},
        {"path": "a.nii.gz", "patient_id": "x", "mask_path": "moved.nii.gz"},
        {"path": "b.nii.gz", "patient_id": "x", "mask_path": "small.nii.gz"},
        {"path": "c.nii.gz", "patient_id": "x", "mask_path": "strange.nii.gz"},
        {"path": "../outside.nii.gz", "patient_id": "x", "mask_path": good_mask},  # line 10
        {"path": "d.nii.gz", "patient_id": "", "mask_path": good_mask},
        {"path": "e.nii.gz", "patient_id": "x", "mask_path": ""},
        {"path": "four.nii.gz", "patient_id": "x", "mask_path": good_mask},
        {"path": "nan.nii.gz", "patient_id": "x", "mask_path": good_mask},
        {"path": "f.nii.gz", "patient_id": "x", "mask_path": good_mask},  # line 15
        {"path": "f.nii.gz", "patient_id": "x", "mask_path": good_mask},
    ]
    made = source(tmp_path, rows)
    loaded, report = made.load()
    assert len(loaded) == 3
    assert kinds(report) == [
        (5, "missing"),
        (6, "unreadable"),
        (7, "affine"),
        (8, "shape"),
        (9, "label"),
        (10, "outside"),
        (11, "empty"),
        (12, "empty"),
        (13, "unreadable"),
        (14, "unreadable"),
        (15, "duplicate"),
        (16, "duplicate"),
    ]
    assert report.rows == 15
    assert report.usable == 3
    assert made.validate() == report
    text = report.text()
    assert "3 of 15 rows" in text
    assert "7" in next(line for line in text.splitlines() if "line 9 " in line)
    assert sum(report.counts.values()) == 12


def test_a_link_out_of_the_folder_is_outside(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    nifti(tmp_path / "secret.nii.gz")
    (folder / "image.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    rows = [{"path": "image.nii.gz", "patient_id": "x", "mask_path": "image.nii.gz"}]
    assert {kind for _, kind in kinds(source(folder, rows).validate())} == {"outside"}


def test_no_usable_row_is_an_error_that_says_why(tmp_path: Path) -> None:
    rows = [{"path": "gone.nii.gz", "patient_id": "x", "mask_path": "gone.nii.gz"}]
    with pytest.raises(DataError, match=r"no file or folder gone\.nii\.gz"):
        source(tmp_path, rows).load()


def test_a_singular_affine_is_named(tmp_path: Path) -> None:
    path = nifti(tmp_path / "image.nii")
    content = bytearray(path.read_bytes())
    content[280:328] = bytes(48)  # srow_x, srow_y, srow_z
    path.write_bytes(bytes(content))
    mask(tmp_path / "mask.nii.gz")
    rows = [{"path": "image.nii", "patient_id": "x", "mask_path": "mask.nii.gz"}]
    (problem,) = source(tmp_path, rows).validate().problems
    assert problem.kind in ("affine", "unreadable")
    assert problem.line == 2


def pictures(folder: Path) -> list[dict[str, Any]]:
    labels = ["healthy", "pneumonia", "healthy"]
    for n in range(3):
        picture(folder / f"{n}.png", n)
    return [{"path": f"{n}.png", "patient_id": "p", "label": labels[n]} for n in range(3)]


def test_a_classification_table(tmp_path: Path) -> None:
    rows = pictures(tmp_path)
    picture(tmp_path / "3.png", 3)
    rows.append({"path": "3.png", "patient_id": "q", "label": "flu"})
    made = source(
        tmp_path,
        rows,
        task="classification",
        classes=("healthy", "pneumonia"),
        preparation=Preparation(size=(16, 16)),
    )
    loaded, report = made.load()
    assert loaded.targets.tolist() == [0, 1, 0]
    assert loaded.images.shape == (3, 1, 16, 16)
    assert loaded.images.min() >= 0
    assert loaded.images.max() <= 1
    assert kinds(report) == [(5, "label")]
    assert "'flu'" in report.text()


def test_a_multi_label_table(tmp_path: Path) -> None:
    rows = pictures(tmp_path)
    for row, label in zip(rows, ("a|c", "", "b"), strict=True):
        row["label"] = label
    loaded, _ = source(
        tmp_path,
        rows,
        task="multi-label",
        classes=("a", "b", "c"),
        preparation=Preparation(size=(16, 16)),
    ).load()
    assert loaded.targets.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert loaded.targets.dtype == torch.float32


def test_what_is_kept_is_found_by_another_process_without_monai(tmp_path: Path) -> None:
    cold = source(tmp_path, cases(tmp_path), cache_dir=tmp_path / "warm")
    loaded, _ = cold.load()
    code = (
        "import sys\n"
        "from flwr_afuic.data.clinical import ClinicalSource, Preparation\n"
        f"p = Preparation(size={SIZE}, fit='pad-crop', intensity='none')\n"
        f"s = ClinicalSource({str(tmp_path / 'table.csv')!r}, p, task='segmentation', "
        f"classes={CLASSES}, cache_dir={str(tmp_path / 'warm')!r})\n"
        "loaded, report = s.load()\n"
        "print(float(loaded.images.sum()), int(loaded.targets.sum()), 'monai' in sys.modules)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    expected = f"{float(loaded.images.sum())} {int(loaded.targets.sum())} False"
    assert out.stdout.strip() == expected
    assert stat.S_IMODE(os.stat(tmp_path / "warm").st_mode) == 0o700


def warm_files(folder: Path) -> int:
    return len(list((folder / "warm").glob("*.pt")))


def test_nothing_is_kept_of_a_row_that_left(tmp_path: Path) -> None:
    rows = cases(tmp_path)
    source(tmp_path, rows, cache_dir=tmp_path / "warm").load()
    assert warm_files(tmp_path) == 3
    source(tmp_path, rows[:2], cache_dir=tmp_path / "warm").load()
    assert warm_files(tmp_path) == 2


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    made = source(tmp_path, cases(tmp_path), cache_dir=tmp_path / "warm")
    made.load()
    nifti(tmp_path / "image_0.nii.gz", np.full(SIZE, 5.0, np.float32))
    loaded, _ = made.load()
    assert loaded.images[0].unique().tolist() == [5.0]
    assert warm_files(tmp_path) == 3


def test_other_settings_prepare_anew(tmp_path: Path) -> None:
    rows = cases(tmp_path)
    source(tmp_path, rows, cache_dir=tmp_path / "warm").load()
    other = Preparation(size=(8, 8, 8), intensity="none")
    loaded, _ = source(tmp_path, rows, cache_dir=tmp_path / "warm", preparation=other).load()
    assert loaded.images.shape[2:] == (8, 8, 8)


def test_damage_of_what_is_kept_is_mended(tmp_path: Path) -> None:
    made = source(tmp_path, cases(tmp_path), cache_dir=tmp_path / "warm")
    before, _ = made.load()
    for file in (tmp_path / "warm").glob("*.pt"):
        file.write_bytes(file.read_bytes()[:100])
    after, report = made.load()
    assert torch.equal(before.images, after.images)
    assert report.problems == ()


def test_pad_crop_pads_with_the_darkest_value_and_masks_with_background(tmp_path: Path) -> None:
    rows = cases(tmp_path, 1)
    wide = Preparation(size=(16, 16, 16), fit="pad-crop", intensity="none")
    loaded, _ = source(tmp_path, rows, preparation=wide).load()
    assert loaded.images.unique().tolist() == [1.0]
    narrow, _ = source(tmp_path, rows).load()
    assert int((loaded.targets == 1).sum()) == int((narrow.targets == 1).sum())


def test_a_mask_without_background_is_padded_with_background(tmp_path: Path) -> None:
    rows = cases(tmp_path, 1)
    mask(tmp_path / "mask_0.nii.gz", np.ones(SIZE, np.uint8))
    wide = Preparation(size=(16, 16, 16), fit="pad-crop", intensity="none")
    loaded, _ = source(tmp_path, rows, preparation=wide).load()
    assert int((loaded.targets == 1).sum()) == SIZE[0] * SIZE[1] * SIZE[2]


def test_spacing_makes_voxels_of_one_size(tmp_path: Path) -> None:
    values = np.zeros((8, 8, 8), np.float32)
    values[:4] = 1.0
    nifti(tmp_path / "image_0.nii.gz", values, np.diag([2.0, 2, 2, 1]))
    mask(tmp_path / "mask_0.nii.gz", values.astype(np.uint8), np.diag([2.0, 2, 2, 1]))
    rows = [{"path": "image_0.nii.gz", "patient_id": "p", "mask_path": "mask_0.nii.gz"}]
    fine = Preparation(size=(15, 15, 15), fit="pad-crop", spacing=(1, 1, 1), intensity="none")
    loaded, _ = source(tmp_path, rows, preparation=fine).load()
    share = float((loaded.targets == 1).double().mean())
    assert share == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    "options",
    [
        {"size": (8,)},
        {"size": (8, 0)},
        {"size": (8, 8), "channels": 0},
        {"size": (8, 8), "intensity": "window"},
        {"size": (8, 8), "intensity": "window", "window": (5.0, 1.0)},
        {"size": (8, 8), "window": (0.0, 1.0)},
        {"size": (8, 8), "spacing": (1.0, 1.0, 1.0)},
        {"size": (8, 8, 8), "spacing": (1.0, 0.0, 1.0)},
        {"size": (8, 8), "fit": "stretch"},
        {"size": (8, 8), "intensity": "magic"},
    ],
)
def test_settings_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Preparation(**options)


def test_a_task_and_its_classes_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="task"):
        source(tmp_path, cases(tmp_path), task="regression")
    with pytest.raises(ConfigError, match="classes"):
        source(tmp_path, cases(tmp_path), classes=("one",))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "lacks the column"),
        ("path,label\na,b\n", "patient_id"),
        ("path,patient_id\n", "no row"),
        ("path,patient_id,path\na,b,c\n", "repeats"),
    ],
)
def test_a_table_that_is_none(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "table.csv").write_text(text)
    made = ClinicalSource(
        tmp_path / "table.csv", Preparation(size=(8, 8)), task="classification", classes=("a", "b")
    )
    with pytest.raises(DataError, match=complaint):
        made.load()


def test_semicolons_quotes_and_a_byte_order_mark(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "table.csv").write_text(
        '\ufeffpath; patient_id ;label;ward\n"a.png";p 1; x ;north\n', encoding="utf-8"
    )
    made = ClinicalSource(
        tmp_path / "table.csv", Preparation(size=(8, 8)), task="classification", classes=("x", "y")
    )
    loaded, report = made.load()
    assert report.problems == ()
    assert loaded.rows[0].extra == {"ward": "north"}
    assert loaded.patients == ("p 1",)
