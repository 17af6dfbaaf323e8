"""Curves of a score over rounds, and bringing two of them to the rounds they share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from flwr_afuic.errors import ConfigError
from flwr_afuic.metrics._checks import FloatArray, IntArray, finite_array

Curve = Mapping[int, float] | ArrayLike
"""A score over rounds: a mapping round -> value, or an array whose index is the round."""


def align(
    first: Curve, second: Curve, names: tuple[str, str], from_round: int | None = None
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Bring two curves to the rounds both have.

    Parameters
    ----------
    first, second : mapping of int to float, or array of shape (n,)
        Two mappings or two arrays: beside a mapping, which round an array begins at is unclear.
    names : tuple of str
        What the curves are called in messages.
    from_round : int, optional
        Rounds before this one are left out.

    Returns
    -------
    rounds : array of shape (k,)
        In rising order.
    first_values, second_values : array of shape (k,)

    Raises
    ------
    ConfigError
        If a curve is empty or not finite, or no round is shared.
    """
    if isinstance(first, Mapping) != isinstance(second, Mapping):
        raise ConfigError(
            f"{names[0]} and {names[1]}: one is a mapping and one an array; "
            "pass both as mappings from round to value"
        )
    left, right = _by_round(first, names[0]), _by_round(second, names[1])
    shared = sorted(left.keys() & right.keys())
    rounds = [r for r in shared if from_round is None or r >= from_round]
    if not rounds:
        since = "" if from_round is None else f" from round {from_round} on"
        raise ConfigError(
            f"{names[0]} (rounds {min(left)}-{max(left)}) and {names[1]} (rounds {min(right)}-"
            f"{max(right)}) share no round{since}; score both after the same rounds"
        )
    return (
        np.asarray(rounds, dtype=np.int64),
        np.asarray([left[r] for r in rounds], dtype=np.float64),
        np.asarray([right[r] for r in rounds], dtype=np.float64),
    )


def _by_round(curve: Curve, name: str) -> dict[int, float]:
    if isinstance(curve, Mapping):
        values = finite_array(list(curve.values()), name, ndim=1)
        rounds = list(curve)
        if any(isinstance(r, bool) or not isinstance(r, int | np.integer) for r in rounds):
            raise ConfigError(f"{name} has rounds that are no whole numbers; pass int rounds")
        return {int(r): float(value) for r, value in zip(rounds, values, strict=True)}
    return dict(enumerate(finite_array(curve, name, ndim=1).tolist()))
