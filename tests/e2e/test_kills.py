"""``kill -9`` of each process at the steps of an erasure, then a new run on the same state.

Steps on the server are held before they are on disk; ``after-`` holds right behind.
``unlearning`` is held at the site.
"""

from __future__ import annotations

import machines
import pytest

from tests.e2e.harness import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("federation")]

STEPS = ("request", "reference", "dispatched", "unlearned", "merged", "verifying", "verified")
LAST = ("completed", "purge", "certificate")


def survive(cluster: Cluster, process: str, step: str, site: str, *, reference: bool) -> None:
    """Kill a process at a step of the site's erasure, and start what it takes to go on."""
    held = f"{step}-{site}"
    cluster.await_held(held)
    cluster.note_versions()
    if process == "supernode":
        cluster.kill_site(site)
        cluster.let_go(held)
        cluster.start_site(site)
        return
    if process == "superlink":
        cluster.kill_superlink()
        cluster.let_go(held)
        machines.start_superlink(cluster.federation)
    else:
        cluster.kill_server_app()
        cluster.let_go(held)
    cluster.start_run(reference=reference)


def hold(cluster: Cluster, site: str, *steps: str) -> None:
    for step in steps:
        cluster.hold(f"{step}-{site}")


def test_the_server_app_is_killed_before_the_delta_and_before_the_merge_are_on_disk(cluster):
    hold(cluster, "hospital-0", "unlearned", "after-merged")
    request_id = cluster.file("hospital-0")
    survive(cluster, "server-app", "unlearned", "hospital-0", reference=False)
    survive(cluster, "server-app", "after-merged", "hospital-0", reference=False)
    cluster.await_certificate(request_id)
    cluster.check_state()


def test_the_superlink_is_killed_at_the_dispatch_and_at_the_end(cluster):
    hold(cluster, "hospital-1", "dispatched", "completed")
    request_id = cluster.file("hospital-1")
    survive(cluster, "superlink", "dispatched", "hospital-1", reference=False)
    survive(cluster, "superlink", "completed", "hospital-1", reference=False)
    cluster.await_certificate(request_id)
    cluster.check_state()


def test_a_hospital_dies_in_mid_unlearning_and_another_before_it_verifies(cluster):
    # Two hospitals: the SuperLink refuses each of them for about a minute.
    hold(cluster, "hospital-0", "unlearning")
    hold(cluster, "hospital-2", "verifying")
    first, second = cluster.file("hospital-0"), cluster.file("hospital-2")
    survive(cluster, "supernode", "unlearning", "hospital-0", reference=False)
    survive(cluster, "supernode", "verifying", "hospital-2", reference=False)
    for site in ("hospital-0", "hospital-2"):
        cluster.await_site(site)
    for request_id in (first, second):
        cluster.await_certificate(request_id)
    cluster.check_state()


@pytest.mark.crash
@pytest.mark.parametrize("process", ["server-app", "superlink", "supernode"])
@pytest.mark.parametrize(
    "step", ["unlearning", *STEPS, *LAST, *(f"after-{step}" for step in (*STEPS, *LAST))]
)
def test_every_process_at_every_step(cluster, process, step):
    cluster.restart_run(reference=True)
    site = "hospital-0"
    hold(cluster, site, step)
    request_id = cluster.file(site)
    survive(cluster, process, step, site, reference=True)
    cluster.await_site(site)
    cluster.await_certificate(request_id)
    cluster.check_state()
