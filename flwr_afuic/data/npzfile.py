"""Reading ``.npz`` files in MedMNIST layout: every damage is one clear ``DataError``."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flwr_afuic.data.images import Dataset, ImageSet, shrink
from flwr_afuic.data.medmnist import NAMED_SETS, NamedSet
from flwr_afuic.errors import DataError

SPLITS = ("train", "val", "test")
MAX_UNNAMED_CLASSES = 1000


@dataclass(frozen=True)
class _Raw:
    """One split as it lies in the file, checked; images keep their dtype."""

    images: npt.NDArray[np.uint8]  # shape: (n, h, w) or (n, h, w, 3)
    labels: npt.NDArray[np.int64]  # shape: (n,)


def file_md5(path: Path) -> str:
    """MD5 of a file, lowercase hex, read in blocks.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); check that it exists and its permissions"
        ) from error
    return digest.hexdigest()


def load_npz(path: Path, *, known: NamedSet | None = None, image_size: int | None = 28) -> Dataset:
    """Read a data set from a ``.npz`` file in MedMNIST layout.

    The file holds ``{train,val,test}_images``, uint8 of shape ``(n, h, w)`` or
    ``(n, h, w, 3)``, and ``{train,val,test}_labels``, integers of shape ``(n,)`` or
    ``(n, 1)``. Pickled objects are never read.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    known : NamedSet, optional
        What the file must be: its MD5 and channels are checked, its name and classes taken.
        Without it the file's stem is the name (with ``-local`` where that is a known set's)
        and the largest label sets the class count.
    image_size : int or None
        Larger images are area-pooled to this many pixels; None keeps them.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        If the file is missing, damaged, not in this layout, or not what its name promises.
    """
    if known is not None and known.multi_label:
        raise DataError(
            f"data set {known.name!r} is multi-label (several findings an image), which is not "
            "supported; choose a single-label set such as pneumoniamnist"
        )
    if known is not None and (found := file_md5(path)) != known.md5:
        raise DataError(
            f"{path} has MD5 {found}, but {known.name} must have {known.md5}: the file is damaged "
            "or another version; delete it and fetch it again, or give its path for what it is"
        )
    raw = _read(path)
    name = known.name if known else path.stem
    if known is None and name in NAMED_SETS:
        # Results on another file must not pass for results on the official one.
        name = f"{name}-local"
    ndim = raw["train"].images.ndim
    names = known.class_names if known else _default_names(path, raw)
    parts = {split: _image_set(raw[split], f"{name}/{split}", image_size) for split in SPLITS}
    channels = 1 if ndim == 3 else 3
    if known and channels != known.channels:
        raise DataError(
            f"{path} holds {channels}-channel images, but {name} has {known.channels}; "
            "replace the file by the official one"
        )
    return Dataset(
        name=name,
        **parts,
        num_classes=len(names),
        channels=channels,
        class_names=names,
        synthetic=False,
        licence=known.licence if known else "unknown",
        source=known.source if known else f"local file {path.name}",
    )


def _default_names(path: Path, raw: dict[str, _Raw]) -> tuple[str, ...]:
    highest = max(int(part.labels.max()) for part in raw.values())
    lowest = min(int(part.labels.min()) for part in raw.values())
    if lowest < 0 or highest >= MAX_UNNAMED_CLASSES:
        bad = lowest if lowest < 0 else highest
        raise DataError(
            f"label {bad} in {path} is out of range; labels must be class indices "
            f"0..{MAX_UNNAMED_CLASSES - 1}, numbered from 0"
        )
    return tuple(f"class {index}" for index in range(max(highest + 1, 2)))


def _read(path: Path) -> dict[str, _Raw]:
    if path.is_file() and not zipfile.is_zipfile(path):
        # NumPy would take anything else for a pickle, and say so.
        raise DataError(
            f"{path} is not a readable .npz file (no zip archive, or a truncated one); fetch or "
            "save it again, with np.savez"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            wanted = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
            missing = [key for key in wanted if key not in archive.files]
            if missing:
                raise DataError(
                    f"{path} lacks {', '.join(missing)} (it holds "
                    f"{', '.join(archive.files[:8]) or 'nothing'}); save the arrays "
                    f"{', '.join(wanted)} as in MedMNIST"
                )
            raw = {
                split: _check(path, split, archive[f"{split}_images"], archive[f"{split}_labels"])
                for split in SPLITS
            }
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; check the path") from error
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path} holds object arrays (pickled data), which are never read; save plain "
                "uint8 images and integer labels with np.savez"
            ) from error
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path} is not a readable .npz file ({text}): truncated or damaged; fetch or save "
            "it again"
        ) from error
    shapes = {part.images.shape[1:] for part in raw.values()}
    if len(shapes) > 1:
        raise DataError(
            f"the splits of {path} hold images of different shapes {sorted(shapes)}; resize them "
            "to one shape"
        )
    return raw


def _check(path: Path, split: str, images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> _Raw:
    if images.ndim != 3 and not (images.ndim == 4 and images.shape[-1] == 3):
        raise DataError(
            f"{split}_images of {path} has shape {images.shape}; it must be (n, height, width) "
            "for grey or (n, height, width, 3) for RGB"
        )
    if images.dtype != np.uint8:
        raise DataError(
            f"{split}_images of {path} has dtype {images.dtype}; store intensities 0-255 as uint8"
        )
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise DataError(
            f"{split}_labels of {path} has shape {labels.shape}: multi-label data is not "
            "supported; give one class index an image"
        )
    if labels.shape not in ((len(images),), (len(images), 1)):
        raise DataError(
            f"{split}_labels of {path} has shape {labels.shape} for {len(images)} images; it must "
            f"be ({len(images)},) or ({len(images)}, 1)"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{split}_labels of {path} has dtype {labels.dtype}; labels must be integers"
        )
    if len(images) == 0:
        raise DataError(f"{split}_images of {path} is empty; every split needs at least one image")
    return _Raw(images, labels.reshape(-1).astype(np.int64))


def _image_set(raw: _Raw, prefix: str, image_size: int | None) -> ImageSet:
    pieces = []
    # In blocks: float32 of a large set at full size would be four times the file in memory.
    for start in range(0, len(raw.images), 4096):
        block = torch.from_numpy(raw.images[start : start + 4096]).float() / 255.0
        block = block[:, None] if block.ndim == 3 else block.permute(0, 3, 1, 2).contiguous()
        pieces.append(shrink(block, image_size))
    ids = tuple(f"{prefix}/{row:05d}" for row in range(len(raw.labels)))
    return ImageSet(torch.cat(pieces), torch.from_numpy(raw.labels), ids)
