"""Patients as units of erasure: all of their samples, and those that come later."""

from __future__ import annotations

import sqlite3

import pytest

from flwr_afuic.erasure.inbox import CANCELLED, SiteInbox
from flwr_afuic.errors import ErasureError, UnknownSampleError
from tests.erasure_helpers import request_id

PATIENTS = {"a1": "anna", "b1": "bert", "a2": "anna", "c1": "carl", "a3": "anna"}
HELD = list(PATIENTS)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "inbox.sqlite"


@pytest.fixture
def inbox(path):
    inbox = SiteInbox(path)
    inbox.note_held(HELD, PATIENTS)
    return inbox


def erase(inbox, *patients, **options):
    return inbox.file(scope="samples", sample_ids=(), held=HELD, patients=patients, **options)


def test_every_sample_of_a_patient_is_erased_wherever_it_stands(inbox):
    notice = erase(inbox, "anna")
    assert notice.count == 3
    assert inbox.forget_set(notice.request_id) == ["a1", "a2", "a3"]
    assert inbox.tombstones() == {"a1", "a2", "a3"}


def test_the_request_is_the_same_as_one_of_these_samples(inbox):
    """The server must not learn whether samples or a patient were named."""
    by_patient = erase(inbox, "anna", request_id=request_id(1))
    by_samples = inbox.file(
        scope="samples", sample_ids=["a1", "a2", "a3"], held=HELD, request_id=request_id(2)
    )
    assert by_patient.commitment == by_samples.commitment
    assert erase(inbox, "anna", request_id=request_id(1)) == by_patient


def test_a_sample_that_comes_later_does_not_train(inbox, path):
    notice = erase(inbox, "anna")
    inbox.note_held([*HELD, "a4", "d1"], {**PATIENTS, "a4": "anna", "d1": "dora"})
    again = SiteInbox(path)
    assert again.tombstones() == {"a1", "a2", "a3", "a4"}
    assert again.forget_set(notice.request_id) == ["a1", "a2", "a3"], "it never trained"


def test_a_patient_whose_samples_all_left_stays_erased(inbox):
    erase(inbox, "carl")
    inbox.note_held(["a1"], PATIENTS)
    inbox.note_held(["a1", "c9"], {"a1": "anna", "c9": "carl"})
    assert inbox.tombstones() == {"c9"}


def test_a_cancelled_request_gives_the_patient_back(inbox):
    notice = erase(inbox, "anna")
    inbox.mark([notice.request_id], CANCELLED)
    inbox.note_held([*HELD, "a4"], {**PATIENTS, "a4": "anna"})
    assert inbox.tombstones() == set()


def test_a_sample_that_changes_its_patient(inbox):
    erase(inbox, "anna")
    inbox.note_held(HELD, {**PATIENTS, "a1": "bert", "b1": "anna"})
    # Erased is what was erased, and what is the patient's now.
    assert inbox.tombstones() == {"a1", "a2", "a3", "b1"}


def test_erasing_samples_says_nothing_of_their_patient(inbox):
    inbox.file(scope="samples", sample_ids=["a1"], held=HELD)
    inbox.note_held([*HELD, "a4"], {**PATIENTS, "a4": "anna"})
    assert inbox.tombstones() == {"a1"}


def test_samples_and_patients_in_one_request(inbox):
    notice = inbox.file(scope="samples", sample_ids=["b1"], held=HELD, patients=["carl"])
    assert inbox.forget_set(notice.request_id) == ["b1", "c1"]


def test_an_unknown_patient_files_nothing(inbox):
    with pytest.raises(UnknownSampleError, match=r"1 of 2 patients.*'zoe'"):
        erase(inbox, "anna", "zoe")
    assert inbox.requests() == []


def test_scope_client_lists_no_patient(inbox):
    with pytest.raises(ErasureError, match="scope 'client'"):
        inbox.file(scope="client", sample_ids=(), held=HELD, patients=["anna"])


def test_noting_the_same_again_writes_nothing(inbox, path):
    with sqlite3.connect(path) as watcher:
        before = watcher.execute("PRAGMA data_version").fetchone()
        inbox.note_held(reversed(HELD), dict(reversed(PATIENTS.items())))
        assert watcher.execute("PRAGMA data_version").fetchone() == before
        inbox.note_held(HELD, {**PATIENTS, "a1": "bert"})
        assert watcher.execute("PRAGMA data_version").fetchone() != before
    watcher.close()


def test_nothing_names_a_patient_whose_samples_were_deleted(inbox, path):
    erase(inbox, "anna")
    inbox.note_held(["b1"], PATIENTS)
    with sqlite3.connect(path) as connection:
        text = "\n".join(connection.iterdump())
    connection.close()
    assert "anna" not in text
    assert "bert" in text
    content = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"bert" in content


def test_an_inbox_of_the_version_before_learns_of_patients(path):
    inbox = SiteInbox(path)
    inbox.note_held(HELD)
    inbox.note_held(HELD, PATIENTS)
    assert erase(inbox, "bert").count == 1
