"""A message's steps share one connection to the inbox; threads and processes do not."""

from __future__ import annotations

import os
import pickle
import sqlite3
import threading

import numpy as np
import pytest

from flwr_afuic import wire
from flwr_afuic.erasure import inbox_file
from flwr_afuic.erasure.inbox import SiteInbox
from tests.erasure_helpers import ScriptedClient, Site

HELD = ["a", "b", "c"]


@pytest.fixture
def inbox(tmp_path):
    return SiteInbox(tmp_path / "inbox.sqlite")


@pytest.fixture
def opened(monkeypatch):
    """Every connection that is opened from here on."""
    found: list[sqlite3.Connection] = []
    connect = inbox_file.connect

    def counted(*args, **options):
        found.append(connect(*args, **options))
        return found[-1]

    monkeypatch.setattr(inbox_file, "connect", counted)
    return found


def test_a_block_opens_the_file_once_and_closes_it(inbox, opened):
    with inbox.kept_open():
        inbox.note_held(HELD)
        inbox.file(scope="samples", sample_ids=["a"], held=HELD)
        with inbox.kept_open():
            assert inbox.tombstones() == {"a"}
        assert inbox.tombstones() == {"a"}
    assert len(opened) == 1
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")
    assert inbox.tombstones() == {"a"}
    assert len(opened) == 2


def test_it_is_closed_after_an_error_too(inbox, opened):
    with pytest.raises(RuntimeError, match="half way"), inbox.kept_open():
        raise RuntimeError("half way")
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")
    assert inbox.requests() == []


def test_steps_are_on_disk_at_once_and_others_come_in_between(inbox):
    steward = SiteInbox(inbox.path)
    with inbox.kept_open():
        mine = inbox.file(scope="samples", sample_ids=["a"], held=HELD)
        assert [notice.request_id for notice in steward.pending()] == [mine.request_id]
        steward.file(scope="samples", sample_ids=["b"], held=HELD)
        inbox.note_held(HELD)
        assert inbox.tombstones() == {"a", "b"}


def test_what_fails_inside_is_undone_and_the_block_goes_on(inbox):
    def fall():
        with inbox._file.writing() as connection:
            connection.execute("UPDATE request SET status = 'closed'")
            raise ZeroDivisionError

    inbox.file(scope="samples", sample_ids=["b"], held=HELD)
    with inbox.kept_open():
        with pytest.raises(ZeroDivisionError):
            fall()
        inbox.file(scope="samples", sample_ids=["a"], held=HELD)
        assert [request.status for request in inbox.requests()] == ["filed", "filed"]


def test_a_thread_and_a_forked_process_open_their_own(inbox, opened, monkeypatch):
    with inbox.kept_open():
        thread = threading.Thread(target=inbox.requests)
        thread.start()
        thread.join()
        assert len(opened) == 2
        monkeypatch.setattr(os, "getpid", lambda: 1)
        inbox.requests()
        assert len(opened) == 3
        monkeypatch.undo()


def test_what_is_sent_to_another_process_opens_the_file_there(inbox, opened):
    with inbox.kept_open():
        inbox.file(scope="samples", sample_ids=["a"], held=HELD)
        copy = pickle.loads(pickle.dumps(inbox))
        assert len(copy.requests()) == 1
    assert len(copy.requests()) == 1


def test_a_client_opens_its_inbox_once_a_message(opened):
    site = Site()
    site.file([site.ids[0]])
    client = ScriptedClient(site)
    del opened[:]
    client.fit([np.zeros(3, np.float32)], {wire.SEED: 1})
    client.evaluate([np.zeros(3, np.float32)], {})
    client.get_properties({})
    assert len(opened) == 3
    assert site.trained_on == [site.ids[1:]]
