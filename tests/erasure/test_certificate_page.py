"""The certificate's page: plain words, nothing loaded, and what is not proved."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib import resources

from flwr_afuic.erasure.certificate import render_certificate
from tests.erasure.certificates import Signer, document, values

SIGNER = Signer()


class Page(HTMLParser):
    """Tags, what they load, and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(source)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action")]

    def handle_data(self, data):
        self.text += data


def test_the_page_says_what_was_done_and_what_is_not_proved():
    page = Page(render_certificate(document()))
    for words in (
        "The erasure for hospital-berg was carried out in the shared model and verified in 5",
        "part of its data (120 samples)",
        "2026-05-28 20:26:40 UTC",
        "What this does not prove",
        "Empirical evidence, not a guarantee",
        "the verification rests on the site's word",
        "No model was retrained without the data",
        "What could not be deleted",
        "model version 41",
        "2 files, 3.5 MB",
        "99.2 % as labelled before, and 45.0 % after",
        "unlearning.objective",
        "flwr-afuic verify 0b6e7a3c-0000-4000-8000-000000000001-1.json --key server.pub",
        SIGNER.key_id,
    ):
        assert words in page.text, words


def test_what_files_were_kept_for_is_said_in_words():
    own, other = values()["request"]["request_id"], "0b6e7a3c-0000-4000-8000-000000000009"
    what = f"snapshot/{own}/2, version/15, delta/{own}/2, snapshot/{other}/1 (no longer needed)"
    entry = {**values()["purged"][0], "what": what}
    text = Page(render_certificate(document(purged=[entry]))).text
    assert (
        "model that this request began with, model version 15, change sent for this request, "
        f"model that request {other} began with (no longer needed)weights/bbbbbbbbbbbb…1.7 MB"
    ) in text


def test_an_unverified_erasure_is_not_sold_as_verified():
    steps = values()["history"]
    history = [*steps[:-1], {**steps[-1], "state": "completed-unverified"}]
    content = document(history=history, verified_rounds=2, scores=values()["scores"][:2])
    source = render_certificate(content)
    assert "but it is not verified: 2 of 5 rounds" in source
    assert 'class="verdict warn"' in source
    assert 'class="verdict good"' not in source


def test_the_page_loads_nothing_and_runs_nothing():
    source = render_certificate(document())
    page = Page(source)
    assert page.links == []
    assert not re.search(r"url\(|@import|://", source)
    assert {"script", "link", "iframe", "img"}.isdisjoint(page.tags)


def test_what_sites_wrote_is_text_and_never_markup():
    evil = "<script>alert(1)</script>\x1b[2J"
    given = values()
    source = render_certificate(
        document(
            request={**given["request"], "site": evil, "reason": evil},
            evidence={**given["evidence"], "stop_reason": evil, "privacy": {evil: evil}},
            history=[{**step, "text": evil} for step in given["history"]],
            purged=[{**entry, "file": evil, "what": evil} for entry in given["purged"]],
            verdict=evil, method=evil, settings={evil: evil}, proxies=evil, software={evil: [evil]},
        )
    )  # fmt: skip
    assert "<script" not in source
    assert "\x1b" not in source
    assert source.count("&lt;script&gt;") > 10


def test_the_template_travels_with_the_package():
    assert resources.files("flwr_afuic.erasure.certificate").joinpath("certificate.html").is_file()
