"""The table of a site: one row an image, with its patient and its label or mask."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from flwr_afuic.data.clinical.problems import Problem
from flwr_afuic.errors import DataError

REQUIRED = ("path", "patient_id")
KNOWN = ("path", "patient_id", "sample_id", "label", "mask_path")
_SEPARATORS = (",", ";", "\t")


@dataclass(frozen=True)
class Row:
    """One image.

    Parameters
    ----------
    line : int
        Line of the table, the header being line 1.
    path : pathlib.Path
        A file, or the folder of a DICOM series.
    patient_id : str
        The forget unit: erasing it erases every row of it.
    sample_id : str
        Stable name of the image; where the table has no such column, ``path`` as written.
    label : str
        As written; empty where the table has none.
    mask_path : pathlib.Path or None
    extra : dict of str to str
        Other columns, as written.
    """

    line: int
    path: Path
    patient_id: str
    sample_id: str
    label: str = ""
    mask_path: Path | None = None
    extra: dict[str, str] = field(default_factory=dict, compare=False)


def read_table(path: str | Path, root: str | Path | None = None) -> tuple[list[Row], list[Problem]]:
    """Read a table and check what can be checked without opening an image.

    Parameters
    ----------
    path : path
        CSV in UTF-8 (commas, semicolons or tabs) with the columns ``path`` and
        ``patient_id``, and, as the task needs, ``label``, ``mask_path`` and ``sample_id``.
    root : path, optional
        The folder that paths are relative to and may not leave; the table's own by default.

    Returns
    -------
    rows : list of Row
        Rows that can be looked at; of a repeated sample id, none.
    problems : list of Problem
        Missing files, empty cells, repeated ids, paths that leave the folder; all of them.

    Raises
    ------
    DataError
        If the table itself cannot be read: no such file, no header, or a needed column missing.
    """
    path = Path(path)
    folder = Path(root) if root is not None else path.parent
    rows: list[Row] = []
    problems: list[Problem] = []
    for line, cells in _lines(path):
        row, wrong = _row(line, cells, folder.resolve())
        problems += wrong
        if row is not None:
            rows.append(row)
    repeated = _repeated(rows)
    problems += repeated
    lines = {problem.line for problem in repeated}
    return [row for row in rows if row.line not in lines], sorted(problems)


def _lines(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read the table {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the table {path} is no text in UTF-8; save it as CSV in UTF-8") from error
    first = text.splitlines()[0] if text.strip() else ""
    separator = max(_SEPARATORS, key=first.count)
    reader = csv.DictReader(io.StringIO(text), delimiter=separator, restkey="", restval="")
    names = [name.strip() for name in reader.fieldnames or []]
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise DataError(
            f"the table {path} lacks the column(s) {', '.join(missing)}; its header is "
            f"{first[:80]!r}, and it needs {' and '.join(REQUIRED)}"
        )
    if len(set(names)) != len(names):
        raise DataError(f"the table {path} repeats a column; its header is {first[:80]!r}")
    reader.fieldnames = names
    found = []
    try:
        for cells in reader:
            # Cells beyond the header come as a list under "".
            values = {k: v.strip() for k, v in cells.items() if k and isinstance(v, str)}
            found.append((reader.line_num, values))
    except csv.Error as error:
        raise DataError(
            f"the table {path} is malformed near line {reader.line_num}: {error}"
        ) from error
    if not found:
        raise DataError(f"the table {path} has a header and no row")
    return found


def _row(line: int, cells: dict[str, str], folder: Path) -> tuple[Row | None, list[Problem]]:
    sample = cells.get("sample_id") or cells["path"] or f"line {line}"
    problems = [
        Problem(line, sample, "empty", f"the cell {name!r} is empty; fill it in")
        for name in REQUIRED
        if not cells[name]
    ]
    image, wrong = _inside(folder, cells["path"]) if cells["path"] else (None, None)
    mask, mask_wrong = (
        _inside(folder, cells["mask_path"]) if cells.get("mask_path") else (None, None)
    )
    problems += [Problem(line, sample, *what) for what in (wrong, mask_wrong) if what]
    if problems or image is None:
        return None, problems
    extra = {name: value for name, value in cells.items() if name not in KNOWN}
    row = Row(line, image, cells["patient_id"], sample, cells.get("label", ""), mask, extra)
    return row, []


def _inside(folder: Path, text: str) -> tuple[Path | None, tuple[str, str] | None]:
    """Resolve a path; links count as what they point to."""
    try:
        path = (folder / text).resolve()
        if not path.is_relative_to(folder):
            return None, ("outside", f"{text} leaves the folder {folder}; move the file into it")
        if not path.exists():
            return None, ("missing", f"there is no file or folder {text}; correct the path")
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL, too long a name
        return None, ("missing", f"{text!r} is no usable path ({error}); correct it")
    return path, None


def _repeated(rows: list[Row]) -> list[Problem]:
    """Name every row of a repeated id or image: which of them is right only the site can say."""
    problems = []
    by_id: dict[str, list[Row]] = defaultdict(list)
    by_image: dict[Path, list[Row]] = defaultdict(list)
    for row in rows:
        by_id[row.sample_id].append(row)
        by_image[row.path].append(row)
    for sample, same in by_id.items():
        if len(same) > 1:
            where = ", ".join(str(row.line) for row in same)
            text = f"sample id {sample!r} stands in lines {where}; give each image its own"
            problems += [Problem(row.line, sample, "duplicate", text) for row in same]
    for image, same in by_image.items():
        if len(same) > 1 and len({row.sample_id for row in same}) > 1:
            where = ", ".join(str(row.line) for row in same)
            text = f"the image {image.name} stands in lines {where}; keep one of them"
            problems += [Problem(row.line, row.sample_id, "duplicate", text) for row in same]
    return problems
