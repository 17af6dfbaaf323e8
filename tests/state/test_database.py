"""Opening databases: migrations, and files that are none."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys

import pytest

from flwr_afuic.errors import ErasureError, StateError
from flwr_afuic.state.database import connect, transaction, version_of

FIRST = """
CREATE TABLE a (x INTEGER);  -- a comment; with a semicolon
CREATE TRIGGER t AFTER INSERT ON a BEGIN
    UPDATE a SET x = x + 1;
    UPDATE a SET x = x + 1;
END;
"""


def add_b(connection):
    connection.execute("CREATE TABLE b (y)")
    connection.execute("INSERT INTO b SELECT x FROM a")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "x.sqlite"


def tables(connection):
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    return [name for (name,) in rows]


def test_migrations_run_once_and_in_order(path):
    connection = connect(path, [FIRST], error=StateError)
    assert (version_of(connection), tables(connection)) == (1, ["a"])
    connection.execute("INSERT INTO a VALUES (1)")
    assert connection.execute("SELECT x FROM a").fetchall() == [(3,)]
    connection.close()
    connection = connect(path, [FIRST, add_b], error=StateError)
    assert (version_of(connection), tables(connection)) == (2, ["a", "b"])
    assert connection.execute("SELECT y FROM b").fetchall() == [(3,)]
    connection.close()
    connect(path, [FIRST, add_b], error=StateError).close()


def test_the_settings_that_durability_needs(path):
    connection = connect(path, [FIRST], error=StateError)
    for pragma, value in (
        ("journal_mode", "wal"),
        ("synchronous", 2),
        ("secure_delete", 1),
        ("foreign_keys", 1),
        ("busy_timeout", 30_000),
    ):
        assert connection.execute(f"PRAGMA {pragma}").fetchone()[0] == value
    connection.execute("INSERT INTO a VALUES (1)")
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    connection.close()


def breaks(connection):
    connection.execute("CREATE TABLE b (y)")
    raise sqlite3.OperationalError("disk full")


@pytest.mark.parametrize(
    "migration", [breaks, "CREATE TABLE b (y); CREATE TABLE a (x);", "CREATE TABLE b (y); SELECT"]
)
def test_a_migration_that_fails_leaves_the_schema_before_it(path, migration):
    connect(path, [FIRST], error=StateError).close()
    with pytest.raises(StateError, match="is not a usable database"):
        connect(path, [FIRST, migration], error=StateError)
    connection = connect(path, [FIRST], error=StateError)
    assert (version_of(connection), tables(connection)) == (1, ["a"])
    connection.close()


def test_a_newer_file_is_refused_with_what_to_do(path):
    connect(path, [FIRST, add_b], error=StateError).close()
    with pytest.raises(
        ErasureError, match="has schema 2, this version of flwr-afuic knows 1; update"
    ):
        connect(path, [FIRST], error=ErasureError)


@pytest.mark.parametrize("content", [b"text", b"\0" * 4096, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_no_database_is_refused(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ErasureError, match=r"x\.sqlite is not a usable database .*name another"):
        connect(path, [FIRST], error=ErasureError)
    assert path.read_bytes() == content


def test_a_folder_is_no_database(tmp_path):
    with pytest.raises(StateError, match="not a usable database"):
        connect(tmp_path, [FIRST], error=StateError)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateError, match="not a usable database"):
        connect(tmp_path / "file" / "x", [FIRST], error=StateError)


def test_two_kinds_of_file_are_never_taken_for_each_other(path):
    connect(path, [FIRST], error=StateError, application=5).close()
    connect(path, [FIRST], error=StateError, application=5).close()
    for other in (0, 6):
        with pytest.raises(StateError, match="another kind of file"):
            connect(path, [FIRST, add_b], error=StateError, application=other)
    connection = sqlite3.connect(path)
    assert tables(connection) == ["a"]
    connection.close()


def test_a_file_from_before_there_were_numbers_is_taken_in(path):
    path.parent.mkdir()
    old = sqlite3.connect(path)
    old.execute("CREATE TABLE a (x INTEGER)")
    old.execute("INSERT INTO a VALUES (7)")
    old.commit()
    old.close()
    first = "CREATE TABLE IF NOT EXISTS a (x INTEGER);"
    connection = connect(path, [first, add_b], error=StateError, application=5)
    assert connection.execute("SELECT y FROM b").fetchall() == [(7,)]
    connection.close()


def test_a_transaction_is_undone_whatever_ends_it(path):
    connection = connect(path, [FIRST], error=StateError)
    for error in (KeyError, KeyboardInterrupt):
        with pytest.raises(error), transaction(connection):  # noqa: PT012
            connection.execute("INSERT INTO a VALUES (1)")
            raise error
    with pytest.raises(sqlite3.OperationalError), transaction(connection):  # noqa: PT012
        connection.execute("INSERT INTO a VALUES (1)")
        connection.execute("ROLLBACK")
    assert connection.execute("SELECT count(*) FROM a").fetchone() == (0,)
    connection.close()


OPEN = """
import sys
from flwr_afuic.errors import StateError
from flwr_afuic.state.database import connect, transaction
connection = connect(sys.argv[1], ["CREATE TABLE a (x);", "CREATE TABLE b (x);"], error=StateError)
for _ in range(20):
    with transaction(connection):
        connection.execute("INSERT INTO a VALUES (1)")
"""


def test_several_processes_make_one_file_at_once(path):
    children = [
        subprocess.Popen([sys.executable, "-c", OPEN, str(path)], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [child.communicate()[1] for child in children] == [""] * 4
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM a").fetchone() == (80,)
    connection.close()
