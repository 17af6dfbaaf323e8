"""Copying the parts of a state directory, while a server may be running on it."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from flwr_afuic.erasure.keys import KeyRing
from flwr_afuic.erasure.signatures import read_public_keys
from flwr_afuic.errors import StateError
from flwr_afuic.state import certificates, queries
from flwr_afuic.state.checking import file_problems
from flwr_afuic.state.files import (
    OWNER_FILE,
    PARTIAL,
    create,
    make_folder,
    sync_file,
    sync_folder,
)
from flwr_afuic.state.reading import snapshot

_TRIES = 20
_FOLDERS = ("weights", "certificates", "keys", "keys/old")
_MEMBER = re.compile(
    r"state\.sqlite(-wal)?"
    r"|weights/[0-9a-f]{64}\.safetensors"
    r"|certificates/[0-9A-Za-z_-]+\.(json|json\.sig|html)"
    r"|keys/(server\.pem|server\.pub|rotations\.json|old/[0-9a-f]{16}\.pub)"
)
"""What a backup may hold; nothing else is taken from one."""


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Make a folder on the target's file system; remove what is left of it."""
    folder = target.absolute().parent / f"{PARTIAL}{secrets.token_hex(8)}"
    make_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def copy_state(directory: Path, folder: Path, *, private: bool) -> None:
    """Copy the state after some transaction into an empty folder.

    Raises
    ------
    StateError
        If anything to be copied is damaged or missing.
    """
    _make_folders(folder)
    missing = ""
    for _ in range(_TRIES):
        _copy_database(directory, folder / "state.sqlite")
        # A sweep may delete weights between the two copies. Nothing keeps them by then, and
        # the next copy of the database does not name them.
        missing = snapshot(folder, lambda connection: _copy_files(connection, directory, folder))
        if not missing:
            break
    else:
        raise StateError(f"{missing} is missing; verify {directory}, and restore a backup")
    _copy_keys(directory / "keys", folder / "keys", private=private)
    keys = read_public_keys(folder / "keys")
    problems = snapshot(folder, lambda connection: file_problems(connection, folder, keys))
    if problems:
        raise StateError(f"{directory} is damaged: {'; '.join(problems[:5])}")


def _copy_database(directory: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    create(target, b"")
    connection = sqlite3.connect(target)
    try:
        snapshot(directory, lambda source: source.backup(connection))
        # One file, which needs no WAL beside it to be whole.
        connection.execute("PRAGMA journal_mode=DELETE")
    finally:
        connection.close()
    sync_file(target)


def _copy_files(connection: sqlite3.Connection, directory: Path, folder: Path) -> str:
    """Copy weights and certificates; return the path of one that has gone meanwhile."""
    kept = {f"{digest}.safetensors" for digest in queries.holdings(connection).values()}
    for path in (folder / "weights").iterdir():
        if path.name not in kept:
            path.unlink()
    wanted = [f"weights/{name}" for name in sorted(kept)]
    for row in queries.certificates(connection):
        files = certificates.files(Path("certificates"), row.file)
        wanted += [str(path) for path in files]
    for name in wanted:
        try:
            if not (folder / name).exists():
                copy_file(directory / name, folder / name)
        except FileNotFoundError:
            return str(directory / name)
    return ""


def _copy_keys(source: Path, target: Path, *, private: bool) -> None:
    if not private:
        _copy_public(source, target)
        return
    ring = KeyRing(source)
    with ring.locked():
        copy_file(source / "server.pem", target / "server.pem")
        _copy_public(source, target)


def _copy_public(source: Path, target: Path) -> None:
    for path in [source / "server.pub", source / "rotations.json", *source.glob("old/*.pub")]:
        if path.exists():
            copy_file(path, target / path.relative_to(source))


def copy_file(source: Path, target: Path) -> None:
    """Copy one file; the copy is synced, and its owner's alone."""
    with source.open("rb") as stream:
        _write(stream, target)


def _write(stream: IO[bytes], target: Path) -> None:
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, OWNER_FILE)
    with os.fdopen(handle, "wb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())


def pack(folder: Path, target: Path) -> None:
    """Write a folder into one uncompressed archive (weights do not compress)."""
    create(target, b"")
    with tarfile.open(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.add(path, arcname=str(path.relative_to(folder)))
    sync_file(target)


def unpack(source: Path, folder: Path) -> None:
    """Copy what belongs to a state directory out of a folder or archive, and nothing else."""
    _make_folders(folder)
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            name = path.relative_to(source).as_posix()
            if _MEMBER.fullmatch(name) and path.is_file() and not path.is_symlink():
                copy_file(path, folder / name)
    else:
        with tarfile.open(source, "r:") as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is not None and _MEMBER.fullmatch(member.name):
                    _write(stream, folder / member.name)
    for name in _FOLDERS:
        sync_folder(folder / name)
    sync_folder(folder)


def _make_folders(folder: Path) -> None:
    for name in _FOLDERS:
        make_folder(folder / name)
