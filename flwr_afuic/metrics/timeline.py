"""Who was busy when: tasks, idle gaps between them, and the time in which requests were open."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from flwr_afuic.errors import ConfigError

TaskKind = Literal["train", "evaluate", "unlearn", "verify"]
Interval = tuple[float, float]
"""Beginning and end, in seconds."""


@dataclass(frozen=True)
class TaskSpan:
    """One task of one site, from being handed out to its reply.

    Attributes
    ----------
    site : str
    kind : {"train", "evaluate", "unlearn", "verify"}
    start, end : float
        Seconds on one clock for all sites.

    Raises
    ------
    ConfigError
        If the kind is unknown, a time is not finite, or the end is before the start.

    Examples
    --------
    >>> TaskSpan("north", "train", 0.0, 2.5).end
    2.5
    """

    site: str
    kind: TaskKind
    start: float
    end: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(TaskKind):
            raise ConfigError(
                f"task of {self.site} has kind {self.kind!r}; use one of {get_args(TaskKind)}"
            )
        if not (math.isfinite(self.start) and math.isfinite(self.end)) or self.end < self.start:
            raise ConfigError(
                f"{self.kind} task of {self.site} runs from {self.start} to {self.end} s; "
                "pass finite times, the end not before the start"
            )


def open_time(requests: Iterable[Interval], until: float) -> list[Interval]:
    """Join open times of requests, up to `until`, to disjoint intervals in rising order.

    Parameters
    ----------
    requests : iterable of (float, float)
        Opening and closing time in seconds; infinity for one that never closed.
    until : float
        End of what is looked at.

    Raises
    ------
    ConfigError
        If there is no request, a time is NaN, or one closes before it opens.
    """
    given = list(requests)
    if not given:
        raise ConfigError("requests is empty; pass the opening and closing time of at least one")
    for opened, closed in given:
        if not math.isfinite(opened) or math.isnan(closed) or closed < opened:
            raise ConfigError(
                f"a request is open from {opened} to {closed} s; pass a finite opening time "
                "and a closing time that is not before it"
            )
    return _join((opened, min(closed, until)) for opened, closed in given if opened < until)


def busy_time(
    spans: Iterable[TaskSpan], retained_sites: Collection[str]
) -> dict[str, list[Interval]]:
    """Time in which each retained site had a task, as disjoint intervals in rising order.

    Raises
    ------
    ConfigError
        If no site is named or a named site has no task at all.
    """
    if isinstance(retained_sites, str) or not retained_sites:
        raise ConfigError(f"retained_sites is {retained_sites!r}; pass the names of the sites")
    own: dict[str, list[Interval]] = {site: [] for site in retained_sites}
    for span in spans:
        if span.site in own:
            own[span.site].append((span.start, span.end))
    idle = sorted(site for site, intervals in own.items() if not intervals)
    if idle:
        raise ConfigError(
            f"retained sites without any task: {', '.join(idle)}; "
            "leave out sites that were never connected"
        )
    return {site: _join(intervals) for site, intervals in own.items()}


def gaps_between(busy: Sequence[Interval]) -> list[Interval]:
    """Idle intervals between consecutive disjoint tasks, empty ones included.

    Tasks that touch have a gap of zero, which counts towards what is typical; `busy_time`
    therefore keeps touching tasks apart.
    """
    return [(left[1], right[0]) for left, right in pairwise(busy)]


def overlap(interval: Interval, others: Iterable[Interval]) -> float:
    """Seconds of `interval` that lie in the disjoint `others`."""
    begin, end = interval
    return math.fsum(max(0.0, min(end, stop) - max(begin, start)) for start, stop in others)


def _join(intervals: Iterable[Interval]) -> list[Interval]:
    joined: list[Interval] = []
    for start, end in sorted(intervals):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined
