"""A table of image-text pairs on disk: one row an image, with patient, place, finding, licence."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from flwr_afuic.data.clinical.problems import Problem
from flwr_afuic.data.multimodal.captions import CaptionSource, choose_caption
from flwr_afuic.errors import DataError

REQUIRED = ("image", "patient_id", "location", "license")
TEXTS = ("clinical_notes", "metadata_caption")
UNKNOWN_PLACE = "unknown"


@dataclass(frozen=True)
class PairRow:
    """One row that can be looked at.

    Parameters
    ----------
    line : int
        Line of the table, the header being line 1.
    path : pathlib.Path
        The image.
    sample_id : str
        ``image`` as written.
    patient_id : str
        The forget unit.
    place : str
        The last part of ``location``, its country; ``unknown`` where that is empty.
    finding : str
        As written; empty where the source named none.
    licence : str
    caption : str
    caption_source : {"clinical_notes", "metadata_caption"}
    """

    line: int
    path: Path
    sample_id: str
    patient_id: str
    place: str
    finding: str
    licence: str
    caption: str
    caption_source: CaptionSource


def read_pairs(table: str | Path) -> tuple[list[PairRow], list[Problem]]:
    """Read a table of pairs and check what can be checked without opening an image.

    Parameters
    ----------
    table : path
        CSV in UTF-8 with the columns ``image`` (a path within the table's folder),
        ``patient_id``, ``location``, ``license`` and at least one of ``clinical_notes`` and
        ``metadata_caption``; ``finding`` where there are any.

    Returns
    -------
    rows : list of PairRow
        Usable rows, in the order of the table.
    problems : list of Problem
        All that is wrong with the others: files that are missing or lie outside, empty cells,
        rows without a caption or a licence, repeated images.

    Raises
    ------
    DataError
        If the table itself cannot be read or lacks a column.
    """
    table = Path(table)
    rows: list[PairRow] = []
    problems: list[Problem] = []
    for line, cells in _lines(table):
        row, wrong = _row(line, cells, table.parent.resolve())
        problems += wrong
        if row is not None:
            rows.append(row)
    repeated = _repeated(rows)
    lines = {problem.line for problem in repeated}
    return [row for row in rows if row.line not in lines], sorted([*problems, *repeated])


def place_of(location: str) -> str:
    """Return the country of a location such as ``"Hannover Medical School, Hannover, Germany"``.

    Examples
    --------
    >>> place_of("Cleveland, Ohio, USA"), place_of(" ")
    ('USA', 'unknown')
    """
    return location.rsplit(",", 1)[-1].strip() or UNKNOWN_PLACE


def _lines(table: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        text = table.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read the table {table}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the table {table} is no text in UTF-8; save it as such") from error
    reader = csv.DictReader(io.StringIO(text), restkey="", restval="")
    names = [name.strip() for name in reader.fieldnames or []]
    missing = [name for name in REQUIRED if name not in names]
    if not set(TEXTS) & set(names):
        missing.append(" or ".join(TEXTS))
    if missing:
        raise DataError(f"the table {table} lacks the column(s) {', '.join(missing)}; add them")
    reader.fieldnames = names
    try:
        found = [
            (reader.line_num, {k: v.strip() for k, v in cells.items() if k and isinstance(v, str)})
            for cells in reader
        ]
    except csv.Error as error:
        raise DataError(f"the table {table} is malformed near line {reader.line_num}") from error
    if not found:
        raise DataError(f"the table {table} has a header and no row")
    return found


def _row(line: int, cells: dict[str, str], folder: Path) -> tuple[PairRow | None, list[Problem]]:
    sample = cells["image"] or f"line {line}"
    wrong = [
        Problem(line, sample, "empty", f"the cell {name!r} is empty; fill it in")
        for name in ("image", "patient_id", "license")
        if not cells[name]
    ]
    caption, origin = choose_caption(
        cells.get("clinical_notes", ""), cells.get("metadata_caption", "")
    )
    if not caption:
        wrong.append(Problem(line, sample, "empty", "the row has no caption; give it a text"))
    path = folder
    if cells["image"]:
        path, trouble = _inside(folder, cells["image"])
        wrong += [Problem(line, sample, *trouble)] if trouble else []
    if wrong:
        return None, wrong
    row = PairRow(
        line=line,
        path=path,
        sample_id=cells["image"],
        patient_id=cells["patient_id"],
        place=place_of(cells["location"]),
        finding=cells.get("finding", ""),
        licence=cells["license"],
        caption=caption,
        caption_source=origin,
    )
    return row, []


def _inside(folder: Path, text: str) -> tuple[Path, tuple[str, str] | None]:
    try:
        path = (folder / text).resolve()
        if not path.is_relative_to(folder):
            return path, ("outside", f"{text} leaves the folder {folder}; move the file into it")
        if not path.is_file():
            return path, ("missing", f"there is no file {text}; correct the path")
    except (OSError, RuntimeError, ValueError) as error:
        return folder, ("missing", f"{text!r} is no usable path ({error}); correct it")
    return path, None


def _repeated(rows: list[PairRow]) -> list[Problem]:
    by_image: dict[Path, list[PairRow]] = defaultdict(list)
    for row in rows:
        by_image[row.path].append(row)
    problems = []
    for same in by_image.values():
        if len(same) > 1:
            where = ", ".join(str(row.line) for row in same)
            text = f"the image stands in lines {where}; keep one of them"
            problems += [Problem(row.line, row.sample_id, "duplicate", text) for row in same]
    return problems
