"""Time as the engine sees it: the real clock, or a virtual one for latency studies."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """What the engine needs of a clock. Seconds throughout."""

    def now(self) -> float:
        """Return the current time in seconds."""

    def sleep(self, seconds: float) -> None:
        """Let time pass: at most ``seconds``."""

    @property
    def virtual(self) -> bool:
        """Whether time is simulated."""


class RealClock:
    """The machine's monotonic clock."""

    virtual = False

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block for ``seconds``."""
        time.sleep(seconds)


class VirtualClock:
    """A clock that jumps from event to event, so that stragglers cost no real time.

    Parameters
    ----------
    next_event : callable
        Returns the time of the next known event, or None. Sleeping never passes it.
    """

    virtual = True

    def __init__(self, next_event: Callable[[], float | None] = lambda: None) -> None:
        self._now = 0.0
        self._sources: list[Callable[[], float | None]] = [next_event]

    def watch(self, next_event: Callable[[], float | None]) -> None:
        """Add a source of events that sleeping must not jump over."""
        self._sources.append(next_event)

    def unwatch(self, next_event: Callable[[], float | None]) -> None:
        """Forget a source of events."""
        self._sources.remove(next_event)

    def now(self) -> float:
        """Return virtual seconds since the clock was made."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Advance by ``seconds``, or to the next event if that comes first."""
        goal = self._now + seconds
        events = [event for source in self._sources if (event := source()) is not None]
        upcoming = [event for event in events if event > self._now]
        self._now = min([goal, *upcoming])
