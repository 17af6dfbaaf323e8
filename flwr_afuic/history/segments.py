"""Append-only files of records: one folder a site, a new file every so many windows.

A site's records lie in files of its own, so that deleting the site is deleting its folder, and
forgetting it reads one file after the other. Only the index says where a record is: bytes behind
the last indexed one are what a killed writer left, and are cut off before the next is written.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from flwr_afuic.errors import HistoryError, RecordError
from flwr_afuic.state.files import OWNER_FILE, make_folder, sync_folder

WINDOWS_PER_FILE = 16


@dataclass(frozen=True)
class Place:
    """Where a record lies: file relative to the folder, offset and length in bytes."""

    file: str
    offset: int
    length: int


class Segments:
    """The record files of one history, under ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            make_folder(folder)
        except OSError as cause:
            raise HistoryError(f"{folder} cannot be used ({cause})") from cause

    @staticmethod
    def file_of(site: str, window: int) -> str:
        """Return the file of a site's record of a window; names of sites need not be file names."""
        owner = "aggregates"
        if site:
            owner = hashlib.sha256(site.encode("utf-8", "surrogateescape")).hexdigest()[:24]
        return f"{owner}/{window // WINDOWS_PER_FILE:06d}.records"

    def append(self, file: str, end: int, record: bytes) -> Place:
        """Write a record at ``end``, the end of the indexed bytes, and make it last."""
        path = self.folder / file
        try:
            fresh = not path.exists()
            make_folder(path.parent)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT, OWNER_FILE)
            try:
                os.ftruncate(handle, end)
                view, at = memoryview(record), end
                while view:
                    written = os.pwrite(handle, view, at)
                    view, at = view[written:], at + written
                os.fsync(handle)
            finally:
                os.close(handle)
            if fresh:
                sync_folder(path.parent)
                sync_folder(self.folder)
        except OSError as cause:
            raise HistoryError(
                f"{path} takes no record ({cause}); check its free space and owner"
            ) from cause
        return Place(file, end, len(record))

    def read(self, place: Place) -> bytes:
        """Return a record's bytes; RecordError if they are not there."""
        path = self.folder / place.file
        try:
            with path.open("rb") as file:
                file.seek(place.offset)
                data = file.read(place.length)
        except OSError as cause:
            raise RecordError(f"{path} cannot be read ({cause})") from cause
        if len(data) != place.length:
            raise RecordError(
                f"{path} ends {place.length - len(data)} bytes before the record does"
            )
        return data

    def sweep(self, used: set[str]) -> list[str]:
        """Delete every file that is not ``used``, and folders that became empty."""
        gone = []
        try:
            for path in sorted(self.folder.glob("*/*.records")):
                name = path.relative_to(self.folder).as_posix()
                if name not in used:
                    path.unlink()
                    gone.append(name)
                    if not any(path.parent.iterdir()):
                        path.parent.rmdir()
            if gone:
                sync_folder(self.folder)
        except OSError as cause:
            raise HistoryError(f"{self.folder}: a file cannot be deleted ({cause})") from cause
        return gone
