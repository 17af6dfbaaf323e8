"""Looking at a state directory: whole snapshots, no lock, nothing changed."""

from __future__ import annotations

import re
import shutil
import sqlite3
import threading

import pytest

from flwr_afuic.errors import StateError
from flwr_afuic.state import reading
from flwr_afuic.state.reading import read_state, verify_state
from flwr_afuic.state.store import StateStore
from tests.state.helpers import REQUEST, arrays, fill


def contents(directory):
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file() and not path.name.endswith("-shm")
    }


def certify(store, request="r1"):
    document = b'{"a":1}'
    return store.add_certificate(request, document, store.keys.sign(document), "<p>")


@pytest.fixture
def directory(tmp_path):
    with StateStore(tmp_path / "state", exclusive=True) as store:
        fill(store)
        certify(store)
        store.command("cancel", request_id="r1")
        store.rotate_key()
    return tmp_path / "state"


def test_a_view_shows_everything(directory):
    view = read_state(directory)
    with StateStore(directory) as store:
        assert view.federation == store.federation
        assert view.versions == store.versions()
        assert view.requests == store.requests()
        assert view.ledger == store.ledger()
        assert view.head == store.head()
        assert view.events == store.events()
        assert view.updates == store.updates()
        assert view.metrics == store.metrics()
        assert view.purges == store.purges()
        assert view.certificates == store.certificates()
        assert view.commands == store.commands()
        assert view.holdings == store.holdings()
        assert view.settings == {"engine": {"round": 1, "rng": [1, 2]}}
        (digest,) = view.holdings.values()
        assert view.weights == {digest: store.vault.size(digest)}
        assert view.public_keys == store.keys.public_keys
        assert view.rotations == store.keys.rotations
        assert view.request(REQUEST.id) == REQUEST
        assert view.request("x") is None
    assert view.server is None


def test_reading_a_directory_at_rest_changes_nothing(directory):
    before = contents(directory)
    read_state(directory)
    assert verify_state(directory) == []
    assert contents(directory) == before
    assert not list(directory.glob("*-shm"))


def test_reading_beside_a_server_changes_no_data_and_needs_no_lock(directory):
    with StateStore(directory, exclusive=True) as store:
        with store.transaction() as change:
            change.append("run-resumed", {})
        before = contents(directory)
        assert read_state(directory).ledger[-1].kind == "run-resumed"
        assert verify_state(directory) == []
        with store.transaction() as change:
            change.append("state", {})
            assert read_state(directory).ledger[-1].kind == "run-resumed"
            raised = contents(directory)
        assert raised[directory / "state.sqlite"] == before[directory / "state.sqlite"]
        assert read_state(directory).ledger[-1].kind == "state"


def test_every_view_is_of_one_moment(directory):
    stop = threading.Event()

    def write():
        with StateStore(directory, exclusive=True) as store:
            number = 10
            while not stop.is_set():
                with store.transaction() as change:
                    change.put_version(number, 1, 0.0, 0.0, "merge", [], "0" * 64)
                    change.set("number", number)
                    change.append("version", {"version": number, "model": "0" * 64})
                number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = set()
        while len(seen) < 10:
            view = read_state(directory)
            number = view.settings.get("number")
            if number is not None:
                assert view.versions[-1].number == number == view.ledger[-1].body["version"]
                assert view.head.seq == view.ledger[-1].seq
                seen.add(number)
    finally:
        stop.set()
        writer.join()
    assert verify_state(directory) == []


def test_a_server_that_starts_while_a_directory_at_rest_is_read(directory, monkeypatch):
    """What was read without a WAL is read again once there is one."""
    plain, stores = reading._read, []

    def read(path, function, *, alone):
        found = plain(path, function, alone=alone)
        if not stores:
            stores.append(StateStore(directory, exclusive=True))
            with stores[0].transaction() as change:
                change.append("run-resumed", {})
        return found

    monkeypatch.setattr(reading, "_read", read)
    assert read_state(directory).ledger[-1].kind == "run-resumed"
    stores[0].close()


def test_what_changes_all_the_time_is_given_up(directory, monkeypatch):
    plain = reading._read

    def read(path, function, *, alone):
        path.touch()
        return plain(path, function, alone=alone)

    monkeypatch.setattr(reading, "_read", read)
    with pytest.raises(StateError, match="changes too quickly"):
        read_state(directory)


def test_other_directories_are_refused(tmp_path, directory):
    with pytest.raises(StateError, match="no state directory"):
        read_state(tmp_path / "missing")
    path = directory / "state.sqlite"
    good = path.read_bytes()
    path.write_bytes(b"text" * 2000)
    with pytest.raises(StateError, match="cannot be read"):
        verify_state(directory)
    path.unlink()
    sqlite3.connect(path).close()
    path.touch()
    with pytest.raises(StateError, match="is no server's database"):
        read_state(directory)
    for version, message in ((99, "has schema 99, .*update flwr-afuic"), (0, "start the server")):
        path.write_bytes(good)
        connection = sqlite3.connect(path)
        connection.execute(f"PRAGMA user_version = {version}")
        connection.close()
        for stale in directory.glob("state.sqlite-*"):
            stale.unlink()
        with pytest.raises(StateError, match=message):
            read_state(directory)


def damage_weights(directory):
    (path,) = (directory / "weights").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    return r"\.safetensors is damaged"


def lose_weights(directory):
    shutil.rmtree(directory / "weights")
    return r"\.safetensors cannot be read"


def change_certificate(directory):
    (directory / "certificates" / "r1-1.json").write_bytes(b'{"a":2}')
    return r"r1-1\.json is not what was issued"


def lose_certificate(directory):
    (directory / "certificates" / "r1-1.json").unlink()
    return r"r1-1\.json cannot be read"


def change_signature(directory):
    (directory / "certificates" / "r1-1.json.sig").write_text("ab" * 64)
    return r"r1-1\.json\.sig is no signature of this server's"


def forget_certificate(directory):
    execute(directory, "DELETE FROM certificate")
    return "certificate r1-1 is in the ledger and not on file"


def exchange_certificate(directory):
    execute(directory, "UPDATE certificate SET sha256 = 'x'")
    return r"certificate r1-1\.json is not the one in the ledger"


def restore_purged_file(directory):
    with StateStore(directory) as store:
        digest = store.vault.put(arrays(5))
        with store.transaction() as change:
            change.hold("x", "1", digest)
        data = store.vault.path(digest).read_bytes()
        with store.transaction() as change:
            change.drop("x", "1")
        store.sweep("erasure", "r1")
        store.vault.path(digest).write_bytes(data)
    return "was recorded as deleted and is there"


def change_version(directory):
    execute(directory, "UPDATE version SET digest = 'x'")
    return "version 1 has another fingerprint than in the ledger"


def break_an_index(directory):
    connection = sqlite3.connect(directory / "state.sqlite")
    (root,) = connection.execute(
        "SELECT rootpage FROM sqlite_master WHERE name = 'holding_digest'"
    ).fetchone()
    size = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    with (directory / "state.sqlite").open("r+b") as file:
        file.seek(root * size - 20)
        file.write(b"\x01" * 20)
    return r"state\.sqlite is damaged"


def execute(directory, statement):
    connection = sqlite3.connect(directory / "state.sqlite")
    with connection:
        connection.execute(statement)
    connection.close()


DAMAGES = [
    damage_weights,
    lose_weights,
    change_certificate,
    lose_certificate,
    change_signature,
    forget_certificate,
    exchange_certificate,
    restore_purged_file,
    change_version,
    break_an_index,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_verifying_names_what_is_wrong(directory, damage):
    message = damage(directory)
    problems = verify_state(directory)
    assert any(re.search(message, problem) for problem in problems), problems
