"""``kill -9`` of every process at every step of an erasure: `make test-crash`.

Steps on the server are held before they are on disk; ``after-`` holds right behind.
``unlearning`` is held at the site, in the middle of its work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.e2e.harness import NAMES, Cluster

pytestmark = [pytest.mark.crash, pytest.mark.slow]

SERVER_STEPS = (
    "request",
    "reference",
    "dispatched",
    "unlearned",
    "merged",
    "verifying",
    "verified",
    "completed",
    "purge",
    "certificate",
)
STEPS = ("unlearning", *SERVER_STEPS, *(f"after-{step}" for step in SERVER_STEPS))


@pytest.fixture(scope="module", params=["server-app", "superlink", "supernode"])
def victim(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def federation(victim: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One federation for all steps at which one process is killed."""
    folder = tmp_path_factory.mktemp(victim)
    with closing(Cluster(folder, reference=True)) as cluster:
        cluster.start()
        yield cluster
    assert cluster.services.family() == []


@pytest.mark.parametrize("step", STEPS)
def test_nothing_is_lost_and_nothing_is_applied_twice(federation, victim, step):
    site = NAMES[STEPS.index(step) % len(NAMES)]
    federation.hold(site, step)
    request_id = federation.file(site)
    federation.survive(victim, step, site)
    federation.await_site(site)
    federation.await_certificate(request_id)
    federation.check_state()
