"""Backdoor success: how often a planted trigger still decides."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flwr_afuic.errors import ConfigError
from flwr_afuic.metrics._checks import class_labels, same_shape


def backdoor_success(
    predictions: ArrayLike, target_label: int, *, labels: ArrayLike | None = None
) -> float:
    """P[f(trigger(x)) = target | y != target] over held-out images.

    IBM's probe (Halimi et al. 2022), on test instead of training images. Chance is not zero: a
    model mistakes images for the target without any trigger, so the value is read minus
    retraining's.

    Parameters
    ----------
    predictions : array of int, shape (n,)
        Predicted classes of triggered held-out images.
    target_label : int
        Class the trigger was planted for.
    labels : array of int, shape (n,), optional
        True classes; images of the target class are then left out. Without it, all images must
        be of another class already.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ConfigError
        If there is nothing to score, lengths differ, or classes are no whole numbers.

    Examples
    --------
    >>> backdoor_success([1, 1, 0, 1], target_label=1, labels=[0, 2, 0, 1])
    0.6666666666666666
    """
    predicted = class_labels(predictions, "predictions")
    target = class_labels([target_label], "target_label")[0]
    if labels is not None:
        truth = class_labels(labels, "labels")
        same_shape(predicted, truth, "predictions and labels")
        predicted = predicted[truth != target]
        if predicted.size == 0:
            raise ConfigError(
                f"all {truth.size} images are of the target class {target}; "
                "pass images of other classes"
            )
    return float(np.mean(predicted == target))
