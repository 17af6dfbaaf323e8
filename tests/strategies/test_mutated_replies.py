"""Ten thousand mutated replies and requests: none ends the run, and none moves the model.

What moves the model is decided from outside (``hostile.Judge``). A mutation that is still a
well-formed update, which no server could tell from a true one, is not counted; the judge checks
that it was applied to the last digit.
"""

from __future__ import annotations

import logging
import os
import random
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from flwr_afuic.state.reading import verify_state
from flwr_afuic.strategies import AFUIC
from flwr_afuic.strategies.gate import GateSettings
from flwr_afuic.unlearning.privacy import NO_PRIVACY
from tests.erasure_helpers import Site, app_of, arrays_record
from tests.strategies.countable import keep_open
from tests.strategies.hostile import (
    ERASURE_NORM_FACTOR,
    HONEST,
    NORM_FACTOR,
    HostileGrid,
    Judge,
    Plan,
)

MUTATIONS = int(os.environ.get("AFUIC_MUTATIONS", "10000"))
SHARDS = 4
PER_LIFE = 1250
MEMORY = Path("/dev/shm")
KINDS = ["trained", "statistic", "counter"]
LEAST = {"train": 300, "unlearn": 40, "verify": 100, "evaluate": 50, "poll": 20}
"""Mutated replies to each kind of task, by shard."""


def sites_of(number: int) -> list[Site]:
    """Three hospitals; those of even lives return differences, the others weights."""
    kinds = KINDS if number % 2 == 0 else None
    ids = [[f"patient-{n}-{row}" for row in range(60)] for n in range(3)]
    sites = [Site(n, ids=ids[n], kinds=kinds) for n in range(3)]
    for site in sites:
        keep_open(site.inbox)
    return sites


class Life:
    """One federation: it warms up, is attacked, and is left in peace again."""

    def __init__(self, number: int, mutations: int) -> None:
        self.number, self.rng = number, random.Random(f"mutated/{number}")
        self.dialect = ("numpy", "message")[number // 2 % 2]
        self.named = number % 5 != 4
        self.sites = sites_of(number)
        self.judge = Judge(self.dialect, self.sites, named=self.named)
        self.plan = Plan(self.rng, others=[site.name for site in self.sites])
        self.mutations = mutations
        self.filed: dict[int, list[str]] = {0: [], 1: [], HONEST: []}
        self.stage, self.looks, self.peace = "warm", 0, 0

    def file(self, site: int) -> None:
        done = len(self.filed[site])
        samples = self.sites[site].ids[done : done + 1]
        request_id = self.sites[site].file(samples)
        self.filed[site].append(request_id)
        self.plan.others.append(request_id)

    def look(self, run) -> bool:
        """See what happened, move the story on; True at its end."""
        self.judge.look(run.arrays)
        self.looks += 1
        book = run.hooks.book
        if self.stage == "warm" and run.version >= 7:
            self.stage, self.plan.share, self.plan.left = "attack", 0.94, self.mutations
            self.file(0)
        if self.stage == "attack":
            asks = [r for r in book if r.site == self.sites[0].name and r.open]
            if self.looks % 60 == 0 and not asks and len(self.filed[0]) < 50:
                self.file(0)
            if self.looks % 150 == 0 and self.rng.random() < 0.5:
                self.grid.restart(self.rng.randrange(2))
            if self.plan.left <= 0 or self.looks > 40 * self.mutations:
                self.stage = "peace"
                self.judge.honest_asks = True
                self.file(HONEST)
        if self.stage == "peace":
            self.peace += 1
            mine = book.find(self.filed[HONEST][0])
            done = mine is not None and mine.state == "completed"
            return self.peace > 3000 or (done and self.peace > 30)
        return False

    def run(self) -> Counter[str]:
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
            durable = self.number % 5 == 0
            names = [site.name for site in self.sites] if self.named else None
            self.grid = HostileGrid(
                app_of(self.sites, self.dialect),
                3,
                plan=self.plan,
                dialect=self.dialect,
                judge=self.judge,
                names=names,
                threads=1,
            )
            strategy = AFUIC(
                dialect=self.dialect,
                buffer_size=1,
                server_lr=1.0,
                min_available_nodes=2,
                max_staleness=10**6,
                lock=False,
                verify_rounds=1,
                watch_every=1,
                evaluate_every=2,
                max_attempts=1000,
                max_failures=10**9,
                max_backoff=1.0,
                norm_factor=NORM_FACTOR,
                erasure_norm_factor=ERASURE_NORM_FACTOR,
                privacy=NO_PRIVACY,
                gate=GateSettings(by="sites", sites=2, max_cost=0.9),
                state_dir=folder if durable else None,
                on_version=self.judge.on_version,
                stop_when=self.look,
            )
            try:
                strategy.start(self.grid, arrays_record(True), num_rounds=10**9)
            finally:
                self.grid.close()
            self.judge.end()
            if durable:
                assert verify_state(Path(folder)) == []
        self.check(strategy)
        return self.judge.met

    def check(self, strategy: AFUIC) -> None:
        if self.named:
            mine = strategy.book.get(self.filed[HONEST][0])
            assert mine.state == "completed", mine.reason


@pytest.mark.parametrize("shard", range(SHARDS))
def test_mutated_replies_end_no_run_and_move_no_model(shard):
    logging.getLogger("flwr").setLevel(logging.CRITICAL + 1)  # each of them is logged
    met: Counter[str] = Counter()
    number = shard
    while met["mutated"] < MUTATIONS / SHARDS:
        met += Life(number, PER_LIFE).run()
        met["lives"] += 1
        number += SHARDS
    print(dict(met))
    for kind, least in LEAST.items():
        assert met[kind] >= least * MUTATIONS / 10_000, (kind, met)


def test_true_replies_move_the_model():
    life = Life(1, 0)
    met = life.run()
    assert met["mutated"] == 0
    assert met["true train applied"] > 20
    assert met["erasures"] == 2  # one at the site that is attacked elsewhere, one at the honest one
    # Both sites keep data: their scores come with their updates.
    assert sum(site.verified for site in life.sites) >= 2
