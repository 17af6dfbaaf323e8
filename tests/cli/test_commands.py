"""Every command is documented, explains each option, and loads no more than it needs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from flwr_afuic.cli import commands

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]


def every_command() -> list[tuple[list[str], click.Command]]:
    def walk(command: click.Command, path: list[str]) -> Iterator[tuple[list[str], click.Command]]:
        for name, sub in getattr(command, "commands", {}).items():
            yield from walk(sub, [*path, name])
        if not getattr(command, "commands", None):
            yield path, command

    return list(walk(typer.main.get_command(commands.app), []))


NAMED = {" ".join(path): command for path, command in every_command()}


def undocumented(command: click.Command) -> list[str]:
    """Return the options without help, and the arguments that the help does not name."""
    found = []
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not (parameter.help or "").strip():
            found.append("/".join(parameter.opts))
        # The table of arguments stays without words in some versions of click.
        elif isinstance(parameter, click.Argument):
            name = parameter.make_metavar(click.Context(command)).strip("[]{}<>")
            if name.upper() not in (command.help or ""):
                found.append(name)
    return found


@pytest.mark.parametrize("name", NAMED)
def test_every_command_is_documented_and_its_help_has_an_example(name, cli):
    called = f"flwr-afuic {name}"
    named = re.compile(rf"`{called}(?![\w-])")
    assert any(named.search(page.read_text()) for page in PAGES), f"{called} is undocumented"
    ran = cli(*name.split(), "--help")
    assert ran.status == 0
    assert f"Example: {called}" in re.sub(r"\s+", " ", ran.out)


@pytest.mark.parametrize("name", NAMED)
def test_every_option_and_argument_is_explained(name):
    assert undocumented(NAMED[name]) == []


def test_an_option_without_words_is_seen():
    app = typer.Typer()

    @app.command()
    def silent(document: str, key: str = "", why: str = typer.Option("", help="Why.")) -> None:
        """Do a thing."""

    assert undocumented(typer.main.get_command(app)) == ["DOCUMENT", "--key"]


def test_the_service_needs_neither_torch_nor_flower():
    script = (
        "import sys\n"
        "import flwr_afuic.cli.commands\n"
        "import flwr_afuic.erasure.certificate, flwr_afuic.erasure.inbox\n"
        "import flwr_afuic.state.store, flwr_afuic.state.reading, flwr_afuic.state.backup\n"
        "import flwr_afuic.state.standing, flwr_afuic.erasure.samples\n"
        "heavy = {'torch', 'flwr', 'monai', 'ray', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_help_comes_quickly_whoever_asks():
    """The command line alone loads nothing but itself; each command fetches what it needs."""
    script = (
        "import sys\n"
        "import flwr_afuic.cli\n"
        "heavy = {'torch', 'numpy', 'jinja2', 'cryptography', 'sqlite3'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_help_reads_no_bench_and_neither_torch_nor_flower() -> None:
    code = (
        "import sys, typer; from flwr_afuic.cli import app; command = typer.main.get_command(app); "
        "late = ('flwr_afuic.cli.bench', 'torch', 'flwr', 'numpy', 'rich.progress'); "
        "print([name for name in late if name in sys.modules], end=' '); "
        "print(len(command.commands['bench'].commands))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, number = done.stdout.rsplit(" ", 1)
    assert loaded == "[]"
    assert int(number) > 10
