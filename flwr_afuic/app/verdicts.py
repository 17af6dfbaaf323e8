"""The figures a run is judged by: value, bound, and the retrain-to-retrain floor of each.

A figure holds if it is met, or if the same quantity for a second retraining (the floor) is
larger than the bound: then the bound lies below the noise. Both are always printed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

_TIGHT_RESURFACING = {"mednist": (0.005, 0.01)}
_RESURFACING = (0.02, 0.04)
_ROUNDING = 1e-9
_GAP = "average_gap"


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


_GAP_BOUND = Bound(0.02)


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
        _GAP: _GAP_BOUND,
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

    The average gap is bounded by .02 or the same run's floor, whichever is larger: its mean
    is compared with the mean of those. A figure that one seed did not reach has no mean and
    does not hold, unless its floor excuses it.
    """
    names = [name for name in bounds_for(dataset) if all(name in values for values, _ in runs)]
    values = {name: _mean([run[0][name] for run in runs]) for name in names}
    floors = {name: _mean([run[1].get(name) for run in runs]) for name in names}
    verdicts = judge(dataset, values, floors)
    return [_by_run(verdict, runs) if verdict.name == _GAP else verdict for verdict in verdicts]


def _by_run(
    verdict: Verdict,
    runs: Sequence[tuple[Mapping[str, float | None], Mapping[str, float | None]]],
) -> Verdict:
    """Judge the average gap against the larger of the bound and each run's own floor."""
    limit = _GAP_BOUND.limit
    own = _mean([max(limit, floors.get(verdict.name) or 0.0) for _, floors in runs])
    if verdict.value is None or own is None or own <= limit:
        return verdict
    bound = f"{verdict.bound} or the run's floor: {own:.4f}"
    return replace(verdict, bound=bound, holds=Bound(own).met(verdict.value))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) and known else None
