"""The two places of a federation that commands work on: a site's inbox, the server's state."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flwr_afuic.errors import ConfigError, ErasureError, StateError

if TYPE_CHECKING:
    from flwr_afuic.erasure.inbox import SiteInbox
    from flwr_afuic.state.reading import StateView
    from flwr_afuic.state.store import StateStore

Inbox = Annotated[
    Path | None, typer.Option("--inbox", help="The site's inbox, a file on the hospital's disk.")
]
State = Annotated[Path | None, typer.Option("--state", help="The server's state directory.")]
StateDir = Annotated[Path, typer.Option("--state", help="The server's state directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for a program to read.")]
RequestId = Annotated[
    str, typer.Argument(metavar="ID", help="Id of the request, as it was printed at filing.")
]


def check_place(inbox: Path | None, state: Path | None) -> None:
    """Raise ConfigError unless exactly one place is named."""
    if (inbox is None) == (state is None):
        raise ConfigError(
            "name one place: --inbox FILE at a hospital, or --state DIR at the server"
        )


def open_inbox(path: Path) -> SiteInbox:
    """Open an inbox that exists: a mistyped path must not become a new, empty one."""
    from flwr_afuic.erasure.inbox import SiteInbox

    if not path.is_file():
        raise ErasureError(
            f"{path} is no inbox; name the file that the site's node configuration names. It is "
            "made when the site's client first runs"
        )
    return SiteInbox(path)


def open_state(path: Path) -> StateStore:
    """Open a state directory that exists, to write to it beside a server."""
    from flwr_afuic.state.store import StateStore

    return StateStore(path, create=False)


def look_at(path: Path) -> StateView:
    """Read a state directory without writing to it."""
    from flwr_afuic.state.reading import read_state

    return read_state(path)


def read_bytes(path: Path, what: str) -> bytes:
    """Read a file the user named; StateError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise StateError(f"cannot read {what} from {path}: {error.strerror}") from error


def say_json(value: Any) -> None:
    """Print a value as JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def printable(text: object) -> str:
    """Replace control characters by spaces: what sites wrote must not move the cursor."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def when(seconds: float | None) -> str:
    """Return seconds since the epoch as date and time in UTC; ``-`` if not known."""
    if not seconds:
        return "-"
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):
        return "-"  # a site's clock may say anything


def table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows under names, in columns; the last column is as wide as it needs."""
    cells = [list(names)] + [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def pairs(rows: Sequence[tuple[str, object]]) -> str:
    """Return names with values, one a line."""
    width = max(len(name) for name, _ in rows) + 1
    return "\n".join(f"{name + ':':<{width}} {printable(value)}".rstrip() for name, value in rows)
