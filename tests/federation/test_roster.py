from __future__ import annotations

import pytest

from flwr_afuic.federation.clock import VirtualClock
from flwr_afuic.federation.roster import Roster


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def roster(clock: VirtualClock) -> Roster:
    result = Roster(clock, backoff=1.0, max_backoff=10.0, max_failures=3)
    result.refresh([(1, ""), (2, "berlin")])
    return result


def test_newcomers_are_named_once(roster: Roster) -> None:
    first, second = roster.members
    assert (first.site, first.authenticated) == ("node-1", False)
    assert (second.site, second.authenticated) == ("berlin", True)
    assert roster.refresh([(1, ""), (2, "berlin")]) == []
    (third,) = roster.refresh([(2, "berlin"), (3, "")])
    assert third.node_id == 3
    assert not first.connected
    roster.refresh([(1, "")])
    assert first.connected
    assert not second.connected
    assert roster.of_node(3) is third


def test_a_registered_name_cannot_be_claimed_away(roster: Roster) -> None:
    first, second = roster.members
    roster.identify(first, "0")
    roster.identify(second, "paris")
    assert (first.site, second.site) == ("0", "berlin")
    roster.identify(first, "")
    assert first.site == "0"


def test_of_site_prefers_the_connected_then_the_newest(roster: Roster) -> None:
    roster.refresh([(1, ""), (2, "berlin"), (7, "berlin")])
    assert roster.of_site("berlin").node_id == 7  # type: ignore[union-attr]
    roster.refresh([(2, "berlin")])
    assert roster.of_site("berlin").node_id == 2  # type: ignore[union-attr]
    roster.refresh([])
    assert roster.of_site("berlin").node_id == 7  # type: ignore[union-attr]
    assert roster.of_site("oslo") is None


def test_free_is_sorted_by_site_and_leaves_out_busy_gone_and_backing_off(
    roster: Roster, clock: VirtualClock
) -> None:
    roster.refresh([(1, ""), (2, "berlin"), (3, "aachen"), (4, "zürich")])
    one, berlin, aachen, zurich = roster.members
    assert [m.site for m in roster.free()] == ["aachen", "berlin", "node-1", "zürich"]
    berlin.busy = True
    roster.failed(aachen, "x")
    roster.refresh([(1, ""), (2, "berlin"), (3, "aachen")])
    assert roster.free() == [one]
    assert not zurich.connected
    clock.sleep(1.0)
    assert [m.site for m in roster.free()] == ["aachen", "node-1"]


def test_backoff_doubles_up_to_its_cap_and_success_forgives(
    roster: Roster, clock: VirtualClock
) -> None:
    member = roster.members[0]
    assert [roster.failed(member, "x") for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    assert member.not_before == clock.now() + 10
    assert (member.failures, member.last_failure) == (6, "x")
    roster.succeeded(member)
    assert member in roster.free()
    assert roster.failed(member, "y") == 1


def test_weeks_of_failures_do_not_overflow(roster: Roster) -> None:
    member = roster.members[0]
    member.failures = 100_000
    assert roster.failed(member, "x") == 10


def test_healthy(roster: Roster) -> None:
    member = roster.members[0]
    for _ in range(2):
        roster.failed(member, "x")
    assert roster.healthy(member)
    roster.failed(member, "x")
    assert not roster.healthy(member)
    roster.succeeded(member)
    assert roster.healthy(member)
    roster.refresh([])
    assert not roster.healthy(member)


def test_next_event_is_the_end_of_the_shortest_backoff(roster: Roster, clock: VirtualClock) -> None:
    one, two = roster.members
    assert roster.next_event() is None
    roster.failed(one, "x")
    roster.failed(one, "x")
    roster.failed(two, "x")
    assert roster.next_event() == 1.0
    clock.sleep(1.0)
    assert roster.next_event() == 2.0
    roster.refresh([(2, "berlin")])
    assert roster.next_event() is None, "nobody waits for who is gone"
