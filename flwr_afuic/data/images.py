"""Image sets and data sets: immutable tensors with labels, stable sample ids and provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flwr_afuic.errors import ConfigError, DataError
from flwr_afuic.seeds import derive_seed

Indices = Sequence[int] | npt.NDArray[np.integer[Any]] | torch.Tensor


@dataclass(frozen=True)
class ImageSet:
    """Labelled images of one split or one site.

    Parameters
    ----------
    images : torch.Tensor
        float32 intensities scaled to ``[0, 1]``. # shape: (n, channels, height, width)
    labels : torch.Tensor
        int64 class indices. # shape: (n,)
    ids : tuple of str
        One stable sample id an image, for example ``"pneumoniamnist/train/00017"``.

    Raises
    ------
    DataError
        If dtypes, dimensions or lengths do not fit together.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.float32:
            raise DataError(
                f"images must be float32 of shape (n, channels, height, width), not "
                f"{self.images.dtype} {tuple(self.images.shape)}; convert and reshape them first"
            )
        if self.labels.ndim != 1 or self.labels.dtype != torch.int64:
            raise DataError(
                f"labels must be int64 of shape (n,), not {self.labels.dtype} "
                f"{tuple(self.labels.shape)}; convert and flatten them first"
            )
        sizes = (len(self.images), len(self.labels), len(self.ids))
        if len(set(sizes)) != 1:
            raise DataError(
                "an image set needs as many labels and ids as images, not "
                f"{sizes[0]} images, {sizes[1]} labels, {sizes[2]} ids"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, indices: Indices) -> ImageSet:
        """Select samples by position, in the order given.

        Parameters
        ----------
        indices : sequence of int, integer array or tensor
            Positions in ``[0, len(self))``; repeats are allowed. # shape: (m,)

        Returns
        -------
        ImageSet
            A copy of the ``m`` samples.

        Raises
        ------
        DataError
            If a position lies outside the set.
        """
        index = torch.as_tensor(np.asarray(indices, dtype=np.int64).reshape(-1))
        if len(index) and (int(index.min()) < 0 or int(index.max()) >= len(self)):
            raise DataError(
                f"sample positions {int(index.min())}..{int(index.max())} leave the range of a "
                f"set of {len(self)} images; choose them in 0..{len(self) - 1}"
            )
        return ImageSet(
            self.images[index], self.labels[index], tuple(self.ids[i] for i in index.tolist())
        )


def concat(sets: Sequence[ImageSet]) -> ImageSet:
    """Join image sets of one image shape, in the order given.

    Parameters
    ----------
    sets : sequence of ImageSet
        At least one; all with the same channels, height and width.

    Returns
    -------
    ImageSet
        All samples. # shape of images: (sum of n, channels, height, width)

    Raises
    ------
    DataError
        If there is no set, or image shapes differ.
    """
    if not sets:
        raise DataError("nothing to join: the list of image sets is empty; give at least one")
    shapes = sorted({tuple(part.images.shape[1:]) for part in sets})
    if len(shapes) > 1:
        raise DataError(f"image sets of different shapes {shapes} cannot be joined; resize first")
    return ImageSet(
        torch.cat([part.images for part in sets]),
        torch.cat([part.labels for part in sets]),
        tuple(sample for part in sets for sample in part.ids),
    )


@dataclass(frozen=True)
class Dataset:
    """A data set with official splits and provenance.

    Parameters
    ----------
    name : str
        Short name, the first part of every sample id.
    train, val, test : ImageSet
        The splits. ``test`` is for reporting only; see ``split_validation`` for ``val``.
    num_classes : int
        Labels lie in ``[0, num_classes)``.
    channels : int
        1 (grey) or 3 (RGB).
    class_names : tuple of str
        One a class.
    synthetic : bool
        True for generated images: every place that shows results must say so.
    licence : str
        Licence of the images, ``"unknown"`` where the source states none.
    source : str
        Where the images come from: provenance, for reports.

    Raises
    ------
    DataError
        If a label is out of range, or channels or class names disagree with the images.
    """

    name: str
    train: ImageSet
    val: ImageSet
    test: ImageSet
    num_classes: int
    channels: int
    class_names: tuple[str, ...]
    synthetic: bool
    licence: str
    source: str

    def __post_init__(self) -> None:
        if len(self.class_names) != self.num_classes:
            raise DataError(
                f"data set {self.name!r} has {self.num_classes} classes but "
                f"{len(self.class_names)} class names; give one name a class"
            )
        for split in ("train", "val", "test"):
            part: ImageSet = getattr(self, split)
            if part.images.shape[1] != self.channels:
                raise DataError(
                    f"split {split!r} of data set {self.name!r} has {part.images.shape[1]} "
                    f"channels, not {self.channels}; all splits must agree"
                )
            check_labels(part.labels.numpy(), self.num_classes, f"{self.name} ({split})")

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return int(self.train.images.shape[-1])

    def split_validation(self, seed: int) -> tuple[ImageSet, ImageSet]:
        """Halve the validation split at random: one half are proxies, the other tunes.

        Parameters
        ----------
        seed : int
            Root seed; the same seed gives the same halves.

        Returns
        -------
        tuple of ImageSet
            ``(proxies, tuning)``, disjoint and covering, in the order of the split. With an
            odd count the proxies have one more.
        """
        order = np.random.default_rng(derive_seed(seed, "split-validation")).permutation(
            len(self.val)
        )
        middle = (len(order) + 1) // 2
        return (
            self.val.subset(np.sort(order[:middle])),
            self.val.subset(np.sort(order[middle:])),
        )


def check_labels(labels: npt.NDArray[np.integer[Any]], num_classes: int, where: str) -> None:
    """Refuse labels outside ``[0, num_classes)``.

    Parameters
    ----------
    labels : numpy.ndarray
        Integer labels. # shape: (n,)
    num_classes : int
        Number of classes.
    where : str
        Names the labels in the error.

    Raises
    ------
    DataError
        If a label is out of range; the message holds the first one and its position.
    """
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(bad):
        raise DataError(
            f"label {int(labels[bad[0]])} at position {int(bad[0])} of {where} is out of range "
            f"for {num_classes} classes ({len(bad)} such labels); labels must lie in "
            f"0..{num_classes - 1}"
        )


def shrink(images: torch.Tensor, image_size: int | None) -> torch.Tensor:
    """Area-pool images that are larger than wanted; smaller ones stay as they are.

    Parameters
    ----------
    images : torch.Tensor
        float32 intensities. # shape: (n, channels, height, width)
    image_size : int or None
        Wanted height and width in pixels; None keeps the size.

    Returns
    -------
    torch.Tensor
        # shape: (n, channels, min(height, image_size), min(width, image_size))

    Raises
    ------
    ConfigError
        If ``image_size`` is below 8 pixels.
    """
    if image_size is None:
        return images
    if image_size < 8:
        raise ConfigError(f"image_size is {image_size} pixels; choose 8 or more, or None")
    height, width = images.shape[-2:]
    target = (min(height, image_size), min(width, image_size))
    if target == (height, width) or len(images) == 0:
        return images
    return torch.nn.functional.interpolate(images, size=target, mode="area")
