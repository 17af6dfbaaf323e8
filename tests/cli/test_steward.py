"""What a data steward does at a hospital: nothing leaves but what is said to."""

from __future__ import annotations

import pytest

from flwr_afuic.cli.steward import FAILURES
from flwr_afuic.erasure.inbox import KNOWN, REFUSED, SiteInbox
from flwr_afuic.wire import FAILURE_CODES
from tests.cli.conftest import one_line
from tests.cli.service import certify, deliver, make_inbox, make_state, record, uuid

REASON = ("--reason", "letter of 3 May")


@pytest.fixture
def inbox(tmp_path):
    return make_inbox(tmp_path / "inbox.sqlite")


def test_samples_are_filed_and_the_id_is_all_that_is_printed(cli, inbox, tmp_path):
    (tmp_path / "ids.csv").write_text("name;sample_id\nX;b\nY;d\n")
    ran = cli("request", "--inbox", "inbox.sqlite", "--samples", "ids.csv", *REASON)
    assert ran.status == 0, ran.err
    (notice,) = inbox.pending()
    assert ran.out == f"{notice.request_id}\n"
    assert (notice.scope, notice.count, notice.reason) == ("samples", 2, "consent-withdrawn")
    assert inbox.tombstones() == {"b", "d"}
    assert inbox.requests()[0].note == "letter of 3 May"
    assert "train no more" in ran.err


def test_a_patient_is_erased_with_all_there_is_and_will_be_of_them(cli, inbox, tmp_path):
    whose = {"a": "Smith", "b": "Jones", "c": "Smith", "d": "Kim"}
    inbox.note_held("abcd", whose)
    (tmp_path / "patients.csv").write_text("patient_id,letter\nSmith,3 May\n")
    ran = cli("request", "--inbox", "inbox.sqlite", "--patients", "patients.csv", *REASON)
    assert ran.status == 0, ran.err
    assert "2 sample(s)" in ran.err
    assert "comes later" in ran.err
    assert "Smith" not in ran.out + ran.err
    inbox.note_held("abcde", {**whose, "e": "Smith"})
    assert inbox.tombstones() == {"a", "c", "e"}


def test_all_data_of_a_site(cli, inbox):
    ran = cli("request", "--inbox", "inbox.sqlite", "--all", *REASON, "--code", "site-left",
              "--id", uuid(7), "--json")  # fmt: skip
    assert ran.json()["id"] == uuid(7)
    assert ran.json()["count"] == 4
    assert ran.json()["scope"] == "client"
    assert ran.json()["reason"] == "site-left"
    assert "letter" not in ran.out
    again = cli("request", "--inbox", "inbox.sqlite", "--all", *REASON, "--id", uuid(7))
    assert again.out.strip() == uuid(7)
    assert len(inbox.requests()) == 1


def test_before_the_client_ran_a_list_of_what_is_held_is_needed(cli, tmp_path):
    SiteInbox(tmp_path / "new.sqlite")
    (tmp_path / "ids.csv").write_text("x\n")
    (tmp_path / "held.csv").write_text("x\ny\n")
    arguments = ("request", "--inbox", "new.sqlite", "--samples", "ids.csv", *REASON)
    one_line(cli(*arguments), "--held FILE")
    assert cli(*arguments, "--held", "held.csv").status == 0
    assert SiteInbox(tmp_path / "new.sqlite").tombstones() == {"x"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--inbox", "inbox.sqlite"], ["--samples FILE", "--all"]),
        (["--inbox", "inbox.sqlite", "--all", "--samples", "ids.csv"], ["--samples FILE"]),
        (["--inbox", "inbox.sqlite", "--all", "--patients", "ids.csv"], ["--patients FILE"]),
        (["--inbox", "inbox.sqlite", "--patients", "ids.csv", *REASON], ["2 of 2 patients"]),
        (["--inbox", "inbox.sqlite", "--all"], ["--reason is missing"]),
        (["--inbox", "inbox.sqlite", "--all", "--reason", " "], ["--reason is missing"]),
        (["--inbox", "inbox.sqlite", "--all", *REASON, "--code", "because"], ["'because'"]),
        (["--inbox", "inbox.sqlite", "--all", *REASON, "--id", "7"], ["not a UUID"]),
        (["--inbox", "inbox.sqlite", "--all", *REASON, "--client", "b"], ["the operator's"]),
        (["--inbox", "inbox.sqlite", "--all", *REASON, "--method", "medu"], ["the operator's"]),
        (["--inbox", "inbox.sqlite", "--samples", "ids.csv", *REASON], ["'zz'", "not held"]),
        (["--inbox", "inbox.sqlite", "--samples", "no.csv", *REASON], ["no.csv"]),
        (["--inbox", "typo.sqlite", "--all", *REASON], ["typo.sqlite is no inbox"]),
        (["--inbox", "ids.csv", "--all", *REASON], ["ids.csv"]),
        (["--all", *REASON], ["--inbox FILE", "--state DIR"]),
        (["--inbox", "inbox.sqlite", "--state", "s", "--all", *REASON], ["name one place"]),
    ],
)
def test_what_cannot_be_filed_is_one_line_and_nothing_is_filed(
    cli, inbox, tmp_path, arguments, words
):
    (tmp_path / "ids.csv").write_text("a\nzz\n")
    one_line(cli("request", *arguments), *words)
    assert inbox.requests() == []
    assert not (tmp_path / "typo.sqlite").exists(), "a mistyped path must not become an inbox"


def test_requests_and_status_show_where_each_stands(cli, inbox):
    assert "no request is on file" in cli("requests", "--inbox", "inbox.sqlite").out
    notice = inbox.file(scope="samples", sample_ids=["a"], held=["a"], note="her letter")
    listed = cli("requests", "--inbox", "inbox.sqlite")
    assert notice.request_id in listed.out
    assert "filed" in listed.out
    inbox.mark([notice.request_id], KNOWN)
    shown = cli("status", notice.request_id, "--inbox", "inbox.sqlite")
    assert "known: the server knows it" in shown.out
    assert "her letter" in shown.out
    plain = cli("status", notice.request_id, "--inbox", "inbox.sqlite", "--json").json()
    assert plain["status"] == "known"
    assert (plain["note"], plain["certificate"]) == ("her letter", 0)
    every = cli("requests", "--inbox", "inbox.sqlite", "--json").json()
    assert every == {"requests": [plain], "alarms": []}


@pytest.mark.parametrize("command", ["status", "cancel", "certificate"])
def test_an_unknown_request_is_one_line(cli, inbox, command):
    one_line(cli(command, uuid(9), "--inbox", "inbox.sqlite"), uuid(9))


def test_cancelling_waits_for_the_server(cli, inbox):
    notice = inbox.file(scope="samples", sample_ids=["a"], held=["a"])
    ran = cli("cancel", notice.request_id, "--inbox", "inbox.sqlite")
    assert "is cancelling: taken back; the server has not confirmed" in ran.out
    assert inbox.tombstones() == {"a"}
    other = inbox.file(scope="samples", sample_ids=["b"], held=["b"])
    inbox.mark([other.request_id], REFUSED)
    assert "may train again" in cli("cancel", other.request_id, "--inbox", "inbox.sqlite").out
    inbox.mark([notice.request_id], "closed")
    one_line(cli("cancel", notice.request_id, "--inbox", "inbox.sqlite"), "closed")


def test_why_a_request_failed_is_said(cli, inbox):
    notice = inbox.file(scope="samples", sample_ids=["a"], held=["a"])
    inbox.fail({notice.request_id: "not-unlearned"})
    shown = cli("status", notice.request_id, "--inbox", "inbox.sqlite")
    assert "failed: the server could not carry it out" in shown.out
    assert "not-unlearned: nothing was unlearned" in shown.out
    plain = cli("status", notice.request_id, "--inbox", "inbox.sqlite", "--json").json()
    assert (plain["status"], plain["failure"]) == ("failed", "not-unlearned")


def test_every_failure_code_has_words():
    assert set(FAILURES) == {"", *FAILURE_CODES}


def test_what_the_server_said_that_cannot_be_right_is_shown(cli, inbox, tmp_path):
    deliver(make_state(tmp_path / "one"), inbox)
    deliver(make_state(tmp_path / "other"), inbox)
    for command in (["requests"], ["status", uuid(1)]):
        if command[0] == "status":
            inbox.file(scope="samples", sample_ids=["a"], held=["a"], request_id=uuid(1))
        ran = cli(*command, "--inbox", "inbox.sqlite")
        assert "warning: the server shows key" in ran.err
    assert len(cli("requests", "--inbox", "inbox.sqlite", "--json").json()["alarms"]) == 1


def test_a_certificate_that_came_is_written_and_verifies_with_the_key_the_site_knows(
    cli, inbox, tmp_path
):
    state = make_state(tmp_path / "state", record(1, "completed"))
    inbox.file(scope="samples", sample_ids=["a"], held=["a"], request_id=uuid(1))
    one_line(cli("certificate", uuid(1), "--inbox", "inbox.sqlite"), "it is filed")
    issued = certify(state, 1)
    deliver(state, inbox, uuid(1))
    assert "issue 1" in cli("requests", "--inbox", "inbox.sqlite").out
    ran = cli("certificate", uuid(1), "--inbox", "inbox.sqlite", "--out", "proof")
    assert ran.status == 0, ran.err
    name = f"{uuid(1)}-1.json"
    assert sorted(path.name for path in (tmp_path / "proof").iterdir()) == [
        f"{uuid(1)}-1.html", name, f"{name}.sig",
    ]  # fmt: skip
    assert (tmp_path / "proof" / name).read_bytes() == issued.read_bytes()
    valid = cli("verify", f"proof/{name}", "--inbox", "inbox.sqlite")
    assert valid.status == 0
    assert valid.out.startswith(f"valid: erasure {uuid(1)} of 120 sample(s) of hospital-berg, comp")
    # The key is changed: the certificate of before still verifies at the site.
    assert cli("keys", "rotate", "--state", "state").status == 0
    deliver(state, inbox)
    assert cli("verify", f"proof/{name}", "--inbox", "inbox.sqlite").status == 0
    one_line(cli("certificate", uuid(1), "--inbox", "inbox.sqlite", "--attach", "x"), "operator's")


def test_an_inbox_that_met_no_server_verifies_nothing(cli, inbox, tmp_path):
    (tmp_path / "c.json").write_text("{}")
    (tmp_path / "c.json.sig").write_text("")
    one_line(cli("verify", "c.json", "--inbox", "inbox.sqlite"), "knows no server's key yet")
