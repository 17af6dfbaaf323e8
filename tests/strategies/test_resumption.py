"""What a new run must find of the one before it, step by step."""

from __future__ import annotations

import numpy as np
import pytest

from flwr_afuic.errors import StateError
from flwr_afuic.state import certificates
from flwr_afuic.state.store import StateStore
from flwr_afuic.strategies.gate import GateSettings
from tests.erasure_helpers import federate, request_id
from tests.strategies.lives import LIFE, file_at, three
from tests.strategies.test_durability import Crash, crash_at

NAMES = ["site-0", "site-1", "site-2"]
HOLDING = GateSettings(score=lambda arrays: float("nan"))


def falling(strategy):
    raise Crash


def test_a_request_filed_before_the_first_merge_is_not_lost(tmp_path):
    ids = []

    def file_and_fall(run):
        if run.roster.of_site("site-0") is not None:
            ids.append(run.hooks.file_for("site-0", "site-left"))
            raise Crash
        return False

    with pytest.raises(Crash):
        federate(three(), state_dir=tmp_path, stop_when=file_and_fall, names=NAMES)
    outcome = federate(three(), state_dir=tmp_path, rounds=16, names=NAMES)
    assert [record.request_id for record in outcome.strategy.requests] == ids
    assert outcome.record.state == "completed"


def test_the_model_to_unlearn_from_is_that_of_this_attempt_and_not_of_one_cut_short(tmp_path):
    """With ``overwrite`` the merge is that of the base version plus the delta, to the bit."""
    sites = three()
    options = {"state_dir": tmp_path, "merge": "overwrite", "keep_checkpoints": 50}
    options |= {"names": NAMES, "rounds": 40}
    # Begun at version 3; the server falls three versions later, before the site answers.
    at = {3: lambda strategy: strategy.request_erasure("site-0"), 6: falling}
    with pytest.raises(Crash):
        federate(sites, at=at, factors={0: 9.0}, **options)
    with StateStore(tmp_path) as store:
        assert [row.body["base_version"] for row in store.requests()] == [3]
    second = federate(sites, gate=HOLDING, stop_when=is_held, **options)
    base = second.record.base_version
    assert base > 3
    at = {second.strategy.run.version: release}
    third = federate(sites, stop_when=is_merged, at=at, **options)
    merged = third.models[third.record.merge_version][0]
    expected = second.models[base][0] + np.float32([0, 0, -1])
    np.testing.assert_allclose(merged, expected, atol=1e-6)


def is_held(run):
    return any(record.state == "held" for record in run.hooks.book)


def is_merged(run):
    return any(record.merged_before for record in run.hooks.book)


def release(strategy):
    strategy.release_erasure(strategy.requests[0].request_id)


def test_what_the_operator_released_stays_released(tmp_path):
    sites = three()

    def release_and_fall(run):
        if is_held(run):
            run.settings.release_erasure(request_id(1))
            raise Crash
        return False

    with pytest.raises(Crash):
        federate(
            sites,
            at=file_at(3, sites[0]),
            state_dir=tmp_path,
            gate=HOLDING,
            stop_when=release_and_fall,
        )
    outcome = federate(sites, state_dir=tmp_path, gate=HOLDING, rounds=24)
    assert outcome.record.state == "completed"


def test_a_release_from_another_thread_leaves_the_merge_to_the_loop(tmp_path):
    sites = three()
    seen = []

    def release(run):
        if is_held(run) and not seen:
            version = run.version
            run.settings.release_erasure(request_id(1))
            seen.append(run.version - version)
        return False

    outcome = federate(
        sites,
        at=file_at(3, sites[0]),
        state_dir=tmp_path,
        gate=HOLDING,
        stop_when=release,
        rounds=24,
    )
    assert outcome.record.state == "completed"
    assert seen == [0]


def test_a_certificate_that_could_not_be_written_is_made_by_the_next_run(tmp_path, monkeypatch):
    sites = three()

    def full(*args):
        raise StateError("no space left on the device")

    with monkeypatch.context() as patched:
        patched.setattr(certificates, "write", full)
        outcome = federate(sites, at=file_at(3, sites[0]), state_dir=tmp_path, rounds=10)
    assert outcome.states() == LIFE
    assert len(outcome.events("certificate-failed")) == 1
    federate(sites, state_dir=tmp_path, rounds=14)
    with StateStore(tmp_path) as store:
        assert store.certificate(request_id(1)) is not None


def test_weights_that_a_crash_left_behind_are_deleted_by_the_next_run(tmp_path):
    federate(three(), rounds=2, state_dir=tmp_path)
    with StateStore(tmp_path) as store:
        left = store.vault.put({"w": np.float32([1, 2, 3])})
    outcome = federate(three(), rounds=3, state_dir=tmp_path, keep_checkpoints=50)
    assert outcome.entries
    with StateStore(tmp_path) as store:
        assert left not in store.vault
        assert left in {purge.digest for purge in store.purges()}


def test_a_site_that_only_verified_since_the_restart_still_speaks_the_protocol(tmp_path):
    """Message-API nodes are not polled when they come: their first word is that reply."""
    sites = three()
    options = {"state_dir": tmp_path, "dialect": "message", "names": NAMES, "verify_rounds": 3}
    with pytest.raises(Crash):
        federate(sites, at=file_at(3, sites[0]), on_event=crash_at("verified"), **options)
    sites[0].file(number=2)
    outcome = federate(sites, rounds=24, **options)
    assert [record.state for record in outcome.strategy.requests] == ["completed", "completed"]


def test_a_site_that_has_left_hears_of_its_end_after_a_restart(tmp_path):
    sites = three()
    options = {"state_dir": tmp_path, "dialect": "message", "names": NAMES}
    options["verify_rounds"] = 1
    with pytest.raises(Crash):
        federate(sites, at=file_at(3, sites[0]), on_event=crash_at("completed"), **options)
    assert sites[0].inbox.status(request_id(1)) == "known"
    federate(sites, rounds=14, **options)
    assert sites[0].inbox.status(request_id(1)) == "closed"
    assert sites[0].inbox.certificate(request_id(1)) is not None
