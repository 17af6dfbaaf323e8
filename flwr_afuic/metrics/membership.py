"""Membership inference: telling from a model whether a sample was in its training data.

Half is not the goal. Both attacks are read beside retraining: what a model that never saw the
data gives is the value to be reached.
"""

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
    share,
)
from flwr_afuic.metrics.classification import rank_auc

# A loss of 0 has infinite log-odds. float32 losses are not resolved below about this.
_LOSS_FLOOR = 1e-7
_STD_FLOOR = 1e-6
_SMALLEST = 1e-12


def membership_auc(member_losses: ArrayLike, nonmember_losses: ArrayLike) -> float:
    """AUC of the loss-threshold attack (Yeom et al. 2018): a low loss speaks for a member.

    Parameters
    ----------
    member_losses : array, shape (m,)
        Losses on the data asked to be erased.
    nonmember_losses : array, shape (n,)
        Losses on data of the same site that was never trained on.

    Returns
    -------
    float
        Chance that a member has the lower loss, ties counting half; in [0, 1].

    Raises
    ------
    ConfigError
        If an array is empty, has more than one axis, or holds NaN or infinity.

    Examples
    --------
    >>> membership_auc([0.1, 0.2], [0.2, 0.9])
    0.875
    """
    members = finite_array(member_losses, "member_losses", ndim=1)
    others = finite_array(nonmember_losses, "nonmember_losses", ndim=1)
    return rank_auc(-members, -others)


def attack_auc(member_scores: ArrayLike, nonmember_scores: ArrayLike) -> float:
    """AUC of any attack whose score rises with membership, ties counting half.

    Parameters
    ----------
    member_scores : array, shape (m,)
    nonmember_scores : array, shape (n,)

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ConfigError
        If an array is empty, has more than one axis, or holds NaN or infinity.

    Examples
    --------
    >>> attack_auc([2.0, 3.0], [1.0, 2.5])
    0.75
    """
    members = finite_array(member_scores, "member_scores", ndim=1)
    others = finite_array(nonmember_scores, "nonmember_scores", ndim=1)
    return rank_auc(members, others)


def modified_entropy(predictions: ArrayLike, labels: ArrayLike) -> FloatArray:
    """Modified prediction entropy of every sample (Song and Mittal 2021, Eq. 8): low for members.

    ``-(1 - p_y) log p_y - sum over i != y of p_i log(1 - p_i)``, in nats. Unlike the entropy it
    knows the label: confident and right is 0, confident and wrong is large. Wrong classes enter
    with ``log(1 - p_i)``; with ``log p_i``, as some code has it, confident mistakes would look
    like membership.

    Parameters
    ----------
    predictions : array, shape (n, C)
        Predicted probabilities.
    labels : array of int, shape (n,)

    Returns
    -------
    array of float64, shape (n,)
        Zero or more; probabilities below 1e-12 count as that. Feed to `membership_auc`.

    Raises
    ------
    ConfigError
        If shapes do not fit, rows are no probabilities, or a label is no class.

    Examples
    --------
    >>> modified_entropy([[1.0, 0.0], [0.5, 0.5]], [0, 0]).round(4).tolist()
    [0.0, 0.6931]
    """
    p = probabilities(predictions, "predictions")
    y = class_labels(labels, "labels", p.shape[1])
    if len(y) != len(p):
        raise ConfigError(f"{len(p)} predictions and {len(y)} labels; pass one label for each")
    rows = np.arange(len(y))
    wrong = -p * np.log(np.maximum(1.0 - p, _SMALLEST))
    own = p[rows, y]
    wrong[rows, y] = -(1.0 - own) * np.log(np.maximum(own, _SMALLEST))
    return np.asarray(wrong.sum(axis=1), dtype=np.float64)


def tpr_at_fpr(member_scores: ArrayLike, nonmember_scores: ArrayLike, fpr: float = 0.01) -> float:
    """Largest share of members found while at most `fpr` of the others are accused.

    No interpolation between thresholds: with fewer than 1 / `fpr` non-members not a single one
    may be accused.

    Parameters
    ----------
    member_scores : array, shape (m,)
        Rising with membership; pass ``-losses`` for the loss attack.
    nonmember_scores : array, shape (n,)
    fpr : float
        Bound on the false positive rate, in [0, 1].

    Returns
    -------
    float
        True positive rate, in [0, 1].

    Raises
    ------
    ConfigError
        If an array is empty or not finite, or `fpr` is no share.

    Examples
    --------
    >>> tpr_at_fpr([5.0, 3.0, 1.0], [2.0, 0.0], fpr=0.1)
    0.6666666666666666
    """
    members = finite_array(member_scores, "member_scores", ndim=1)
    others = finite_array(nonmember_scores, "nonmember_scores", ndim=1)
    # .3 * 10 must allow 3 accusations though it is 2.9999...
    allowed = int(np.floor(share(fpr, "fpr") * len(others) + 1e-9))
    if allowed >= len(others):
        return 1.0
    # Everything strictly above the (allowed + 1)-th highest non-member may be called a member.
    threshold = np.sort(others)[::-1][allowed]
    return float(np.mean(members > threshold))


def likelihood_ratio_scores(
    losses: ArrayLike,
    reference_losses: ArrayLike,
    reference_members: ArrayLike,
    *,
    pooled_variance: bool = True,
) -> FloatArray:
    """Score of every example in the online likelihood-ratio attack (Carlini et al. 2022, alg. 1).

    Losses become log-odds of the true class, ``log(p / (1 - p))`` with ``p = exp(-loss)``; two
    Gaussians are fitted to the reference models that trained on the example and to those that
    did not, and the score is the log of their likelihood ratio at the model under attack.

    Parameters
    ----------
    losses : array, shape (n,)
        Cross-entropy of the model under attack, in nats, zero or more.
    reference_losses : array, shape (m, n)
        The same of m reference models.
    reference_members : array of bool, shape (m, n)
        Whether the reference model trained on the example.
    pooled_variance : bool
        One variance for all examples, from the residuals around each example's own mean (the
        paper advises one variance for few models; residuals instead of raw values is our
        reading). Otherwise one for each example, as in its algorithm.

    Returns
    -------
    array of float64, shape (n,)
        Above 0: more likely a member. Feed to `attack_auc` and `tpr_at_fpr`.

    Raises
    ------
    ConfigError
        If shapes differ, a loss is negative or not finite, or an example lacks reference models
        on one side (one with the pooled variance, two without).

    Examples
    --------
    >>> references = [[0.1], [0.2], [1.1], [1.3]]
    >>> members = [[True], [True], [False], [False]]
    >>> bool(likelihood_ratio_scores([0.15], references, members)[0] > 0)
    True
    """
    target = _losses(losses, "losses", 1)
    references = _losses(reference_losses, "reference_losses", 2)
    members = np.asarray(reference_members)
    if members.dtype != np.bool_:
        raise ConfigError(f"reference_members has dtype {members.dtype}; pass booleans")
    same_shape(references, members, "reference_losses and reference_members")
    same_shape(target, references[0], "losses and one row of reference_losses")
    least = 1 if pooled_variance else 2
    counts = np.minimum(members.sum(axis=0), (~members).sum(axis=0))
    if counts.min() < least:
        raise ConfigError(
            f"example {int(counts.argmin())} has {int(counts.min())} reference models on one "
            f"side; train until each has at least {least} with and {least} without it"
        )
    observed, confidences = _log_odds(target), _log_odds(references)
    inside = _log_density(observed, confidences, members, pooled_variance)
    outside = _log_density(observed, confidences, ~members, pooled_variance)
    return inside - outside


def _losses(values: ArrayLike, name: str, ndim: int) -> FloatArray:
    array = finite_array(values, name, ndim=ndim)
    if array.min() < 0:
        raise ConfigError(f"{name} holds {array.min():.4g}; cross-entropy is never negative")
    return array


def _log_odds(losses: FloatArray) -> FloatArray:
    # log(1 - p) from the loss itself: 1 - p loses all digits for confident predictions.
    clipped = np.maximum(losses, _LOSS_FLOOR)
    return np.asarray(-clipped - np.log(-np.expm1(-clipped)), dtype=np.float64)


def _log_density(
    observed: FloatArray, confidences: FloatArray, chosen: np.ndarray, pooled: bool
) -> FloatArray:
    """Log of a Gaussian fitted to the chosen rows of each column, at `observed`; all shape (n,)."""
    counts = chosen.sum(axis=0)
    mean = np.where(chosen, confidences, 0.0).sum(axis=0) / counts
    squares = np.where(chosen, (confidences - mean) ** 2, 0.0).sum(axis=0)
    if pooled:
        freedom = int(np.sum(counts - 1))
        if freedom == 0:
            raise ConfigError(
                "no example has two reference models on one side, so there is no variance; "
                "train more reference models"
            )
        variance = np.full(len(mean), squares.sum() / freedom)
    else:
        variance = squares / (counts - 1)
    variance = np.maximum(variance, _STD_FLOOR**2)
    log_density = -0.5 * (np.log(2 * np.pi * variance) + (observed - mean) ** 2 / variance)
    return np.asarray(log_density, dtype=np.float64)
