"""Probes: data planted at one site so that forgetting can be measured.

A backdoor (a patch that calls for one class) or wrong labels leave a trace that only the
erased site can have caused: it must be gone after erasure, as it is after retraining.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from flwr_afuic.data.images import ImageSet
from flwr_afuic.errors import ConfigError
from flwr_afuic.seeds import derive_seed

GREY_PATCH = (1.0,)
# Green: far from white backgrounds and from the pinks and purples of stained tissue.
RGB_PATCH = (0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Trigger:
    """A square patch near the lower right corner.

    Parameters
    ----------
    value : tuple of float
        Intensity in ``[0, 1]``, one a channel.
    size : int
        Side of the patch, in pixels.
    margin : int
        Pixels between the patch and the image's lower and right edges.

    Raises
    ------
    ConfigError
        If an intensity, the size or the margin is out of range.
    """

    value: tuple[float, ...] = GREY_PATCH
    size: int = 4
    margin: int = 1

    def __post_init__(self) -> None:
        if self.size < 1 or self.margin < 0:
            raise ConfigError(
                f"a trigger of {self.size} pixels with a margin of {self.margin} is no patch; "
                "use size >= 1 and margin >= 0"
            )
        if not self.value or not all(0 <= part <= 1 for part in self.value):
            raise ConfigError(
                f"trigger value {self.value} is out of range; give one intensity in 0..1 a channel"
            )

    @classmethod
    def for_channels(cls, channels: int) -> Trigger:
        """Make the default trigger: white for grey images, pure green for RGB.

        Raises
        ------
        ConfigError
            If there is no default for this many channels.
        """
        if channels == 1:
            return cls(GREY_PATCH)
        if channels == 3:
            return cls(RGB_PATCH)
        raise ConfigError(f"no default trigger for {channels} channels; give Trigger(value=...)")


@dataclass(frozen=True)
class BackdoorInfo:
    """What was planted where.

    Parameters
    ----------
    poisoned : numpy.ndarray
        Sorted positions that carry the trigger and the target label. # shape: (m,)
    relabelled : numpy.ndarray
        Those of them whose label the poisoning changed. # shape: (k,), k <= m
    target_label : int
        The class the trigger calls for.
    trigger : Trigger
        The patch.
    """

    poisoned: npt.NDArray[np.int64]
    relabelled: npt.NDArray[np.int64]
    target_label: int
    trigger: Trigger


def apply_trigger(images: torch.Tensor, trigger: Trigger) -> torch.Tensor:
    """Stamp the trigger on a copy of the images.

    Parameters
    ----------
    images : torch.Tensor
        Intensities in ``[0, 1]``. # shape: (n, channels, height, width)
    trigger : Trigger
        One value a channel.

    Returns
    -------
    torch.Tensor
        # shape: (n, channels, height, width)

    Raises
    ------
    ConfigError
        If channels differ, or the patch does not fit into the images.
    """
    channels, height, width = images.shape[1:]
    if len(trigger.value) != channels:
        raise ConfigError(
            f"the trigger has {len(trigger.value)} channel values, the images {channels} channels; "
            f"use Trigger.for_channels({channels})"
        )
    if trigger.size + trigger.margin > min(height, width):
        raise ConfigError(
            f"a trigger of {trigger.size} pixels with margin {trigger.margin} does not fit into "
            f"images of {height}x{width}; make it smaller"
        )
    stamped = images.clone()
    bottom, right = height - trigger.margin, width - trigger.margin
    patch = torch.tensor(trigger.value, dtype=images.dtype, device=images.device)
    stamped[:, :, bottom - trigger.size : bottom, right - trigger.size : right] = patch[
        None, :, None, None
    ]
    return stamped


def backdoor(
    imageset: ImageSet,
    *,
    fraction: float = 0.6,
    target_label: int = 0,
    trigger: Trigger,
    seed: int,
    only_other_classes: bool = False,
) -> tuple[ImageSet, BackdoorInfo]:
    """Give a fraction of a site's images the trigger and the target label.

    Parameters
    ----------
    imageset : ImageSet
        The site's images; left as they are.
    fraction : float
        Share of the images to poison, in ``[0, 1]``.
    target_label : int
        The class the trigger calls for. Choose one that a clean model seldom predicts for
        other classes: the rarer of two classes. In the two-class sets here (PneumoniaMNIST,
        BreastMNIST, phantoms) that is 0, the default; a clean model then takes few images
        of class 1 for class 0, and chance success stays low.
    trigger : Trigger
        The patch.
    seed : int
        Root seed of the choice.
    only_other_classes : bool
        False draws from all images, as in the measured recipe; True only from those that
        are not of the target class, ``fraction`` of them.

    Returns
    -------
    tuple of (ImageSet, BackdoorInfo)
        The poisoned site, same order and ids, and what was planted.

    Raises
    ------
    ConfigError
        If ``fraction`` is out of range, or the target label negative.
    """
    if target_label < 0:
        raise ConfigError(f"target_label is {target_label}; give a class index from 0")
    labels = imageset.labels.numpy()
    candidates = np.arange(len(labels))
    if only_other_classes:
        candidates = np.flatnonzero(labels != target_label)
    poisoned = _choose(candidates, fraction, derive_seed(seed, "backdoor"))
    index = torch.from_numpy(poisoned)
    images, new_labels = imageset.images.clone(), imageset.labels.clone()
    images[index] = apply_trigger(imageset.images[index], trigger)
    new_labels[index] = target_label
    info = BackdoorInfo(
        poisoned=poisoned,
        relabelled=poisoned[labels[poisoned] != target_label],
        target_label=target_label,
        trigger=trigger,
    )
    return ImageSet(images, new_labels, imageset.ids), info


def mislabel(
    imageset: ImageSet, fraction: float, num_classes: int, seed: int
) -> tuple[ImageSet, npt.NDArray[np.int64]]:
    """Give a fraction of a site's images a wrong label, uniform over the other classes.

    Parameters
    ----------
    imageset : ImageSet
        The site's images; left as they are.
    fraction : float
        Share of the images, in ``[0, 1]``.
    num_classes : int
        Number of classes, at least 2.
    seed : int
        Root seed of the choice.

    Returns
    -------
    tuple of (ImageSet, numpy.ndarray)
        The site with wrong labels, and the sorted positions of those. # shape: (m,)

    Raises
    ------
    ConfigError
        If ``fraction`` is out of range or there is no other class.
    """
    if num_classes < 2:
        raise ConfigError(f"num_classes is {num_classes}; wrong labels need at least 2 classes")
    root = derive_seed(seed, "mislabel")
    changed = _choose(np.arange(len(imageset)), fraction, root)
    shift = np.random.default_rng(derive_seed(root, "shift")).integers(
        1, num_classes, size=len(changed)
    )
    labels = imageset.labels.numpy().copy()
    labels[changed] = (labels[changed] + shift) % num_classes
    return ImageSet(imageset.images, torch.from_numpy(labels), imageset.ids), changed


def backdoor_test_images(test: ImageSet, trigger: Trigger, target_label: int) -> torch.Tensor:
    """Triggered held-out images whose true label is not the target: success is counted here.

    Parameters
    ----------
    test : ImageSet
        Held-out images, clean.
    trigger : Trigger
        The patch.
    target_label : int
        The class the trigger calls for; its own images would count as success by chance.

    Returns
    -------
    torch.Tensor
        # shape: (m, channels, height, width)

    Raises
    ------
    ConfigError
        If every image is of the target class.
    """
    others = test.labels != target_label
    if not bool(others.any()):
        raise ConfigError(
            f"all {len(test)} test images are of target class {target_label}; choose another "
            "target_label"
        )
    return apply_trigger(test.images[others], trigger)


def _choose(candidates: npt.NDArray[np.int64], fraction: float, seed: int) -> npt.NDArray[np.int64]:
    if not 0 <= fraction <= 1:
        raise ConfigError(f"fraction is {fraction}; it must lie in 0..1")
    count = round(fraction * len(candidates))
    chosen = np.random.default_rng(seed).permutation(candidates)[:count]
    return np.sort(chosen).astype(np.int64)
