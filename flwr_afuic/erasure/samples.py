"""Lists of sample ids as a hospital keeps them: one id a line, or a column of a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from flwr_afuic.errors import DataError

NAMES = ("sample_id", "id")
"""Column names that are recognised without being named."""

_SEPARATORS = (",", ";", "\t")


def read_ids(
    path: str | Path, column: str | None = None, names: Sequence[str] = NAMES
) -> list[str]:
    """Read sample ids from a file, in its order, each once.

    Parameters
    ----------
    path : path
        Text in UTF-8: one id a line, or CSV (commas, semicolons or tabs) with a header.
    column : str, optional
        Name of the column; without it one of ``names``, in any case, and in a file without
        such a header every line is an id.
    names : sequence of str
        Column names that are recognised.

    Raises
    ------
    DataError
        If the file cannot be read, holds no id, lacks the column, or has several columns
        and no header that says which holds the ids.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read sample ids from {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8; save it as CSV in UTF-8") from error
    rows, header = _table(text, column, path, names)
    ids = list(dict.fromkeys(row for row in rows if row))
    if not ids:
        raise DataError(f"{path} holds no sample id{header}; write one a line")
    return ids


def _table(
    text: str, column: str | None, path: str | Path, known: Sequence[str]
) -> tuple[list[str], str]:
    """Return the ids, and words that say under which header they stood."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return [], ""
    for separator in _SEPARATORS:
        names = _cells(lines[0], separator, path)
        wanted = [column] if column is not None else _known(names, known)
        if len(wanted) > 1:
            raise DataError(f"{path} has the columns {wanted}; name one with --column")
        if wanted and wanted[0] in names:
            place = names.index(wanted[0])
            found = [_cells(line, separator, path) for line in lines[1:]]
            return _column(found, place, len(names), path), f" under {wanted[0]!r}"
    if column is not None:
        raise DataError(f"{path} has no column {column!r}; its first line is {lines[0][:80]!r}")
    for separator in _SEPARATORS:
        several = next((line for line in lines if len(_cells(line, separator, path)) > 1), None)
        if several is not None:
            raise DataError(
                f"{path} has several columns and none is called {' or '.join(known)} (a line is "
                f"{several[:80]!r}); give it a header and name the column with --column"
            )
    return [cell for line in lines for cell in _cells(line, ",", path)], ""


def _known(names: list[str], known: Sequence[str]) -> list[str]:
    return [name for name in names if name.lower() in known]


def _cells(line: str, separator: str, path: str | Path) -> list[str]:
    try:
        rows = list(csv.reader(io.StringIO(line), delimiter=separator, strict=True))
    except csv.Error as error:
        raise DataError(f"{path} holds a malformed line {line[:80]!r}: {error}") from error
    return [cell.strip() for cell in rows[0]] if rows else []


def _column(rows: list[list[str]], place: int, width: int, path: str | Path) -> list[str]:
    for row in rows:
        if len(row) != width:
            raise DataError(
                f"{path} has {width} columns in its header and {len(row)} in the line that begins "
                f"{(row or [''])[0][:40]!r}; correct that line"
            )
    return [row[place] for row in rows]
