"""Small clinical files made for a test: volumes, masks, slices and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.data import get_testdata_file

SIZE = (10, 12, 8)


def nifti(path: Path, values: np.ndarray[Any, Any] | None = None, affine: Any = None) -> Path:
    """Write a volume; random intensities where no values are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if values is None:
        rng = np.random.default_rng(len(path.name))
        values = rng.normal(100, 20, SIZE).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def mask(path: Path, values: np.ndarray[Any, Any] | None = None, affine: Any = None) -> Path:
    """Write a mask with classes 0 to 2."""
    if values is None:
        values = np.zeros(SIZE, np.uint8)
        values[2:5, 3:7, 2:6] = 1
        values[5:8, 3:7, 2:6] = 2
    return nifti(path, values, affine)


def sample(name: str) -> pydicom.Dataset:
    """Return one of pydicom's own small test files."""
    return pydicom.dcmread(str(get_testdata_file(name, download=False)))


def series(folder: Path, count: int = 4, **changes: Any) -> Path:
    """Write a series: the slices of MR_small, each brighter than the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    # Named so that the order of names is not that of the slices.
    for number in range(count):
        slice_ = sample("MR_small.dcm")
        slice_.InstanceNumber = number + 1
        slice_.SeriesInstanceUID = "1.2.3"
        slice_.ImagePositionPatient = [0.0, 0.0, 2.0 * number]
        slice_.PixelData = np.full((64, 64), 100 * (number + 1), np.int16).tobytes()
        for name, value in changes.items():
            setattr(slice_, name, value)
        slice_.save_as(folder / f"slice_{(7 * number) % 10}.dcm")
    return folder


def picture(path: Path, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (20, 24), dtype=np.uint8)).save(path)
    return path


def table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(names)] + [",".join(str(row.get(n, "")) for n in names) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
