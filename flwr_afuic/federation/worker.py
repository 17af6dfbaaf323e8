"""Server computation beside the event loop, so that no client waits for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from flwr_afuic.federation.clock import Clock, VirtualClock

T = TypeVar("T")


class Job(Generic[T]):
    """A computation under way, with the times at which it began and ended (seconds)."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.future: Future[T] = Future()
        self.start = clock.now()
        self.end = 0.0

    def done(self) -> bool:
        """Whether the result is in; in virtual time, once its duration has passed."""
        if not self.future.done():
            return False
        return not self._clock.virtual or self._clock.now() >= self.end

    def result(self) -> T:
        """Return the result, or raise what the computation raised."""
        return self.future.result()


class Worker:
    """One background thread on real clocks; immediate execution on a virtual one.

    Parameters
    ----------
    clock : Clock
        The engine's clock. On a :class:`VirtualClock` a job runs at once in the calling
        thread and its result shows after its stated virtual duration, one job after
        another, which keeps runs deterministic.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._free_at = 0.0
        self._ends: list[float] = []
        self._pool: ThreadPoolExecutor | None = None
        if isinstance(clock, VirtualClock):
            clock.watch(self._next_end)
        else:
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="flwr-afuic")

    def submit(self, work: Callable[[], T], *, virtual_seconds: float = 0.0) -> Job[T]:
        """Start ``work``; on a virtual clock it takes ``virtual_seconds``."""
        job: Job[T] = Job(self._clock)
        if self._pool is None:
            job.start = max(self._clock.now(), self._free_at)
            self._run(work, job)
            job.end = self._free_at = job.start + virtual_seconds
            self._ends.append(job.end)
        else:
            self._pool.submit(self._run, work, job)
        return job

    def close(self) -> None:
        """Wait for what is under way and stop."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        elif isinstance(self._clock, VirtualClock):
            self._clock.unwatch(self._next_end)

    def _run(self, work: Callable[[], Any], job: Job[Any]) -> None:
        job.start = max(job.start, self._clock.now())
        try:
            value = work()
        except Exception as error:  # noqa: BLE001 - handed over to whoever asks for the result
            job.end = self._clock.now()
            job.future.set_exception(error)
        else:
            job.end = self._clock.now()
            job.future.set_result(value)

    def _next_end(self) -> float | None:
        now = self._clock.now()
        self._ends = [end for end in self._ends if end > now]
        return min(self._ends, default=None)
