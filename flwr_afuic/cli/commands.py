"""The commands put together, and errors turned into one line and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from flwr_afuic.cli.certificates import certificate, verify
from flwr_afuic.cli.demo import demo, run
from flwr_afuic.cli.lazy import bench
from flwr_afuic.cli.ledger import app as ledger
from flwr_afuic.cli.report import report
from flwr_afuic.cli.requests import cancel, reject, release, request, requests, status
from flwr_afuic.cli.upkeep import backup, keys, restore
from flwr_afuic.errors import AfuicError

app = typer.Typer(
    name="flwr-afuic",
    help="The right to be forgotten for Flower federations: asynchronous federated unlearning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "A federation on one machine": (demo, run, report),
    "Erasure requests": (request, requests, status, cancel, release, reject),
    "Proof": (certificate, verify),
    "The server's state directory": (backup, restore),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(_command.__name__, rich_help_panel=_panel)(_command)
app.add_typer(bench, name="bench", rich_help_panel="A federation on one machine")
app.add_typer(ledger, name="ledger", rich_help_panel="Proof")
app.add_typer(keys, name="keys", rich_help_panel="The server's state directory")


def main() -> None:
    """Run the command line; the exit status is 0, 1 after an error, 2 after a usage error."""
    try:
        app()
    except AfuicError as error:
        # Typer's own exits pass through; anything else is a defect and keeps its traceback.
        text = " ".join(str(error).split())
        print(f"error: {text} [{error.code}]", file=sys.stderr)
        sys.exit(1)
