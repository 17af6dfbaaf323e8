"""The ledger in the database: what is signed with it, and what is never signed over."""

from __future__ import annotations

import sqlite3

import pytest

from flwr_afuic.erasure.ledger import Head
from flwr_afuic.errors import LedgerError, StateError
from flwr_afuic.state.reading import read_state, verify_state
from flwr_afuic.state.store import StateStore
from tests.state.helpers import fill


@pytest.fixture
def directory(tmp_path):
    with StateStore(tmp_path / "state", exclusive=True) as store:
        fill(store)
        for number in range(5):
            with store.transaction() as change:
                change.append("state", {"number": number})
    return tmp_path / "state"


def edit(directory, *statements):
    connection = sqlite3.connect(directory / "state.sqlite")
    with connection:
        connection.execute("DROP TRIGGER IF EXISTS ledger_keeps_its_rows")
        connection.execute("DROP TRIGGER IF EXISTS ledger_loses_no_row")
        for statement in statements:
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize("statement", ["UPDATE ledger SET kind = 'x'", "DELETE FROM ledger"])
def test_the_ledger_only_grows_by_accident_too(directory, statement):
    connection = sqlite3.connect(directory / "state.sqlite")
    with pytest.raises(sqlite3.IntegrityError, match="only grows"):
        connection.execute(statement)
    connection.close()


def test_the_head_covers_every_row_of_one_transaction(directory):
    with StateStore(directory) as store:
        with store.transaction() as change:
            rows = [change.append("x", {"n": n}) for n in range(3)]
        head = store.head()
        assert (head.seq, head.hash, head.time) == (rows[2].seq, rows[2].hash, rows[2].time)
        assert store.row_hash(rows[1].seq) == rows[1].hash
        assert store.row_hash(99) is None
        assert store.ledger()[-3:] == rows


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE head SET federation = 'other'",
        "UPDATE head SET seq = seq - 1",
        "UPDATE head SET seq = 'x'",
        "UPDATE head SET hash = replace(hash, substr(hash, 1, 1), 'g')",
        "UPDATE head SET hash = (SELECT hash FROM ledger WHERE seq = 3)",
        "UPDATE head SET time = time + 1",
        "UPDATE head SET time = 'soon'",
        "UPDATE head SET key = replace(key, substr(key, 1, 1), 'g')",
        "UPDATE head SET signature = upper(signature)",
        "UPDATE head SET signature = '5'",
        "UPDATE head SET signature = x'00'",
        "DELETE FROM head",
        "UPDATE meta SET value = 'other'",
        "UPDATE version SET digest = 'other'",
        "DELETE FROM ledger",
        "DELETE FROM ledger WHERE seq = 7",
        "UPDATE ledger SET kind = CAST(x'ff' AS TEXT) WHERE seq = 3",
    ],
)
def test_edits_around_the_ledger_are_found_and_nothing_is_signed_over_them(directory, statement):
    edit(directory, statement)
    assert verify_state(directory) != []
    assert len(read_state(directory).versions) == 1
    with StateStore(directory, exclusive=True) as store:
        assert store.verify() != []
        if "kind" in statement or "version" in statement:
            return  # the end is as it was signed; verify says what is wrong before it
        with pytest.raises(LedgerError), store.transaction() as change:
            change.append("x", {})
        assert store.verify() != []


def test_a_new_federation_id_is_not_made_for_an_old_ledger(directory):
    edit(directory, "DELETE FROM meta")
    with pytest.raises(StateError, match="names no federation"):
        read_state(directory)
    with StateStore(directory) as store:
        assert any("federation" in problem for problem in store.verify())
        with pytest.raises(LedgerError, match="another federation"), store.transaction() as tx:
            tx.append("x", {})


def test_an_older_head_put_back_with_its_rows_shows_at_a_site_only(directory, tmp_path):
    """Nothing on the server can show this; it is why sites keep heads."""
    older = read_state(directory).head
    with StateStore(directory) as store:
        with store.transaction() as change:
            change.append("request", {"id": "1"})
        newest = store.head()
    head = [f"'{older.hash}'", str(older.seq), repr(older.time), f"'{older.signature}'"]
    edit(
        directory,
        f"DELETE FROM ledger WHERE seq > {older.seq}",
        f"UPDATE head SET hash = {head[0]}, seq = {head[1]}, time = {head[2]}, "
        f"signature = {head[3]}",
    )
    assert verify_state(directory) == []
    (problem,) = verify_state(directory, [("hospital-1", newest)])
    assert problem == (
        f"site hospital-1 has seen head {newest.seq}, the ledger ends at {older.seq}: "
        "its tail was cut"
    )
    assert Head.from_json(newest.to_json()) == newest
