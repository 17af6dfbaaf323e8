"""The page stands alone, escapes what sites wrote, and sells no failure as a success."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from flwr_afuic.errors import ConfigError
from flwr_afuic.report import RunRecord, write_report
from flwr_afuic.report.html import render
from tests.report.sample import sample_record
from tests.report.test_record import MINIMAL


class _Page(HTMLParser):
    """Collects tags, the attributes that load something, and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self._hidden = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._hidden = tag == "style"
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._hidden else data


def _write(raw: dict[str, Any], folder: Path) -> tuple[str, _Page]:
    path = write_report(RunRecord.from_json(raw), folder)
    assert path == folder / "report.html"
    source = path.read_text(encoding="utf-8")
    return source, _Page(source)


def _read(raw: dict[str, Any]) -> tuple[str, _Page]:
    source = render(RunRecord.from_json(raw), {})
    return source, _Page(source)


def test_completed_run_answers_the_four_questions(tmp_path: Path) -> None:
    _, page = _write(sample_record(), tmp_path)
    assert "site-0 was erased from the shared model, and every measured bound holds." in page.text
    for words in (
        "What was asked", "What happened", "Does the measurement say it is gone?",
        "Did it come back?", "Retrained again", "CC BY 4.0", "strategy.max_staleness", "1.42.0",
        "empirical evidence, not a guarantee", "withdrawn-consent", "delta merged into version 41",
        "pneumoniamnist/backdoor/afuic/average_gap", "Test score does not differ",
    ):  # fmt: skip
        assert words in page.text
    assert "What was not met" not in page.text
    assert "Synthetic data" not in page.text
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.html", "backdoor.png", "test_score.png", "timeline.png",
    }  # fmt: skip


def test_page_loads_nothing_from_anywhere(tmp_path: Path) -> None:
    source, page = _write(sample_record(), tmp_path)
    images = [link for link in page.links if link.startswith("data:image/png;base64,")]
    assert len(images) == 3
    assert [link for link in page.links if link not in images] == ["#limits"]
    assert not re.search(r"url\(|@import", source)
    assert {"script", "link", "iframe"}.isdisjoint(page.tags)


def test_what_sites_wrote_is_text_and_never_markup(tmp_path: Path) -> None:
    raw = sample_record()
    evil = "<script>alert(1)</script>"
    raw["sites"][0] = raw["target"] = evil
    raw["spans"] = [{**s, "site": evil} if s["site"] == "site-0" else s for s in raw["spans"]]
    for event in raw["events"]:
        event.update(site=evil, text='"><img src=x onerror=alert(1)>')
    raw["settings"]["note"] = raw["dataset"] = raw["verdicts"][0]["name"] = evil
    source, page = _write(raw, tmp_path)
    assert "<script" not in source
    assert "<img src=x" not in source
    assert page.tags.count("img") == 3
    assert f"{evil} was erased" in page.text


@pytest.mark.parametrize(
    "state",
    ["received", "dispatched", "unlearned", "merged", "verifying", "completed-unverified",
     "not-met", "held", "refused", "failed", "cancelled", "something-new", ""],
)  # fmt: skip
def test_only_a_completed_request_is_called_erased(state: str) -> None:
    raw = sample_record(state=state)
    for verdict in raw["verdicts"]:
        verdict.update(holds=True, value=0.0)
    source, page = _read(raw)
    assert "was erased from the shared model" not in page.text
    assert 'class="verdict good"' not in source
    assert "Yes, as far as it was measured" not in page.text
    assert "No claim is made" in page.text


def test_what_was_not_met_is_shown_with_its_number() -> None:
    _, page = _read(sample_record(state="not-met"))
    assert "did not reach its forget level" in page.text
    assert "forget accuracy, minus retraining: 0.068 (bound within 0.05" in page.text
    assert "forget accuracy 0.921, allowed 0.872" in page.text
    assert "resurfacing, mean: not measured" in page.text


def test_completed_with_a_broken_bound_is_no_success() -> None:
    raw = sample_record()
    raw["verdicts"][3].update(value=0.061, holds=False)
    source, page = _read(raw)
    assert "was completed, but 1 of 6 bounds are not met" in page.text
    assert "resurfacing, max: 0.061 (bound <= 0.04" in page.text
    assert 'class="verdict warn"' in source
    assert "It is not shown that it stayed away" in page.text


def test_a_silent_failure_is_called_one() -> None:
    raw = sample_record()
    raw["summary"]["models"]["afuic"]["backdoor_success"] = 0.2
    source, page = _read(raw)
    assert "its influence is still there" in page.text
    assert "backdoor success is 0.169 above retraining's" in page.text
    assert "It was never gone" in page.text
    assert 'class="verdict bad"' in source


def test_a_run_without_checks_claims_nothing() -> None:
    raw = sample_record()
    raw["verdicts"] = []
    source, page = _read(raw)
    assert "this run checked no bounds" in page.text
    assert 'class="verdict good"' not in source


def test_synthetic_data_wears_a_banner() -> None:
    _, page = _read(MINIMAL)
    assert "Synthetic data: the images of this run were generated" in page.text
    assert "No erasure request is on record" in page.text
    assert "No scores are on record." in page.text


def test_a_probe_that_was_not_planted_is_said_to_be_none() -> None:
    raw = sample_record()
    raw["summary"]["models"]["original"]["backdoor_success"] = 0.31
    assert "never planted firmly" in _read(raw)[1].text


def test_template_travels_with_the_package() -> None:
    assert resources.files("flwr_afuic.report").joinpath("template.html").is_file()


def test_unwritable_place_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ConfigError, match="cannot write the report to"):
        write_report(RunRecord.from_json(MINIMAL), tmp_path)
