"""How well a model classifies: accuracy, balanced accuracy, AUROC, loss of every sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flwr_afuic.errors import ConfigError
from flwr_afuic.metrics._checks import (
    FloatArray,
    class_labels,
    finite_array,
    probabilities,
    same_shape,
)


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Share of samples whose predicted class is the true one.

    Parameters
    ----------
    labels, predictions : array of int, shape (n,)

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ConfigError
        If the arrays are empty, differ in length, or hold anything but whole numbers.

    Examples
    --------
    >>> accuracy([0, 1, 1, 0], [0, 1, 0, 0])
    0.75
    """
    truth, predicted = class_labels(labels, "labels"), class_labels(predictions, "predictions")
    same_shape(truth, predicted, "labels and predictions")
    return float(np.mean(truth == predicted))


def balanced_accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Mean over the classes present in `labels` of the share of each that is recognised.

    Parameters
    ----------
    labels, predictions : array of int, shape (n,)

    Returns
    -------
    float
        In [0, 1]; not adjusted for chance, as in scikit-learn's default.

    Raises
    ------
    ConfigError
        If the arrays are empty, differ in length, or hold anything but whole numbers.

    Examples
    --------
    >>> balanced_accuracy([0, 0, 0, 1], [0, 0, 0, 0])
    0.5
    """
    truth, predicted = class_labels(labels, "labels"), class_labels(predictions, "predictions")
    same_shape(truth, predicted, "labels and predictions")
    recalls = [float(np.mean(predicted[truth == label] == label)) for label in np.unique(truth)]
    return float(np.mean(recalls))


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: binary, or macro average of one class against the rest.

    Mann-Whitney's statistic: the chance that a positive sample scores above a negative one, a
    tie counting half.

    Parameters
    ----------
    labels : array of int, shape (n,)
        Classes 0 to C - 1; 0 and 1 where `scores` has one axis.
    scores : array, shape (n,) or (n, C)
        One axis: any score that rises with class 1. Two axes: probabilities, since the ranking
        by one column of logits differs from that by its probability. Two columns are the binary
        case and its second column is used.

    Returns
    -------
    float
        In [0, 1]. With more than two columns, the unweighted mean over the classes present in
        `labels` (our reading: a site may lack a class, and scikit-learn refuses that).

    Raises
    ------
    ConfigError
        If fewer than two classes are present, rows are no probabilities, or lengths differ.

    Examples
    --------
    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    >>> auroc([0, 1, 2], [[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.1, 0.2, 0.7]])
    1.0
    """
    if np.ndim(scores) == 1:
        columns = finite_array(scores, "scores", ndim=1)[:, None]
        truth = class_labels(labels, "labels", n_classes=2)
    else:
        columns = probabilities(scores, "scores")
        truth = class_labels(labels, "labels", n_classes=columns.shape[1])
    same_shape(truth, columns[:, 0], "labels and scores")
    present = np.unique(truth)
    if len(present) < 2:
        raise ConfigError(
            f"labels hold only class {present[0]}; AUROC needs samples of at least two classes"
        )
    if columns.shape[1] <= 2:
        return rank_auc(columns[truth == 1, -1], columns[truth == 0, -1])
    areas = [rank_auc(columns[truth == c, c], columns[truth != c, c]) for c in present]
    return float(np.mean(areas))


def cross_entropy(logits: ArrayLike, labels: ArrayLike) -> FloatArray:
    """Cross-entropy of every sample, ``log sum_j exp(z_j) - z_y``, computed without overflow.

    Parameters
    ----------
    logits : array, shape (n, C)
        Before softmax.
    labels : array of int, shape (n,)
        Classes 0 to C - 1.

    Returns
    -------
    array of float64, shape (n,)
        In nats.

    Raises
    ------
    ConfigError
        If an array is empty or not finite, lengths differ, or a label is out of range.

    Examples
    --------
    >>> cross_entropy([[0.0, 0.0]], [1]).round(4).tolist()
    [0.6931]
    """
    z = finite_array(logits, "logits", ndim=2)
    truth = class_labels(labels, "labels", n_classes=z.shape[1])
    same_shape(truth, z[:, 0], "labels and logits")
    shifted = z - z.max(axis=1, keepdims=True)
    picked = shifted[np.arange(len(truth)), truth]
    return np.asarray(np.log(np.exp(shifted).sum(axis=1)) - picked, dtype=np.float64)


def rank_auc(positives: FloatArray, negatives: FloatArray) -> float:
    """P(positive > negative) + P(equal) / 2 for finite score arrays; shared, not validated."""
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, positives, side="left")
    not_above = np.searchsorted(ordered, positives, side="right")
    return float(np.mean((below + not_above) / 2) / len(ordered))
