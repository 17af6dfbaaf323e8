"""Progress: bars on a terminal, plain lines otherwise; nothing where it is not wanted."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

Report = Callable[[str, int, int], None]

_LINES = 10
_NAMES = {
    "afuic": "AFU-IC, erasure on the way",
    "no_unlearning": "no unlearning",
    "retrain": "retraining without the erased data",
    "retrain_floor": "retraining with another seed",
    "scoring": "scoring every version",
}


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Report]:
    """Give a function ``(name, done, total)`` that shows how far a run is, on stderr."""
    if quiet:
        yield lambda name, done, total: None
    elif sys.stderr.isatty():
        with _bars() as bars:
            yield _BarReport(bars)
    else:
        yield _LineReport()


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


class _BarReport:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._current = ""
        self._tasks: dict[str, tuple[object, int]] = {}

    def __call__(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._close()
            task = self._bars.add_task(_NAMES.get(name, name), total=total)
            self._tasks[name] = (task, done)
            self._current = name
        task_id, _ = self._tasks[name]
        self._tasks[name] = (task_id, done)
        self._bars.update(task_id, completed=min(done, total), total=total)  # type: ignore[arg-type]

    def _close(self) -> None:
        """End the bar of a run that was over before its greatest number of rounds."""
        if self._current:
            task_id, done = self._tasks[self._current]
            self._bars.update(task_id, completed=done, total=max(done, 1))  # type: ignore[arg-type]


class _LineReport:
    def __init__(self) -> None:
        self._last: tuple[str, int] = ("", -1)

    def __call__(self, name: str, done: int, total: int) -> None:
        step = max(1, total // _LINES)
        if (name, done // step) != self._last or (done == total and done % step):
            self._last = (name, done // step)
            print(f"{_NAMES.get(name, name)}: {done} of {total}", file=sys.stderr, flush=True)


def quieten(*, verbose: bool) -> None:
    """Leave of Flower's log what concerns the user; ``verbose`` leaves everything."""
    logger = logging.getLogger("flwr")
    if verbose:
        logger.setLevel(logging.INFO)
        return
    logger.setLevel(logging.WARNING)
    logger.addFilter(_worth_showing)


def _worth_showing(record: logging.LogRecord) -> bool:
    """Drop Flower's advice about its own interfaces, which a user of ours cannot follow."""
    return "DEPRECATED" not in str(record.msg)
