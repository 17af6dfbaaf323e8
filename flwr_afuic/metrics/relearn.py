"""Relearn time: what was really forgotten takes retraining's time to be learned again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from flwr_afuic.errors import ConfigError
from flwr_afuic.metrics._checks import ROUNDING, FloatArray, finite_array, finite_number


@dataclass(frozen=True)
class RelearnTime:
    """Relearn times of the unlearned and of the retrained model.

    Attributes
    ----------
    ratio : float or None
        RT(U) / RT(R): 1 is ideal, less than 1 means something was still there. None where
        nothing can be told: retraining is at the level before it sees the data, or neither
        model reaches it.
    unlearned, retrained : int or None
        Rounds until the level was reached; None where it was not in the rounds given.
    censored : bool
        Exactly one model did not reach the level; its time was taken as all the rounds given,
        so that `ratio` is too low (unlearned) or too high (retrained).
    """

    ratio: float | None
    unlearned: int | None
    retrained: int | None
    censored: bool


def relearn_rounds(curve: ArrayLike, level: float) -> int | None:
    """Rounds of training on the erased data until the score first reaches `level`.

    Parameters
    ----------
    curve : array, shape (k + 1,)
        Score after 0, 1, ..., k rounds; finer steps than rounds give finer ratios.
    level : float
        The original model's score.

    Returns
    -------
    int or None
        None where the level is not reached.

    Raises
    ------
    ConfigError
        If the curve is empty or a value is not finite.

    Examples
    --------
    >>> relearn_rounds([0.2, 0.6, 0.9], level=0.8)
    2
    """
    return _first_reached(finite_array(curve, "curve", ndim=1), finite_number(level, "level"))


def relearn_ratio(
    unlearned_curve: ArrayLike, retrained_curve: ArrayLike, level: float
) -> RelearnTime:
    """Relearn time of the unlearned model over that of the retrained one.

    Parameters
    ----------
    unlearned_curve, retrained_curve : array, shape (k + 1,)
        Score after 0, 1, ..., k rounds of training on the erased data, the same k for both.
    level : float
        The original model's score.

    Returns
    -------
    RelearnTime

    Raises
    ------
    ConfigError
        If a curve is empty, has no round of training or holds NaN, or lengths differ.

    Examples
    --------
    >>> relearn_ratio([0.2, 0.9, 0.9], [0.2, 0.5, 0.9], level=0.8).ratio
    0.5
    """
    unlearned = finite_array(unlearned_curve, "unlearned_curve", ndim=1)
    retrained = finite_array(retrained_curve, "retrained_curve", ndim=1)
    goal = finite_number(level, "level")
    if len(unlearned) != len(retrained) or len(unlearned) < 2:
        raise ConfigError(
            f"the curves have {len(unlearned)} and {len(retrained)} values; "
            "train both for the same number of rounds, at least one"
        )
    budget = len(unlearned) - 1
    time_u, time_r = _first_reached(unlearned, goal), _first_reached(retrained, goal)
    if time_r == 0 or (time_u is None and time_r is None):
        return RelearnTime(None, time_u, time_r, censored=False)
    ratio = _or_budget(time_u, budget) / _or_budget(time_r, budget)
    return RelearnTime(ratio, time_u, time_r, censored=time_u is None or time_r is None)


def _first_reached(curve: FloatArray, level: float) -> int | None:
    reached = np.flatnonzero(curve >= level - ROUNDING)
    return int(reached[0]) if reached.size else None


def _or_budget(time: int | None, budget: int) -> int:
    return budget if time is None else time
