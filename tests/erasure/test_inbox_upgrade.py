"""Inboxes made before there were migrations, and inboxes made by newer versions."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from flwr_afuic.erasure import inbox_schema
from flwr_afuic.erasure.inbox import SiteInbox
from flwr_afuic.errors import ErasureError
from tests.erasure_helpers import request_id

# Written by commit 9a41b51, the last one without migrations.
OLD = Path(__file__).parent / "files" / "inbox_before_migrations.sql"
HELD = ["p1", "p2", "p3", "p4", "pätient; 5"]


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "inbox.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(OLD.read_text(encoding="utf-8"))
        assert connection.execute("PRAGMA user_version").fetchone() == (0,)
    connection.close()
    return path


def test_an_old_file_opens_and_keeps_its_content(old):
    for inbox in (SiteInbox(old), SiteInbox(old)):
        found = {r.notice.request_id: r for r in inbox.requests()}
        assert [found[request_id(n)].status for n in (1, 2, 3, 4)] == [
            "filed", "cancelled", "closed", "known",
        ]  # fmt: skip
        assert found[request_id(1)].note == "Mrs Smith; rang"
        assert found[request_id(1)].notice.filed_at == 1000.0
        assert inbox.forget_set(request_id(1)) == ["p1", "pätient; 5"]
        assert inbox.forget_set(request_id(3)) == ["p2", "p3"]
        assert inbox.tombstones() == {"p1", "pätient; 5", "p2", "p3", "p4"}
        assert [n.request_id for n in inbox.pending()] == [request_id(1)]


def test_its_key_is_kept_so_that_commitments_stay_the_same(old):
    inbox = SiteInbox(old)
    before = inbox.requests()[0].notice
    again = inbox.file(
        scope="samples", sample_ids=["pätient; 5", "p1"], held=HELD, request_id=request_id(1)
    )
    assert again == before


def test_it_knows_what_the_site_holds_only_once_a_client_said_so(old):
    inbox = SiteInbox(old)
    assert inbox.held() is None
    inbox.note_held(HELD)
    assert inbox.held() == sorted(HELD)
    assert inbox.forget_set(request_id(1)) == ["p1", "pätient; 5"]


def test_the_ids_of_deleted_samples_leave_the_file(old):
    inbox = SiteInbox(old)
    for leaves in (False, True):
        inbox.note_held([s for s in HELD if not leaves or s != "pätient; 5"])
        content = b"".join(p.read_bytes() for p in old.parent.iterdir())
        assert ("pätient; 5".encode() in content) is not leaves


def test_a_file_of_a_newer_version_is_left_alone(old):
    SiteInbox(old)
    with sqlite3.connect(old) as connection:
        connection.execute(f"PRAGMA user_version = {len(inbox_schema.MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(ErasureError, match="update flwr-afuic"):
        SiteInbox(old)


def test_another_kind_of_database_is_left_alone(tmp_path):
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA application_id = 7")
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(ErasureError, match="another kind of file"):
        SiteInbox(path)


@pytest.mark.parametrize("statement", range(12))
def test_an_upgrade_that_breaks_off_leaves_the_old_file_as_it_was(old, statement, monkeypatch):
    """The process dies at some statement of the second migration."""
    real, done = inbox_schema._execute, []

    class Dies(Exception):
        pass

    class Connection:
        def __init__(self, inner):
            self.inner = inner

        def _step(self, method, *args):
            if len(done) == statement:
                raise Dies
            done.append(args[0])
            return getattr(self.inner, method)(*args)

        def execute(self, *args):
            return self._step("execute", *args)

        def executemany(self, *args):
            return self._step("executemany", *args)

    def upgrade(connection):
        inbox_schema._upgrade(Connection(connection))

    monkeypatch.setattr(inbox_schema, "MIGRATIONS", (inbox_schema._make, upgrade))
    with pytest.raises(Dies):
        SiteInbox(old)
    monkeypatch.undo()
    assert inbox_schema._execute is real
    test_an_old_file_opens_and_keeps_its_content(old)
