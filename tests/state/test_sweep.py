"""Purging: what nothing keeps is recorded and deleted, and nothing else is."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from flwr_afuic.errors import StateError, StateLockedError
from flwr_afuic.state import sweeping
from flwr_afuic.state.reading import verify_state
from flwr_afuic.state.store import StateStore
from flwr_afuic.state.vault import Vault
from tests.state.helpers import arrays


@pytest.fixture
def store(tmp_path):
    with StateStore(tmp_path / "state", exclusive=True) as store:
        yield store


def keep(store, purpose, key, seed):
    digest = store.vault.put(arrays(seed))
    with store.transaction() as change:
        change.hold(purpose, key, digest)
    return digest


def drop(store, *keys):
    with store.transaction() as change:
        for purpose, key in keys:
            change.drop(purpose, key)


def test_what_nothing_keeps_is_deleted_and_recorded(store):
    first = keep(store, "version", "1", 1)
    second = keep(store, "version", "2", 2)
    keep(store, "snapshot", "r1", 1)
    drop(store, ("version", "1"))
    assert store.sweep("old") == []
    drop(store, ("snapshot", "r1"))
    size = store.vault.size(first)
    (purged,) = store.sweep("erasure", "r1")
    assert (purged.digest, purged.bytes) == (first, size)
    assert store.vault.digests() == {second}
    (row,) = store.purges()
    assert row.purposes == ("snapshot/r1", "version/1")
    assert (row.digest, row.bytes, row.reason, row.request_id) == (first, size, "erasure", "r1")
    assert row.done
    assert store.sweep("again") == []
    assert store.purges() == [row]


def test_holding_another_file_under_a_key_lets_the_first_go(store):
    first = keep(store, "reference", "r1", 1)
    second = keep(store, "reference", "r1", 2)
    keep(store, "reference", "r1", 2)
    assert [purged.digest for purged in store.sweep("x")] == [first]
    assert store.purges()[0].purposes == ("reference/r1",)
    assert store.vault.digests() == {second}


def test_a_file_that_was_purged_can_come_back_and_go_again(store):
    digest = keep(store, "version", "1", 1)
    for _ in range(2):
        drop(store, ("version", "1"))
        assert [purged.digest for purged in store.sweep("x")] == [digest]
        assert keep(store, "version", "1", 1) == digest
    assert [(row.digest, row.done) for row in store.purges()] == [(digest, True)] * 2
    assert verify_state(store.directory) == []


def test_weights_on_their_way_into_a_transaction_are_spared(store):
    digest = store.vault.put(arrays())
    assert store.sweep("x") == []
    with pytest.raises(KeyError), store.transaction() as change:  # noqa: PT012
        change.hold("version", "1", digest)
        raise KeyError
    assert store.sweep("x") == []
    with store.transaction() as change:
        change.hold("version", "1", digest)
    drop(store, ("version", "1"))
    assert store.vault.put(arrays()) == digest
    assert store.sweep("x") == []
    assert digest in store.vault
    store.close()
    with StateStore(store.directory, exclusive=True) as after:
        assert [purged.digest for purged in after.sweep("left by a crash")] == [digest]


def test_weights_that_are_not_there_cannot_be_kept(store):
    with pytest.raises(StateError, match="put them first"), store.transaction() as change:
        change.hold("version", "1", "0" * 64)


@pytest.mark.parametrize("fail_in", ["record", "delete", "unlink", "_finish"])
def test_a_crash_in_a_sweep_is_made_up_for(store, monkeypatch, fail_in):
    digests = {keep(store, "version", str(n), n) for n in range(3)}
    drop(store, *(("version", str(n)) for n in range(3)))

    class Crash(Exception):
        pass

    def crash(*_arguments):
        raise Crash

    with monkeypatch.context() as patch:
        if fail_in == "unlink":
            patch.setattr(Vault, "delete", crash)
        else:
            patch.setattr(sweeping, fail_in, crash)
        with pytest.raises(Crash):
            store.sweep("erasure", "r1")
    recorded = {row.digest for row in store.purges()}
    assert digests - store.vault.digests() <= recorded
    store.close()
    with StateStore(store.directory, exclusive=True) as after:
        assert digests - after.vault.digests() == {r.digest for r in after.purges() if r.done}
        after.sweep("erasure", "r1")
        assert after.vault.digests() == set()
        assert {(row.digest, row.done) for row in after.purges()} == {(d, True) for d in digests}
        assert len(after.purges()) == 3
        assert after.sweep("erasure", "r1") == []


def test_a_file_that_is_kept_again_after_a_crash_is_not_called_deleted(store, monkeypatch):
    digest = keep(store, "version", "1", 1)
    drop(store, ("version", "1"))
    with monkeypatch.context() as patch:
        patch.setattr(sweeping, "delete", lambda *_: [])
        store.sweep("x")
    assert [row.done for row in store.purges()] == [False]
    keep(store, "version", "2", 1)
    assert store.sweep("x") == []
    assert digest in store.vault
    assert store.purges() == []


def test_nobody_sweeps_beside_a_running_server(store):
    with StateStore(store.directory) as other, pytest.raises(StateLockedError):
        other.sweep("x")
    store.close()
    with StateStore(store.directory) as other:
        assert other.sweep("x") == []


def test_after_a_purge_the_bytes_are_nowhere_in_the_directory(store):
    secret = np.frombuffer(b"a patient's scan, as the update remembers it" * 8, np.uint8).copy()
    text = "the engine's memory of the patient"
    digest = store.vault.put({"w": secret})
    with store.transaction() as change:
        change.hold("update", "a", digest)
        change.set("engine", {"memory": text * 300})
    assert found(store, secret.tobytes()) == [store.vault.path(digest).name]
    assert found(store, text.encode()) == ["state.sqlite-wal"]
    with store.transaction() as change:
        change.drop("update", "a")
        change.set("engine", {})
    store.sweep("erasure", "r1")
    assert found(store, secret.tobytes()[:40]) == []
    assert found(store, text.encode()) == []
    assert store.checkpoint()
    assert not store.vault.path(digest).exists()


def found(store, data):
    files = [path for path in store.directory.rglob("*") if path.is_file()]
    return [path.name for path in files if data in path.read_bytes()]


def test_putting_keeping_dropping_and_sweeping_from_many_threads(store):
    stop, errors = threading.Event(), []

    def work(number):
        try:
            for turn in range(25):
                digest = store.vault.put(arrays(10 * number + turn % 3))
                with store.transaction() as change:
                    change.hold("thread", str(number), digest)
                store.vault.get(digest)
                if turn % 2:
                    drop(store, ("thread", str(number)))
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    def sweep():
        while not stop.wait(0.001):
            store.sweep("x")

    workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    sweeper = threading.Thread(target=sweep)
    for thread in [sweeper, *workers]:
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    sweeper.join()
    assert errors == []
    assert set(store.holdings().values()) <= store.vault.digests()
    assert verify_state(store.directory) == []
