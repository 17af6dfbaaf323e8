"""One running server per state directory."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path

from flwr_afuic.errors import StateError, StateLockedError
from flwr_afuic.state.files import OWNER_FILE


class RunLock:
    """Held by a running server; the kernel frees it when the process ends, however it ends.

    Raises
    ------
    StateLockedError
        If another server holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._handle: int | None = os.open(path, os.O_RDWR | os.O_CREAT, OWNER_FILE)
        except OSError as cause:
            raise StateError(f"{path} cannot be used ({cause})") from cause
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.abandon()
            holder = read_pid(path)
            who = "another process" if holder is None else f"the server with process id {holder}"
            raise StateLockedError(
                f"{path.parent} is in use by {who}; stop it first, or name another directory"
            ) from None
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)
        _HELD.add(self)

    def release(self) -> None:
        """Let another server take the directory."""
        if self._handle is not None:
            os.ftruncate(self._handle, 0)
        self.abandon()

    def abandon(self) -> None:
        """Close this process's handle; a parent that holds the lock keeps it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def read_pid(path: Path) -> int | None:
    """Return the process id a lock file names, None if it names none."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


_HELD: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _abandon_all() -> None:
    for lock in list(_HELD):
        lock.abandon()


# A forked worker would otherwise keep the lock alive after its server was killed.
os.register_at_fork(after_in_child=_abandon_all)
