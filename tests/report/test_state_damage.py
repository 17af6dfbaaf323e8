"""A damaged state directory is shown as far as it can be, with what is wrong at the top."""

from __future__ import annotations

import json
import shutil
import sqlite3

import pytest

from flwr_afuic.errors import StateError
from flwr_afuic.report.state_attention import headline, notices
from flwr_afuic.report.state_json import state_json
from flwr_afuic.report.state_page import render_state
from flwr_afuic.report.state_text import state_text
from flwr_afuic.report.state_view import read_report
from tests.report.states import uid


@pytest.fixture
def copy(busy, tmp_path):
    return shutil.copytree(busy, tmp_path / "state")


def edit(folder, statement, *values):
    """Change the database behind its back, the ledger included."""
    with sqlite3.connect(folder / "state.sqlite") as connection:
        connection.execute("DROP TRIGGER ledger_keeps_its_rows")
        connection.execute("DROP TRIGGER ledger_loses_no_row")
        assert connection.execute(statement, values).rowcount
    connection.close()


def shown(folder):
    """Make the whole report in each form; return what it says first, and everything."""
    report = read_report(folder)
    text = state_text(report, 100)
    render_state(report)
    json.dumps(state_json(report), allow_nan=False)
    return report, headline(report), text


def test_a_changed_row_of_the_ledger(copy):
    edit(
        copy, "UPDATE ledger SET body = replace(body, '\"round\":3', '\"round\":4') WHERE seq = 12"
    )
    report, first, text = shown(copy)
    assert (first.tone, first.text[:26]) == ("bad", "The ledger does not verify")
    assert "row 12 (" in report.survey.ledger[0]
    assert "does NOT verify" in text
    assert len(report.requests) == 7  # and the rest is shown


def test_a_cut_tail(copy):
    edit(copy, "DELETE FROM ledger WHERE seq > 40")
    assert "its tail was cut" in shown(copy)[2].replace("\n", " ").replace("  ", "")


def test_a_certificate_with_one_other_byte(copy):
    path = copy / "certificates" / f"{uid(3)}-2.json"
    path.write_bytes(path.read_bytes().replace(b'"samples"', b'"Samples"', 1))
    report, first, _ = shown(copy)
    assert first.text.startswith("A certificate does not verify")
    assert [bool(c.problems) for c in report.certificates] == [False, False, True]
    assert "✗ issue 2" in render_state(report)


def test_a_certificate_that_is_gone(copy):
    (copy / "certificates" / f"{uid(1)}-1.json").unlink()
    assert "cannot be read" in notices(shown(copy)[0])[0].text


def test_a_forged_certificate_with_its_sum_forged_too(copy):
    import hashlib

    path = copy / "certificates" / f"{uid(1)}-1.json"
    path.write_bytes(path.read_bytes().replace(b'"accuracy": 0.4', b'"accuracy": 0.3'))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit(copy, "UPDATE certificate SET sha256 = ? WHERE request_id = ?", digest, uid(1))
    problems = shown(copy)[0].certificates[0].problems
    assert problems[0] == "it is not the one in the ledger"
    assert any("signature does not match" in problem for problem in problems)


@pytest.mark.parametrize("body", ["no json", "[]", '{"state": "held"}', "{}", "null"])
def test_one_damaged_request_hides_no_other(copy, body):
    edit(copy, "UPDATE request SET body = ? WHERE id = ?", body, uid(2))
    report, first, text = shown(copy)
    assert first.tone == "bad"
    assert uid(2) in text
    others = {r.standing.id: r.state for r in report.requests if r.standing.id != uid(2)}
    assert len(others) == 6
    assert others[uid(3)] == "completed"


def test_missing_weights(copy):
    for path in (copy / "weights").iterdir():
        path.unlink()
    report, first, _ = shown(copy)
    assert first.text.startswith("The files of weights are not those on record")
    assert "is kept for" in report.survey.weights[0]


def test_weights_that_were_to_be_deleted(copy):
    digest = next(row.digest for row in read_report(copy).erased)
    (copy / "weights" / f"{digest}.safetensors").write_bytes(b"x")
    assert shown(copy)[0].survey.weights == [
        f"weights/{digest[:16]}...safetensors was recorded as deleted and is there"
    ]


def test_no_keys(copy):
    shutil.rmtree(copy / "keys")
    report, first, _ = shown(copy)
    assert first.tone == "bad"
    assert report.key == ""
    assert "no public key" in report.survey.ledger[0]


def test_a_table_that_is_gone(copy):
    with sqlite3.connect(copy / "state.sqlite") as connection:
        connection.execute("DROP TABLE site_update")
    connection.close()
    report, first, _ = shown(copy)
    assert report.survey.unreadable == [
        "the list of updates cannot be read: no such table: site_update"
    ]
    assert first.text.startswith("A part of the state directory cannot be read")


def test_a_page_of_the_database_overwritten(copy):
    path = copy / "state.sqlite"
    data = bytearray(path.read_bytes())
    for at in range(4096 * 2, len(data) - 4096, 4096 * 3):
        data[at : at + 2000] = b"\xff" * 2000
    path.write_bytes(bytes(data))
    report, first, _ = shown(copy)
    assert first.tone == "bad"
    assert report.survey.unreadable


def test_a_file_that_is_no_database(copy):
    (copy / "state.sqlite").write_bytes(b"\x00" * 50_000)
    report, first, text = shown(copy)
    assert first.text.startswith("A part of the state directory cannot be read")
    assert "restore" in text
    assert report.version is None
    assert report.view.weights  # files are counted all the same


def test_a_newer_program_wrote_it(copy):
    with sqlite3.connect(copy / "state.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StateError, match="update flwr-afuic"):
        read_report(copy)


def test_wild_values_in_the_tables(copy):
    edit(copy, "UPDATE version SET wall = 1e300, time = -1 WHERE number % 7 = 3")
    edit_more = sqlite3.connect(copy / "state.sqlite")
    edit_more.execute("UPDATE site_update SET wall = -1e18, staleness = 123456789 WHERE number = 5")
    edit_more.execute("UPDATE site_update SET examples = -5 WHERE number = 6")
    edit_more.execute("UPDATE event SET wall = 9e307")
    edit_more.execute("UPDATE certificate SET wall = -9e307")
    edit_more.execute("UPDATE command SET filed_at = 1e308, done_at = -1")
    edit_more.commit()
    edit_more.close()
    shown(copy)
