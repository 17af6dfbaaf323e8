"""A group of commands that is read when one of them is wanted: ``--help`` need not wait for it."""

from __future__ import annotations

from collections.abc import MutableMapping

import click
import typer
from typer.core import TyperGroup


class BenchGroup(TyperGroup):
    """The commands of :mod:`flwr_afuic.cli.bench`, imported at the first look at them."""

    _found: MutableMapping[str, click.Command] | None = None

    @property
    def commands(self) -> MutableMapping[str, click.Command]:
        """Commands by name."""
        if self._found is None:
            from flwr_afuic.cli.bench import app

            self._found = typer.main.get_command(app).commands  # type: ignore[attr-defined]
        return self._found

    @commands.setter
    def commands(self, given: MutableMapping[str, click.Command]) -> None:
        """Take none from the empty app that stands for the group."""


bench = typer.Typer(
    cls=BenchGroup,
    help="Experiments that print the documentation's tables.",
    no_args_is_help=True,
)
