"""Any change to a certificate, or contradiction in it, is found and named."""

from __future__ import annotations

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flwr_afuic.erasure.certificate import (
    problems_of,
    render_certificate,
    to_bytes,
    verify_certificate,
)
from flwr_afuic.erasure.certificate.checks import FIELDS
from flwr_afuic.erasure.keys import KeyRing, key_id, verify
from flwr_afuic.errors import ErasureError
from tests.erasure.certificates import Signer, document, signed, values

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
    elif path == ("verification", "score_name"):
        assert missing == []  # certificates of earlier programs do not have it
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
