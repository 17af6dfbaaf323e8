"""The wire: what a hostile or broken site may send is refused in one line, never a crash."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flwr_afuic import wire
from flwr_afuic.errors import WireError
from flwr_afuic.unlearning.level import ForgetScore
from flwr_afuic.wire import ErasureNotice, Evidence

SOUND: dict[str, Any] = {
    "request_id": "6f1f0a52-2f6a-4c3e-9b5c-0d2f3a4b5c6d",
    "scope": "samples",
    "count": 3,
    "commitment": "ab" * 32,
    "reason": "consent-withdrawn",
    "filed_at": 1.7e9,
}


def notice(**changes: Any) -> ErasureNotice:
    return ErasureNotice(**(SOUND | changes))


def test_notices_round_trip() -> None:
    notices = [notice(), notice(scope="client", count=1, filed_at=0)]
    assert wire.decode_notices(wire.encode_notices(notices)) == notices
    assert wire.decode_notices("[]") == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"request_id": "1"}, "'1' is not a UUID"),
        ({"request_id": 5}, "is not a UUID"),
        ({"request_id": SOUND["request_id"].upper()}, "is not a UUID in its usual form"),
        ({"request_id": "x" * 10_000}, "is not a UUID"),
        ({"scope": "patient"}, "'client' or 'samples'"),
        ({"scope": ["client"]}, "'client' or 'samples'"),
        ({"count": 0}, "at least one sample"),
        ({"count": -1}, "at least one"),
        ({"count": True}, "at least one"),
        ({"count": 2.0}, "at least one"),
        ({"count": "3"}, "at least one"),
        ({"commitment": 5}, "hex string"),
        ({"commitment": "a" * 129}, "at most 128"),
        ({"reason": "patient Müller asked"}, "travels as a code: consent-withdrawn"),
        ({"reason": None}, "travels as a code"),
        ({"filed_at": "yesterday"}, "seconds since the epoch"),
        ({"filed_at": True}, "seconds since the epoch"),
        ({"filed_at": float("nan")}, "seconds since the epoch"),
        ({"filed_at": float("inf")}, "seconds since the epoch"),
        ({"filed_at": 10**400}, "seconds since the epoch"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_notice_is_checked(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(WireError, match=match) as caught:
        notice(**changes)
    assert len(str(caught.value)) < 400, "one line"


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "null",
        "3",
        "[3]",
        '["a"]',
        "[[]]",
        "[{}]",
        "not json",
        "[" * 5000,
        "[" + "9" * 5000 + "]",
        json.dumps([SOUND | {"patient": "Müller"}]),
        json.dumps([SOUND] * (wire.MAX_PENDING + 1)),
        None,
        b"[]",
        [],
    ],
    ids=lambda value: str(value)[:40],
)
def test_malformed_notices(text: object) -> None:
    with pytest.raises(WireError):
        wire.decode_notices(text)


def test_a_site_may_report_the_most() -> None:
    text = json.dumps([SOUND] * wire.MAX_PENDING)
    assert len(wire.decode_notices(text)) == wire.MAX_PENDING


# ---- evidence -------------------------------------------------------------------------------


def evidence(**changes: Any) -> Evidence:
    score = ForgetScore(0.5, 0.75, 40)
    fields: dict[str, Any] = {
        "before": score,
        "after": ForgetScore(1.5, 0.25, 40),
        "reference": None,
        "holdout": score,
        "steps": 12,
        "stop_reason": "reached the reference",
        "delta_norm": 0.125,
    }
    return Evidence(**(fields | changes))


@pytest.mark.parametrize(
    "reference", [None, ForgetScore(2.0, 0.5, 40), ForgetScore(2.0, 0.5, 40, "mean Dice")]
)
def test_evidence_round_trips(reference: ForgetScore | None) -> None:
    assert Evidence.from_json(evidence(reference=reference).to_json()) == evidence(
        reference=reference
    )


def row(**changes: Any) -> dict[str, Any]:
    return asdict(evidence()) | changes


@pytest.mark.parametrize(
    "content",
    [
        [],
        3,
        {},
        row(before=None),
        row(after=None),
        row(before=3),
        row(before={}),
        row(before={"loss": "x", "accuracy": 0.5, "count": 3}),
        row(after={"loss": 1.0, "accuracy": 1.5, "count": 3}),
        row(after={"loss": float("inf"), "accuracy": 0.5, "count": float("inf")}),
        row(steps="many"),
        row(steps=float("inf")),
        row(delta_norm=float("nan")),
        row(delta_norm=float("inf")),
        row(delta_norm=None),
        {key: value for key, value in row().items() if key != "holdout"},
    ],
    ids=lambda value: str(value)[:40],
)
def test_malformed_evidence(content: object) -> None:
    with pytest.raises(WireError):
        Evidence.from_json(json.dumps(content))


def test_a_long_stop_reason_is_cut() -> None:
    text = json.dumps(row(stop_reason="because " * 1000))
    assert len(Evidence.from_json(text).stop_reason) == 200


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(row())), anything))
def test_whatever_a_site_sends_is_evidence_or_a_wire_error(changes: dict[str, Any]) -> None:
    with suppress(WireError):
        Evidence.from_json(json.dumps(row(**changes)))


@given(st.dictionaries(st.sampled_from(sorted(SOUND)), anything))
def test_whatever_a_site_sends_is_a_notice_or_a_wire_error(changes: dict[str, Any]) -> None:
    with suppress(WireError):
        wire.decode_notices(json.dumps([SOUND | changes]))


@given(st.text(max_size=30) | st.binary(max_size=5) | st.integers())
def test_json_or_a_wire_error(text: object) -> None:
    with suppress(WireError):
        wire.decode_json(text, "afuic.x")


# ---- keys -----------------------------------------------------------------------------------


def test_keys_are_distinct_and_recognisable() -> None:
    keys = [
        value
        for name, value in vars(wire).items()
        if name.isupper() and isinstance(value, str) and not name.startswith(("TASK_", "KIND_"))
    ]
    assert len(set(keys)) == len(keys)
    # Metrics of this prefix are left out of the averages, and a user's keys never clash.
    assert all(key.startswith("afuic.") for key in keys)
