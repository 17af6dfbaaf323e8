"""The state directory: committed after every version, and where a new run goes on."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import numpy as np
import pytest

from flwr_afuic.erasure.certificate import verify_certificate
from flwr_afuic.erasure.ledger import chain
from flwr_afuic.errors import LedgerError, StateError, StateLockedError
from flwr_afuic.state.backup import backup, restore
from flwr_afuic.state.store import StateStore
from flwr_afuic.strategies import AFUIC, AsyncStrategy
from flwr_afuic.strategies.codec import to_record
from tests.erasure_helpers import (
    FORGOTTEN,
    REMEMBERED,
    Site,
    arrays_record,
    federate,
    request_id,
)
from tests.strategies.lives import LIFE, file_at, three


class Crash(BaseException):
    """The end of a process, as far as one can have it inside another."""


def crash_at(kind, site="", times=1):
    """Fall at the n-th event of a kind, before what it tells of is committed."""
    seen = []

    def on_event(event):
        if event.kind == kind and site in ("", event.site):
            seen.append(event)
            if len(seen) == times:
                raise Crash(kind)

    return on_event


def stored_model(store):
    newest = store.versions()[-1]
    return newest.number, store.vault.get(newest.digest)["w"]


def test_a_whole_erasure_is_on_disk(tmp_path):
    sites = three()
    outcome = federate(sites, at=file_at(3, sites[0]), state_dir=tmp_path, keep_checkpoints=50)
    assert outcome.states() == LIFE
    with StateStore(tmp_path) as store:
        assert [row.number for row in store.versions()] == list(
            range(outcome.strategy.run.version + 1)
        )
        number, model = stored_model(store)
        assert number == outcome.strategy.run.version
        np.testing.assert_array_equal(model, outcome.final()[0])
        rows = store.ledger()
        assert chain(rows, store.federation) == []
        states = [row.body["state"] for row in rows if row.kind == "state"]
        assert ["received", *states] == LIFE
        (request,) = store.requests()
        assert (request.id, request.site, request.state) == (request_id(1), "site-0", "completed")
        merge = outcome.record.merge_version
        held = {int(key) for purpose, key in store.holdings() if purpose == "version"}
        assert min(held) == merge
        assert {p.reason for p in store.purges()} >= {"erasure"}
        assert sorted(store.vault.digests()) == sorted(set(store.holdings().values()))


def test_the_certificate_verifies_and_names_what_was_purged(tmp_path):
    sites = three()
    outcome = federate(sites, at=file_at(3, sites[0]), state_dir=tmp_path, keep_checkpoints=50)
    with StateStore(tmp_path) as store:
        document, signature, path = store.certificate(request_id(1))
        verdict = verify_certificate(document, signature, store.keys.public_hex)
        assert verdict.valid, verdict.problems
        assert path.name == f"{request_id(1)}-1.json"
        said = json.loads(document)
        assert said["model"]["merge"]["version"] == outcome.record.merge_version
        gone = {entry["sha256"] for entry in said["purged"]}
        before = [v.digest for v in store.versions() if v.number < outcome.record.merge_version]
        assert gone >= set(before)
        assert not gone & set(store.vault.digests())
        files = {path.name for path in (tmp_path / "weights").iterdir()}
        assert not {entry["file"].split("/")[-1] for entry in said["purged"]} & files


def test_a_new_run_goes_on_where_the_last_one_ended(tmp_path):
    first = federate(three(), rounds=4, state_dir=tmp_path)
    second = federate(three(), rounds=9, state_dir=tmp_path)
    assert second.entries[0].cause == "resumed"
    assert second.entries[0].version == first.strategy.run.version
    np.testing.assert_array_equal(second.models[second.entries[0].version][0], first.final()[0])
    assert [entry.version for entry in second.entries] == list(
        range(first.strategy.run.version, second.strategy.run.version + 1)
    )
    assert second.strategy.run.round == 9
    assert second.entries[1].time >= first.entries[-1].time
    assert set(second.result.train_metrics_clientapp) == set(range(1, 10))
    with StateStore(tmp_path) as store:
        kinds = [row.kind for row in store.ledger()]
    assert kinds.count("run-started") == kinds.count("run-resumed") == 1


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    federate(three(), rounds=4, state_dir=tmp_path)
    again = federate(three(), rounds=4, state_dir=tmp_path)
    assert len(again.entries) == 1


def test_plain_training_is_kept_and_resumed_too(tmp_path):
    first = federate(three(plain=True), rounds=3, state_dir=tmp_path, strategy_type=AsyncPlain)
    second = federate(three(plain=True), rounds=6, state_dir=tmp_path, strategy_type=AsyncPlain)
    assert second.entries[0].version == first.strategy.run.version > 0


class AsyncPlain(AsyncStrategy):
    def __init__(self, *, verify_rounds, gate, privacy, **options):
        super().__init__(**options)


def test_another_model_is_refused(tmp_path):
    federate(three(), rounds=2, state_dir=tmp_path)
    other = to_record(["w"], [np.zeros(4, np.float32)])
    with pytest.raises(StateError, match="Name another state_dir"):
        federate(three(), rounds=3, state_dir=tmp_path, initial=other)
    federate(three(), rounds=3, state_dir=tmp_path)  # and the refusal has let go of the lock


def test_a_changed_ledger_is_not_gone_on_from(tmp_path):
    federate(three(), rounds=2, state_dir=tmp_path)
    with closing(sqlite3.connect(tmp_path / "state.sqlite")) as connection, connection:
        triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        for (name,) in triggers.fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(
            "UPDATE ledger SET body = replace(body, 'merge', 'merged') WHERE seq = 2"
        )
    with pytest.raises(LedgerError, match="go on from a backup"):
        federate(three(), rounds=4, state_dir=tmp_path)


def test_two_servers_on_one_directory_are_refused(tmp_path):
    federate(three(), rounds=1, state_dir=tmp_path)
    with StateStore(tmp_path, exclusive=True), pytest.raises(StateLockedError):
        federate(three(), rounds=2, state_dir=tmp_path)


@pytest.mark.parametrize(
    "kind",
    ["request", "dispatched", "unlearned", "merged", "verifying", "verified", "completed", "purge"],
)
@pytest.mark.parametrize("by", ["site", "operator"])
def test_a_crash_at_any_step_loses_nothing_and_merges_once(tmp_path, kind, by):
    sites = three()
    at = (
        file_at(3, sites[0])
        if by == "site"
        else {3: lambda strategy: strategy.request_erasure("site-0")}
    )
    with pytest.raises(Crash):
        federate(sites, at=at, state_dir=tmp_path, on_event=crash_at(kind), keep_checkpoints=50)
    with StateStore(tmp_path) as store:
        version, model = stored_model(store)
        merged = sum(row.cause == "erasure" for row in store.versions())
    outcome = federate(sites, rounds=16, state_dir=tmp_path, keep_checkpoints=50)
    np.testing.assert_array_equal(outcome.models[version][0], model)
    assert outcome.record.state == "completed"
    assert merged + sum(entry.cause == "erasure" for entry in outcome.entries) == 1
    # The delta of site 0 alone moves the third entry down, by one.
    with StateStore(tmp_path) as store:
        assert [row.number for row in store.versions()] == list(
            range(outcome.strategy.run.version + 1)
        )
        assert chain(store.ledger(), store.federation) == []
        assert store.certificate(outcome.record.request_id) is not None
    assert sites[0].inbox.tombstones() == set(sites[0].ids)


def test_a_restart_is_no_attempt(tmp_path):
    sites = three()
    for number in range(1, 5):
        at = file_at(3, sites[0]) if number == 1 else None
        with pytest.raises(Crash):
            federate(sites, at=at, state_dir=tmp_path, on_event=crash_at("unlearned"))
    outcome = federate(sites, rounds=16, state_dir=tmp_path)
    assert outcome.record.state == "completed"
    assert outcome.record.attempts == 1


def test_the_lock_holds_after_a_restart(tmp_path):
    sites = three(step=-0.3)  # training pulls the model back against the erasure
    for site in sites:
        site.delta = (1.0, 0.0, 0.0)
    first = federate(sites, at=file_at(3, sites[0]), state_dir=tmp_path)
    merged = first.models[first.record.merge_version][0][0]
    second = federate(sites, rounds=20, state_dir=tmp_path)
    assert second.final()[0][0] >= merged - 1e-6
    assert len(second.strategy.run.hooks.calibrator.lock) == 1


def test_a_request_filed_by_the_operator_is_durable_once_its_id_is_known(tmp_path):
    ids = []

    def file_and_fall(strategy):
        ids.append(strategy.request_erasure("site-1"))
        raise Crash

    with pytest.raises(Crash):
        federate(three(), at={2: file_and_fall}, state_dir=tmp_path)
    outcome = federate(three(), rounds=16, state_dir=tmp_path)
    assert [r.request_id for r in outcome.strategy.requests] == ids
    assert outcome.record.state == "completed"


def test_the_operator_asks_through_the_directory(tmp_path):
    def ask(strategy):
        with StateStore(tmp_path) as other:
            ask.id = other.command("erase", site="site-1", reason="site-left")

    outcome = federate(three(), at={3: ask}, state_dir=tmp_path)
    assert outcome.record.request_id == ask.id
    assert outcome.record.state == "completed"
    assert outcome.record.filed_by == "operator"
    with StateStore(tmp_path) as store:
        (command,) = store.commands()
    assert command.outcome == "filed"


def test_commands_that_cannot_be_obeyed_are_answered(tmp_path):
    def ask(strategy):
        with StateStore(tmp_path) as other:
            other.command("erase", site="site-9", reason="site-left")
            other.command("cancel", request_id=request_id(7))
            other.command("erase", site="site-1", reason="site-left", method="medu")

    outcome = federate(three(), at={3: ask}, state_dir=tmp_path, rounds=5)
    assert outcome.strategy.requests == []
    with StateStore(tmp_path) as store:
        texts = [command.outcome for command in store.commands()]
    assert "no site 'site-9'" in texts[0]
    assert "no erasure request" in texts[1]
    assert "medu" in texts[2]
    assert all(text.startswith("refused: ") for text in texts)


def test_initial_arrays_are_not_needed_twice(tmp_path):
    federate(three(), rounds=2, state_dir=tmp_path)
    start = arrays_record()
    strategy = AFUIC(state_dir=tmp_path)
    assert strategy.state_dir == tmp_path
    outcome = federate([Site(0), Site(1)], rounds=3, state_dir=tmp_path, initial=start)
    assert outcome.entries[0].version > 0


def test_a_site_gone_before_it_verified_gets_a_certificate_that_says_so(tmp_path):
    sites, box = three(), []
    sites[0].scores = lambda: (box[0].offline.add(101), FORGOTTEN)[1]
    outcome = federate(
        sites,
        at=file_at(3, sites[0]),
        state_dir=tmp_path,
        on_grid=box.append,
        site_timeout=5.0,
        verify_rounds=4,
        rounds=30,
    )
    assert outcome.states() == [*LIFE[:5], "completed-unverified"]
    with StateStore(tmp_path) as store:
        document, signature, _ = store.certificate(request_id(1))
        assert verify_certificate(document, signature, store.keys.public_hex).valid
    said = json.loads(document)
    assert said["outcome"] == "completed-unverified"
    assert said["verification"]["rounds"] < said["verification"]["required_rounds"] == 4


def test_a_resurfaced_request_gets_a_second_certificate(tmp_path):
    sites = three()
    answers = iter([FORGOTTEN, FORGOTTEN, REMEMBERED])
    sites[0].scores = lambda: next(answers, FORGOTTEN)
    outcome = federate(
        sites,
        at={3: lambda s: sites[0].file(["patient-0-1"], 1)},
        state_dir=tmp_path,
        watch_every=2,
        rounds=40,
    )
    states = outcome.states()
    assert states.count("completed") == 2
    with StateStore(tmp_path) as store:
        assert [row.issue for row in store.certificates()] == [1, 2]
        document, signature, _ = store.certificate(request_id(1))
        assert verify_certificate(document, signature, store.keys.public_hex).valid
        assert json.loads(document)["model"]["attempts"] == 2
    assert sites[0].inbox.certificates.names()


def test_a_long_run_makes_no_endless_certificate(tmp_path, monkeypatch):
    monkeypatch.setattr("flwr_afuic.strategies.certification._LISTED", 2)
    sites = three()
    federate(sites, at=file_at(3, sites[0]), state_dir=tmp_path, keep_checkpoints=1)
    with StateStore(tmp_path) as store:
        document, _, _ = store.certificate(request_id(1))
        deleted = len(store.purges())
    purged = json.loads(document)["purged"]
    assert "files under weights/" in purged[-1]["file"]
    assert 2 < len(purged) < deleted


def test_a_server_restored_from_an_old_backup_erases_again(tmp_path):
    sites = three()
    federate(sites, rounds=3, state_dir=tmp_path / "state")
    backup(tmp_path / "state", tmp_path / "backup")
    done = federate(sites, at=file_at(8, sites[0]), rounds=16, state_dir=tmp_path / "state")
    assert done.record.state == "completed"
    assert sites[0].inbox.status(request_id(1)) == "closed"
    restore(tmp_path / "backup", tmp_path / "restored")
    again = federate(sites, rounds=20, state_dir=tmp_path / "restored")
    assert again.record.request_id == request_id(1)
    assert again.record.state == "completed"
    assert sum(entry.cause == "erasure" for entry in again.entries) == 1
    (alarm, *_) = again.events("ledger-alarm")
    assert "restored from an older copy" in alarm.text
    assert sites[0].inbox.server.alarms()


def test_a_new_federation_is_not_told_of_another_ones_erasures(tmp_path):
    sites = three()
    federate(sites, at=file_at(3, sites[0], ["patient-0-1"]), state_dir=tmp_path / "first")
    assert sites[0].inbox.status(request_id(1)) == "closed"
    other = federate(sites, rounds=6, state_dir=tmp_path / "second")
    assert other.strategy.requests == []
