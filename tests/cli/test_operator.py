"""What an operator does at the server: look, ask, decide."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from flwr_afuic.state.store import StateStore
from tests.cli.conftest import one_line
from tests.cli.service import certify, make_state, put, record, uuid


@pytest.fixture
def state(tmp_path):
    return make_state(
        tmp_path / "state",
        record(1, "completed"),
        record(2, "held", "hospital-b"),
        record(3, by="operator"),
        record(4, "verifying", by="operator"),
    )


def commands(state):
    with StateStore(state, create=False) as store:
        return [(c.kind, c.request_id, c.site, c.method) for c in store.commands()]


def test_requests_lists_each_and_where_it_stands(cli, state):
    certify(state, 1)
    ran = cli("requests", "--state", "state")
    lines = ran.out.splitlines()
    assert lines[0].split()[:4] == ["REQUEST", "SITE", "SCOPE", "COUNT"]
    assert len(lines) == 5
    assert "completed  2026-05-28 20:26:45 UTC  step 5" in lines[1]
    assert "hospital-b" in lines[2]
    plain = cli("requests", "--state", "state", "--json").json()
    assert [entry["state"] for entry in plain] == ["completed", "held", "received", "verifying"]
    assert [entry["certificate"] for entry in plain] == [1, 0, 0, 0]
    assert [entry["count"] for entry in plain] == [12, 12, None, None]
    assert plain[0]["merge_version"] == 3
    assert [step["state"] for step in plain[1]["history"]][-1] == "held"


def test_status_shows_the_course(cli, state):
    out = cli("status", uuid(2), "--state", "state").out
    assert "hospital-b" in out
    assert "held, since 2026-05-28 20:26:43 UTC" in out
    assert "not merged yet" in out
    assert "unlearned" in out
    assert "unlearned from 1, merged as 3" in cli("status", uuid(1), "--state", "state").out
    assert cli("status", uuid(2), "--state", "state", "--json").json()["site"] == "hospital-b"


def test_a_request_for_a_site_waits_for_a_server(cli, state):
    ran = cli("request", "--state", "state", "--client", "hospital-a", "--method", "medu")
    assert ran.status == 0, ran.err
    made = ran.out.strip()
    assert commands(state) == [("erase", made, "hospital-a", "medu")]
    assert "No server runs on this directory" in ran.err
    assert "no site" not in ran.err
    listed = cli("requests", "--state", "state").out
    assert "waiting" in listed
    assert "no server has taken it up yet" in listed
    assert "waiting" in cli("status", made, "--state", "state").out
    with StateStore(state) as store, store.transaction() as tx:
        tx.finish_command(made, "refused: no site 'x' in this federation")
    assert "refused: no site 'x'" in cli("status", made, "--state", "state").out


def test_a_request_that_a_server_took_up_is_listed_once(cli, state):
    made = cli("request", "--state", "state", "--client", "hospital-a").out.strip()
    with StateStore(state) as store:
        taken = record(5, by="operator")
        taken.notice = replace(taken.notice, request_id=made)
        put(store, taken)
    listed = cli("requests", "--state", "state", "--json").json()
    assert [entry["state"] for entry in listed if entry["id"] == made] == ["received"]


def test_a_name_nobody_has_is_noted(cli, state):
    ran = cli("request", "--state", "state", "--client", "hospital-z", "--json")
    assert "no site 'hospital-z' is on record; there are: hospital-a, hospital-b" in ran.err
    assert ran.json()["site"] == "hospital-z"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--state", "state"], ["--client is missing"]),
        (["--state", "state", "--client", "b", "--all"], ["an operator erases all data"]),
        (["--state", "state", "--client", "b", "--samples", "x"], ["an operator erases all data"]),
        (["--state", "state", "--client", "b", "--id", uuid(5)], ["an operator erases all data"]),
        (["--state", "state", "--client", "b", "--method", "hope"], ["'hope'", "medu"]),
        (["--state", "state", "--client", "b", "--reason-code", "x"], ["'x'", "site-left"]),
        (["--state", "nowhere", "--client", "b"], ["nowhere is no state directory"]),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_leaves_nothing(cli, state, arguments, words):
    one_line(cli("request", *arguments), *words)
    assert commands(state) == []


def test_a_held_merge_is_released_or_rejected_and_nothing_else_is(cli, state):
    ran = cli("release", uuid(2), "--state", "state")
    assert "asked" in ran.out
    assert commands(state) == [("release", uuid(2), "", "")]
    assert "asked: release" in cli("requests", "--state", "state").out
    assert "release" in cli("status", uuid(2), "--state", "state").out
    again = cli("release", uuid(2), "--state", "state")
    assert (again.status, len(commands(state))) == (0, 1)
    assert "asked before" in again.err
    assert cli("reject", uuid(2), "--state", "state").status == 0
    assert len(commands(state)) == 2
    with StateStore(state) as store, store.transaction() as tx:
        tx.finish_command(store.pending_commands()[0].id, "refused: it is merged already")
    shown = cli("status", uuid(2), "--state", "state").out
    assert "release: refused: it is merged already" in shown
    assert "reject: no server has taken it up yet" in shown
    one_line(cli("release", uuid(1), "--state", "state"), "is completed", "can be released")
    one_line(cli("reject", uuid(3), "--state", "state"), "is received", "can be rejected")
    one_line(cli("release", uuid(9), "--state", "state"), "no erasure request")


def test_only_what_the_operator_filed_and_is_not_merged_can_be_cancelled_here(cli, state):
    assert cli("cancel", uuid(3), "--state", "state").status == 0
    assert commands(state) == [("cancel", uuid(3), "", "")]
    one_line(cli("cancel", uuid(2), "--state", "state"), "only its steward", "--inbox FILE")
    one_line(cli("cancel", uuid(4), "--state", "state"), "merged as version 3")
    waiting = cli("request", "--state", "state", "--client", "hospital-a").out.strip()
    assert cli("cancel", waiting, "--state", "state").status == 0


def test_a_running_server_is_named(cli, state):
    with StateStore(state, exclusive=True):
        ran = cli("cancel", uuid(3), "--state", "state")
        assert f"process id {os.getpid()} takes it up within one poll" in ran.out


def test_nothing_on_record_is_said(cli, tmp_path):
    make_state(tmp_path / "new")
    assert cli("requests", "--state", "new").out == "no erasure request is on record\n"
    assert cli("requests", "--state", "new", "--json").json() == []


def test_what_sites_wrote_does_not_reach_the_terminal_as_it_is(cli, tmp_path):
    made = record(1, site="x\x1b[2J\ny")
    make_state(tmp_path / "state", made)
    out = cli("requests", "--state", "state").out
    assert "\x1b" not in out
    assert len(out.splitlines()) == 2
    assert json.loads(cli("requests", "--state", "state", "--json").out)[0]["site"] == made.site


@pytest.mark.parametrize("command", ["requests", "status", "cancel", "release", "certificate"])
def test_a_directory_that_is_none_is_one_line(cli, tmp_path, command):
    arguments = [] if command == "requests" else [uuid(1)]
    one_line(cli(command, *arguments, "--state", "nowhere"), "nowhere is no state directory")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "state.sqlite").write_text("no database, but longer than a header of one")
    one_line(cli(command, *arguments, "--state", "bad"), "bad")
