"""A folder with one subfolder of images a class, read with MONAI transforms."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from flwr_afuic.data.images import Dataset, ImageSet
from flwr_afuic.data.loading import load_image, picture_reader
from flwr_afuic.errors import ConfigError, DataError
from flwr_afuic.monai_import import import_monai
from flwr_afuic.seeds import derive_seed

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MIN_PER_CLASS = 3
MIN_SIDE = 8
SHARES = (0.8, 0.1)  # train, val; the rest is test


def load_folder(path: Path, *, seed: int = 0, image_size: int | None = 28) -> Dataset:
    """Read ``path/<class>/*.{png,jpg,bmp,tif}`` and split it, stratified by class.

    Classes are the subfolders in alphabetical order; sample ids hold the file's path
    inside the folder, so that they stay the same when files are added. The split is about
    80 % / 10 % / 10 % with at least one image of each class in each split.

    Parameters
    ----------
    path : pathlib.Path
        The folder.
    seed : int
        Root seed of the split.
    image_size : int or None
        Height and width of all images, in pixels; None takes the first image's.

    Returns
    -------
    Dataset
        Grey if every image is; otherwise all are RGB.

    Raises
    ------
    DataError
        If there are fewer than two classes, a class has fewer than three images, or an
        image cannot be read.
    ConfigError
        If ``image_size`` is below 8 pixels.
    """
    if image_size is not None and image_size < MIN_SIDE:
        raise ConfigError(f"image_size is {image_size} pixels; choose {MIN_SIDE} or more, or None")
    import_monai()
    from monai.transforms.spatial.array import Resize

    path = path.resolve()
    classes = _classes(path)
    files = [(file, label) for label, name in enumerate(classes) for file in classes[name]]
    if image_size is None:
        height, width = _load(files[0][0]).shape[-2:]
    else:
        height = width = image_size
    resize = Resize(spatial_size=(height, width), mode="area")
    # Resized one by one: a folder of radiographs at full size would not fit into memory.
    images = [torch.as_tensor(np.asarray(resize(_load(file)))) for file, _ in files]
    channels = max(image.shape[0] for image in images)
    batch = torch.stack([image.expand(channels, -1, -1) for image in images]).float()
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    ids = tuple(f"{path.name}/{file.relative_to(path).as_posix()}" for file, _ in files)
    everything = ImageSet(batch, labels, ids)
    train, val, test = (
        everything.subset(part) for part in stratified_split(labels.numpy(), seed=seed)
    )
    return Dataset(
        name=path.name,
        train=train,
        val=val,
        test=test,
        num_classes=len(classes),
        channels=channels,
        class_names=tuple(classes),
        synthetic=False,
        licence="unknown",
        source=f"local image folder {path.name}",
    )


def stratified_split(
    labels: npt.NDArray[np.integer[Any]], *, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split positions 80 % / 10 % / 10 % class by class.

    Parameters
    ----------
    labels : numpy.ndarray
        Class indices, each class with at least three samples. # shape: (n,)
    seed : int
        Root seed; the same seed gives the same split.

    Returns
    -------
    tuple of numpy.ndarray
        Sorted positions of train, val and test: disjoint, covering, and each with every
        class.
    """
    parts: tuple[list[npt.NDArray[np.int64]], ...] = ([], [], [])
    for label in np.unique(labels):
        rng = np.random.default_rng(derive_seed(seed, "image-folder", int(label)))
        order = rng.permutation(np.flatnonzero(labels == label)).astype(np.int64)
        n_val = max(1, round(SHARES[1] * len(order)))
        n_test = max(1, round((1 - sum(SHARES)) * len(order)))
        n_train = len(order) - n_val - n_test
        for part, piece in zip(parts, np.split(order, [n_train, n_train + n_val]), strict=True):
            part.append(piece)
    train, val, test = (np.sort(np.concatenate(part)) for part in parts)
    return train, val, test


def _classes(path: Path) -> dict[str, list[Path]]:
    folders = sorted(
        entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    if len(folders) < 2:
        raise DataError(
            f"{path} has {len(folders)} class subfolders; it needs at least two, each with the "
            "images of one class"
        )
    classes = {}
    for folder in folders:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
        if len(files) < MIN_PER_CLASS:
            raise DataError(
                f"class folder {folder} has {len(files)} images ({', '.join(SUFFIXES)}); it "
                f"needs at least {MIN_PER_CLASS}, one for each split"
            )
        classes[folder.name] = files
    return classes


@cache
def _reading() -> Callable[[Path], Any]:
    """Make what reads one picture as (channels, height, width), intensities in [0, 1]."""
    import_monai()
    from monai.transforms.compose import Compose
    from monai.transforms.intensity.array import ScaleIntensityRange
    from monai.transforms.utility.array import EnsureChannelFirst

    reader = picture_reader()
    scale = ScaleIntensityRange(a_min=0, a_max=255, b_min=0, b_max=1, clip=True)
    prepare = Compose([EnsureChannelFirst(), scale])
    return lambda file: prepare(load_image(file, reader))


def _load(file: Path) -> torch.Tensor:
    try:
        image = _reading()(file)
    except (OSError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        text = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise DataError(
            f"image {file} cannot be read ({text}); replace it by an 8-bit PNG or JPEG, or "
            "remove it"
        ) from error
    return torch.as_tensor(np.asarray(image), dtype=torch.float32)
