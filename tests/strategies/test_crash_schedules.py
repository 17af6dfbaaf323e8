"""Crashes, lost, late, doubled and reordered replies, and requests of every kind, in any order.

Each schedule is the history of one federation: servers that fall at any step and are started
anew, sites that come and go, requests that overlap. Whatever happens, no request is lost, none is
applied twice, and no version is lost.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from pprint import pformat

import pytest
from hypothesis import HealthCheck, assume, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.strategies.chaos import Federation, Setting
from tests.strategies.faulty import FAULTS
from tests.strategies.invariants import Judge

SCHEDULES = int(os.environ.get("AFUIC_SCHEDULES", "1000"))
SHARDS = 4
STEPS = 3

ALWAYS = ("file", "leave", "repeat", "expire", "cancel", "command", "withdraw", "depart", "return")
RUNNING = (*ALWAYS, "operator", "release", "reject", "forge", "misbehave", "restart")
WHERE = ("loop", "train", "version", "pull")
STEPS_ON_DISK = ("put", "delete", "certificate", "commit")
FALLS = (
    *(f"{step}{side}" for step in STEPS_ON_DISK for side in "-+"),
    *("push", "pushed", "pull", "loop", "version", "merge", "train"),
    *(f"event {kind}" for kind in ("request", "dispatched", "unlearned", "merged", "verified")),
    *(f"event {kind}" for kind in ("completed", "purge", "certificate", "cancelled", "resumed")),
)

sites = st.integers(0, 2)
numbers = st.integers(0, 7)
asking = st.sampled_from(("file", "leave", "command"))
deeds = st.tuples(st.sampled_from(RUNNING), sites, numbers)
faults = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(FAULTS)), max_size=10)
scripts = st.lists(st.tuples(st.sampled_from(WHERE), st.integers(1, 14), deeds), max_size=5)
falls = st.one_of(
    st.tuples(st.sampled_from(FALLS), st.integers(1, 4)),
    st.tuples(st.just("any"), st.integers(1, 300)),
)
federations = st.builds(
    Setting,
    mode=st.sampled_from(["async", "async", "async", "sync"]),
    dialect=st.sampled_from(["numpy", "numpy", "message"]),
    authenticated=st.booleans(),
    buffer_size=st.integers(1, 3),
    keep_checkpoints=st.integers(1, 3),
    verify_rounds=st.integers(1, 2),
    batch_size=st.sampled_from([1, 1, 1, 2]),
    evaluate_every=st.sampled_from([0, 0, 1]),
    gated=st.sampled_from([False, False, True]),
    patience=st.sampled_from([1e9, 1e9, 1e9, 300.0]),
)


class Schedules(RuleBasedStateMachine):
    """One federation through its crashes."""

    met: Counter[str] = Counter()

    @initialize(
        setting=federations,
        first=st.lists(st.tuples(asking, sites, numbers), max_size=3),
        luck=st.integers(0, 2**32),
    )
    def begin(self, setting, first, luck):
        assume(luck)  # the simplest schedule, with which hypothesis begins, shows nothing
        self.federation = Federation(setting)
        self.judge = Judge(self.federation)
        for deed in first:
            self.federation.do(*deed)

    @rule(deed=st.tuples(st.sampled_from(ALWAYS), sites, numbers))
    def meanwhile(self, deed):
        self.federation.do(*deed)

    @rule(faults=faults, script=scripts, fall=falls)
    def live_and_fall(self, faults, script, fall):
        self.federation.live(faults=faults, script=script, crash=fall, versions=9)

    @rule(faults=faults, script=scripts, fall=falls)
    def fall_again(self, faults, script, fall):
        self.federation.live(faults=faults, script=script, crash=fall, versions=9)

    @rule(faults=faults, script=scripts, versions=st.integers(1, 5))
    def live(self, faults, script, versions):
        self.federation.live(faults=faults, script=script, versions=versions)

    @invariant()
    def nothing_is_lost_or_twice(self):
        if hasattr(self, "federation"):
            found = self.judge.problems()
            assert not found, pformat(found)

    def teardown(self):
        if not hasattr(self, "federation"):
            return
        try:
            if self.federation.lives:
                self.come_to_an_end()
        finally:
            type(self).met += self.federation.met
            type(self).met["schedules"] += self.federation.lives > 1
            self.federation.close()

    def come_to_an_end(self):
        """Let a server that does not fall finish what is open, and look at what came of it."""
        federation, judge = self.federation, self.judge
        federation.everybody_returns()
        federation.live(stop=lambda: federation.settle() and not judge.unsettled(), steps=600)
        waiting = judge.unsettled()
        assert not waiting, pformat(waiting)
        federation.met.update(judge.outcomes())
        found = judge.end()
        assert not found, pformat(found)


def run(machine: type[Schedules], number: int) -> None:
    """Run the schedule of a number."""
    # One at a time: hypothesis would rather repeat itself than come up with a new one.
    chosen = os.environ.get("AFUIC_SEED", "")
    run_state_machine_as_test(
        # Not the class itself: hypothesis would parse its whole file each time.
        seed(f"{chosen}/{number}")(lambda: machine()),
        settings=settings(
            max_examples=1,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("shard", range(SHARDS))
def test_schedules(shard):
    class Shard(Schedules):
        met: Counter[str] = Counter()

    logging.getLogger("flwr").setLevel(logging.CRITICAL + 1)  # sites that fail say so at length
    number = shard
    while Shard.met["schedules"] < SCHEDULES // SHARDS:  # one without a crash counts for nothing
        run(Shard, number)
        number += SHARDS
    print(dict(Shard.met))
    assert Shard.met["schedules"] >= SCHEDULES // SHARDS
