"""What every test shares: quiet Flower logs, an identity to send from, skips without data."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from typing import Any

# Before flwr is imported: nothing leaves the machine and nothing is looked up.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
# Before torch is: threads of several test processes would wait for each other, and spin meanwhile.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import settings

# A machine that is busy for a moment, or code that is compiled at its first call, is no failure.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

TOGETHER = {
    "tests/e2e/": "real federations",
    "tests/app/test_demo.py": "a tiny run",
    "tests/cli/test_demo.py": "a tiny run",
}
"""Tests that run one after the other, in one process: they share what takes long to make."""

SPREAD = ("tests/strategies/test_crash_schedules.py", "tests/strategies/test_mutated_replies.py")
"""Files whose tests may run in several processes; the others share their fixtures in one."""

LONGEST = (*TOGETHER, *SPREAD, "tests/strategies/test_comparators.py", "tests/bench/")
"""What comes first, so that at the end no process works on alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {part: place for place, part in enumerate(LONGEST)}

    def place(item: pytest.Item) -> int:
        return next((n for part, n in places.items() if item.nodeid.startswith(part)), len(places))

    items.sort(key=place)
    if os.environ.get("AFUIC_DATA_DIR"):
        return
    skip = pytest.mark.skip(reason="AFUIC_DATA_DIR is not set: no real data")
    for item in items:
        if "data" in item.keywords:
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Spare the collector of cycles the modules, which stay."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep in one process what shares a federation, a run or a fixture.

    Marks of pytest-xdist for groups do nothing with the pytest that is pinned here.
    """
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False  # not by how many tests there are, but as above

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            together = next((t for part, t in TOGETHER.items() if nodeid.startswith(part)), "")
            return together or (nodeid if nodeid.startswith(SPREAD) else nodeid.split("::")[0])

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def quiet_flower() -> Iterator[None]:
    """Keep Flower's log out of the output; tests that read it set the level themselves."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


@pytest.fixture
def task_identity() -> None:
    """Who sends, for tests that build a Message outside a run."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
