"""The server's key: private, rotated with a signed hand-over, never half replaced."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_afuic.erasure.keys import (
    KeyRing,
    Rotation,
    follows,
    key_id,
    load_public,
    read_public_keys,
    read_rotations,
    verify,
)
from flwr_afuic.errors import SignatureError, StateError, WireError

# RFC 8032, section 7.1, TEST 3.
PUBLIC = "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025"
SIGNED = (
    "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
    "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
)


@pytest.fixture
def ring(tmp_path):
    return KeyRing(tmp_path / "keys")


def test_verify_agrees_with_the_standard():
    assert verify(PUBLIC, bytes.fromhex("af82"), SIGNED)
    assert not verify(PUBLIC, bytes.fromhex("af83"), SIGNED)


def test_key_id_is_the_start_of_the_sha256_of_the_raw_key():
    # printf PUBLIC | xxd -r -p | sha256sum
    assert key_id(PUBLIC) == key_id(bytes.fromhex(PUBLIC))
    assert key_id("00" * 32) == "66687aadf862bd77"


def test_the_key_is_made_once(ring):
    again = KeyRing(ring.folder)
    assert again.public_hex == ring.public_hex
    assert again.key_id == key_id(ring.public_hex)
    assert again.rotations == []
    assert again.public_keys == [ring.public_hex]


def test_the_files_are_what_they_say(ring):
    private = ring.folder / "server.pem"
    assert private.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    key = serialization.load_pem_private_key(private.read_bytes(), password=None)
    assert key.public_key().public_bytes_raw().hex() == ring.public_hex
    assert (ring.folder / "server.pub").read_bytes() == ring.public_pem
    assert load_public(ring.folder / "server.pub") == ring.public_hex


def test_a_signature_is_over_every_byte(ring):
    signature = ring.sign(b"text")
    assert verify(ring.public_hex, b"text", signature)
    for data in (b"texT", b"text ", b""):
        assert not verify(ring.public_hex, data, signature)
    for position in range(len(signature)):
        for bit in range(8):
            changed = bytearray(signature.encode())
            changed[position] ^= 1 << bit
            assert not verify(ring.public_hex, b"text", changed.decode("latin-1"))


@pytest.mark.parametrize("bad", [None, 5, "", "zz" * 64, "AB" * 64, "ab" * 63, "ab" * 64 + "\n"])
def test_malformed_signatures_and_keys_are_none(ring, bad):
    assert not verify(ring.public_hex, b"", bad)
    assert not verify(bad, b"", ring.sign(b""))


def test_rotation_hands_over_from_key_to_key(ring):
    first = ring.public_hex
    rotations = [ring.rotate(), ring.rotate()]
    assert ring.rotations == rotations
    assert rotations[0].old_key == first
    assert rotations[1].new_key == ring.public_hex
    assert ring.public_keys == [first, rotations[0].new_key, ring.public_hex]
    assert verify(ring.public_hex, b"x", ring.sign(b"x"))
    assert KeyRing(ring.folder).rotations == rotations
    assert KeyRing(ring.folder).public_hex == ring.public_hex
    assert follows(first, ring.public_hex, rotations)
    assert follows(rotations[0].new_key, ring.public_hex, rotations)
    assert load_public(ring.folder / "old" / f"{key_id(first)}.pub") == first
    private = b"".join(path.read_bytes() for path in ring.folder.rglob("*.pem"))
    assert private.count(b"BEGIN PRIVATE KEY") == 1


def test_what_does_not_follow(ring, tmp_path):
    first = ring.public_hex
    one, two = ring.rotate(), ring.rotate()
    thief = KeyRing(tmp_path / "thief")
    forged = replace(one, new_key=thief.public_hex)
    signed_by_thief = Rotation(first, thief.public_hex, 1.0, thief.sign(b"x"))
    assert not follows(first, ring.public_hex, [one])
    assert not follows(first, ring.public_hex, [two])
    assert not follows(first, ring.public_hex, [two, one])
    assert not follows(ring.public_hex, first, [one, two])
    assert not follows(first, thief.public_hex, [one, two])
    for rotation in (forged, signed_by_thief, replace(one, at=one.at + 1)):
        assert not rotation.genuine
        assert not follows(first, thief.public_hex, [rotation])
        assert not follows(first, ring.public_hex, [replace(one, at=0.0), two])
    assert follows(first, ring.public_hex, [forged, one, signed_by_thief, two])


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.pop("at"),
        lambda value: value.update(more=1),
        lambda value: value.update(old=value["old"].upper()),
        lambda value: value.update(new=5),
        lambda value: value.update(signature="ab"),
        lambda value: value.update(at=5),
        lambda value: value.update(at=float("nan")),
        lambda value: value.update(at=None),
    ],
)
def test_malformed_rotations_are_refused(ring, change):
    value = ring.rotate().to_json()
    assert Rotation.from_json(json.loads(json.dumps(value))) == ring.rotations[0]
    change(value)
    with pytest.raises(WireError):
        Rotation.from_json(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
)


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_any_json_is_a_rotation_or_refused(value):
    with pytest.raises(WireError):
        Rotation.from_json(value)


KILLED = """
import os, signal, sys
from pathlib import Path
from flwr_afuic.erasure.keys import KeyRing

left = [0]

def counted(function):
    def call(*arguments, **options):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return function(*arguments, **options)
    return call

for step in range(100):
    ring = KeyRing(Path(sys.argv[1]) / str(step))
    print(ring.public_hex, flush=True)
    child = os.fork()
    if not child:
        try:
            left[0] = step
            for name in ("replace", "fsync", "unlink"):
                setattr(os, name, counted(getattr(os, name)))
            ring.rotate()
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, flush=True)
    if status != -signal.SIGKILL:
        break
"""


def test_a_crash_at_any_step_of_a_rotation_leaves_a_usable_ring(tmp_path):
    lives = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=True
    )
    words = lives.stdout.split()
    firsts, statuses = words[::2], [int(word) for word in words[1::2]]
    assert set(statuses[:-1]) == {-9}
    assert statuses[-1] == 0, lives.stderr
    rotated = []
    for step, first in enumerate(firsts):
        folder = tmp_path / str(step)
        assert read_public_keys(folder)[0] == first
        ring = KeyRing(folder)
        assert verify(ring.public_hex, b"x", ring.sign(b"x"))
        assert load_public(folder / "server.pub") == ring.public_hex
        assert read_public_keys(folder) == ring.public_keys
        assert follows(first, ring.public_hex, ring.rotations)
        assert (ring.public_hex == first) == (ring.rotations == [])
        names = {path.name for path in folder.iterdir()}
        assert names <= {"server.pem", "server.pub", "old", "rotations.json", "lock"}
        rotated.append(len(ring.rotations))
        ring.rotate()
        assert follows(first, ring.public_hex, ring.rotations)
    assert rotated == sorted(rotated)
    assert rotated.count(0) >= 5
    assert rotated.count(1) >= 5


def test_two_first_users_make_one_key(tmp_path):
    code = (
        "import sys; from flwr_afuic.erasure.keys import KeyRing; "
        "print(KeyRing(sys.argv[1]).key_id)"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "keys")], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    assert len({child.communicate()[0] for child in children}) == 1


def test_a_ring_takes_up_what_another_process_rotated(ring):
    other = KeyRing(ring.folder)
    other.rotate()
    ring.reload()
    assert ring.public_hex == other.public_hex
    assert ring.rotations == other.rotations


def test_a_lost_private_key_is_not_replaced_in_silence(ring):
    (ring.folder / "server.pem").unlink()
    with pytest.raises(StateError, match=r"server\.pem is missing"):
        KeyRing(ring.folder)


def test_damage_is_named(ring, tmp_path):
    ring.rotate()
    good = (ring.folder / "server.pem").read_bytes()
    for bad in (b"", b"nonsense", good[:40], ring.public_pem):
        (ring.folder / "server.pem").write_bytes(bad)
        with pytest.raises(StateError, match=r"server\.pem holds no private key"):
            KeyRing(ring.folder)
    (ring.folder / "server.pem").write_bytes(
        (KeyRing(tmp_path / "other").folder / "server.pem").read_bytes()
    )
    with pytest.raises(StateError, match="the last rotation leads to"):
        KeyRing(ring.folder)
    (ring.folder / "server.pem").write_bytes(good)
    for text in ("", "{}x", "5", "[5]", '[{"old": 1}]', "\ud800".encode("utf-8", "surrogatepass")):
        data = text if isinstance(text, bytes) else text.encode()
        (ring.folder / "rotations.json").write_bytes(data)
        with pytest.raises(StateError, match=r"rotations\.json is damaged"):
            read_rotations(ring.folder)


def test_other_keys_are_no_server_keys(tmp_path):
    path = tmp_path / "key"
    for data in (b"", b"text"):
        path.write_bytes(data)
        with pytest.raises(SignatureError, match="no public key"):
            load_public(path)
    with pytest.raises(SignatureError, match="no public key"):
        load_public(tmp_path / "missing")
    other = rsa.generate_private_key(65537, 1024)
    path.write_bytes(
        other.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    with pytest.raises(SignatureError, match="not an Ed25519 key"):
        load_public(path)
    ring = KeyRing(tmp_path / "keys")
    (ring.folder / "server.pem").write_bytes(
        other.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(StateError, match="not an Ed25519 key"):
        KeyRing(ring.folder)
