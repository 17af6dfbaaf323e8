"""What comes over the wire is read with checks: a WireError, never anything else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_afuic import wire
from flwr_afuic.errors import WireError
from flwr_afuic.unlearning.level import ForgetScore
from tests.erasure_helpers import request_id

NOTICE = {
    "request_id": request_id(),
    "scope": "samples",
    "count": 2,
    "commitment": "ab",
    "reason": "other",
    "filed_at": 1.5,
}
SCORE = {"loss": 0.5, "accuracy": 0.5, "count": 3}
EVIDENCE = {
    "before": SCORE,
    "after": SCORE,
    "reference": None,
    "holdout": SCORE,
    "steps": 4,
    "stop_reason": "budget",
    "delta_norm": 1.0,
}


def test_notices_come_back_as_they_went():
    notices = [wire.ErasureNotice(**NOTICE)]
    assert wire.decode_notices(wire.encode_notices(notices)) == notices


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("request_id", "nobody"),
        ("request_id", 12345678123456781234567812345678),
        ("request_id", "urn:uuid:" + request_id()),
        ("request_id", request_id().replace("-", "")),
        ("request_id", ["a"]),
        ("scope", "everything"),
        ("scope", {}),
        ("count", 0),
        ("count", True),
        ("count", 2.5),
        ("commitment", 7),
        ("commitment", "a" * 129),
        ("reason", "free text of the patient"),
        ("filed_at", float("nan")),
        ("filed_at", float("inf")),
        ("filed_at", "today"),
        ("filed_at", None),
        ("more", 1),
    ],
)
def test_a_malformed_notice_is_a_wire_error(key, value):
    with pytest.raises(WireError):
        wire.decode_notices(json.dumps([{**NOTICE, key: value}]))


@pytest.mark.parametrize("rows", [{}, 3, [1], [[1]], [NOTICE] * (wire.MAX_PENDING + 1), [None]])
def test_a_malformed_list_of_notices_is_a_wire_error(rows):
    with pytest.raises(WireError):
        wire.decode_notices(json.dumps(rows))


@pytest.mark.parametrize("text", [None, 3, b"[]", "[", "[" * 100_000, "1" * 5000, "{]"])
def test_what_is_no_json_is_a_wire_error(text):
    for read in (wire.decode_notices, wire.Evidence.from_json):
        with pytest.raises(WireError):
            read(text)


def test_evidence_comes_back_as_it_went():
    evidence = wire.Evidence.from_json(json.dumps(EVIDENCE))
    assert evidence.holdout == ForgetScore(0.5, 0.5, 3)
    assert evidence.reference is None
    assert wire.Evidence.from_json(evidence.to_json()) == evidence


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(EVIDENCE)), json_values)
def test_any_evidence_is_read_or_a_wire_error(key, value):
    try:
        wire.Evidence.from_json(json.dumps({**EVIDENCE, key: value}))
    except WireError as error:
        assert str(error)  # noqa: PT017


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["loss", "accuracy", "count"]), json_values)
def test_any_score_is_read_or_a_wire_error(key, value):
    for read in (
        lambda: wire.Evidence.from_json(json.dumps({**EVIDENCE, "after": {**SCORE, key: value}})),
        lambda: wire.read_score(**{**SCORE, key: value}),
    ):
        try:
            read()
        except WireError as error:
            assert str(error)  # noqa: PT017


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(NOTICE)), json_values)
def test_any_notice_is_read_or_a_wire_error(key, value):
    try:
        wire.decode_notices(json.dumps([{**NOTICE, key: value}]))
    except WireError as error:
        assert str(error)  # noqa: PT017


# ---- how a delta was protected -------------------------------------------------------


def test_evidence_of_an_older_site_has_no_privacy():
    assert wire.Evidence.from_json(json.dumps(EVIDENCE)).privacy is None


@pytest.mark.parametrize(
    "privacy", [None, {}, {"clip": 1.5, "small": 1, "epsilon": None, "note": "x" * 200}]
)
def test_privacy_comes_back_as_it_went(privacy):
    evidence = wire.Evidence.from_json(json.dumps({**EVIDENCE, "privacy": privacy}))
    assert evidence.privacy == privacy
    assert wire.Evidence.from_json(evidence.to_json()) == evidence


@pytest.mark.parametrize(
    "privacy",
    [
        [], 3, "x", {"a": []}, {"a": {}}, {"a": float("nan")}, {"a": float("inf")}, {"a": 10**13},
        {"a": "x" * 201}, {"x" * 41: 1}, {str(n): n for n in range(17)},
    ],
)  # fmt: skip
def test_malformed_privacy_is_a_wire_error(privacy):
    with pytest.raises(WireError, match="privacy entr"):
        wire.Evidence.from_json(json.dumps({**EVIDENCE, "privacy": privacy}))


@settings(deadline=None, max_examples=60)
@given(json_values)
def test_any_privacy_is_read_or_a_wire_error(value):
    try:
        evidence = wire.Evidence.from_json(json.dumps({**EVIDENCE, "privacy": value}))
    except WireError as error:
        assert str(error)  # noqa: PT017
    else:
        assert evidence.privacy == value


# ---- groups of arrays ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "groups"),
    [
        ("{}", {"model": [1, 2, 3, 4]}),
        ('{"basis": 1}', {"model": [1, 2, 3], "basis": [4]}),
        ('{"b": 2, "a": 1}', {"model": [1], "b": [2, 3], "a": [4]}),
        ('{"none": 0}', {"model": [1, 2, 3, 4], "none": []}),
    ],
)
def test_groups_follow_the_model(counts, groups):
    assert wire.split_groups([1, 2, 3, 4], counts) == groups


@pytest.mark.parametrize(
    "counts",
    ["[]", "3", "{", None, '{"a": 4}', '{"a": 9}', '{"a": -1}', '{"a": true}', '{"a": "1"}',
     '{"a": 1.0}', '{"model": 1}'],
)  # fmt: skip
def test_groups_that_do_not_fit_are_a_wire_error(counts):
    with pytest.raises(WireError):
        wire.split_groups([1, 2, 3, 4], counts)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        (",", []),
        (request_id(), [request_id()]),
        (f"{request_id(1)},{request_id(2)}", [request_id(1), request_id(2)]),
    ],
)
def test_ids_are_separated_by_commas(text, ids):
    assert wire.decode_ids(text, wire.BATCH) == ids


@pytest.mark.parametrize("text", [None, 3, b"", "x", f"{request_id()} ", f"{request_id()};x"])
def test_what_are_no_ids_is_a_wire_error(text):
    with pytest.raises(WireError, match=wire.BATCH):
        wire.decode_ids(text, wire.BATCH)
