"""Weights of stale updates (FedAsync, arXiv 1903.03934, section 5.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from flwr_afuic.errors import ConfigError

StalenessRule = Literal["constant", "polynomial", "hinge"]


def staleness_weight(
    rule: StalenessRule = "polynomial", *, a: float = 0.5, b: float = 4.0
) -> Callable[[int], float]:
    """Build the weight function ``s`` of FedAsync.

    Parameters
    ----------
    rule : {"constant", "polynomial", "hinge"}
        ``constant`` is 1; ``polynomial`` is ``(1 + t)**-a``; ``hinge`` is 1 up to
        staleness ``b`` and ``1 / (a * (t - b) + 1)`` beyond it. The paper's own hinge
        is ``1 / (a * (t - b))``, which exceeds 1 just above ``b``; the ``+ 1`` keeps the
        weight continuous and is our reading.
    a, b : float
        Constants of the rule; ``a`` positive, ``b`` not negative (versions).

    Returns
    -------
    callable
        From staleness (versions, at least 0) to a weight in (0, 1].

    Examples
    --------
    >>> staleness_weight("polynomial", a=0.5)(3)
    0.5
    """
    if rule not in get_args(StalenessRule):
        raise ConfigError(
            f"unknown staleness rule {rule!r}; use one of {', '.join(get_args(StalenessRule))}"
        )
    if not a > 0 or not b >= 0:
        raise ConfigError(f"staleness needs a > 0 and b >= 0, got a={a}, b={b}")

    def weight(staleness: int) -> float:
        if staleness < 0:
            raise ConfigError(f"staleness cannot be negative, got {staleness}")
        if rule == "polynomial":
            return float((1.0 + staleness) ** -a)
        if rule == "hinge" and staleness > b:
            return float(1.0 / (a * (staleness - b) + 1.0))
        return 1.0

    return weight
