"""MEDU: whole sites are erased from the server's own history, whether they are there or not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.clientapp import ClientApp

from flwr_afuic.erasure.certificate import verify_certificate
from flwr_afuic.errors import ConfigError
from flwr_afuic.history.codec import CodecSettings
from flwr_afuic.history.disk import DiskStore
from flwr_afuic.history.memory import MemoryStore
from flwr_afuic.history.recorder import RecorderSettings
from flwr_afuic.history.unlearn import unlearn
from flwr_afuic.state.store import StateStore
from flwr_afuic.strategies import MEDU
from tests.erasure_helpers import REMEMBERED, ScriptedClient, Site, federate
from tests.strategies.lives import LIFE, file_at, three
from tests.strategies.test_durability import Crash, crash_at

EXACT = RecorderSettings(codec=CodecSettings(lattice="none"), aggregate=None)
SHORT = ["received", "merged", "verifying", "completed-unverified"]
GONE = {"site_timeout": 5.0, "rounds": 30}


def pulling_app(sites):
    """Sites of which each alone moves an entry of its own."""

    class Pulling(ScriptedClient):
        def train(self, parameters, config):
            new, examples, metrics = super().train(parameters, config)
            number = self.script.number
            new[0][number % 3] += 1.0
            return new, examples, metrics

    return ClientApp(
        lambda context: Pulling(sites[int(context.node_config["partition-id"])]).to_client()
    )


def medu(sites, history=None, **options):
    return federate(
        sites,
        strategy_type=MEDU,
        app=pulling_app(sites),
        history=MemoryStore() if history is None else history,
        recording=options.pop("recording", EXACT),
        **{"erasure_norm_factor": 1e6, **options},
    )


def erase(site="site-0"):
    return lambda strategy: strategy.request_erasure(site)


def test_a_site_that_is_gone_is_erased_from_the_history_alone():
    sites, box = three(), []

    def leave_and_erase(strategy):
        box[0].offline.add(101)
        strategy.request_erasure("site-0")

    outcome = medu(sites, at={6: leave_and_erase}, on_grid=box.append, **GONE)
    assert outcome.states() == SHORT
    assert sites[0].unlearned == []
    before = outcome.models[outcome.record.merge_version - 1][0]
    after = outcome.models[outcome.record.merge_version][0]
    assert before[0] - after[0] > 1.0  # what only site 0 had moved goes back
    assert after[1] >= before[1]
    details = outcome.record.details
    assert details["coverage"] == 1.0
    assert details["forgotten_sites"] == ["site-0"]
    assert outcome.events("corrected")[0].text.startswith("site-0: ")


def test_the_merge_adds_exactly_the_correction_of_the_history():
    kept = {}

    class Keeping(MemoryStore):
        def delete_client(self, site):
            if not kept:
                kept["correction"] = unlearn(self, ["site-0"])
            return super().delete_client(site)

    outcome = medu(
        three(), Keeping(), at={6: erase()}, lock=False, prediction_invariance=False, **GONE
    )
    facts = outcome.strategy.merges[0]
    np.testing.assert_allclose(facts.delta, kept["correction"].arrays[0], rtol=1e-12)
    np.testing.assert_allclose(facts.after, facts.current + facts.delta, rtol=1e-6)


def test_its_records_are_deleted_and_only_its_own():
    store = MemoryStore()
    outcome = medu(three(), store, at={6: erase()}, **GONE)
    statuses = {
        (p.site, p.status) for w in store.windows() for p in w.participants if w.version <= 6
    }
    assert ("site-0", "purged") in statuses
    assert ("site-0", "stored") not in statuses
    assert ("site-1", "stored") in statuses
    assert outcome.events("purge-history")
    assert not any(
        p.site == "site-0"
        for w in store.windows()
        for p in w.participants
        if w.version > outcome.record.merge_version
    )


def test_a_second_deletion_is_computed_over_both_and_adds_only_what_is_new():
    def both(strategy):
        strategy.request_erasure("site-0")
        strategy.request_erasure("site-1")

    sites = [Site(n) for n in range(4)]
    options = {"lock": False, "prediction_invariance": False, "nobody_left": "remove"}
    outcome = medu(sites, at={8: both}, rounds=40, **options)
    assert [r.state for r in outcome.strategy.requests] == ["completed"] * 2
    first, second = outcome.strategy.merges
    assert first.merge_version < second.merge_version
    assert outcome.strategy.requests[1].details["forgotten_sites"] == ["site-0", "site-1"]
    assert first.after[0] < first.current[0] - 0.5
    assert second.after[1] < second.current[1] - 0.5


def test_a_window_that_nobody_is_left_in_fails_the_request_unless_told_otherwise():
    def all_of_them(strategy):
        for name in ("site-0", "site-1", "site-2"):
            strategy.request_erasure(name)

    sites = [Site(n) for n in range(4)]
    outcome = medu(sites, at={8: all_of_them}, rounds=40)
    failed = [r for r in outcome.strategy.requests if r.state == "failed"]
    assert failed
    assert "nobody is left in round" in failed[0].reason


def test_a_site_that_is_still_there_verifies_against_its_hold_out():
    sites = three()
    outcome = medu(sites, at={6: erase()}, rounds=30)
    assert outcome.states() == ["received", "merged", "verifying", "completed"]
    assert outcome.record.level is not None
    assert sites[0].unlearned == []
    assert sites[0].inbox.tombstones() == set(sites[0].ids)


def test_a_level_that_is_not_met_is_said_once_and_not_tried_again():
    sites = three()
    sites[0].scores = lambda: REMEMBERED
    outcome = medu(sites, at={6: erase()}, rounds=30)
    assert outcome.states() == ["received", "merged", "verifying", "failed"]
    assert outcome.record.reason.startswith("not met after 1 attempts")


def test_samples_and_the_operators_word_go_the_way_of_afuic(tmp_path):
    sites = three()
    outcome = medu(sites, at=file_at(6, sites[0], ["patient-0-1"]), rounds=30)
    assert outcome.states() == LIFE
    assert sites[0].unlearned

    def ask(strategy):
        with StateStore(tmp_path) as other:
            other.command("erase", site="site-0", reason="site-left", method="afuic")

    sites = three()
    outcome = medu(sites, at={6: ask}, rounds=30, state_dir=tmp_path)
    assert outcome.states() == LIFE


def test_a_site_that_left_before_this_run_is_erased_on_the_operators_command(tmp_path):
    history = tmp_path / "history"
    with pytest.raises(Crash):
        medu(
            three(),
            history,
            state_dir=tmp_path / "state",
            on_version=None,
            on_event=crash_at("nothing"),
            stop_when=stop_after(8),
        )
    with StateStore(tmp_path / "state") as other:
        other.command("erase", site="site-0", reason="site-left", method="medu")
    box = []

    def without(grid):
        box.append(grid)
        grid.offline.add(101)

    outcome = medu(
        three(),
        history,
        state_dir=tmp_path / "state",
        on_grid=without,
        min_available_nodes=2,
        **GONE,
    )
    assert outcome.states() == SHORT
    with StateStore(tmp_path / "state") as store:
        document, signature, _ = store.certificate(outcome.record.request_id)
        assert verify_certificate(document, signature, store.keys.public_hex).valid
    said = json.loads(document)
    assert said["evidence"] is None
    assert said["method"]["name"] == "MEDU, from the server's history alone"
    assert said["method"]["settings"]["details"]["coverage"] == 1.0


def stop_after(version):
    def stop(run):
        if run.version >= version:
            raise Crash
        return False

    return stop


@pytest.mark.parametrize("kind", ["request", "corrected", "merged", "verifying", "purge-history"])
def test_a_crash_at_any_step_corrects_once(tmp_path, kind):
    options = {"lock": False, "prediction_invariance": False, "state_dir": tmp_path / "state"}
    with pytest.raises(Crash):
        medu(three(), tmp_path / "history", at={6: erase()}, on_event=crash_at(kind), **options)
    outcome = medu(three(), tmp_path / "history", **options, **GONE)
    assert outcome.record.state in ("completed", "completed-unverified")
    with StateStore(tmp_path / "state") as store:
        assert sum(row.cause == "erasure" for row in store.versions()) == 1
    with DiskStore(tmp_path / "history", exclusive=False) as store:
        early = [w for w in store.windows() if w.version <= 6]
        assert early
        assert all(
            p.status != "stored" for w in early for p in w.participants if p.site == "site-0"
        )


def test_recovery_rounds_come_before_the_first_verification():
    sites = three()
    outcome = medu(sites, at={6: erase()}, rounds=40, recovery_rounds=9)
    assert outcome.record.state == "completed"
    first = outcome.record.scores[0][0]
    rounds = {entry.version: entry.round for entry in outcome.entries}
    assert rounds[first] >= outcome.record.merge_round + 9


def test_a_site_the_history_does_not_know_is_told_so():
    names = ["here", "there", "slow"]
    outcome = medu(three(), at={4: erase("slow")}, factors={2: 50.0}, rounds=10, names=names)
    assert outcome.record.state == "failed"
    assert "knows nothing of slow" in outcome.record.reason


@pytest.mark.parametrize(
    "changes",
    [
        {"kappa": 0.0},
        {"nobody_left": "maybe"},
        {"recovery_rounds": -1},
        {"virtual_unlearning_seconds": float("inf")},
    ],
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError):
        MEDU(history=MemoryStore(), **changes)
