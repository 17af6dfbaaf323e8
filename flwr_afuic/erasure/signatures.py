"""Ed25519 signatures as the service uses them: over exact bytes, in lower-case hexadecimal."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from flwr_afuic.erasure.canonical import canonical
from flwr_afuic.errors import SignatureError, StateError, WireError

_KEY = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")


def key_id(public: str | bytes) -> str:
    """Return the short name of a public key: 16 hexadecimal digits.

    Parameters
    ----------
    public : str or bytes
        The raw 32 bytes, or their 64 hexadecimal digits.
    """
    raw = bytes.fromhex(public) if isinstance(public, str) else public
    return hashlib.sha256(raw).hexdigest()[:16]


def verify(public_hex: str, data: bytes, signature_hex: str) -> bool:
    """Whether a signature is this key's over exactly these bytes; malformed ones are not.

    Only lower-case digits count, so that no byte of a signature can change unnoticed.
    """
    if not isinstance(public_hex, str) or not _KEY.fullmatch(public_hex):
        return False
    if not isinstance(signature_hex, str) or not _SIGNATURE.fullmatch(signature_hex):
        return False
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex))
        key.verify(bytes.fromhex(signature_hex), data)
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Rotation:
    """The old key's word that the new one takes its place.

    Parameters
    ----------
    old_key, new_key : str
        Raw public keys, 64 hexadecimal digits.
    at : float
        Seconds since the epoch.
    signature : str
        The old key's, over canonical JSON ``{"at", "new", "old"}``.
    """

    old_key: str
    new_key: str
    at: float
    signature: str

    def signed(self) -> bytes:
        """Return the bytes the old key signs."""
        return canonical({"old": self.old_key, "new": self.new_key, "at": self.at})

    @property
    def genuine(self) -> bool:
        """Whether the old key signed it."""
        return verify(self.old_key, self.signed(), self.signature)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return {
            "old": self.old_key,
            "new": self.new_key,
            "at": self.at,
            "signature": self.signature,
        }

    @classmethod
    def from_json(cls, value: object) -> Rotation:
        """Read :meth:`to_json`'s dictionary; WireError if it is malformed (not: if forged)."""
        if not isinstance(value, dict) or set(value) != {"old", "new", "at", "signature"}:
            raise WireError("a key rotation has the fields old, new, at and signature")
        for field, form in (("old", _KEY), ("new", _KEY), ("signature", _SIGNATURE)):
            if not isinstance(value[field], str) or not form.fullmatch(value[field]):
                raise WireError(f"a key rotation's {field} is not lower-case hexadecimal")
        if not isinstance(value["at"], float) or not math.isfinite(value["at"]):
            raise WireError("a key rotation's time is no number of seconds")
        return cls(value["old"], value["new"], value["at"], value["signature"])


def follows(pinned_hex: str, public_hex: str, rotations: Iterable[Rotation]) -> bool:
    """Whether signed rotations lead from a pinned key to the one shown now.

    Parameters
    ----------
    pinned_hex : str
        The key trusted so far.
    public_hex : str
        The key shown; the pinned one follows itself.
    rotations : iterable of Rotation
        Oldest first. Forged ones count for nothing.
    """
    present = pinned_hex
    for rotation in rotations:
        if present == public_hex:
            break
        if rotation.old_key == present and rotation.genuine:
            present = rotation.new_key
    return present == public_hex


def load_public(path: str | Path) -> str:
    """Read a public key from a PEM file; return its raw bytes as 64 hexadecimal digits.

    Raises
    ------
    SignatureError
        If the file is missing or holds no Ed25519 public key.
    """
    try:
        key = serialization.load_pem_public_key(Path(path).read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as cause:
        raise SignatureError(f"{path} holds no public key ({cause}); name server.pub") from cause
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"{path} holds a {type(key).__name__}, not an Ed25519 key")
    return key.public_bytes_raw().hex()


def read_rotations(folder: str | Path) -> list[Rotation]:
    """Read the rotations of a key folder, oldest first; StateError if they are damaged."""
    path = Path(folder) / "rotations.json"
    try:
        return [Rotation.from_json(value) for value in json.loads(path.read_bytes())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as cause:
        raise StateError(f"{path} is damaged ({cause}); restore it from a backup") from cause


def read_public_keys(folder: str | Path) -> list[str]:
    """Read every public key a key folder names, oldest first, without changing the folder.

    Raises
    ------
    StateError
        If the rotations are damaged.
    SignatureError
        If there is no public key.
    """
    rotations = read_rotations(folder)
    if not rotations:
        return [load_public(Path(folder) / "server.pub")]
    # In the middle of a rotation server.pub is the old key still.
    return [*(rotation.old_key for rotation in rotations), rotations[-1].new_key]
