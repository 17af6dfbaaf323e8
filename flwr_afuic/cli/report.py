"""``flwr-afuic report``: of a run that ended, or of a federation that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flwr_afuic.cli import places
from flwr_afuic.errors import ConfigError, DataError

_OUT = Path("federation-report")


def report(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of a run: it holds record.json.")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="Instead: a server's state directory, whether a server runs or not."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help=f"With --state: folder for federation.html; else {_OUT}."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --state: print JSON, for a program to read.")
    ] = False,
) -> None:
    """Report on the run in FOLDER, or on a federation from its server's state directory.

    Of a run: report.html and its figures, made again. Of a federation: versions, sites,
    requests and where each stands, what was kept out, and whether ledger and certificates
    verify. The state directory is only read, and a running server goes on.

    Example: flwr-afuic report runs/demo

    Operator: flwr-afuic report --state /srv/afuic --out report
    """
    if (folder is None) == (state is None):
        raise ConfigError(
            "name what to report on: the folder of a run, or --state DIR for a server's state "
            "directory"
        )
    if state is not None:
        _of_state(state, out, as_json=as_json)
        return
    if out is not None or as_json:
        raise ConfigError("--out and --json go with --state; a run's report is made in its folder")
    if folder is not None:
        _of_run(folder)


def _of_run(folder: Path) -> None:
    from flwr_afuic.report import RunRecord, summary_table, write_report

    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; name the --out folder of a run")
    record = RunRecord.load(folder / "record.json")
    page = write_report(record, folder)
    typer.echo(summary_table(record))
    typer.echo(f"report: {page}")


def _of_state(state: Path, out: Path | None, *, as_json: bool) -> None:
    from flwr_afuic.report.state_json import state_json
    from flwr_afuic.report.state_page import write_state_page
    from flwr_afuic.report.state_text import state_text
    from flwr_afuic.report.state_view import read_report

    found = read_report(state)
    # A program that asks for JSON gets a page only where it names a place for it.
    page = None if as_json and out is None else write_state_page(found, out or _OUT)
    if as_json:
        places.say_json(state_json(found))
        return
    typer.echo(state_text(found))
    typer.echo(f"report: {page}")
