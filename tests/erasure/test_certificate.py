"""A certificate says what was done, and cannot be made of values that contradict it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np
import pytest

from flwr_afuic.erasure.certificate import (
    build_certificate,
    reissue,
    render_certificate,
    to_bytes,
    verify_certificate,
)
from flwr_afuic.erasure.certificate.plain import iso_utc, plain
from flwr_afuic.errors import ErasureError
from flwr_afuic.unlearning.level import ForgetScore
from flwr_afuic.wire import Evidence
from tests.erasure.certificates import START, Signer, document, signed, values

SIGNER = Signer()


def check(data: bytes, signature: str | bytes, signer: Signer = SIGNER):
    return verify_certificate(data, signature, signer.public_hex)


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


def test_dice_is_called_dice_and_an_accuracy_accuracy():
    before = ForgetScore(0.03, 0.876, 14, "mean Dice")
    evidence = Evidence(
        before,
        ForgetScore(0.05, 0.841, 14, "mean Dice"),
        ForgetScore(0.05, 0.835, 14, "mean Dice"),
        None,
        60,
        "budget",
        0.5,
    )
    scores = [{"version": 44, **asdict(ForgetScore(0.05, 0.84, 14, "mean Dice"))}] * 5
    content = document(evidence=asdict(evidence), scores=scores)
    assert content["verification"]["score_name"] == "mean Dice"
    assert "name" not in content["evidence"]["before"]
    page = render_certificate(content)
    assert "mean Dice was 0.876 before, and 0.841 after" in page
    assert ">Mean Dice</th>" in page
    assert "mean Dice of at most" in page
    assert "Accuracy" not in page
    other = render_certificate(document())
    assert ">Accuracy</th>" in other
    assert "Dice" not in other


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
