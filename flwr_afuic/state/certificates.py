"""The files of issued certificates: document, detached signature, page."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from flwr_afuic.errors import StateError
from flwr_afuic.state.files import drop_partials, make_folder, write_file
from flwr_afuic.state.rows import CertificateRow

_REQUEST = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")


def digest(document: bytes) -> str:
    """SHA-256 of a document, 64 hexadecimal digits."""
    return hashlib.sha256(document).hexdigest()


def prepare(folder: Path, *, clean: bool) -> None:
    """Make the folder, and remove what a crash left half written."""
    make_folder(folder)
    if clean:
        drop_partials(folder)


def files(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """Return a certificate's document, signature and page."""
    document = folder / name
    return document, folder / f"{name}.sig", document.with_suffix(".html")


def write(
    folder: Path, request_id: str, issue: int, document: bytes, signature: str, html: str
) -> Path:
    """Write the three files, the document last; return its path.

    Files that a crash kept from being recorded are replaced by the next ones.
    """
    if not _REQUEST.fullmatch(request_id):
        raise StateError(f"{request_id!r} names no request; a certificate is about one")
    path, signed, page = files(folder, f"{request_id}-{issue}.json")
    try:
        write_file(page, html.encode())
        write_file(signed, f"{signature}\n".encode())
        write_file(path, document)
    except OSError as cause:
        raise StateError(f"{path} cannot be written ({cause}); nothing was recorded") from cause
    return path


def read(folder: Path, row: CertificateRow) -> tuple[bytes, str, Path]:
    """Return document, signature and path; StateError if a file is damaged or missing."""
    path, signed, _ = files(folder, row.file)
    try:
        document, signature = path.read_bytes(), signed.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as cause:
        raise StateError(f"{path} cannot be read ({cause}); restore it from a backup") from cause
    if digest(document) != row.sha256:
        raise StateError(f"{path} is not what was issued; restore it from a backup")
    return document, signature, path
