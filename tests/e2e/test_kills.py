"""``kill -9`` of each process at the steps of an erasure, then a new run on the same state.

Steps on the server are held before they are on disk; ``after-`` holds right behind.
``unlearning`` is held at the site.
"""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow


def test_the_server_app_is_killed_before_the_delta_and_before_the_merge_are_on_disk(cluster):
    cluster.hold("hospital-0", "unlearned", "after-merged")
    request_id = cluster.file("hospital-0")
    cluster.survive("server-app", "unlearned", "hospital-0")
    cluster.survive("server-app", "after-merged", "hospital-0")
    cluster.await_certificate(request_id)
    cluster.check_state()


def test_the_superlink_is_killed_at_the_dispatch_and_at_the_end(cluster):
    cluster.hold("hospital-1", "dispatched", "completed")
    request_id = cluster.file("hospital-1")
    cluster.survive("superlink", "dispatched", "hospital-1")
    cluster.survive("superlink", "completed", "hospital-1")
    cluster.await_certificate(request_id)
    cluster.check_state()


def test_a_hospital_dies_in_mid_unlearning_and_another_before_it_verifies(cluster):
    # Two hospitals: the SuperLink refuses each of them for about a minute. The second asks once
    # the first is dead: while it is held at the server, nobody else is heard.
    cluster.hold("hospital-0", "unlearning")
    first = cluster.file("hospital-0")
    cluster.survive("supernode", "unlearning", "hospital-0")
    cluster.hold("hospital-2", "verifying")
    second = cluster.file("hospital-2")
    cluster.survive("supernode", "verifying", "hospital-2")
    for site in ("hospital-0", "hospital-2"):
        cluster.await_site(site)
    for request_id in (first, second):
        cluster.await_certificate(request_id)
    cluster.check_state()
