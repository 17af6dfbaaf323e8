"""One federation of real processes for all tests of this folder that run in one process.

It ends with them: it trains on, and would take its share of the processors from whatever follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.e2e.harness import Cluster


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes most of an hour, unless it is asked for (`make test-crash`)."""
    if "crash" in config.getoption("-m"):
        return
    long = [item for item in items if "crash" in item.keywords]
    if long:
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A SuperLink with TLS and node authentication, three SuperNodes, and a run under way."""
    with closing(Cluster(tmp_path_factory.mktemp("federation"))) as cluster:
        cluster.start()
        yield cluster
    assert cluster.services.family() == []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Show the logs' tails with a failure."""
    report = yield
    funcargs = getattr(item, "funcargs", {})
    cluster = next((c for c in funcargs.values() if isinstance(c, Cluster)), None)
    if report.when == "call" and report.failed and cluster is not None:
        report.sections.append(("logs of the federation", cluster.tails()))
    return report
