"""The operator's view in a terminal, and for a program."""

from __future__ import annotations

import json
import re

import pytest
from rich.cells import cell_len

from flwr_afuic.report.state_json import state_json
from flwr_afuic.report.state_text import state_text
from flwr_afuic.report.state_view import read_report
from flwr_afuic.state.rows import RequestRow
from flwr_afuic.state.store import StateStore
from tests.report.states import START, uid
from tests.report.test_state_page import hostile

LATER = START + 9000.0


def as_at_80_columns(busy):
    return state_text(read_report(busy, now=LATER), 80)


def test_the_first_lines_say_what_matters(busy):
    lines = as_at_80_columns(busy).splitlines()
    assert lines[0].startswith("[Needs attention] The erasure of all data at northfield is held")
    assert "2026-06-19 14:30:00 UTC, no server running" in lines
    assert "To look at" in lines
    assert f"     flwr-afuic release {uid(2)} --state {busy}" in lines


def test_requests_open_ones_first_with_what_tells_most(busy):
    text = as_at_80_columns(busy)
    part = text[text.index("Erasure requests") : text.index("\nSites\n")]
    heads = [line.split()[:2] for line in part.splitlines()[3:] if not line.startswith("    ")]
    short = {n: uid(n)[:8] for n in range(1, 6)}
    assert [short[2], "Held"] == heads[0]
    assert [short[5], "Refused"] in heads
    assert heads[-1] == [short[1], "Completed"]
    assert "    it expired: it was filed" in part
    assert "days ago; file it anew" in part
    assert "level met at version" in part


def test_sites_proof_and_disk(busy):
    text = as_at_80_columns(busy)
    assert "    out: its erasure is held" in text
    assert "the ledger verifies:" in text
    assert re.search(r"certificates: 3 issued; files deleted for erasures: [1-9]", text)
    joined = " ".join(text.split())
    assert re.search(r"harbour, version \d+: update of harbour: 'w' holds NaN or infinity", joined)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_nothing_is_wider_than_the_terminal_but_what_is_copied(busy, large, width):
    for folder in (busy, large):
        for line in state_text(read_report(folder), width).splitlines():
            words = line.split()
            whole = line.startswith("     flwr-afuic ") or len(words) == 1
            assert whole or cell_len(line) <= max(width, 82), line


def test_full_ids_where_there_is_room(busy):
    report = read_report(busy, now=LATER)
    assert f"  {uid(5)}  Refused" in state_text(report, 120)
    assert "2 h " in state_text(report, 120)


def test_the_terminal_is_not_moved_by_what_sites_wrote(tmp_path):
    hostile(tmp_path)
    text = state_text(read_report(tmp_path), 100)
    assert all(c.isprintable() or c == "\n" for c in text)


def test_wide_letters_keep_the_columns(tmp_path):
    with StateStore(tmp_path) as store, store.transaction() as tx:
        for number, site in enumerate(("東京病院", "a")):
            tx.put_request(
                RequestRow(uid(number), site, "client", "received", 1, "other", START, {})
            )
    text = state_text(read_report(tmp_path), 80)
    ends = [cell_len(line[: line.index("all data")]) for line in text.splitlines()
            if "all data" in line and "Received" in line]  # fmt: skip
    assert ends[0] == ends[1]


def test_an_empty_directory(tmp_path):
    StateStore(tmp_path).close()
    text = state_text(read_report(tmp_path), 80)
    assert text.startswith("[Not begun] No run has begun")
    assert "the ledger is empty" in text
    assert "Erasure requests" not in text


def test_without_a_width_it_is_the_terminals(busy, monkeypatch):
    monkeypatch.setenv("COLUMNS", "64")
    text = state_text(read_report(busy))
    assert max(len(line) for line in text.splitlines() if not line.startswith("     ")) <= 82


def test_json_holds_the_same(busy):
    told = json.loads(json.dumps(state_json(read_report(busy, now=LATER)), allow_nan=False))
    assert told["headline"]["tone"] == "warn"
    assert told["version"] > 40
    assert {r["state"] for r in told["requests"]} == {
        "completed", "held", "failed", "cancelled", "refused", "waiting",
    }  # fmt: skip
    lakeside = told["requests"][2]
    assert lakeside["level"] == {
        "of": "hold-out", "loss_at_least": 0.8, "accuracy_at_most": 0.55, "score_name": "accuracy",
    }  # fmt: skip
    assert [score["met"] for score in lakeside["scores"]][:4] == [False, True, True, False]
    assert told["ledger"]["problems"] == []
    assert [c["problems"] for c in told["certificates"]] == [[], [], []]
    assert told["staleness"]["dropped"]
    assert {site["name"] for site in told["sites"]} >= {"hill", "st-anna"}
