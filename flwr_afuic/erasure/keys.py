"""The server's Ed25519 key: made once, kept by its owner, rotated with a signed hand-over."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from flwr_afuic.erasure.canonical import canonical
from flwr_afuic.errors import SignatureError, StateError, WireError
from flwr_afuic.state.files import (
    OWNER_FILE,
    create,
    drop_partials,
    make_folder,
    partial,
    sync_folder,
    write_file,
)

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
    return _hex(key)


def read_rotations(folder: str | Path) -> list[Rotation]:
    """Read the rotations of a key folder, oldest first; StateError if they are damaged."""
    path = Path(folder) / "rotations.json"
    try:
        return [Rotation.from_json(value) for value in json.loads(path.read_bytes())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as cause:
        raise StateError(f"{path} is damaged ({cause}); restore it from a backup") from cause


class KeyRing:
    """The key in use, and the signed way to it from every earlier one.

    Files: ``server.pem`` (private), ``server.pub``, ``old/<key id>.pub``, ``rotations.json``.
    A rotation happens in the moment ``rotations.json`` is replaced: before, a crash leaves
    the old key; after it, the next start finishes with the new one.

    Parameters
    ----------
    folder : path
        Made, with a new key, on first use.

    Raises
    ------
    StateError
        If the private key is missing or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            make_folder(self.folder)
            make_folder(self.folder / "old")
            with self.locked():
                self._recover()
        except OSError as cause:
            raise StateError(f"{self.folder} cannot be used ({cause})") from cause

    @property
    def public_hex(self) -> str:
        """The raw public key, 64 hexadecimal digits."""
        return _hex(self._private.public_key())

    @property
    def public_pem(self) -> bytes:
        """The public key as PEM."""
        return _pem(self._private.public_key())

    @property
    def key_id(self) -> str:
        """Short name of the key in use."""
        return key_id(self.public_hex)

    @property
    def public_keys(self) -> list[str]:
        """Every key this ring ever had, oldest first; the last one is in use."""
        return [*(rotation.old_key for rotation in self.rotations), self.public_hex]

    def sign(self, data: bytes) -> str:
        """Return the signature over ``data``: 128 lower-case hexadecimal digits."""
        return self._private.sign(data).hex()

    def rotate(self) -> Rotation:
        """Put a new key in place of the old one; the old private key is deleted.

        It is unlinked, not overwritten; a stolen copy of it stays usable against whoever
        has not heard of the rotation.
        """
        with self.locked():
            self._recover()
            new = Ed25519PrivateKey.generate()
            unsigned = Rotation(self.public_hex, _hex(new.public_key()), time.time(), "")
            rotation = Rotation(
                unsigned.old_key, unsigned.new_key, unsigned.at, self.sign(unsigned.signed())
            )
            write_file(self._next, _private_pem(new))
            write_file(self.folder / "old" / f"{self.key_id}.pub", self.public_pem)
            listed = [*self.rotations, rotation]
            text = json.dumps([entry.to_json() for entry in listed], indent=1)
            write_file(self.folder / "rotations.json", text.encode())
            self._recover()
        return rotation

    def reload(self) -> None:
        """Take up a rotation that another process made."""
        if _stamp(self._path) != self._loaded:
            with self.locked():
                self._recover()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from changing the keys meanwhile."""
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, OWNER_FILE)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    @property
    def _path(self) -> Path:
        return self.folder / "server.pem"

    @property
    def _next(self) -> Path:
        return self.folder / "next.pem"

    def _recover(self) -> None:
        """Finish or forget what a crash left, then load."""
        drop_partials(self.folder)
        drop_partials(self.folder / "old")
        self.rotations = read_rotations(self.folder)
        if self._next.exists():
            new = _hex(_load_private(self._next).public_key())
            if self.rotations and self.rotations[-1].new_key == new:
                os.replace(self._next, self._path)
            else:
                self._next.unlink()
            sync_folder(self.folder)
        if not self._path.exists():
            self._make_first()
        self._private = _load_private(self._path)
        self._loaded = _stamp(self._path)
        self._check_last()
        public = self.folder / "server.pub"
        if not public.exists() or public.read_bytes() != self.public_pem:
            write_file(public, self.public_pem)

    def _make_first(self) -> None:
        if self.rotations or (self.folder / "server.pub").exists():
            raise StateError(
                f"{self._path} is missing, though there was a key; restore it from a backup"
            )
        temporary = partial(self.folder)
        create(temporary, _private_pem(Ed25519PrivateKey.generate()))
        os.replace(temporary, self._path)
        sync_folder(self.folder)

    def _check_last(self) -> None:
        if self.rotations and self.rotations[-1].new_key != self.public_hex:
            raise StateError(
                f"{self._path} holds key {self.key_id}, but the last rotation leads to "
                f"{key_id(self.rotations[-1].new_key)}; restore keys/ from one backup"
            )


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def _hex(key: Ed25519PublicKey) -> str:
    return key.public_bytes_raw().hex()


def _pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _load_private(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as cause:
        raise StateError(f"{path} holds no private key; restore it from a backup") from cause
    if not isinstance(key, Ed25519PrivateKey):
        raise StateError(f"{path} holds a {type(key).__name__}, not an Ed25519 key")
    return key
