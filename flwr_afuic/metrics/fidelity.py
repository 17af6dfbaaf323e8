"""Fidelity: what an erasure costs the model that everybody else goes on using."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flwr_afuic.errors import ConfigError
from flwr_afuic.metrics._checks import ROUNDING, finite_array, finite_number, not_negative
from flwr_afuic.metrics._curves import Curve, align


@dataclass(frozen=True)
class ClientSpread:
    """One model's scores over the clients.

    Attributes
    ----------
    worst_site : str
        Site with the lowest score; the first by name where several have it.
    worst, mean : float
    std : float
        Population standard deviation.
    spread : float
        Best minus worst.
    """

    worst_site: str
    worst: float
    mean: float
    std: float
    spread: float


def merge_dip(score_before: float, score_at_merge: float) -> float:
    """Test score of the version just before the merge minus that of the merge itself.

    Parameters
    ----------
    score_before, score_at_merge : float

    Returns
    -------
    float
        Positive where the merge cost something.

    Raises
    ------
    ConfigError
        If a score is NaN or infinite.

    Examples
    --------
    >>> merge_dip(0.75, 0.5)
    0.25
    """
    before = finite_number(score_before, "score_before")
    return before - finite_number(score_at_merge, "score_at_merge")


def dip_rounds(
    unlearned_curve: Curve,
    retrain_curve: Curve,
    merge_round: int,
    *,
    tolerance: float = 0.01,
    floor: float = 0.0,
) -> int | None:
    """Rounds from the merge until the test score is back at retraining's of the same round.

    Our reading of "back": not lower than retraining by more than the larger of `tolerance` and
    `floor`, for the first time. Being better is no dip.

    Parameters
    ----------
    unlearned_curve, retrain_curve : mapping of int to float, or array of shape (n,)
        Test score by round.
    merge_round : int
        Round of the merge.
    tolerance : float
        Difference that counts as back.
    floor : float
        Retrain-to-retrain difference of the same run, under which differences mean nothing.

    Returns
    -------
    int or None
        0 where there is no dip at the merge; None where the score does not come back in the
        rounds that both curves have.

    Raises
    ------
    ConfigError
        If a curve is empty or not finite, no round from the merge on is shared, or a bound is
        negative.

    Examples
    --------
    >>> dip_rounds({5: 0.70, 6: 0.85, 7: 0.90}, {5: 0.90, 6: 0.90, 7: 0.90}, merge_round=5)
    2
    """
    bound = max(not_negative(tolerance, "tolerance"), not_negative(floor, "floor"))
    names = ("unlearned_curve", "retrain_curve")
    rounds, unlearned, retrained = align(unlearned_curve, retrain_curve, names, merge_round)
    back = np.flatnonzero(retrained - unlearned <= bound + ROUNDING)
    return int(rounds[back[0]]) - merge_round if back.size else None


def score_gap(score: float, reference_score: float) -> float:
    """Score minus that of a reference: the no-unlearning run at the merge, or retraining.

    On test data this is the test gap.

    Parameters
    ----------
    score, reference_score : float
        Of the same round.

    Returns
    -------
    float
        Negative where the model is worse than the reference.

    Raises
    ------
    ConfigError
        If a score is NaN or infinite.

    Examples
    --------
    >>> score_gap(0.5, 0.75)
    -0.25
    """
    return finite_number(score, "score") - finite_number(reference_score, "reference_score")


def client_spread(scores: Mapping[str, float]) -> ClientSpread:
    """Worst client and spread over clients.

    Parameters
    ----------
    scores : mapping of str to float
        Score of one model at every site.

    Returns
    -------
    ClientSpread

    Raises
    ------
    ConfigError
        If there is no site or a score is NaN or infinite.

    Examples
    --------
    >>> client_spread({"north": 0.75, "south": 0.25}).worst_site
    'south'
    """
    if not scores:
        raise ConfigError("scores names no site; pass the score of at least one")
    sites = sorted(scores)
    values = finite_array([scores[site] for site in sites], "scores", ndim=1)
    worst = int(values.argmin())
    return ClientSpread(
        worst_site=sites[worst],
        worst=float(values[worst]),
        mean=float(values.mean()),
        std=float(values.std()),
        spread=float(values.max() - values.min()),
    )
