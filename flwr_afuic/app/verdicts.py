"""The figures a run is judged by: value, bound, and the retrain-to-retrain floor of each.

A figure holds if it is met, or if the same quantity for a second retraining (the floor) is
larger than the bound: then the bound lies below the noise. Both are always printed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_TIGHT_RESURFACING = {"mednist": (0.005, 0.01)}
_RESURFACING = (0.02, 0.04)
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Bound:
    """An upper bound on a figure; ``two_sided`` bounds its absolute value."""

    limit: float
    two_sided: bool = False

    def met(self, value: float) -> bool:
        """Whether the value keeps the bound."""
        size = abs(value) if self.two_sided else value
        return size <= self.limit + _ROUNDING

    def __str__(self) -> str:
        return f"within ±{self.limit:g}" if self.two_sided else f"<= {self.limit:g}"


@dataclass(frozen=True)
class Verdict:
    """One figure beside its bound and floor. ``value`` is None where it was not reached."""

    name: str
    value: float | None
    bound: str
    floor: float | None
    holds: bool

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return asdict(self)


def bounds_for(dataset: str) -> dict[str, Bound]:
    """Return the figures and bounds of a data set, in the order they are printed."""
    mean, most = _TIGHT_RESURFACING.get(dataset, _RESURFACING)
    return {
        "asr_gap_at_merge": Bound(0.02),
        "test_gap_at_merge": Bound(0.03, two_sided=True),
        "dip_rounds": Bound(3),
        "forget_gap_at_merge": Bound(0.05, two_sided=True),
        "resurfacing_mean": Bound(mean, two_sided=True),
        "resurfacing_max": Bound(most),
        "test_shortfall_after_merge": Bound(0.01),
        "average_gap": Bound(0.02),
        "stall_seconds": Bound(0.0),
        "throughput_loss": Bound(0.1),
        "lost_progress": Bound(1e-6, two_sided=True),
    }


def judge(
    dataset: str,
    values: Mapping[str, float | None],
    floors: Mapping[str, float | None],
) -> list[Verdict]:
    """Compare one run's figures with their bounds and floors.

    Figures that the run does not have (no trigger, no merge) are left out; a figure that is
    None was not reached and does not hold.
    """
    verdicts = []
    for name, bound in bounds_for(dataset).items():
        if name not in values:
            continue
        value, floor = values[name], floors.get(name)
        excused = floor is not None and not bound.met(floor)
        met = value is not None and bound.met(value)
        verdicts.append(Verdict(name, value, str(bound), floor, met or excused))
    return verdicts


def judge_mean(
    dataset: str,
    runs: Sequence[tuple[Mapping[str, float | None], Mapping[str, float | None]]],
) -> list[Verdict]:
    """Judge the mean of several seeds' figures against the mean of their floors.

    A figure that one seed did not reach has no mean and does not hold, unless its floor
    excuses it.
    """
    names = [name for name in bounds_for(dataset) if all(name in values for values, _ in runs)]
    values = {name: _mean([run[0][name] for run in runs]) for name in names}
    floors = {name: _mean([run[1].get(name) for run in runs]) for name in names}
    return judge(dataset, values, floors)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) and known else None
