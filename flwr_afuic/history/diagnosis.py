"""Whether the unlearning rule can be trusted on a history, and when it cannot.

The rule takes the retained sites' updates as they were. With one local step and gradients bounded
by ``M`` it is off by at most ``2 M`` times the sum of the step sizes [D]: step sizes that fall
slower than ``1 / j`` have no such sum, and then the rule can end farther from the retrained model
than where it started. In convex experiments it did so in most runs whose steps fell that slowly,
and in nearly all whose correction was longer than all that training had moved the model by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.history.store import UpdateStore
from flwr_afuic.history.unlearn import Correction

LONGEST_RATIO = 1.0
"""Longest correction, as a share of what training moved the model by, that draws no warning."""

SLOWEST_DECAY = 1.0
"""Step sizes that fall as ``j**-a`` have a finite sum only for ``a`` above it."""

_FEWEST_WINDOWS = 5


@dataclass(frozen=True)
class Diagnosis:
    """What speaks for and against a correction.

    Attributes
    ----------
    steps : float
        Sum of the step sizes, or, where these are not given, of the windows' mean deviations,
        which fall as the step sizes do.
    decay : float
        ``a`` of the fit ``j**-a`` to them; NaN with fewer than five windows.
    correction : float
        ``||w'' - w_T||``.
    training : float
        ``||w_T - w_0||``; NaN if ``w_0`` is not known.
    warnings : tuple of str
        What to mind; empty if nothing.
    """

    steps: float
    decay: float
    correction: float
    training: float
    warnings: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """``||w'' - w_T|| / ||w_T - w_0||``; NaN if unknown."""
        return self.correction / self.training if self.training > 0 else math.nan


def diagnose(
    store: UpdateStore,
    correction: Correction,
    *,
    initial: Sequence[NDArray[Any]] | None = None,
    final: Sequence[NDArray[Any]] | None = None,
    step_sizes: Sequence[float] | None = None,
) -> Diagnosis:
    """Judge a correction by the history it was made from.

    Parameters
    ----------
    store : UpdateStore
        The history.
    correction : Correction
        The correction.
    initial, final : sequence of ndarray, optional
        Trained arrays of ``w_0`` and ``w_T``.
    step_sizes : sequence of float, optional
        Learning rate of each window, in order, if known.
    """
    sizes = list(step_sizes) if step_sizes is not None else _deviations(store)
    decay = _decay(sizes)
    training = math.nan
    if initial is not None and final is not None:
        training = math.sqrt(
            sum(
                float(np.sum(np.square(after.astype(np.float64) - before)))
                for before, after in zip(initial, final, strict=True)
            )
        )
    warnings = []
    if correction.norm > LONGEST_RATIO * training:
        warnings.append(
            f"the correction is {correction.norm / training:.2f} times as long as all training "
            f"({correction.norm:.3g} of {training:.3g}): it probably ends farther from the "
            "retrained model than the model it corrects; add recovery rounds"
        )
    if decay <= SLOWEST_DECAY:
        warnings.append(
            f"the steps fall as j^-{max(decay, 0.0):.2f}, too slowly to have a finite sum: the "
            "error of the rule grows with the number of rounds; add recovery rounds"
        )
    if correction.coverage.share < 1 and correction.coverage.gaps:
        warnings.append(
            f"{len(correction.coverage.gaps)} rounds of the forgotten sites removed nothing: "
            + "; ".join(correction.coverage.summary())
        )
    return Diagnosis(math.fsum(sizes), decay, correction.norm, training, tuple(warnings))


def _deviations(store: UpdateStore) -> list[float]:
    """Return the mean norm of the participants' deviations, window by window."""
    return [
        math.fsum(p.norm for p in window.participants) / len(window.participants)
        for window in store.windows()
        if not window.alone
    ]


def _decay(sizes: Sequence[float]) -> float:
    """Return ``a`` of the least-squares fit of ``log size`` on ``log j``."""
    points = [(math.log(j), math.log(s)) for j, s in enumerate(sizes, start=1) if s > 0]
    if len(points) < _FEWEST_WINDOWS:
        return math.nan
    x, y = np.array(points).T
    return float(-np.polyfit(x, y, 1)[0])
