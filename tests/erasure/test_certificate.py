"""A certificate says what was done, and any change to it, or lie in it, is found."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import asdict, dataclass
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flwr_afuic.erasure.certificate import (
    build_certificate,
    problems_of,
    reissue,
    render_certificate,
    to_bytes,
    verify_certificate,
)
from flwr_afuic.erasure.certificate.checks import FIELDS
from flwr_afuic.erasure.certificate.plain import iso_utc, plain
from flwr_afuic.erasure.keys import KeyRing, key_id, verify
from flwr_afuic.errors import ErasureError
from flwr_afuic.unlearning.level import ForgetScore
from flwr_afuic.wire import Evidence
from tests.erasure.certificates import START, Signer, document, signed, values

SIGNER = Signer()


def check(data: bytes, signature: str | bytes, signer: Signer = SIGNER):
    return verify_certificate(data, signature, signer.public_hex)


def problems_when(change, signer: Signer = SIGNER) -> list[str]:
    """Change a sound document, sign it anew, and return what is found."""
    content = document()
    change(content)
    data = to_bytes(content)
    verdict = check(data, signer.sign(data))
    assert verdict.valid == (not verdict.problems)
    return verdict.problems


# ---- a sound certificate ----------------------------------------------------------------


def test_a_sound_certificate_is_valid_and_read():
    data, signature = signed()
    verdict = check(data, signature)
    assert (verdict.valid, verdict.problems) == (True, [])
    assert verdict.document == json.loads(data) == document()
    assert check(data, signature.encode() + b"\n").valid
    assert data.endswith(b"}\n")


def test_equal_values_give_equal_bytes_in_whatever_order_they_come():
    turned = {
        key: dict(reversed(value.items())) if isinstance(value, dict) else value
        for key, value in reversed(values().items())
    }
    data = to_bytes(build_certificate(**turned))
    assert data == to_bytes(document())
    assert to_bytes(json.loads(data)) == data


def test_it_says_what_it_must():
    content = document()
    assert content["outcome"] == "completed"
    assert content["request"]["received_at"] == "2026-05-28T20:26:40.000Z"
    assert content["request"]["filed_at"] == "2026-05-28T20:26:27.500Z"
    assert content["verification"]["rests_on_the_sites_word"] is True
    assert content["verification"]["level"] == {
        "of": "reference",
        "loss_at_least": pytest.approx(0.8 * 1.276),
        "accuracy_at_most": pytest.approx(0.442 + 0.05),
    }
    assert content["guarantee"]["kind"] == "empirical"
    assert "had been trained on the data to be erased" in content["guarantee"]["text"]
    kept = " ".join(entry["what"] for entry in content["not_purged"])
    for words in ("model version 41", "SuperLink", "Ray", "copies of earlier models at the sites",
                  "released", "backups", "storage media"):  # fmt: skip
        assert words in kept
    assert [entry["bytes"] for entry in content["purged"]] == [1_734_112] * 2
    assert content["privacy"]["applied"] == {"clip": 1.0, "noise": 0.01}
    assert "privacy" not in content["evidence"]


def test_without_proxies_it_says_what_that_means():
    evidence = {**values()["evidence"], "reference": None}
    scores = [{**score, "accuracy": 0.9} for score in values()["scores"]]
    content = document(proxies=None, evidence=evidence, scores=scores)
    assert content["proxies"]["used"] is False
    assert "prediction invariance was off" in content["proxies"]["text"]
    assert content["verification"]["level"]["of"] == "hold-out"
    assert "held out" in content["guarantee"]["text"]
    assert "reference" not in content["guarantee"]["text"]


def test_an_operators_request_has_no_count_and_no_evidence_is_no_error():
    request = {**values()["request"], "scope": "client", "filed_by": "operator", "commitment": ""}
    steps = values()["history"]
    history = [steps[0], steps[3], {**steps[5], "state": "completed-unverified"}]
    history.insert(2, steps[4])
    content = document(
        request=request, history=history, evidence=None, scores=(), verified_rounds=0,
        verdict="", method="medu",
    )  # fmt: skip
    assert content["request"]["count"] is None
    assert content["verification"]["level"] is None
    assert "history of updates" in content["guarantee"]["text"]


def test_evidence_and_scores_of_the_wire_are_taken_as_they_are():
    before = ForgetScore(0.1, 0.9, 10)
    evidence = Evidence(before, ForgetScore(float("inf"), 0.0, 10), ForgetScore(1.0, 0.4, 10),
                        None, 3, "level reached", 0.5)  # fmt: skip
    scores = [{"version": 44, **asdict(ForgetScore(float("inf"), 0.1, 10))}] * 5
    content = document(evidence=asdict(evidence), scores=scores)
    assert content["evidence"]["after"]["loss"] == "infinite"
    assert [score["met"] for score in content["verification"]["scores"]] == [True] * 5
    assert json.loads(to_bytes(content)) == content
    assert "infinite" in render_certificate(content)


@dataclass
class _Settings:
    steps: int
    rate: np.float32


def test_settings_may_be_of_many_types_and_not_of_any():
    made = plain(
        {"z": _Settings(np.int64(3), np.float32(0.5)), "a": (None, float("nan"), "\ud800")}
    )
    assert made == {"a": [None, "not a number", "?"], "z": {"rate": 0.5, "steps": 3}}
    assert list(made) == ["a", "z"]
    with pytest.raises(ErasureError, match=r"settings.x\[1\] is of type bytes"):
        plain({"x": [1, b"weights"]}, "settings")


@pytest.mark.parametrize("moment", [1e12, float("nan"), float("inf"), -1e12, None])
def test_a_sites_impossible_clock_is_no_obstacle(moment):
    content = document(request={**values()["request"], "filed_at": moment})
    assert content["request"]["filed_at"] is None
    assert "Filed not known" in render_certificate(content)
    with pytest.raises(ErasureError, match="no time"):
        iso_utc(moment)


def test_a_clock_that_was_set_back_is_said_and_no_lie():
    content = document(merged_at=START - 3600)
    assert content["request"]["clock_set_back"] is True
    assert "clock was set back" in render_certificate(content)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"history": []}, "outcome is None"),
        ({"verified_rounds": 4}, "4 of 5 rounds were verified"),
        ({"merge": (36, "c" * 64)}, "not above the base version"),
        ({"base": (36, "nothing")}, "model.base.fingerprint is 'nothing'"),
        ({"request": {"site": "s"}}, "request.scope is None"),
        ({"purged": [{"file": "w", "at": START}]}, r"purged\[0\].bytes is None"),
        ({"federation": "f"}, "federation is 'f'; it must be a UUID"),
        (
            {"guarantee": {"kind": "formal", "text": "certified", "details": {}}},
            "details are empty",
        ),
    ],
)
def test_what_could_not_be_verified_is_not_certified(change, words):
    with pytest.raises(ErasureError, match=words):
        document(**change)


# ---- changed bytes ----------------------------------------------------------------------


def test_any_changed_byte_of_the_document_is_found():
    data, signature = signed()
    kept = bytearray(data)
    for place in range(len(data)):
        for mask in (0x20, 0xFF):
            kept[place] ^= mask
            assert not verify(SIGNER.public_hex, bytes(kept), signature), (place, mask)
            kept[place] ^= mask
        kept[place] ^= 1 << place % 8
        verdict = check(bytes(kept), signature)
        assert not verdict.valid, place
        assert any("does not match these bytes" in line for line in verdict.problems)
        kept[place] ^= 1 << place % 8
    assert check(bytes(kept), signature).valid


def test_any_changed_byte_of_the_signature_is_found():
    data, signature = signed()
    written = bytearray(f"{signature}\n".encode())
    for place in range(len(written)):
        for bit in range(8):
            written[place] ^= 1 << bit
            assert not check(data, bytes(written)).valid, (place, bit)
            written[place] ^= 1 << bit
    assert check(data, bytes(written)).valid


def test_anything_cut_off_or_added_is_found():
    data, signature = signed()
    for other in (data[:-1], data + b"\n", b"\xef\xbb\xbf" + data, data.replace(b"\n", b"\r\n")):
        assert not check(other, signature).valid
    for other in (signature[:-1], signature + "0", signature + "\n\n", " " + signature, "",
                  "0x" + signature, signature.upper(), signature + "\r\n"):  # fmt: skip
        (problem,) = check(data, other).problems
        assert problem.startswith("the signature is malformed: it")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s[:100], "it has 100 characters; it must have 128"),
        (lambda s: "A" + s[1:], "character 1, 'A', is an uppercase letter"),
        (lambda s: s[:-1] + "g", "character 128, 'g', is no hexadecimal digit"),
        (lambda s: s[:9] + "\u0661" + s[10:], "character 10"),
    ],
)
def test_a_malformed_signature_is_described(change, words):
    data, signature = signed()
    (problem,) = check(data, change(signature)).problems
    assert words in problem


# ---- keys -------------------------------------------------------------------------------


def test_another_key_is_named():
    data, signature = signed()
    other = Signer(2)
    verdict = check(data, signature, other)
    assert (
        f"names the key {SIGNER.key_id} as its signer, but the key given is {other.key_id}"
        in (verdict.problems[0])
    )
    assert "does not match these bytes" in verdict.problems[1]
    assert verdict.document is not None


def test_a_signer_who_names_another_key_is_found():
    content = document(signed_by=Signer(2).key_id)
    data = to_bytes(content)
    (problem,) = check(data, SIGNER.sign(data)).problems
    assert f"names the key {Signer(2).key_id}" in problem


@pytest.mark.parametrize("key", ["", "0" * 63, "G" * 64, "A" * 64])
def test_a_malformed_key_is_a_problem_and_no_error(key):
    (problem,) = verify_certificate(*signed(), key).problems
    assert "public key is not 64" in problem


def test_a_rotated_key_is_trusted_through_the_old_ones_word_only(tmp_path):
    ring = KeyRing(tmp_path)
    first = ring.public_hex
    ring.rotate()
    ring.rotate()
    rotations = ring.rotations
    data = to_bytes(document(signed_by=ring.key_id))
    signature = ring.sign(data)
    assert verify_certificate(data, signature, first, rotations=rotations).valid
    for partial in ([], rotations[:1], rotations[1:]):
        verdict = verify_certificate(data, signature, first, rotations=partial)
        assert f"names the key {ring.key_id}" in verdict.problems[0]
    # A new key vouches for no older one: whoever has an old key could sign anything with it.
    data = to_bytes(document(signed_by=key_id(first)))
    assert not verify_certificate(data, signature, ring.public_hex, rotations=rotations).valid


# ---- content ----------------------------------------------------------------------------


def paths(shape, path=()):
    for name, inner in shape.items():
        yield (*path, name)
        if isinstance(inner, dict):
            yield from paths(inner, (*path, name))


@pytest.mark.parametrize("path", list(paths(FIELDS)), ids=".".join)
def test_every_field_is_required_and_typed(path):
    def parent(content):
        for name in path[:-1]:
            content = content[name]
        return content

    missing = problems_when(lambda content: parent(content).pop(path[-1]))
    if path in [("format",), ("version",)]:
        assert "None" in missing[0]
    else:
        assert missing == [f"{'.'.join(path)} is missing"]
    assert any(
        problems_when(lambda content, wrong=wrong: parent(content).update({path[-1]: wrong}))
        for wrong in (["x"], 1.5, {"x": 1})
    )


def test_an_unknown_field_is_found():
    assert problems_when(lambda c: c["model"].update(other=1)) == [
        "model.'other' is no field of this format"
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(format="x509"), "the format is 'x509'; this is no flwr-afuic"),
        (lambda c: c.update(version=2), "version is 2; this program reads version 1"),
        (lambda c: c.update(version=True), "version is True"),
        (lambda c: c["model"]["merge"].update(version=36), "not above the base version 36"),
        (lambda c: c["model"]["merge"].update(version=12), "not above the base version 36"),
        (lambda c: c["verification"].update(rounds=3), "3 of 5 rounds were verified"),
        (lambda c: c["verification"].update(rounds=6), "5 scores since the merge"),
        (lambda c: c["verification"].update(scores=[]), "0 scores since the merge"),
        (lambda c: c["verification"]["scores"][2].update(version=40), "4 scores since the merge"),
        (lambda c: c["verification"]["scores"][2].update(loss=0.2), r"scores[2].met is True"),
        (lambda c: c["verification"]["scores"][2].update(accuracy=0.6), r"scores[2].met is True"),
        (lambda c: c["verification"].update(level=None), "no forget level to verify against"),
        (lambda c: c["verification"].update(rests_on_the_sites_word=False), "it must be true"),
        (lambda c: c.update(evidence=None), "the evidence holds no such score"),
        (lambda c: c["evidence"].update(reference=None), "the evidence holds no such score"),
        (lambda c: c.update(outcome="completed-unverified"), "ends with 'completed'"),
        (lambda c: c.update(outcome="failed"), "outcome is 'failed'; it must be completed or"),
        (lambda c: c["history"].pop(0), "begins with 'dispatched'"),
        (lambda c: c["history"].pop(3), "holds no merge"),
        (lambda c: c["history"][2].update(version=50), "versions in the history go back"),
        (lambda c: c["request"].update(received_at="2027-01-01T00:00:00Z"), "in this order"),
        (lambda c: c["request"].update(clock_set_back=True), "the times of the request are in"),
        (lambda c: c["request"].update(count=None), "must say how many samples"),
        (lambda c: c["request"].update(count=True), "whole number of at least 1"),
        (lambda c: c["request"].update(filed_by="operator"), "for all of a site's data only"),
        (lambda c: c["calibration"]["lock"].update(kept=False), "the lock must have a digest"),
        (lambda c: c["calibration"]["lock"].update(digest=None), "the lock must have a digest"),
        (lambda c: c["guarantee"].update(kind="formal"), "its details are empty"),
        (lambda c: c.update(not_purged=[]), "not_purged holds 0 entries"),
        (lambda c: c.update(metrics={"figures": {"a": "b"}, "made_with": {}}), "figure 'a' is 'b'"),
        (lambda c: c["evidence"]["after"].update(loss=-1), "evidence.after.loss is -1"),
        (lambda c: c["evidence"]["after"].update(accuracy=1.2), "a number from 0 to 1"),
        (lambda c: c["evidence"].update(steps=10**400), ""),
        (lambda c: c["evidence"].update(delta_norm=10**400), "delta_norm is"),
    ],
)  # fmt: skip
def test_a_contradiction_is_found_though_well_signed(change, words):
    found = problems_when(change)
    if words:
        assert any(words in problem for problem in found), found
        assert not any("signature" in problem for problem in found)


def test_an_erasure_that_was_verified_is_not_called_unverified():
    steps = values()["history"]
    history = [*steps[:-1], {**steps[-1], "state": "completed-unverified"}]
    with pytest.raises(ErasureError, match="but all 5 rounds were verified"):
        document(history=history)


def test_problems_are_listed_together_and_not_without_end():
    found = problems_when(lambda c: [c["request"].pop("site"), c["model"].pop("merge")])
    assert found == ["request.site is missing", "model.merge is missing"]
    found = problems_when(lambda c: c.update(history=[{}] * 1000))
    assert len(found) == 21
    assert found[-1] == "and 5980 more"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no text in UTF-8"),
        (b'{"format": "\\ud800"}', "no text in UTF-8"),
        (b"[]", "a JSON list; it must be an object"),
        (b"null", "a JSON NoneType"),
        (b'{"format": NaN}', "NaN is no JSON number"),
        (b'{"version": 1, "version": 1}', "'version' occurs twice"),
        (b'{"a":' * 100_000, "no JSON"),
        (b"9" * 10_000, "no JSON"),
    ],
)
def test_what_is_no_document_is_said(data, words):
    verdict = check(data, SIGNER.sign(data))
    (problem,) = verdict.problems
    assert words in problem
    assert verdict.document is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_a_document_holds_is_judged_and_never_an_error(data):
    content = copy.deepcopy(document())
    for _ in range(data.draw(st.integers(1, 3))):
        at = content
        while True:
            key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
            if isinstance(at[key], dict | list) and at[key] and data.draw(st.booleans()):
                at = at[key]
            else:
                at[key] = data.draw(JSON)
                break
    problems = problems_of(content)
    assert all(isinstance(line, str) and "\n" not in line for line in problems)
    if problems:
        with pytest.raises(ErasureError):
            render_certificate(content)
    else:
        assert render_certificate(content)


# ---- issued anew ------------------------------------------------------------------------


def test_metrics_measured_later_make_a_new_issue_of_the_same_erasure():
    metrics = {"figures": {"phantoms/afuic/average_gap": 0.0211, "b": None}, "made_with": {"n": 1}}
    first = document()
    again = reissue(first, issue=2, ledger=(230, "f" * 64), signed_by=Signer(2).key_id,
                    metrics=metrics, issued_at=START + 9000)  # fmt: skip
    changed = {key for key in first if first[key] != again[key]}
    assert changed == {"issue", "issued_at", "metrics", "ledger", "signed_by"}
    data = to_bytes(again)
    assert check(data, Signer(2).sign(data), Signer(2)).valid
    page = render_certificate(again)
    assert "phantoms/afuic/average_gap" in page
    assert "0.0211" in page
    assert "not measured" in page
    assert "in place of earlier issues" in page
    assert "No model was retrained" not in page
    with pytest.raises(ErasureError, match="does not come after issue 1"):
        reissue(first, issue=1, ledger=(230, "f" * 64), signed_by="0" * 16, metrics=metrics)


# ---- the page ---------------------------------------------------------------------------


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
