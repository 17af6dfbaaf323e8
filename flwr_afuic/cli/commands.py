"""The commands put together, and errors turned into one line and an exit status."""

from __future__ import annotations

import sys

import typer

from flwr_afuic.cli.bench import app as bench
from flwr_afuic.cli.demo import demo, run
from flwr_afuic.cli.report import report
from flwr_afuic.errors import AfuicError

app = typer.Typer(
    name="flwr-afuic",
    help="The right to be forgotten for Flower federations: asynchronous federated unlearning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo)
app.command("run")(run)
app.command("report")(report)
app.add_typer(bench, name="bench")


def main() -> None:
    """Run the command line; the exit status is 0, 1 after an error, 2 after a usage error."""
    try:
        app()
    except AfuicError as error:
        # Typer's own exits pass through; anything else is a defect and keeps its traceback.
        text = " ".join(str(error).split())
        print(f"error: {text} [{error.code}]", file=sys.stderr)
        sys.exit(1)
