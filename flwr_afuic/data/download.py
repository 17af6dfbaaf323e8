"""Fetching a named data set from its official address: checked, and complete or not at all."""

from __future__ import annotations

import http.client
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.request import Request, urlopen

from flwr_afuic.data.medmnist import NamedSet
from flwr_afuic.data.npzfile import file_md5
from flwr_afuic.errors import DataError

TIMEOUT_SECONDS = 30.0
MAX_BYTES = 2 << 30


def fetch(entry: NamedSet, folder: Path, *, timeout: float = TIMEOUT_SECONDS) -> Path:
    """Download a named set to ``folder/<filename>``.

    The file is written beside its place under a temporary name, checked against the
    official MD5 and only then renamed, so that no partial file is ever left to be read.

    Parameters
    ----------
    entry : NamedSet
        The set; it must have a ``url``.
    folder : pathlib.Path
        Where to put it; made if missing.
    timeout : float
        Seconds without an answer after which the attempt ends.

    Returns
    -------
    pathlib.Path
        The complete, checked file.

    Raises
    ------
    DataError
        If the address cannot be reached, answers too much or another file than promised,
        or the folder cannot be written.
    """
    target = folder / entry.filename
    if entry.url is None or not entry.url.startswith("https://"):
        raise DataError(
            f"data set {entry.name!r} has no official download; put {entry.filename} into {folder}"
        )
    partial: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, text = tempfile.mkstemp(prefix=f".{entry.name}-", suffix=".part", dir=folder)
        partial = Path(text)
        with os.fdopen(descriptor, "wb") as file:
            _copy(entry.url, file.write, timeout)
            file.flush()
            os.fsync(file.fileno())
        found = file_md5(partial)
        if found != entry.md5:
            raise DataError(
                f"the download from {entry.url} has MD5 {found}, not the official {entry.md5}"
            )
        # mkstemp makes private files; a shared cache must stay readable to others.
        partial.chmod(0o644)
        partial.replace(target)
    except (OSError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{entry.url} could not be fetched into {folder} ({reason})") from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
    return target


def _copy(url: str, write: Callable[[bytes], object], timeout: float) -> None:
    total = 0
    request = Request(url, headers={"User-Agent": "flwr-afuic"})  # noqa: S310 - https only
    with urlopen(request, timeout=timeout) as response:  # noqa: S310 - https only
        while block := response.read(1 << 18):
            total += len(block)
            if total > MAX_BYTES:
                raise DataError(f"{url} sends more than {MAX_BYTES} bytes; fetch it by hand")
            write(block)
