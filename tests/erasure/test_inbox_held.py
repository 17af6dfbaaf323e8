"""What a site holds, as its inbox knows it, and erased samples that go and come back."""

from __future__ import annotations

import sqlite3

import pytest

from flwr_afuic.erasure.inbox import CANCELLED, CLOSED, SiteInbox
from flwr_afuic.erasure.noise_keys import MOST_RELEASES
from flwr_afuic.errors import ErasureError, UnknownSampleError
from tests.erasure_helpers import request_id

HELD = ["p1", "p2", "p3"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "inbox.sqlite"


@pytest.fixture
def inbox(path):
    return SiteInbox(path)


def test_nobody_noted_what_is_held(inbox):
    assert inbox.held() is None
    inbox.file(scope="samples", sample_ids=["p2"], held=HELD)
    assert inbox.held() is None


@pytest.mark.parametrize("ids", [[], ["b", "a"], ["a", "a"], ['it\'s "x"; \n, ü']])
def test_it_is_what_was_noted_last(inbox, path, ids):
    inbox.note_held(HELD)
    inbox.note_held(ids)
    assert inbox.held() == SiteInbox(path).held() == sorted(set(ids))


def test_noting_the_same_again_writes_nothing(inbox, path):
    inbox.note_held(HELD)
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA query_only = ON")
        before = other.execute("PRAGMA data_version").fetchone()
        inbox.note_held(reversed(HELD))
        assert other.execute("PRAGMA data_version").fetchone() == before
        inbox.note_held(HELD[:2])
        assert other.execute("PRAGMA data_version").fetchone() != before
    other.close()


def test_a_sample_that_is_gone_cannot_be_unlearned_and_is_not_named(inbox):
    inbox.note_held(HELD)
    inbox.file(scope="samples", sample_ids=["p1", "p2"], held=HELD, request_id=request_id())
    inbox.note_held(["p2", "p3"])
    with pytest.raises(UnknownSampleError, match="1 of the 2 samples of request") as caught:
        inbox.forget_set(request_id())
    assert "p1" not in str(caught.value)
    assert inbox.tombstones() == {"p2"}


def test_a_sample_that_comes_back_is_still_erased(inbox, path):
    inbox.note_held(HELD)
    inbox.file(scope="samples", sample_ids=["p1"], held=HELD, request_id=request_id())
    inbox.mark([request_id()], CLOSED)
    inbox.note_held(["p2"])
    assert inbox.tombstones() == set()
    SiteInbox(path).note_held(["p1", "p2", "new"])
    assert inbox.tombstones() == {"p1"}
    assert inbox.forget_set(request_id()) == ["p1"]


def test_a_cancelled_sample_that_comes_back_is_free(inbox):
    inbox.file(scope="samples", sample_ids=["p1"], held=HELD, request_id=request_id())
    inbox.mark([request_id()], CANCELLED)
    inbox.note_held([])
    inbox.note_held(["p1"])
    assert inbox.tombstones() == set()


def test_marks_differ_between_sites(inbox, path, tmp_path):
    other = tmp_path / "other.sqlite"
    for box in (inbox, SiteInbox(other)):
        box.file(scope="samples", sample_ids=["p1"], held=HELD, request_id=request_id())
    marks = set()
    for file in (path, other):
        with sqlite3.connect(file) as connection:
            marks.update(connection.execute("SELECT mark FROM erased").fetchall())
        connection.close()
    assert len(marks) == 2
    assert all(len(mark[0]) == 32 for mark in marks)


# ---- keys of noise -------------------------------------------------------------------


def test_one_delta_has_one_key_and_another_has_another(inbox, path):
    one = inbox.noise_key([request_id(1)], b"delta", "rule")
    assert len(one[0]) == 32
    assert one == SiteInbox(path).noise_key([request_id(1)], b"delta", "rule")
    assert one[1] == 1
    others = [
        inbox.noise_key([request_id(1)], b"other", "rule"),
        inbox.noise_key([request_id(2)], b"delta", "rule"),
        inbox.noise_key([request_id(1), request_id(2)], b"delta", "rule"),
    ]
    others += [
        inbox.noise_key([request_id(1)], b"delta", "rul"),
        inbox.noise_key([request_id(1)], b"delta", "rule", "basis"),
    ]
    assert [number for _, number in others] == [2, 1, 1, 3, 1]
    assert len({key for key, _ in [one, *others]}) == 6
    assert inbox.noise_key([request_id(2), request_id(1)], b"delta", "rule") == others[2]


def test_another_site_has_other_noise(inbox, tmp_path):
    other = SiteInbox(tmp_path / "other.sqlite")
    assert (
        inbox.noise_key([request_id()], b"d", "rule")[0]
        != other.noise_key([request_id()], b"d", "rule")[0]
    )


def test_deltas_are_not_given_out_without_end(inbox):
    for number in range(MOST_RELEASES):
        assert inbox.noise_key([request_id()], bytes([number]), "rule")[1] == number + 1
    with pytest.raises(ErasureError, match=f"{MOST_RELEASES} different answers"):
        inbox.noise_key([request_id()], b"one more", "rule")
    assert inbox.noise_key([request_id()], bytes([3]), "rule")[1] == 4
    assert inbox.noise_key([request_id(2)], b"one more", "rule")[1] == 1
