"""The hospital's inbox: durable, private, and never half a filing."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import sqlite3
import threading
from dataclasses import asdict

import pytest

from flwr_afuic.erasure.inbox import CANCELLED, CLOSED, KNOWN, SiteInbox
from flwr_afuic.errors import (
    DuplicateRequestError,
    ErasureError,
    UnknownSampleError,
    WireError,
)
from tests.erasure_helpers import request_id

HELD = ["p1", "p2", "p3", "p4"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "inbox.sqlite"


@pytest.fixture
def inbox(path):
    return SiteInbox(path)


def file(inbox, *samples, number=None, **options):
    return inbox.file(
        scope="samples" if samples else "client",
        sample_ids=list(samples),
        held=HELD,
        request_id=None if number is None else request_id(number),
        **options,
    )


def test_client_scope_erases_everything_held(inbox):
    notice = file(inbox)
    assert (notice.scope, notice.count, notice.reason) == ("client", 4, "consent-withdrawn")
    assert inbox.forget_set(notice.request_id) == HELD
    assert inbox.tombstones() == set(HELD)


def test_samples_scope_erases_what_is_listed_once_each(inbox):
    notice = file(inbox, "p3", "p1", "p3")
    assert (notice.scope, notice.count) == ("samples", 2)
    assert inbox.forget_set(notice.request_id) == ["p1", "p3"]
    assert inbox.tombstones() == {"p1", "p3"}


def test_an_unknown_sample_files_nothing(inbox):
    with pytest.raises(UnknownSampleError, match=r"1 of 2 samples .* 'p9'; nothing was filed"):
        file(inbox, "p1", "p9")
    assert inbox.pending() == []
    assert inbox.tombstones() == set()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"scope": "samples", "sample_ids": []}, ErasureError, "names no sample"),
        ({"scope": "client", "sample_ids": ["p1"]}, ErasureError, "use scope 'samples'"),
        ({"reason": "because"}, ErasureError, "use one of consent-withdrawn"),
        ({"request_id": "no-uuid"}, WireError, "not a UUID"),
        ({"request_id": request_id().upper()}, WireError, "lowercase"),
        ({"scope": "all", "sample_ids": ["p1"]}, WireError, "'client' or 'samples'"),
        ({"held": []}, ErasureError, "names no sample"),
    ],
)
def test_a_filing_that_cannot_be_carried_out_is_refused_whole(inbox, options, error, text):
    with pytest.raises(error, match=text) as caught:
        inbox.file(**{"scope": "client", "sample_ids": (), "held": HELD, **options})
    assert "\n" not in str(caught.value)
    assert inbox.pending() == []
    assert inbox.tombstones() == set()


def test_the_same_request_twice_is_one(inbox):
    first = file(inbox, "p1", number=1)
    assert file(inbox, "p1", number=1, note="again") == first
    assert inbox.pending() == [first]


@pytest.mark.parametrize("samples", [("p2",), ("p1", "p2"), ()])
def test_one_id_for_other_samples_is_refused(inbox, samples):
    first = file(inbox, "p1", number=1)
    with pytest.raises(DuplicateRequestError, match="for other samples"):
        file(inbox, *samples, number=1)
    assert inbox.pending() == [first]
    assert inbox.tombstones() == {"p1"}


def test_everything_outlives_the_process(inbox, path):
    notice = file(inbox, "p2")
    inbox.mark([notice.request_id], KNOWN)
    again = SiteInbox(path)
    assert again.tombstones() == {"p2"}
    assert again.status(notice.request_id) == KNOWN
    assert again.forget_set(notice.request_id) == ["p2"]
    assert again.pending() == []
    assert again.unfinished() == [notice]


def test_cancelled_samples_are_free_unless_another_request_holds_them(inbox):
    one, two = file(inbox, "p1", "p2"), file(inbox, "p2", "p3")
    inbox.mark([one.request_id], CANCELLED)
    assert inbox.tombstones() == {"p2", "p3"}
    assert inbox.unfinished() == [two]


def test_closed_samples_stay_erased(inbox):
    notice = file(inbox, "p1")
    inbox.mark([notice.request_id], CLOSED)
    assert inbox.tombstones() == {"p1"}
    assert inbox.unfinished() == []


@pytest.mark.parametrize("first", [KNOWN, CLOSED, CANCELLED])
@pytest.mark.parametrize("second", [KNOWN, CLOSED, CANCELLED])
def test_marks_only_move_forward(inbox, first, second):
    notice = file(inbox)
    inbox.mark([notice.request_id, request_id(9)], first)
    inbox.mark([notice.request_id], second)
    expected = second if first == KNOWN else first
    assert inbox.status(notice.request_id) == expected


def test_pending_is_oldest_first_and_only_what_the_server_does_not_know(inbox):
    notices = [file(inbox, sample) for sample in HELD[:3]]
    assert inbox.pending() == sorted(notices, key=lambda n: (n.filed_at, n.request_id))
    inbox.mark([notices[1].request_id], KNOWN)
    assert [n.request_id for n in inbox.pending()] == [
        n.request_id for n in (notices[0], notices[2])
    ]
    assert len(inbox.unfinished()) == 3


def test_what_is_not_on_file_is_said(inbox):
    for look in (inbox.status, inbox.forget_set):
        with pytest.raises(ErasureError, match="no request"):
            look(request_id())
    assert not inbox.knows(request_id())


def test_an_operators_request_is_adopted_once(inbox):
    assert inbox.adopt(request_id(), HELD) == HELD
    assert inbox.adopt(request_id(), ["other"]) == HELD
    assert inbox.tombstones() == set(HELD)
    assert inbox.pending() == []
    assert inbox.status(request_id()) == KNOWN


def test_the_commitment_is_an_hmac_under_a_key_that_stays(inbox, path, tmp_path):
    notice = file(inbox, "p2", "p1")
    with sqlite3.connect(path) as connection:
        key = connection.execute("SELECT value FROM secret").fetchone()[0]
    ids = json.dumps(["p1", "p2"]).encode()
    assert notice.commitment == hmac.new(key, ids, hashlib.sha256).hexdigest()
    assert len(key) == 32
    # The key is made once, and another hospital has another.
    assert file(SiteInbox(path), "p1", "p2").commitment == notice.commitment
    assert file(SiteInbox(tmp_path / "b.sqlite"), "p1", "p2").commitment != notice.commitment
    assert file(inbox, "p1").commitment != notice.commitment


def test_no_id_note_or_key_is_in_the_notice(inbox):
    notice = file(inbox, "p1", "p2", note="Mrs Smith rang")
    text = json.dumps(asdict(notice))
    assert not any(secret in text for secret in ("p1", "p2", "Smith"))


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_a_new_inbox_is_its_owners_only(inbox, path):
    file(inbox)
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", [b"this is no database, whatever its name says" * 40, None])
def test_what_is_no_inbox_is_said_in_one_line(tmp_path, content):
    target = tmp_path / "thing"
    target.mkdir() if content is None else target.write_bytes(content)
    with pytest.raises(ErasureError, match="is not a usable") as caught:
        SiteInbox(target)
    assert "\n" not in str(caught.value)
    assert content is None or target.read_bytes() == content


def test_a_path_below_a_file_is_said_too(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ErasureError, match="is not a usable"):
        SiteInbox(tmp_path / "file" / "inbox.sqlite")


def test_several_processes_may_file_at_once(path):
    errors, notices = [], []

    def steward():
        try:
            notices.append(file(SiteInbox(path), "p1", number=1))
            file(SiteInbox(path), "p2")
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=steward) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set(notices)) == 1
    assert len(SiteInbox(path).pending()) == 7
