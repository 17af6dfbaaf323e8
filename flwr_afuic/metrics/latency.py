"""What an erasure costs in time: stall, throughput of the retained sites, time to forget."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from statistics import median

import numpy as np
from numpy.typing import ArrayLike

from flwr_afuic.errors import ConfigError
from flwr_afuic.metrics._checks import (
    ROUNDING,
    FloatArray,
    finite_array,
    finite_number,
    not_negative,
    same_shape,
)
from flwr_afuic.metrics.timeline import (
    Interval,
    TaskSpan,
    busy_time,
    gaps_between,
    open_time,
    overlap,
)

STALL_TOLERANCE = 0.1
"""Seconds beyond the typical gap that one poll or a busy machine explains."""


def stall_by_site(
    spans: Iterable[TaskSpan],
    requests: Iterable[Interval],
    retained_sites: Collection[str],
    *,
    until: float | None = None,
    tolerance: float = STALL_TOLERANCE,
) -> dict[str, float]:
    """Seconds in which each free retained site had no task because of a request.

    Our reading of "because of": a gap that is there anyway is not caused by a request. The
    typical gap of a site is the median of its gaps that ended before the first request opened
    (without any, the median over all retained sites; without those either, 0, which rather
    overstates). Of a longer gap only what lies behind its typical length and within an open
    request counts, and only if that is more than `tolerance`; then it counts in full. A last
    gap, with no task after it, lasts until `until`: a site that is never given a task again
    stalls. Time before a site's first task is not counted.

    Parameters
    ----------
    spans : iterable of TaskSpan
        All tasks of all sites; any kind of task counts as having one.
    requests : iterable of (float, float)
        When each request was open, in seconds on the clock of `spans`; infinity for one that
        never closed.
    retained_sites : collection of str
        Sites to look at, connected throughout.
    until : float, optional
        When the server stopped handing out tasks. The last end of any task without it, which
        counts a site's idle time at the very end of a run if a request is still open.
    tolerance : float
        Seconds for each gap. Many stalls below it would show in `retained_throughput`.

    Returns
    -------
    dict of str to float
        Seconds, exactly 0.0 where no gap exceeds what is typical by more than `tolerance`.

    Raises
    ------
    ConfigError
        If there is no request or site, a site has no task, or a number is out of range.

    Examples
    --------
    >>> work = [(0, 1), (1, 2), (2, 3), (8, 9)]
    >>> spans = [TaskSpan("north", "train", start, end) for start, end in work]
    >>> stall_by_site(spans, [(2.5, 8.0)], ["north"])
    {'north': 5.0}
    """
    allowed = not_negative(tolerance, "tolerance")
    tasks = list(spans)
    busy = busy_time(tasks, retained_sites)
    stop = _stop(tasks, until)
    requested = list(requests)
    opened = open_time(requested, stop)
    first = min(begin for begin, _ in requested)
    usual = {
        site: [end - begin for begin, end in gaps_between(work) if end <= first]
        for site, work in busy.items()
    }
    everyone = [length for lengths in usual.values() for length in lengths]
    result = {}
    for site, work in busy.items():
        typical = median(usual[site] or everyone or [0.0])
        gaps = [*gaps_between(work), (work[-1][1], max(stop, work[-1][1]))]
        excess = [overlap((begin + typical, end), opened) for begin, end in gaps]
        result[site] = float(sum(seconds for seconds in excess if seconds > allowed))
    return result


def stall_seconds(
    spans: Iterable[TaskSpan],
    requests: Iterable[Interval],
    retained_sites: Collection[str],
    *,
    until: float | None = None,
    tolerance: float = STALL_TOLERANCE,
) -> float:
    """Sum of `stall_by_site` over the retained sites, with the same arguments and errors.

    Returns
    -------
    float
        Seconds of idle client time.

    Examples
    --------
    >>> spans = [TaskSpan("north", "train", t, t + 1) for t in range(9)]
    >>> stall_seconds(spans, [(2.5, 8.0)], ["north"])
    0.0
    """
    by_site = stall_by_site(spans, requests, retained_sites, until=until, tolerance=tolerance)
    return sum(by_site.values(), 0.0)


def retained_throughput(
    spans: Iterable[TaskSpan],
    requests: Iterable[Interval],
    retained_sites: Collection[str],
    *,
    since: float | None = None,
    until: float | None = None,
) -> float:
    """Retained updates per second with a request open over the same before the first request.

    An update counts in the share of its time that lies in a window (our reading: counting
    whole updates by their end favours the later window, since tasks are under way at its
    beginning, and is coarse where a window holds few).

    Parameters
    ----------
    spans : iterable of TaskSpan
        Only training tasks of retained sites count; pass those whose updates were accepted.
    requests : iterable of (float, float)
        When each request was open, in seconds; infinity for one that never closed.
    retained_sites : collection of str
    since : float, optional
        Beginning of the time before; the first start of any retained task without it. Set it
        to leave out a slow start.
    until : float, optional
        When the server stopped handing out tasks; the last end of any task without it.

    Returns
    -------
    float
        1 where requests do not slow down the others.

    Raises
    ------
    ConfigError
        If there is no request or site, a site has no task, no time passed with or before a
        request, or no retained update falls in the time before.

    Examples
    --------
    >>> spans = [TaskSpan("north", "train", t, t + 1) for t in (0, 1, 2, 3, 4, 6, 8)]
    >>> retained_throughput(spans, [(5.0, 9.0)], ["north"])
    0.5
    """
    tasks = list(spans)
    busy = busy_time(tasks, retained_sites)
    requested = list(requests)
    opened = open_time(requested, _stop(tasks, until))
    first = min(begin for begin, _ in requested)
    start = min(work[0][0] for work in busy.values())
    begin = start if since is None else finite_number(since, "since")
    during = sum(end - start for start, end in opened)
    if first <= begin or during <= 0:
        raise ConfigError(
            f"the time before the first request runs from {begin} to {first} s and that with one "
            f"open lasts {during} s; both must be positive: begin before, end after the request"
        )
    training = [task for task in tasks if task.kind == "train" and task.site in busy]
    before = _updates(training, [(begin, first)]) / (first - begin)
    if before == 0:
        raise ConfigError(
            f"retained sites trained nothing from {begin} to {first} s; request later or set since"
        )
    return _updates(training, opened) / during / before


def time_to_forget(
    times: ArrayLike,
    forget: ArrayLike,
    test: ArrayLike,
    retrain_forget: ArrayLike,
    retrain_test: ArrayLike,
    *,
    requested_at: float,
    rounds: ArrayLike | None = None,
    forget_bound: float = 0.05,
    test_bound: float = 0.02,
    stay: int = 5,
) -> float | None:
    """Seconds from the request until the model scores like retraining, and stays so.

    Our reading: the forget score must be within its bound on both sides (below retraining is
    not "as if never seen"), the test score must not be lower by more than its bound, and every
    score taken from then until `stay` rounds later must be so too. Time counts to the first.

    Parameters
    ----------
    times : array, shape (n,)
        Seconds at which the model was scored, rising.
    forget, test : array, shape (n,)
        Scores on the erased and on the test data.
    retrain_forget, retrain_test : float or array, shape (n,)
        Retraining's, of the same round.
    requested_at : float
        Seconds on the same clock; earlier scores are not looked at.
    rounds : array of int, shape (n,), optional
        Round of each score; one a round without it.
    forget_bound, test_bound : float
        Pass the retrain-to-retrain floor instead where that is larger.
    stay : int
        Rounds.

    Returns
    -------
    float or None
        None where it is never reached, or not seen to last for `stay` rounds.

    Raises
    ------
    ConfigError
        If an array is empty, not finite or of another length, times or rounds fall, or a bound
        is negative.

    Examples
    --------
    >>> forget = [0.9, 0.9, 0.5, 0.5, 0.5]
    >>> time_to_forget([0, 1, 2, 3, 4], forget, [0.8] * 5, 0.5, 0.8, requested_at=0.5, stay=2)
    1.5
    """
    seconds = _rising(times, "times")
    at_round = np.arange(len(seconds), dtype=np.float64)
    if rounds is not None:
        at_round = _rising(rounds, "rounds")
        same_shape(seconds, at_round, "times and rounds")
    forget_gap = _against(forget, retrain_forget, "forget", seconds)
    test_loss = -_against(test, retrain_test, "test", seconds)
    good = np.abs(forget_gap) <= not_negative(forget_bound, "forget_bound") + ROUNDING
    good &= test_loss <= not_negative(test_bound, "test_bound") + ROUNDING
    last = at_round + not_negative(stay, "stay")
    opened = finite_number(requested_at, "requested_at")
    for index in np.flatnonzero(good & (seconds >= opened)):
        confirmed = int(np.searchsorted(at_round, last[index]))
        if confirmed < len(good) and good[index : confirmed + 1].all():
            return float(seconds[index] - opened)
    return None


def _stop(tasks: Sequence[TaskSpan], until: float | None) -> float:
    if until is not None:
        return finite_number(until, "until")
    return max(task.end for task in tasks)


def _updates(tasks: Iterable[TaskSpan], windows: Sequence[Interval]) -> float:
    """Count tasks by the share of their time in the disjoint windows; instants count whole."""
    total = 0.0
    for task in tasks:
        length = task.end - task.start
        if length > 0:
            total += overlap((task.start, task.end), windows) / length
        else:
            total += any(begin <= task.start < end for begin, end in windows)
    return total


def _rising(values: ArrayLike, name: str) -> FloatArray:
    array = finite_array(values, name, ndim=1)
    if np.any(np.diff(array) < 0):
        raise ConfigError(f"{name} fall somewhere; pass the scores in the order they were taken")
    return array


def _against(values: ArrayLike, retrained: ArrayLike, name: str, times: FloatArray) -> FloatArray:
    own = finite_array(values, name, ndim=1)
    same_shape(times, own, f"times and {name}")
    reference = finite_array(retrained, f"retrain_{name}")
    if reference.ndim > 0:
        same_shape(times, reference, f"times and retrain_{name}")
    return own - reference
