"""A survey names what is damaged and shows the rest; of a whole directory it is ``read_state``."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3

import pytest

from flwr_afuic.errors import StateError
from flwr_afuic.state import survey as module
from flwr_afuic.state.reading import read_state
from flwr_afuic.state.store import StateStore
from flwr_afuic.state.survey import survey
from tests.state.helpers import fill


@pytest.fixture
def directory(tmp_path):
    with StateStore(tmp_path / "state") as store:
        fill(store)
    return tmp_path / "state"


def test_of_a_whole_directory_it_is_the_plain_view(directory):
    found = survey(directory)
    assert found.whole
    plain = read_state(directory)
    for part in dataclasses.fields(plain):
        assert getattr(found.view, part.name) == getattr(plain, part.name), part.name


def test_beside_a_server(directory):
    with StateStore(directory, exclusive=True) as store:
        store.command("cancel", request_id="r")
        assert survey(directory).whole
        assert len(survey(directory).view.commands) == 1


@pytest.mark.parametrize(
    ("table", "part", "attribute"),
    [
        ("version", "the list of versions", "versions"),
        ("request", "the list of requests", "requests"),
        ("event", "the list of events", "events"),
        ("metric", "the list of metrics", "metrics"),
        ("purge", "the list of deleted files", "purges"),
        ("certificate", "the list of certificates", "certificates"),
        ("command", "the list of commands", "commands"),
        ("holding", "the list of kept weights", "holdings"),
        ("setting", "the engine's state", "settings"),
        ("head", "the ledger's signed head", "head"),
        ("ledger", "the ledger", "ledger"),
        ("meta", "the federation's id", "federation"),
    ],
)
def test_each_part_may_be_gone(directory, table, part, attribute):
    with sqlite3.connect(directory / "state.sqlite") as connection:
        connection.execute(f"DROP TABLE {table}")
    connection.close()
    found = survey(directory)
    assert found.unreadable[0] == f"{part} cannot be read: no such table: {table}"
    assert not getattr(found.view, attribute)
    assert found.view.updates  # the others are there


def test_a_json_that_is_none_in_one_row(directory):
    with sqlite3.connect(directory / "state.sqlite") as connection:
        connection.execute("UPDATE version SET sites = '[' WHERE number = 1")
        connection.execute("UPDATE purge SET purposes = 3")
    connection.close()
    (problem,) = survey(directory).unreadable
    assert problem.startswith("the list of versions cannot be read")


def test_a_database_that_cannot_be_opened(directory):
    (directory / "state.sqlite").write_bytes(b"\xff" * 9000)
    found = survey(directory)
    assert "cannot be read" in found.unreadable[0]
    assert found.ledger == ["it cannot be verified: the database cannot be read"]
    assert found.view.weights
    assert not found.whole


def test_other_directories_are_errors(directory, tmp_path):
    with pytest.raises(StateError, match="is no state directory"):
        survey(tmp_path)
    shutil.copy(directory / "state.sqlite", tmp_path / "other.sqlite")
    with sqlite3.connect(directory / "state.sqlite") as connection:
        connection.execute("PRAGMA application_id = 7")
    connection.close()
    with pytest.raises(StateError, match="no server's database"):
        survey(directory)


def test_weights_deleted_while_they_were_looked_for_are_not_missed(directory, monkeypatch):
    """A server drops and deletes a version between the two looks of a survey."""
    looks = []
    sizes_of = module.sizes_of
    with StateStore(directory, exclusive=True) as store:
        digest = store.holdings()["model", "1"]

        def sizes(folder):
            looks.append(folder)
            if len(looks) == 1:
                with store.transaction() as tx:
                    tx.drop("model", "1")
                store.vault.delete(digest)
            return sizes_of(folder)

        monkeypatch.setattr(module, "sizes_of", sizes)
        assert survey(directory).weights == []
    assert len(looks) == 2


def test_weights_that_are_missing_stay_missing(directory):
    for path in (directory / "weights").iterdir():
        path.unlink()
    (problem,) = survey(directory).weights
    assert problem.endswith("is missing: it is kept for model 1")
