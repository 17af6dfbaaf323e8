"""The server's Ed25519 key: made once, kept by its owner, rotated with a signed hand-over."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from flwr_afuic.erasure.signatures import (
    Rotation,
    follows,
    key_id,
    load_public,
    read_public_keys,
    read_rotations,
    verify,
)
from flwr_afuic.errors import StateError
from flwr_afuic.state.files import (
    OWNER_FILE,
    create,
    drop_partials,
    make_folder,
    partial,
    sync_folder,
    write_file,
)

__all__ = [
    "KeyRing",
    "Rotation",
    "follows",
    "key_id",
    "load_public",
    "read_public_keys",
    "read_rotations",
    "verify",
]


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
        self._check_pair()
        self._publish()

    def _make_first(self) -> None:
        if self.rotations or (self.folder / "server.pub").exists():
            raise StateError(
                f"{self._path} is missing, though there was a key; restore it from a backup"
            )
        temporary = partial(self.folder)
        create(temporary, _private_pem(Ed25519PrivateKey.generate()))
        os.replace(temporary, self._path)
        sync_folder(self.folder)

    def _check_pair(self) -> None:
        """Refuse a private key that is not the one the public files speak of."""
        public, rotations = self.folder / "server.pub", self.rotations
        if rotations and rotations[-1].new_key != self.public_hex:
            raise StateError(
                f"{self._path} holds key {self.key_id}, but the last rotation leads to "
                f"{key_id(rotations[-1].new_key)}; restore keys/ from one backup"
            )
        if not public.exists():
            return
        shown = load_public(public)
        # A crash at the end of a rotation leaves the old public key.
        if shown != self.public_hex and not (rotations and shown == rotations[-1].old_key):
            raise StateError(
                f"{public} holds key {key_id(shown)}, {self._path.name} key {self.key_id}; "
                "restore keys/ from one backup"
            )

    def _publish(self) -> None:
        public = self.folder / "server.pub"
        if not public.exists() or public.read_bytes() != self.public_pem:
            write_file(public, self.public_pem)


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
