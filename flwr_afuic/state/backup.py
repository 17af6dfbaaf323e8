"""Copies of a state directory that are whole, and the way back from one."""

from __future__ import annotations

import os
import sqlite3
import tarfile
from pathlib import Path

from flwr_afuic.errors import StateError
from flwr_afuic.state.copying import beside, copy_file, copy_state, pack, unpack
from flwr_afuic.state.files import sync_folder
from flwr_afuic.state.store import StateStore


def backup(directory: str | Path, target: str | Path, *, keys: bool = True) -> Path:
    """Copy a state directory while a server may be running on it.

    The copy is the state after one transaction: its database, the weights that database
    keeps, its certificates and its keys. What was purged before is not in it; what is
    purged later stays in it: the certificates name backups among what is out of reach. A
    backup that is killed leaves a folder ``.partial-...`` beside the target; delete it.

    Parameters
    ----------
    directory : path
        The state directory.
    target : path
        A new folder, or a new file if the name ends in ``.tar``.
    keys : bool
        Copy the private key as well. Without it the backup can be kept by somebody who
        may not sign, and :func:`restore` needs the key from elsewhere.

    Returns
    -------
    Path
        The target.

    Raises
    ------
    StateError
        If the target exists, or anything to be copied is damaged.
    """
    directory, target = Path(directory), Path(target)
    if target.exists():
        raise StateError(f"{target} exists; name a new one")
    try:
        with beside(target) as folder:
            copy_state(directory, folder, private=keys)
            if target.suffix == ".tar":
                packed = folder.with_name(f"{folder.name}.tar")
                try:
                    pack(folder, packed)
                    os.replace(packed, target)
                finally:
                    packed.unlink(missing_ok=True)
            else:
                os.replace(folder, target)
            sync_folder(target.absolute().parent)
    except (OSError, sqlite3.Error) as cause:
        raise StateError(f"{directory} was not copied to {target} ({cause})") from cause
    return target


def restore(source: str | Path, directory: str | Path, *, keys: str | Path | None = None) -> None:
    """Make a state directory from a backup, verified in all its parts.

    The directory appears only when it is whole. Its ledger says that it was restored;
    sites that have seen later rows will say so, since these are lost.

    Parameters
    ----------
    source : path
        What :func:`backup` made, folder or ``.tar``.
    directory : path
        New, or an empty folder.
    keys : path, optional
        A folder with ``server.pem``, for a backup made without it.

    Raises
    ------
    StateError
        If the directory holds anything, the source is no backup, the private key is
        missing, or anything does not verify; nothing is left behind then.
    """
    source, directory = Path(source), Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise StateError(f"{directory} is not empty; name a new directory")
    try:
        with beside(directory) as folder:
            unpack(source, folder)
            if not (folder / "state.sqlite").exists():
                raise StateError(f"{source} is no backup of a state directory")
            if keys is not None:
                copy_file(Path(keys) / "server.pem", folder / "keys" / "server.pem")
            if not (folder / "keys" / "server.pem").exists():
                raise StateError(
                    f"{source} holds no private key; name the folder it is kept in (keys)"
                )
            _note(folder)
            os.replace(folder, directory)
            sync_folder(directory.absolute().parent)
    except (OSError, tarfile.TarError) as cause:
        raise StateError(f"{directory} was not restored from {source} ({cause})") from cause


def _note(folder: Path) -> None:
    """Verify what was unpacked and note the restoring in its ledger."""
    with StateStore(folder, create=False) as store:
        if problems := store.verify(files=True):
            raise StateError(f"the backup is damaged: {'; '.join(problems[:5])}")
        head = store.head()
        with store.transaction() as change:
            change.append(
                "restored",
                {"row": head.seq if head else 0, "hash": head.hash if head else ""},
            )
        store.checkpoint()
