"""Reading one image or mask with MONAI: DICOM files and series, NIfTI, PNG and JPEG."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from flwr_afuic.errors import ConfigError, DataError
from flwr_afuic.monai_import import import_monai

Kind = Literal["dicom", "nifti", "picture"]
Affine = npt.NDArray[np.float64]

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Volume:
    """One image as read.

    Parameters
    ----------
    values : ndarray, shape (channels, *spatial), float32
        Volumes in RAS orientation; single slices and pictures as (channels, height, width).
    affine : ndarray, shape (4, 4)
        Voxel to world, in mm; the identity for pictures.
    kind : str
    """

    values: npt.NDArray[np.float32]
    affine: Affine
    kind: Kind

    @property
    def spatial(self) -> tuple[int, ...]:
        """Size along each spatial axis."""
        return tuple(self.values.shape[1:])


def kind_of(path: Path) -> Kind:
    """Tell the format by name; what is neither NIfTI nor a picture is taken for DICOM.

    Hospital archives write DICOM files without a suffix.
    """
    name = path.name.lower()
    if name.endswith(_NIFTI):
        return "nifti"
    if name.endswith(_PICTURES):
        return "picture"
    return "dicom"


def read_volume(path: Path) -> Volume:
    """Read an image with MONAI's reader of its format.

    Parameters
    ----------
    path : pathlib.Path
        A file, or the folder of one DICOM series.

    Raises
    ------
    DataError
        If it cannot be read to its end, or is no image: the message is one line.
    ConfigError
        If the package that reads this format is not installed.
    """
    kind = kind_of(path)
    if kind != "picture":
        _need("pydicom" if kind == "dicom" else "nibabel")
    if kind == "dicom":
        _check_dicom(path)
    try:
        with warnings.catch_warnings():
            # Some decoders make an image of half a file, and only pydicom's warning tells.
            warnings.filterwarnings("error", message="End of file reached.*")
            # Slices of different spacing, or left out: no volume to trust.
            warnings.filterwarnings("error", message=".*slice.*")
            image = _load(path, kind)
    except (ConfigError, DataError):
        raise
    except Exception as error:
        raise DataError(f"cannot be read as {kind}: {_first_line(error)}") from error
    values = np.asarray(image, dtype=np.float32)
    if kind == "dicom" and values.ndim == 3:
        values = values.swapaxes(1, 2)  # a single slice is a picture: rows first
    if kind == "dicom" and _inverted(path):
        values = values.max() + values.min() - values
    affine = np.asarray(getattr(image, "affine", np.eye(4)), dtype=np.float64)
    if values.size == 0:
        raise DataError("holds no pixels")
    return Volume(np.ascontiguousarray(values), affine, kind)


def check_affine(affine: Affine) -> str | None:
    """Say why an affine places no voxel anywhere, or None."""
    if not np.isfinite(affine).all():
        return "its affine holds NaN or infinity"
    if abs(float(np.linalg.det(affine[:3, :3]))) < 1e-12:
        return "its affine is singular: a voxel has no volume"
    return None


def _load(path: Path, kind: Kind) -> Any:
    """Load channel first; volumes turned to RAS."""
    # Imported here: MONAI takes seconds, and a process that finds its data warm never reads.
    import_monai()
    from monai.data.image_reader import ImageReader, NibabelReader, PydicomReader
    from monai.transforms.spatial.array import Orientation
    from monai.transforms.utility.array import EnsureChannelFirst

    from flwr_afuic.data.loading import load_image, picture_reader

    readers: dict[Kind, Callable[[], ImageReader]] = {
        "dicom": PydicomReader,
        "nifti": NibabelReader,
        "picture": picture_reader,
    }
    image = load_image(path, readers[kind]())
    image = EnsureChannelFirst(channel_dim=None)(image)
    if kind != "picture" and image.ndim == 4:
        image = Orientation(axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(image)
    return image


def _check_dicom(path: Path) -> None:
    """See that a file is DICOM with pixels, and that a folder is one series."""
    import pydicom

    if not path.is_dir():
        return
    series = set()
    for file in sorted(path.iterdir()):
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True)
        except (pydicom.errors.InvalidDicomError, OSError) as error:
            raise DataError(f"slice {file.name} of the series is no DICOM file") from error
        series.add(str(header.get("SeriesInstanceUID", "")))
        if "InstanceNumber" not in header:
            raise DataError(f"slice {file.name} has no instance number; its place is unknown")
    if not series:
        raise DataError("the folder is empty; it should hold the files of one series")
    if len(series) > 1:
        raise DataError(f"the folder holds {len(series)} series; give each its own folder")


def _inverted(path: Path) -> bool:
    """Whether high values mean dark, which MONAI's reader leaves as it is."""
    import pydicom

    file = next(iter(sorted(path.iterdir()))) if path.is_dir() else path
    header = pydicom.dcmread(file, stop_before_pixels=True)
    return str(header.get("PhotometricInterpretation", "")) == "MONOCHROME1"


def _need(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"reading this format needs {module}; install flwr-afuic[clinical]"
        ) from error


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
