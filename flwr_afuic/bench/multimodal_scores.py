"""What an arm of ``bench multimodal`` measured, and the figures that come of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from flwr_afuic.errors import DataError

LAST = 5
KS = (1, 5, 10)


@dataclass(frozen=True)
class Point:
    """One version's retrieval.

    Attributes
    ----------
    version, round : int
    forget, retain : dict
        Recall at 1, 5 and 10 in both directions, their mean, and ``hits`` of each pair at each k.
    """

    version: int
    round: int
    forget: dict[str, Any]
    retain: dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """An arm, version by version.

    Attributes
    ----------
    arm : str
    points : list of Point
    merge_version : int
        Of the erasure; 0 where there was none.
    state, reason, steps : str, str, int
        How the request ended, and the excision's steps.
    subspaces : dict
        What the decomposition found.
    """

    arm: str
    points: list[Point]
    merge_version: int = 0
    state: str = ""
    reason: str = ""
    steps: int = 0
    subspaces: dict[str, Any] = field(default_factory=dict)

    @property
    def dip(self) -> tuple[float, float, int | None]:
        """Retained R@1 before it was lowest, there, and rounds between until it was back.

        None where it never came back.
        """
        found = [point.retain["mean/r1"] for point in self.points]
        low = int(np.argmin(found))
        if not low:
            return found[0], found[0], 0
        top = int(np.argmax(found[:low]))
        back = next((i for i in range(low, len(found)) if found[i] >= found[top]), None)
        rounds = None if back is None else self.points[back].round - self.points[top].round
        return found[top], found[low], rounds

    def to_json(self) -> dict[str, Any]:
        """Return plain values; hits of the last version only, which is where they are used."""
        row = asdict(self)
        for point in row["points"][:-1]:
            point["forget"].pop("hits", None)
            point["retain"].pop("hits", None)
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Curve:
        """Read what :meth:`to_json` wrote."""
        try:
            points = [Point(**point) for point in row["points"]]
            return cls(**{**row, "points": points})
        except (KeyError, TypeError) as error:
            raise DataError(f"the arm's file is damaged: {error!r}; run it with --fresh") from error

    def at_end(self, part: str, name: str = "mean/r1") -> float:
        """Return a recall over the last five versions, mean, of ``forget`` or ``retain``."""
        return float(np.mean([getattr(p, part)[name] for p in self.points[-LAST:]]))

    @property
    def after(self) -> list[Point]:
        """Versions from the erasure on; of arms without one, all."""
        return [p for p in self.points if p.version >= self.merge_version]

    @property
    def rebound(self) -> float:
        """Rise of forget R@1 from the erasure's merge to the last five versions."""
        return self.at_end("forget") - float(self.after[0].forget["mean/r1"])


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % t-interval over seeds; infinite for one seed."""
    from scipy.stats import t

    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return mean, math.inf
    deviation = float(np.std(values, ddof=1)) / math.sqrt(n)
    return mean, float(t.ppf(0.975, n - 1)) * deviation
