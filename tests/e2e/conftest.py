"""One federation of real processes for all tests of this folder that run in one process.

It ends with them: it trains on, and would take its share of the processors from whatever follows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.e2e.harness import Cluster


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long tests out unless they are asked for.

    `make test-crash` asks for those marked so, `make test-e2e` for the others that start real
    processes: with them the whole suite takes longer than the twenty minutes it may.
    """
    if "crash" in config.getoption("-m"):
        return
    left_out = {"crash"} if os.environ.get("AFUIC_E2E") else {"crash", "slow"}
    long = [i for i in items if "e2e" in i.path.parts and left_out & set(i.keywords)]
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
