"""Certificates, ledger, keys and backups by command: valid or exactly what is wrong."""

from __future__ import annotations

import json
import shutil
import sqlite3

import pytest

from flwr_afuic.errors import StateError
from flwr_afuic.state.reissue import issue_with
from flwr_afuic.state.store import StateStore
from tests.cli.conftest import one_line
from tests.cli.service import certify, deliver, make_inbox, make_state, record, uuid

NAME = f"{uuid(1)}-1.json"


@pytest.fixture
def state(tmp_path):
    """A directory with a completed, certified request; its public key lies apart."""
    directory = make_state(tmp_path / "state", record(1, "completed"), record(2))
    certify(directory, 1)
    (tmp_path / "known.pub").write_bytes((directory / "keys" / "server.pub").read_bytes())
    return directory


@pytest.fixture
def written(cli, state):
    assert cli("certificate", uuid(1), "--state", "state", "--out", "proof").status == 0
    return NAME


# ---- certificates -----------------------------------------------------------------------


def test_a_certificate_is_written_and_valid(cli, written, tmp_path):
    ran = cli("verify", f"proof/{NAME}", "--key", "known.pub")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.count("\n") == 1
    assert ran.out.startswith("valid: erasure ")
    assert "issue 1 of 2026-05-28" in ran.out
    assert cli("verify", f"proof/{NAME}", "--key", "known.pub", "--json").json() == {
        "valid": True, "problems": [],
    }  # fmt: skip
    (tmp_path / "elsewhere").write_bytes((tmp_path / "proof" / f"{NAME}.sig").read_bytes())
    (tmp_path / "proof" / f"{NAME}.sig").unlink()
    assert cli("verify", f"proof/{NAME}", "--key", "known.pub", "--signature", "elsewhere").out
    one_line(cli("verify", f"proof/{NAME}", "--key", "known.pub"), "cannot read its signature")
    assert "What this does not prove" in (tmp_path / "proof" / f"{uuid(1)}-1.html").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p, s: p.write_bytes(p.read_bytes().replace(b"120", b"121")), "these bytes"),
        (lambda p, s: p.write_bytes(b"[" + p.read_bytes()), "no JSON"),
        (lambda p, s: s.write_text("f" * 128 + "\n"), "these bytes"),
        (lambda p, s: s.write_text("g" * 128), "no hexadecimal digit"),
        (lambda p, s: s.write_bytes(b"\xff" * 128), "no hexadecimal digit"),
        (lambda p, s: s.write_text(""), "0 characters"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_said(cli, written, tmp_path, change, words):
    path = tmp_path / "proof" / NAME
    change(path, path.with_name(f"{NAME}.sig"))
    ran = cli("verify", f"proof/{NAME}", "--key", "known.pub")
    assert (ran.status, ran.err) == (1, "")
    assert all(line.startswith("not valid: ") for line in ran.out.splitlines())
    assert words in ran.out
    plain = cli("verify", f"proof/{NAME}", "--key", "known.pub", "--json")
    assert plain.status == 1
    assert plain.json()["valid"] is False


def test_another_key_is_named(cli, written, tmp_path):
    make_state(tmp_path / "other")
    ran = cli("verify", f"proof/{NAME}", "--key", "other/keys/server.pub")
    assert ran.status == 1
    assert "names the key" in ran.out
    one_line(cli("verify", f"proof/{NAME}", "--key", f"proof/{NAME}"), "no public key")
    one_line(cli("verify", f"proof/{NAME}", "--key", "state/keys/server.pem"), "no public key")
    one_line(cli("verify", f"proof/{NAME}"), "name the key to trust")
    one_line(cli("verify", "proof/none.json", "--key", "known.pub"), "none.json")


def test_figures_are_attached_in_a_new_issue(cli, written, tmp_path):
    figures = {"figures": {"phantoms/afuic/average_gap": 0.02, "b": None}, "seeds": [0, 1]}
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    ran = cli("certificate", uuid(1), "--state", "state", "--out", "proof",
              "--attach", "figures.json", "--json")  # fmt: skip
    assert ran.status == 0, ran.err
    assert ran.json()["files"][0] == f"proof/{uuid(1)}-2.json"
    content = json.loads((tmp_path / "proof" / f"{uuid(1)}-2.json").read_text())
    assert content["metrics"]["figures"] == figures["figures"]
    assert content["metrics"]["made_with"]["seeds"] == [0, 1]
    assert len(content["metrics"]["made_with"]["sha256"]) == 64
    for issue in (1, 2):
        assert cli("verify", f"proof/{uuid(1)}-{issue}.json", "--key", "known.pub").status == 0
    assert cli("ledger", "verify", "--state", "state").status == 0
    # The newest is the one that is handed out.
    assert f"{uuid(1)}-2.json" in cli("certificate", uuid(1), "--state", "state").out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "no JSON"),
        ("[1]", "no figures"),
        ('{"figures": {}}', "no figures"),
        ('{"a": "b"}', "it must be a number"),
        ('{"a": {"b": 1}}', "it must be a number"),
    ],
)
def test_what_is_no_figures_is_not_attached(cli, state, tmp_path, content, words):
    (tmp_path / "figures.json").write_text(content)
    arguments = ("certificate", uuid(1), "--state", "state", "--attach", "figures.json")
    one_line(cli(*arguments), words)
    assert not (tmp_path / f"{uuid(1)}-2.json").exists()
    with StateStore(state) as store:
        assert store.next_issue(uuid(1)) == 2


def test_a_certificate_issued_by_a_server_meanwhile_is_not_passed_over(state, monkeypatch):
    metrics = {"figures": {"a": 1.0}, "made_with": {}}
    with StateStore(state) as store:
        asked = store.next_issue
        issued = []

        def next_issue(request_id):
            number = asked(request_id)
            if not issued:
                issued.append(certify(state, 1))  # between the look and the signature
            return number

        monkeypatch.setattr(store, "next_issue", next_issue)
        with pytest.raises(StateError, match=r"issue 2 .* by another process"):
            issue_with(store, uuid(1), metrics)
        assert store.certificate(uuid(1))[2] == issued[0]
        issue_with(store, uuid(1), metrics)
        assert store.certificate(uuid(1))[2].name == f"{uuid(1)}-3.json"


def test_a_request_without_certificate_and_a_place_that_is_taken(cli, state, tmp_path):
    one_line(cli("certificate", uuid(2), "--state", "state"), "it is received")
    (tmp_path / NAME).write_text("something else")
    one_line(cli("certificate", uuid(1), "--state", "state"), "another file already")
    assert (tmp_path / NAME).read_text() == "something else"
    (tmp_path / "file").write_text("")
    one_line(cli("certificate", uuid(1), "--state", "state", "--out", "file/x"), "cannot write")
    (tmp_path / "figures.json").write_text('{"a": 1}')
    arguments = ("--state", "state", "--attach", "figures.json")
    one_line(cli("certificate", uuid(2), *arguments), "no certificate that could be")


# ---- the ledger -------------------------------------------------------------------------


def test_a_whole_ledger_is_valid_against_what_sites_have_seen(cli, state, tmp_path):
    inbox = make_inbox(tmp_path / "inbox.sqlite")
    one_line(cli("ledger", "head", "--inbox", "inbox.sqlite"), "holds no head")
    deliver(state, inbox)
    (tmp_path / "seen.json").write_text(cli("ledger", "head", "--inbox", "inbox.sqlite").out)
    assert json.loads(cli("ledger", "head", "--state", "state").out) == json.loads(
        (tmp_path / "seen.json").read_text()
    )
    ran = cli("ledger", "verify", "--state", "state", "--head", "seen.json",
              "--inbox", "inbox.sqlite", "--key", "known.pub")  # fmt: skip
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("valid: 4 rows")
    assert "2 head(s) of sites agree" in ran.out
    plain = cli("ledger", "verify", "--state", "state", "--json").json()
    assert (plain["valid"], plain["rows"], plain["problems"]) == (True, 4, [])
    assert plain["head"]["seq"] == 4


def change(state, *statements: str) -> None:
    connection = sqlite3.connect(state / "state.sqlite")
    with connection:
        for trigger in ("ledger_keeps_its_rows", "ledger_loses_no_row"):
            connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_a_changed_row_is_found_and_exits_with_1(cli, state):
    change(state, 'UPDATE ledger SET body = \'{"request":"x"}\' WHERE seq = 2')
    ran = cli("ledger", "verify", "--state", "state")
    assert ran.status == 1
    assert ran.out.startswith("not valid: row 2 (request) was changed")
    plain = cli("ledger", "verify", "--state", "state", "--json")
    assert (plain.status, plain.json()["valid"]) == (1, False)


def test_a_cut_tail_is_found_by_a_head_that_a_site_kept(cli, state, tmp_path):
    shutil.copytree(state, tmp_path / "older")
    certify(state, 1)
    (tmp_path / "berg.json").write_text(cli("ledger", "head", "--state", "state").out)
    assert cli("ledger", "verify", "--state", "older").status == 0
    ran = cli("ledger", "verify", "--state", "older", "--head", "berg.json")
    assert ran.status == 1
    assert "site berg has seen head 5, the ledger ends at 4: its tail was cut" in ran.out


def test_a_head_of_another_server_is_no_proof(cli, state, tmp_path):
    make_state(tmp_path / "other")
    (tmp_path / "seen.json").write_text(cli("ledger", "head", "--state", "other").out)
    ran = cli("ledger", "verify", "--state", "state", "--head", "seen.json")
    assert ran.status == 1
    assert "no key of this server has signed" in ran.out


def test_another_servers_key_is_found(cli, state, tmp_path):
    make_state(tmp_path / "other")
    ran = cli("ledger", "verify", "--state", "state", "--key", "other/keys/server.pub")
    assert ran.status == 1
    assert "no signed rotation leads to it" in ran.out


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"seq": 1}'])
def test_a_file_that_is_no_head_is_one_line(cli, state, tmp_path, content):
    (tmp_path / "seen.json").write_text(content)
    one_line(
        cli("ledger", "verify", "--state", "state", "--head", "seen.json"), "is no ledger head"
    )


def test_the_ledger_is_shown(cli, state):
    lines = cli("ledger", "show", "--state", "state").out.splitlines()
    assert len(lines) == 4
    assert lines[3].split()[0] == "4"
    assert "certificate" in lines[3]
    assert cli("ledger", "show", "--state", "state", "--last", 1).out.splitlines() == lines[3:]
    plain = cli("ledger", "show", "--state", "state", "--json").json()
    assert [row["seq"] for row in plain] == [1, 2, 3, 4]
    assert plain[3]["kind"] == "certificate"


# ---- keys and backups -------------------------------------------------------------------


def test_a_key_is_shown_and_changed_and_the_old_one_vouches_for_it(cli, state, written, tmp_path):
    first = cli("keys", "show", "--state", "state", "--json").json()
    assert first["earlier"] == []
    ran = cli("keys", "rotate", "--state", "state", "--json").json()
    assert ran["old"] == first["id"]
    shown = cli("keys", "show", "--state", "state").out
    assert ran["new"] in shown
    assert f"keys/old/{first['id']}.pub" in shown
    assert cli("keys", "show", "--state", "state", "--pem").out == (
        (state / "keys" / "server.pub").read_text()
    )
    assert cli("ledger", "verify", "--state", "state", "--key", "known.pub").status == 0
    # The certificate of before: with the old key; one of now: through the rotation only.
    assert cli("verify", f"proof/{NAME}", "--key", f"state/keys/old/{first['id']}.pub").status == 0
    assert cli("verify", f"proof/{NAME}", "--key", "state/keys/server.pub").status == 1
    certify(state, 1)
    cli("certificate", uuid(1), "--state", "state", "--out", "proof")
    later = ("verify", f"proof/{uuid(1)}-2.json", "--key", "known.pub")
    assert cli(*later).status == 1
    assert cli(*later, "--rotations", "state/keys/rotations.json").status == 0
    (tmp_path / "bad.json").write_text('[{"old": 1}]')
    one_line(cli(*later, "--rotations", "bad.json"), "no list of key rotations")
    assert "server.pub" in cli("keys", "rotate", "--state", "state").out


def test_the_key_is_not_changed_under_a_running_server(cli, state):
    with StateStore(state, exclusive=True):
        one_line(cli("keys", "rotate", "--state", "state"), "process id", "stop it first")


@pytest.mark.parametrize("target", ["copy", "copy.tar"])
def test_a_backup_is_restored_and_verifies(cli, state, target, tmp_path):
    with StateStore(state, exclusive=True):
        assert cli("backup", "--state", "state", "--out", target).status == 0
    one_line(cli("backup", "--state", "state", "--out", target), "exists")
    assert cli("restore", target, "--state", "again").status == 0
    assert cli("ledger", "verify", "--state", "again", "--key", "known.pub").status == 0
    assert "restored" in cli("ledger", "show", "--state", "again").out
    assert uuid(1) in cli("requests", "--state", "again").out
    one_line(cli("restore", target, "--state", "again"), "not empty")


def test_a_backup_without_the_private_key_needs_it_to_be_restored(cli, state):
    ran = cli("backup", "--state", "state", "--out", "copy", "--no-keys")
    assert "without the private key" in ran.out
    one_line(cli("restore", "copy", "--state", "again"), "no private key")
    assert cli("restore", "copy", "--state", "again", "--keys", "state/keys").status == 0
    one_line(cli("restore", "proof", "--state", "third"), "proof")
