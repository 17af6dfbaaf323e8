"""EASE on the engine: excision at the site, or along the history; the lock on both sides."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

from flwr_afuic.errors import ConfigError, ErasureError
from flwr_afuic.history.memory import MemoryStore
from flwr_afuic.state.store import StateStore
from flwr_afuic.strategies import EASE
from flwr_afuic.unlearning.excision import ExcisionSettings
from flwr_afuic.unlearning.procedures import read_settings
from tests.strategies import sites as plain
from tests.strategies.paired import (
    PairsClient,
    after_merge,
    ask,
    coordinates,
    ease,
    flat,
    make_sites,
)
from tests.unlearning.towers import pairs


@pytest.fixture(scope="module")
def basic():
    """One erasure of a site that is there, and the sites."""
    sites = make_sites()
    return ease(sites, at={6: ask}, lam=25.0), sites


def test_a_site_excises_and_the_model_stays_put_along_its_directions(basic):
    outcome, sites = basic
    assert outcome.states()[:3] == ["received", "dispatched", "unlearned"]
    assert outcome.states()[-1] == "completed"
    (task,) = sites[0].unlearned
    assert read_settings(task.settings) == ExcisionSettings(steps=20)
    report = outcome.record.details["subspaces"]
    assert report["rank"] > 0
    assert report["retained_sites"] == ["site-1", "site-2"]
    assert set(report["blocks"]) == {"vision", "text"}
    assert len(after_merge(outcome)) > 5
    for version in after_merge(outcome):
        now, at = coordinates(outcome, version)
        np.testing.assert_allclose(now, at, atol=1e-5)
    moved = [
        np.abs(a - b).max()
        for a, b in zip(outcome.models[outcome.record.merge_version], outcome.final(), strict=True)
    ]
    assert max(moved) > 1e-3  # training goes on along everything else


def test_sites_that_train_on_are_sent_the_lock_and_heed_it(basic):
    outcome, sites = basic
    for site in sites[1:]:
        given = [lock for lock in site.locks if lock is not None]
        assert site.locks[0] is None
        assert given
        assert given[-1].strength == 25.0
        basis, at = given[-1].pins[0]
        mine, coords = outcome.strategy._hooks.pins.pinned.held(outcome.record.request_id)
        assert basis.rank == mine.rank
        np.testing.assert_allclose(at, coords)


def test_without_the_servers_half_the_clients_half_bounds_the_drift():
    drifts = {}
    for lam in (0.0, 100.0):
        outcome = ease(make_sites(), at={6: ask}, lam=lam, project=False)
        ends = [coordinates(outcome, v) for v in after_merge(outcome)]
        drifts[lam] = max(float(np.linalg.norm(now - at)) for now, at in ends)
    assert drifts[0.0] > 1e-3
    assert drifts[100.0] < 0.2 * drifts[0.0]


def test_clients_that_hold_no_lock_are_sent_none():
    class Plain(PairsClient):
        holds_lock = False

    sites = make_sites()
    outcome = ease(sites, at={6: ask}, client=Plain)
    assert outcome.states()[-1] == "completed"
    assert all(lock is None for site in sites for lock in site.locks)


def test_a_site_that_is_gone_is_taken_back_along_its_own_directions():
    sites, box = make_sites(), []

    def leave(strategy):
        box[0].offline.add(101)

    outcome = ease(sites, at={5: leave, 9: ask}, on_grid=box.append, site_timeout=3.0, rounds=24)
    assert outcome.states() == ["received", "merged", "verifying", "completed-unverified"]
    assert sites[0].unlearned == []
    record = outcome.record
    assert record.details["mode"] == "ease-history"
    assert record.details["taken_back"] > 0
    now, _ = coordinates(outcome, record.merge_version)
    basis, _ = outcome.strategy._hooks.pins.pinned.held(record.request_id)
    np.testing.assert_allclose(now, basis.coordinates(flat(outcome.models[0])), atol=1e-5)
    statuses = {
        (p.site, p.status) for w in outcome.strategy.recorder.store.windows()
        for p in w.participants
    }  # fmt: skip
    assert ("site-0", "stored") in statuses  # purged with the certificate, given a state directory


def test_fully_entangled_from_the_history_fails_and_says_so():
    class Same(PairsClient):
        def __init__(self, site):
            super().__init__(site)
            self.pairs = pairs(1, len(site.ids))

    sites, box = make_sites(), []

    def leave(strategy):
        box[0].offline.add(101)

    outcome = ease(
        sites, at={5: leave, 9: ask}, client=Same, on_grid=box.append, site_timeout=5.0, rounds=20
    )
    assert outcome.states() == ["received", "failed"]
    assert "cannot be erased from the history: fully entangled" in outcome.record.reason
    assert outcome.record.details["subspaces"]["entangled"]


def test_fully_entangled_with_its_site_is_excised_without_a_lock():
    class Same(PairsClient):
        def __init__(self, site):
            super().__init__(site)
            self.pairs = pairs(1, len(site.ids))

    outcome = ease(make_sites(), at={6: ask}, client=Same)
    assert "merged" in outcome.states()
    assert "fully entangled" in outcome.record.details["subspaces_note"]
    assert len(outcome.strategy._hooks.pins.pinned) == 0
    assert outcome.events("no-subspace")


def test_some_samples_are_excised_along_the_directions_their_site_names():
    sites = make_sites()
    outcome = ease(sites, at={6: lambda s: sites[0].file(["pair-0-0", "pair-0-1"])})
    assert outcome.record.notice.scope == "samples"
    assert outcome.states()[-1] == "completed"
    assert outcome.record.details["subspaces"]["rank"] > 0
    assert outcome.record.details["subspaces"]["retained_sites"] == ["site-1", "site-2"]
    assert len(sites[0].trained_on[-1]) == 6  # it trains on, on what it keeps


def test_a_class_is_erased_by_every_site_for_its_own_samples():
    sites = make_sites()
    outcome = ease(sites, at={6: lambda s: s.request_class_erasure("odd")}, rounds=26)
    requests = outcome.strategy.requests
    assert sorted(r.site for r in requests) == ["site-0", "site-1", "site-2"]
    assert {str(r.state) for r in requests} == {"completed"}
    for site in sites:
        assert site.inbox.tombstones() == set(site.ids[1::2])
    assert outcome.events("class-erasure")


def test_the_operator_drops_a_lock():
    sites, ids = make_sites(), []

    def drop(strategy):
        ids.append(strategy.requests[0].request_id)
        strategy.drop_forget_lock(ids[0])
        with pytest.raises(ErasureError, match="no forget lock"):
            strategy.drop_forget_lock(ids[0])
        site = sites[1]
        site.locks.clear()

    outcome = ease(sites, at={6: ask, 16: drop}, rounds=30)
    assert outcome.record.merge_version < 16
    assert len(outcome.strategy._hooks.pins.pinned) == 0
    assert outcome.events("forget-lock-dropped")
    assert sites[1].locks[-1] is None


def test_with_no_erasure_and_lam_zero_it_is_fedavg_bit_for_bit(monkeypatch):
    # FedAvg adds its replies up in the order of a sample of its own; sums of another order
    # differ in the last bit.
    monkeypatch.setattr(random, "sample", lambda nodes, size: sorted(nodes)[:size])
    ours, theirs = plain.Site(), plain.Site()
    results = []
    for site, strategy in (
        (ours, EASE(history=MemoryStore(), mode="sync", lam=0.0, dialect="message",
                    min_available_nodes=3, evaluate_every=0)),
        (theirs, FedAvg(min_available_nodes=3, fraction_evaluate=0.0)),
    ):  # fmt: skip
        grid = plain.grid_of("message", site, 3)
        try:
            result = strategy.start(grid, plain.small(0.25), num_rounds=5, timeout=600.0)
        finally:
            grid.close()
        results.append(plain.values(result.arrays)["w"])
    np.testing.assert_array_equal(results[0], results[1])


def test_lock_and_initial_model_survive_a_restart(tmp_path):
    history, state = tmp_path / "history", tmp_path / "state"
    sites = make_sites()
    first = ease(sites, at={6: ask}, history=history, state_dir=state, rounds=10)
    assert first.record.merge_version is not None
    before = first.strategy._hooks.pins.pinned.held(first.record.request_id)
    second = ease(sites, history=history, state_dir=state, rounds=14)
    after = second.strategy._hooks.pins.pinned.held(first.record.request_id)
    np.testing.assert_array_equal(after[1], before[1])
    for block, rows in before[0].rows.items():
        np.testing.assert_array_equal(after[0].rows[block], rows)
    np.testing.assert_array_equal(second.strategy._hooks._initial, first.strategy._hooks._initial)
    statuses = {
        (p.site, p.status) for w in _windows(history) for p in w.participants
    }  # fmt: skip
    assert ("site-0", "purged") in statuses
    assert ("site-0", "stored") not in statuses
    with StateStore(state) as store:
        certificate = json.loads(store.certificate(first.record.request_id)[0])
    assert certificate["method"]["name"] == "EASE"
    assert "forget-exclusive directions" in json.dumps(certificate)


def _windows(path):
    from flwr_afuic.history.disk import DiskStore

    with DiskStore(path) as store:
        return list(store.windows())


@pytest.mark.parametrize(
    "options",
    [
        {"lam": -1.0},
        {"beta": 0.0},
        {"history_share": 1.5},
        {"directions": 65},
        {"recovery_rounds": -1},
    ],
)
def test_settings_out_of_range(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        EASE(history=MemoryStore(), **options)


def test_what_it_says_of_itself():
    name, settings = EASE(history=MemoryStore()).describe()
    assert name == "EASE"
    assert settings["gsd"]["tau"] == 0.3
    assert EASE(history=MemoryStore()).describe_calibration()["lam"] == 10.0
    strategy = EASE(history=MemoryStore())
    for act in (strategy.request_class_erasure, strategy.drop_forget_lock):
        with pytest.raises(ConfigError, match="has not been started"):
            act("x")
