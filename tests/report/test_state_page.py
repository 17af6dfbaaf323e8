"""The page of the operator's view: it stands alone, escapes what sites wrote, and stays legible."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser

import pytest

from flwr_afuic.errors import ConfigError
from flwr_afuic.report.state_page import render_state, write_state_page
from flwr_afuic.report.state_view import read_report
from flwr_afuic.report.svg import Svg, ticks
from flwr_afuic.report.times import age, minute, moment, moment_of
from flwr_afuic.state.rows import RequestRow
from flwr_afuic.state.store import StateStore
from tests.report.states import START, uid

LATER = START + 9000.0
EVIL = '"><script>alert(1)</script>&\x1b[2J\u202e'


class Page(HTMLParser):
    """Tags, whether they nest, what they load, and the text."""

    VOID = frozenset({"meta", "br", "img"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key in ("src", "href", "srcset", "action"):
                self.links.append(value or "")
            if key == "id":
                self.ids.append(value or "")
            if key.startswith("on"):
                self.wrong.append(key)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}>")

    def handle_data(self, data):
        self.text += "" if "style" in self.open else data


@pytest.fixture(scope="module")
def source(busy):
    return render_state(read_report(busy, now=LATER))


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_everything_asked_for_is_there(page):
    for words in (
        "2026-06-19 14:30:00 UTC · no server runs on it",
        "is held and waits for you", f"flwr-afuic release {uid(2)}",
        "Held", "Completed", "Failed", "Cancelled", "Refused", "Waiting",
        "it expired: it was filed", "not met after 3 attempts",
        "loss at least 0.800, accuracy at most 0.550", "4 of 6 scores met it",
        "update of harbour: 'w' holds NaN or infinity",
        "rows, each chained to the one before, under a signed head", "✓ verifies",
        f"{uid(3)}-2.json", "models of version", "were deleted in the ordinary course",
        "waits for a server", "asked for on paper", "a server went on", "Free on that disk",
        "verification rests on their word", "out: its erasure is held",
    ):  # fmt: skip
        assert words in page.text, words


def test_the_page_is_well_formed_and_loads_nothing(source, page):
    assert page.wrong == []
    assert page.open == []
    assert {"script", "link", "iframe", "img", "object"}.isdisjoint(page.tags)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", source)
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_requests_that_ask_for_somebody_are_unfolded(source):
    unfolded = re.findall(
        r'<details id="r-\d+" open>\n<summary><span class="mark \w+">(\w+)', source
    )
    assert unfolded == ["Held", "Waiting", "Failed"]


def test_the_curves_are_drawn(source):
    figures = re.findall(r'<svg[^>]*aria-label="([^"]*)".*?</svg>', source)
    assert sum("accuracy on the erased data" in label for label in figures) == 4
    assert sum("loss on the erased data" in label for label in figures) == 4
    lakeside = next(
        figure for figure in re.findall(r"<svg.*?</svg>", source)
        if "lakeside: accuracy" in figure
    )  # fmt: skip
    assert lakeside.count('class="point"') == 4
    assert lakeside.count('class="point missed"') == 2
    assert lakeside.count('class="mark"') == 3  # three merges
    assert "level: at most 0.55" in lakeside


def test_merged_erasures_are_marked_among_the_versions(source):
    versions = next(f for f in re.findall(r"<svg.*?</svg>", source) if "Model versions" in f)
    assert versions.count('class="spot"') == 7 + 1  # and one in the legend
    assert versions.count('class="mark"') == 1 + 1
    assert "erasure of lakeside" in versions


def test_what_sites_wrote_is_text_and_never_markup(tmp_path):
    hostile(tmp_path)
    source = render_state(read_report(tmp_path))
    page = Page(source)
    assert page.wrong == []
    assert "script" not in page.tags
    assert "<script" not in source
    assert "\x1b" not in source
    assert "\u202e" not in source
    assert page.text.count("alert(1)") > 5


def hostile(folder):
    """A directory in which every text that can come from outside is hostile."""
    with StateStore(folder) as store:
        digest = store.vault.put({})
        with store.transaction() as tx:
            for number in range(3):
                cause = "erasure" if number == 2 else "merge"
                tx.put_version(number, number, 1.0, START + number, cause, [EVIL], digest)
            tx.hold("version", "2", digest)
            tx.hold(EVIL, EVIL, digest)
            tx.append("refused", {"site": EVIL, "request": EVIL, "why": EVIL})
            tx.append("ledger-alarm", {"site": EVIL, "problem": EVIL})
            tx.append("key-rotated", {"old": EVIL, "new": EVIL})
            update = {
                "time": 1.0, "wall": START, "round": 0, "version": 1, "site": EVIL,
                "base_version": 0, "staleness": 1, "examples": 3, "fate": "quarantined",
                "reason": EVIL,
            }  # fmt: skip
            tx.log_updates([update] * 3 + [{**update, "fate": "accepted"}])
            event = {"time": 1.0, "wall": START, "round": 0, "version": 1, "site": EVIL}
            tx.log_events([{**event, "kind": "quarantined", "text": EVIL}])
            tx.put_metric(1, EVIL, "accuracy", 0.5)
            history = [{"state": EVIL, "time": 1.0, "at": START, "round": EVIL, "version": EVIL,
                        "text": EVIL}]  # fmt: skip
            for number, state in enumerate(("held", "failed", EVIL)):
                body = {"history": history, "filed_by": EVIL, "attempts": 1}
                tx.put_request(
                    RequestRow(uid(number), EVIL, "samples", state, 2, EVIL, START, body)
                )
        store.command("erase", site=EVIL, reason="other", note=EVIL)


def test_hostile_numbers_in_a_stored_body_are_only_text(tmp_path):
    with StateStore(tmp_path) as store, store.transaction() as tx:
        bodies = (
            {"attempts": EVIL}, {"base_version": EVIL}, {"history": [{"at": EVIL}]},
            {"history": 3}, [], {"history": [1]},
        )  # fmt: skip
        for number, body in enumerate(bodies):
            tx.put_request(
                RequestRow(uid(number), "a", "samples", "merged", 2, "other", START, body)
            )
    page = Page(render_state(read_report(tmp_path)))
    assert page.wrong == []
    assert page.text.count("is damaged") >= 6


def test_thirty_requests_and_five_hundred_versions_stay_quick_and_legible(large, tmp_path):
    started = time.perf_counter()
    report = read_report(large, now=START + 3600 * 505)
    path = write_state_page(report, tmp_path / "out")
    assert time.perf_counter() - started < 10
    assert path.stat().st_size < 1_000_000
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert page.wrong == []
    assert page.tags.count("details") == 30
    assert source.count("<details") - source.count(" open>") >= 26
    assert "and 16 older ones" in page.text
    # No figure draws more than can be told apart.
    assert max(len(figure) for figure in re.findall(r"<svg.*?</svg>", source)) < 30_000


def test_it_is_never_written_into_the_state_directory(busy, tmp_path):
    report = read_report(busy)
    for inside in (busy, busy / "deep" / "er", busy / ".." / busy.name):
        with pytest.raises(ConfigError, match="inside the state directory"):
            write_state_page(report, inside)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="name a folder"):
        write_state_page(report, tmp_path / "file")


def test_an_empty_directory_has_a_page(tmp_path):
    StateStore(tmp_path / "state").close()
    page = Page(render_state(read_report(tmp_path / "state")))
    assert page.wrong == []
    for words in (
        "No run has begun", "No erasure has been asked for", "No version has been merged",
        "No site has been heard of", "Nothing was quarantined", "No certificate",
    ):  # fmt: skip
        assert words in page.text


def test_measured_scores_are_drawn_where_there_are_any(tmp_path, busy):
    assert "What the model scores" not in render_state(read_report(busy))
    with StateStore(tmp_path) as store, store.transaction() as tx:
        for round_ in range(4):
            tx.put_metric(round_, "server-evaluate", "accuracy", 0.5 + 0.1 * round_)
            tx.put_metric(round_, "clients-evaluate", "accuracy", float("nan"))
            tx.put_metric(round_, "server-evaluate", "loss", 1.0)
    source = render_state(read_report(tmp_path))
    assert "What the model scores on data that is kept" in source
    assert "at the server" in source
    assert "at the sites" not in source


def test_figures_escape_their_words():
    svg = Svg(10, 10, EVIL)
    svg.text((1, 1), EVIL)
    svg.dot((1, 1), "spot", EVIL)
    svg.box((0, 0), (1, 1), "bar", EVIL)
    assert "<script" not in svg.render()
    assert Page(svg.render()).wrong == []


@pytest.mark.parametrize(
    ("low", "high", "most", "whole", "expected"),
    [
        (0, 1, 4, False, [0, 0.5, 1]),
        (0, 1, 5, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (3, 7, 6, True, [3, 4, 5, 6, 7]),
        (0, 2, 6, True, [0, 1, 2]),
        (5, 5, 6, True, [5]),
        (0, float("inf"), 6, False, [0]),
    ],
)
def test_ticks(low, high, most, whole, expected):
    assert ticks(low, high, most, whole=whole) == expected


def test_times_for_reading():
    assert moment_of(START) == "2026-06-19 12:00:00 UTC"
    assert minute(START) == "2026-06-19 12:00"
    assert [moment(x) for x in (0, None, 1e300, float("nan"))] == ["not known"] * 4
    found = [age(x) for x in (0, 59, 60, 3599, 86_400 * 12 + 7200, -5, None)]
    assert found == ["0 s", "59 s", "1 min", "59 min", "12 d", "0 s", "not known"]


def test_stored_updates_that_were_deleted_are_listed(tmp_path):
    with StateStore(tmp_path) as store, store.transaction() as tx:
        tx.append("purge-history", {"request": uid(1), "records": 12, "bytes": 4096, "at": START})
        tx.append("purge-history", {"request": EVIL, "records": EVIL, "bytes": None})
    text = Page(render_state(read_report(tmp_path))).text
    assert "12 stored updates of the site" in text
    assert "4.1 kB" in text
