"""``flwr-afuic report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flwr_afuic.errors import DataError


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run: it holds record.json.")],
) -> None:
    """Make report.html and its figures again from the record in a run's FOLDER.

    Example: flwr-afuic report runs/demo
    """
    from flwr_afuic.report import RunRecord, summary_table, write_report

    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; name the --out folder of a run")
    record = RunRecord.load(folder / "record.json")
    page = write_report(record, folder)
    typer.echo(summary_table(record))
    typer.echo(f"report: {page}")
