"""Files that only their owner can read, written whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

OWNER_FILE = 0o600
OWNER_FOLDER = 0o700
PARTIAL = ".partial-"
"""How the name of a file begins that is still being written."""


def make_folder(path: Path) -> None:
    """Make a folder that only its owner can enter; one that exists is left as it is."""
    path.mkdir(mode=OWNER_FOLDER, parents=True, exist_ok=True)


def partial(folder: Path) -> Path:
    """Return a new name in ``folder`` for a file that is still being written."""
    return folder / f"{PARTIAL}{os.getpid()}-{secrets.token_hex(8)}"


def sync_folder(path: Path) -> None:
    """Make renames and deletions in a folder last through a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make a file's content last through a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, data: bytes) -> None:
    """Write a file, replacing an older one in one step; only its owner can read it.

    Parameters
    ----------
    path : Path
        Where; its folder must exist.
    data : bytes
        The whole content.
    """
    temporary = partial(path.parent)
    try:
        create(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def create(path: Path, data: bytes) -> None:
    """Write and sync a new owner-only file; FileExistsError if there is one."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_FILE)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def drop_partials(folder: Path) -> None:
    """Remove what a crash left half written in a folder."""
    for path in folder.glob(f"{PARTIAL}*"):
        path.unlink(missing_ok=True)
