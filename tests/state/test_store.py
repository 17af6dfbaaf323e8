"""The state directory: all or nothing, one server at a time, nothing unknown deleted."""

from __future__ import annotations

import math
import os
import sqlite3
import stat
import threading
import uuid

import numpy as np
import pytest

from flwr_afuic.erasure.ledger import check_head
from flwr_afuic.errors import ErasureError, LedgerError, StateError, StateLockedError
from flwr_afuic.state import database
from flwr_afuic.state.rows import MetricRow, RequestRow
from flwr_afuic.state.store import StateStore
from tests.state.helpers import REQUEST, arrays, fill


@pytest.fixture
def store(tmp_path):
    with StateStore(tmp_path / "state", exclusive=True) as store:
        yield store


def test_what_was_written_is_read_by_the_next_server(tmp_path):
    with StateStore(tmp_path, exclusive=True) as store:
        digest = fill(store)
        federation, head = store.federation, store.head()
    with StateStore(tmp_path, exclusive=True) as store:
        assert store.federation == federation
        assert store.head() == head
        assert store.get("engine") == {"round": 1, "rng": [1, 2]}
        assert store.get("missing", 5) == 5
        (version,) = store.versions()
        assert (version.number, version.sites, version.digest) == (1, ("a", "b"), digest)
        assert store.holdings() == {("model", "1"): digest}
        assert store.request(REQUEST.id) == REQUEST
        assert store.requests() == [REQUEST]
        assert store.request("other") is None
        assert [event["kind"] for event in store.events()] == ["merge", "late"]
        assert [event["kind"] for event in store.events(limit=1)] == ["late"]
        assert store.updates()[0]["staleness"] == 2
        assert store.metrics() == [MetricRow(1, "a", "loss", 0.5)]
        assert [row.kind for row in store.ledger()] == ["run-started", "version"]
        assert store.verify() == []
        check_head(store.head(), store.keys.public_hex)
        np.testing.assert_array_equal(store.vault.get(digest)["w"], arrays()["w"])


def test_an_exception_undoes_everything(store):
    fill(store)
    before = (store.versions(), store.ledger(), store.head(), store.requests(), store.get("engine"))
    with pytest.raises(KeyError), store.transaction() as change:  # noqa: PT012
        change.put_version(2, 2, 1.0, 2.0, "merge", ["a"], "0" * 64)
        change.set("engine", None)
        change.put_request(RequestRow("x", "a", "client", "received", 1, "", 0.0, {}))
        change.append("version", {"version": 2})
        change.drop("model", "1")
        raise KeyError
    assert before == (
        store.versions(),
        store.ledger(),
        store.head(),
        store.requests(),
        store.get("engine"),
    )
    assert store.holdings()
    with store.transaction() as change:
        change.append("version", {"version": 2})
    assert store.verify() == []


def test_transactions_neither_nest_nor_outlive_their_block(store):
    with pytest.raises(StateError, match="do not nest"), store.transaction(), store.transaction():
        pass
    with store.transaction() as change:
        change.set("a", 1)
    with pytest.raises(StateError, match="has ended"):
        change.set("a", 2)
    assert store.get("a") == 1


def test_a_version_is_recorded_once(store):
    fill(store)
    with pytest.raises(StateError, match="refused"), store.transaction() as change:
        change.put_version(1, 1, 0.0, 0.0, "merge", [], "0" * 64)


def test_numpy_numbers_are_stored_as_numbers(store):
    with store.transaction() as change:
        change.put_version(np.int64(3), np.int32(1), np.float32(0.5), 1.0, "m", ["a"], "0" * 64)
        change.put_metric(np.int64(1), "a", "loss", np.float32(0.5))
        change.put_metric(2, "a", "loss", math.nan)
    assert store.versions()[0].number == 3
    assert [row.value for row in store.metrics()] == [0.5, pytest.approx(math.nan, nan_ok=True)]


def test_hostile_text_is_stored(store):
    with store.transaction() as change:
        change.log_events(
            [{"time": 0, "round": 0, "version": 0, "kind": "x", "text": "\ud800\x00'; --"}]
        )
        change.append("refused", {"why": "\ud800", "loss": [math.nan, {"x": math.inf}]})
    assert store.events()[0]["text"] == "\\ud800\x00'; --"
    assert store.ledger()[0].body == {"why": "\ud800", "loss": ["nan", {"x": "inf"}]}
    assert store.verify() == []


@pytest.mark.parametrize("value", [{"a": object()}, {"a": {1, 2}}, {1: 2, "a": 3}])
def test_a_ledger_body_is_json(store, value):
    with pytest.raises(LedgerError, match="JSON"), store.transaction() as change:
        change.append("x", value)
    assert store.ledger() == []


def test_an_incomplete_event_says_what_it_lacks(store):
    with pytest.raises(StateError, match="lacks round, version"), store.transaction() as change:
        change.log_events([{"time": 0, "kind": "x"}])


def test_a_second_server_is_refused_and_told_by_whom(store):
    with pytest.raises(StateLockedError, match=rf"process id {os.getpid()};"):
        StateStore(store.directory, exclusive=True)
    store.close()
    StateStore(store.directory, exclusive=True).close()


def test_a_mistyped_directory_is_not_made(tmp_path):
    with pytest.raises(StateError, match="no state directory"):
        StateStore(tmp_path / "no", create=False)
    assert not (tmp_path / "no").exists()


def test_a_closed_store_says_so(store):
    store.close()
    store.close()
    with pytest.raises(StateError, match="was closed"):
        store.versions()


def test_every_file_is_its_owners_alone(store):
    fill(store)
    store.add_certificate("request-1", b"{}", "ab", "<p>")
    store.keys.rotate()
    files = [path for path in store.directory.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"state.sqlite-wal", "server.pem", "run.lock"}
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for path in [store.directory, *(p for p in store.directory.rglob("*") if p.is_dir())]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path


def test_commands_reach_the_running_server_at_once(store):
    assert store.pending_commands() == []
    with StateStore(store.directory, create=False) as other:
        request = other.command("erase", site="b", reason="site-left", method="medu", note="gone")
        assert uuid.UUID(request).version == 4
        cancel = other.command("cancel", request_id=request)
    first, second = store.pending_commands()
    assert (first.id, first.request_id, first.kind, first.site) == (request, request, "erase", "b")
    assert (first.reason, first.method, first.note) == ("site-left", "medu", "gone")
    assert (second.id, second.request_id) == (cancel, request)
    with store.transaction() as change:
        change.finish_command(request, "filed")
    assert store.pending_commands() == [second]
    assert [command.outcome for command in store.commands()] == ["filed", None]
    with pytest.raises(RuntimeError), store.transaction() as change:  # noqa: PT012
        change.finish_command(cancel, "done")
        assert store.pending_commands() == []
        raise RuntimeError
    assert store.pending_commands() == [second]
    with pytest.raises(StateError, match="no command"), store.transaction() as change:
        change.finish_command("other", "done")


def test_asking_for_commands_reads_no_table_while_nothing_changes(store):
    store.command("cancel", request_id="x")
    store.pending_commands()
    seen = []
    store._connection.set_trace_callback(seen.append)
    assert len(store.pending_commands()) == 1
    assert seen == ["PRAGMA data_version"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "destroy"}, "use one of erase, cancel"),
        ({"kind": "erase"}, "names a site"),
        ({"kind": "erase", "site": "a", "request_id": "x"}, "makes one"),
        ({"kind": "erase", "site": "a", "reason": "because"}, "use one of consent"),
        ({"kind": "cancel"}, "names a request"),
    ],
)
def test_a_command_that_cannot_work_is_not_filed(store, arguments, message):
    with pytest.raises(ErasureError, match=message):
        store.command(**arguments)
    assert store.commands() == []


def test_certificates(store):
    assert store.certificate("r") is None
    assert store.next_issue("r") == 1
    first = store.add_certificate("r", b'{"a":1}', "ab" * 64, "<p>\u00e9</p>")
    second = store.add_certificate("r", b'{"a":2}', "cd" * 64, "<p>")
    assert (first.name, second.name) == ("r-1.json", "r-2.json")
    assert store.next_issue("r") == 3
    assert store.certificate("r") == (b'{"a":2}', "cd" * 64, second)
    assert first.with_suffix(".html").read_text(encoding="utf-8") == "<p>\u00e9</p>"
    assert [row.issue for row in store.certificates()] == [1, 2]
    rows = [row.body for row in store.ledger() if row.kind == "certificate"]
    assert [row["issue"] for row in rows] == [1, 2]
    assert rows[1]["sha256"] == store.certificates()[1].sha256
    second.write_bytes(b'{"a":3}')
    with pytest.raises(StateError, match=r"r-2\.json is not what was issued"):
        store.certificate("r")
    second.unlink()
    with pytest.raises(StateError, match=r"r-2\.json cannot be read"):
        store.certificate("r")


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".x", "x" * 65, "a\n"])
def test_a_certificate_stays_in_its_folder(store, name):
    with pytest.raises(StateError, match="names no request"):
        store.add_certificate(name, b"{}", "", "")
    assert list((store.directory / "certificates").iterdir()) == []


def test_a_rotation_is_noted_and_the_head_is_signed_anew(store):
    fill(store)
    old = store.keys.public_hex
    rotation = store.rotate_key()
    assert store.ledger()[-1].body == rotation.to_json()
    assert store.head().key == store.keys.public_hex != old
    assert store.verify() == []


def test_a_rotation_that_was_not_noted_is_noted_by_the_next_one_to_open(store):
    fill(store)
    rotation = store.keys.rotate()
    assert any("is signed by key" in problem for problem in store.verify())
    with StateStore(store.directory) as other:
        assert other.ledger()[-1].body == rotation.to_json()
        assert other.verify() == []
    assert store.verify() == []


def test_a_server_takes_up_a_rotation_made_beside_it(store, tmp_path):
    from flwr_afuic.erasure.keys import KeyRing

    KeyRing(store.directory / "keys").rotate()
    with store.transaction() as change:
        change.append("x", {})
    assert store.head().key == KeyRing(store.directory / "keys").public_hex


def test_a_directory_of_a_newer_program_is_refused_with_what_to_do(store):
    store.close()
    connection = sqlite3.connect(store.directory / "state.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StateError, match=r"has schema 99, .* update flwr-afuic, or restore"):
        StateStore(store.directory, exclusive=True)
    connection = sqlite3.connect(store.directory / "state.sqlite")
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    StateStore(store.directory, exclusive=True).close()


def test_a_sites_inbox_is_no_server_database(store):
    with pytest.raises(ErasureError, match="another kind of file"):
        database.connect(
            store.directory / "state.sqlite", ["CREATE TABLE request (id);"], error=ErasureError
        )


def test_weights_of_any_thread_and_transactions_of_any_thread(store):
    """Transactions wait for each other; each finds the ledger as the last one left it."""

    def work(number):
        for turn in range(10):
            with store.transaction() as change:
                change.append("x", {"thread": number, "turn": turn})
                change.set(f"{number}", turn)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.verify() == []
    assert len(store.ledger()) == 40
    assert [store.get(f"{number}") for number in range(4)] == [9] * 4


def test_a_full_disk_is_said_and_nothing_is_written(store):
    fill(store)
    before = store.ledger()
    store._connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(StateError, match=r"is full.*nothing was written"):  # noqa: SIM117
        with store.transaction() as change:
            change.set("big", "x" * 1_000_000)
    assert store.ledger() == before
    assert store.get("big") is None
    store._connection.execute("PRAGMA max_page_count = 1000000")
    with store.transaction() as change:
        change.set("big", "x" * 1_000_000)
        change.append("x", {})
    assert store.verify() == []
