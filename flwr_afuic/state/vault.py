"""Model arrays on disk: safetensors files named by the SHA-256 of their bytes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from flwr_afuic.errors import StateError
from flwr_afuic.state.files import (
    OWNER_FILE,
    drop_partials,
    make_folder,
    partial,
    sync_file,
    sync_folder,
)

DTYPES = frozenset(
    ["bool", "float16", "float32", "float64"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ORDER = "order"
"""The one field of a file's metadata: the arrays' names in order. A second field would
make the bytes, and so the digest, depend on the order of a hash map."""


@dataclass(frozen=True)
class Purged:
    """A deleted file: its digest, its name in the folder, its size in bytes."""

    digest: str
    file: str
    bytes: int


class Vault:
    """Content-addressed arrays in one folder.

    Equal arrays in the same order have the same digest. A file appears under its name only
    when it is whole and synced.

    Parameters
    ----------
    folder : path
        Where the files are.
    clean : bool
        Remove what a crash left half written; only for the one process that writes here.
    make : bool
        Make the folder if there is none; without it the vault is for reading.
    """

    def __init__(self, folder: str | Path, *, clean: bool = False, make: bool = True) -> None:
        self.folder = Path(folder)
        self.guard = threading.RLock()
        self._fresh: set[str] = set()
        try:
            if make:
                make_folder(self.folder)
            if clean:
                drop_partials(self.folder)
        except OSError as cause:
            raise StateError(f"{self.folder} cannot be used ({cause})") from cause

    def path(self, digest: str) -> Path:
        """Return where a digest's file is, or would be; StateError if it is no digest."""
        if not _DIGEST.fullmatch(digest):
            raise StateError(f"{digest!r} is no digest of weights (64 hexadecimal digits)")
        return self.folder / f"{digest}.safetensors"

    def put(self, arrays: Mapping[str, np.ndarray]) -> str:
        """Store arrays and return their digest; what is stored already is not stored twice.

        The digest counts as fresh, and no sweep of this process deletes it, until a
        transaction has kept it. Weights that were put and never kept are left for the first
        sweep of the next process; delete them, if they must go at once.

        Parameters
        ----------
        arrays : mapping of str to numpy.ndarray
            Booleans, integers and floats of 16 to 64 bits, of any shape.

        Raises
        ------
        StateError
            If an array has another dtype, or the disk refuses.
        """
        ready = {name: _storable(name, array) for name, array in arrays.items()}
        temporary = partial(self.folder)
        try:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_FILE))
            save_file(ready, temporary, metadata={_ORDER: json.dumps(list(ready))})
            # The library may have made the file anew, with the process's own mode.
            os.chmod(temporary, OWNER_FILE)
            digest = file_digest(temporary)
            self._publish(temporary, digest)
        except (OSError, SafetensorError) as cause:
            raise StateError(
                f"{self.folder} takes no weights ({cause}); check its free space and owner"
            ) from cause
        finally:
            temporary.unlink(missing_ok=True)
        return digest

    def _publish(self, temporary: Path, digest: str) -> None:
        target = self.path(digest)
        with self.guard:
            # A file of the right name and size is whole: it was named only when it was.
            if not target.exists() or target.stat().st_size != temporary.stat().st_size:
                sync_file(temporary)
                os.replace(temporary, target)
                sync_folder(self.folder)
            self._fresh.add(digest)

    def get(self, digest: str) -> dict[str, np.ndarray]:
        """Return stored arrays, in the order they were put, writable.

        Raises
        ------
        StateError
            If the file is missing, or its bytes are not those that were written.
        """
        path = self.check(digest)
        try:
            with safe_open(path, framework="np") as file:
                stored: dict[str, str] = file.metadata() or {}
                names: list[str] = json.loads(stored.get(_ORDER, "null")) or list(file.keys())
                return {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError, ValueError, KeyError) as cause:
            raise StateError(f"{path} holds no readable weights ({cause})") from cause

    def check(self, digest: str) -> Path:
        """Return the path of a file whose bytes were verified; StateError otherwise."""
        path = self.path(digest)
        try:
            found = file_digest(path)
        except OSError as cause:
            raise StateError(
                f"{path} cannot be read ({cause}); restore it from a backup"
            ) from cause
        if found != digest:
            raise StateError(
                f"{path} is damaged: its {path.stat().st_size} bytes have SHA-256 {found[:16]}...; "
                "restore it from a backup"
            )
        return path

    def delete(self, digest: str) -> Purged | None:
        """Unlink a file for good; None if there is none.

        The bytes are not overwritten: on journaling and copy-on-write file systems, and on
        flash, that would promise more than it does. Encrypt the disk to be sure of them.
        """
        path = self.path(digest)
        with self.guard:
            self._fresh.discard(digest)
            try:
                size = path.stat().st_size
                path.unlink()
                sync_folder(self.folder)
            except FileNotFoundError:
                return None
            except OSError as cause:
                raise StateError(f"{path} cannot be deleted ({cause}); delete it") from cause
        return Purged(digest, path.name, size)

    def settle(self, digests: Iterable[str]) -> None:
        """Say that references to these digests last: they need no protection any more."""
        with self.guard:
            self._fresh.difference_update(digests)

    def is_fresh(self, digest: str) -> bool:
        """Whether a digest was put here and no lasting reference to it is known yet."""
        with self.guard:
            return digest in self._fresh

    def __contains__(self, digest: object) -> bool:
        return (
            isinstance(digest, str)
            and bool(_DIGEST.fullmatch(digest))
            and (self.path(digest).exists())
        )

    def digests(self) -> set[str]:
        """Digests of all files here."""
        return {
            path.stem for path in self.folder.glob("*.safetensors") if _DIGEST.fullmatch(path.stem)
        }

    def size(self, digest: str) -> int:
        """Size of a file in bytes; StateError if there is none."""
        path = self.path(digest)
        try:
            return path.stat().st_size
        except OSError as cause:
            raise StateError(f"{path} cannot be read ({cause})") from cause


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _storable(name: str, array: Any) -> np.ndarray:
    """Return ``array`` laid out in C order; a 0-d array stays one."""
    if not isinstance(array, np.ndarray) or array.dtype.name not in DTYPES:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise StateError(
            f"array {name!r} is {kind}; weights are stored as {', '.join(sorted(DTYPES))}: "
            "convert it first"
        )
    if name == "__metadata__":
        raise StateError(f"array {name!r} has a name that safetensors uses itself; rename it")
    # The library reads raw memory. np.ascontiguousarray would make a 0-d array 1-d.
    return array if array.flags.c_contiguous else array.copy(order="C")
