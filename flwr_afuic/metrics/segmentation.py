"""Scores of segmentations, one a case: Dice and Hausdorff distance, both MONAI's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flwr_afuic.errors import ConfigError
from flwr_afuic.monai_import import import_monai


def dice_scores(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Mean Dice coefficient of each case over its foreground classes.

    Parameters
    ----------
    predicted, truth : Tensor, shape (n, *spatial), integers
        Class of each voxel, 0 being the background.
    classes : int
        Number of classes, the background included.

    Returns
    -------
    Tensor, shape (n,), float64
        In [0, 1]. A class that neither holds counts 1; one that only one of them holds, 0.

    Raises
    ------
    ConfigError
        If shapes differ or there is no foreground class.

    Examples
    --------
    >>> truth = torch.tensor([[0, 1, 1, 0]])
    >>> dice_scores(torch.tensor([[0, 1, 0, 0]]), truth, 2).round(decimals=3).tolist()
    [0.667]
    """
    # Imported here: MONAI takes seconds, and not every site segments.
    import_monai()
    from monai.metrics.meandice import compute_dice

    one, other = _foreground(predicted, truth, classes)
    found: Any = compute_dice(one, other, include_background=True, ignore_empty=False)
    return torch.as_tensor(found).double().mean(dim=1)


def hausdorff_distances(
    predicted: Tensor, truth: Tensor, classes: int, *, percentile: float = 95.0
) -> Tensor:
    """Hausdorff distance of each case, mean over the foreground classes both hold.

    Parameters
    ----------
    predicted, truth : Tensor, shape (n, *spatial), integers
    classes : int
    percentile : float
        Of the distances from one surface to the other, in (0, 100]; 100 is the greatest.

    Returns
    -------
    Tensor, shape (n,), float64
        In voxels; NaN for a case in which no class is in both.

    Raises
    ------
    ConfigError
        If shapes differ, there is no foreground class, or the percentile is out of range.
    """
    import_monai()
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    if not 0 < percentile <= 100:
        raise ConfigError(f"percentile is {percentile}; it must be in (0, 100]")
    one, other = _foreground(predicted, truth, classes)
    found: Any = compute_hausdorff_distance(
        one, other, include_background=True, percentile=percentile
    )
    distances = torch.as_tensor(found).double()
    return torch.where(distances.isfinite(), distances, torch.nan).nanmean(dim=1)


def _foreground(predicted: Tensor, truth: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Masks of the foreground classes, one a channel, as MONAI takes them."""
    if predicted.shape != truth.shape:
        raise ConfigError(
            f"a segmentation of shape {tuple(predicted.shape)} cannot be scored against one of "
            f"{tuple(truth.shape)}"
        )
    if classes < 2:
        raise ConfigError(f"classes is {classes}; a segmentation has a background and a foreground")
    return _masks(predicted, classes), _masks(truth, classes)


def _masks(labels: Tensor, classes: int) -> Tensor:
    return torch.stack([labels == name for name in range(1, classes)], dim=1).float()
