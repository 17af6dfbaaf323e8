"""The commands of docs/deployment.md exist, with their options, and its units hold them."""

from __future__ import annotations

import re
import shlex

import door
import federation
import pytest
from flwr.cli.app import app as flwr
from flwr.common.config import parse_config_args
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode
from typer.main import get_command

from flwr_afuic.cli import app as afuic
from tests.e2e.harness import ROOT

PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:console|ini)\n(.*?)```", PAGE, re.DOTALL)
LINES = "\n".join(BLOCKS).replace("\\\n", " ").splitlines()
INLINE = re.findall(r"`((?:flwr|flwr-afuic) [^`]+)`", PAGE)


def commands(name: str) -> list[list[str]]:
    """Return the arguments of each use of a program, comments left out."""
    found = []
    for line in [*LINES, *INLINE]:
        words = shlex.split(line.removeprefix("ExecStart="), comments=True)
        if words[:1] == ["systemctl"]:
            continue
        for position, word in enumerate(words):
            if word.rsplit("/", 1)[-1] == name and all("=" not in w for w in words[:position]):
                found.append([w for w in words[position + 1 :] if w != "..."])
                break
    return found


def test_the_superlinks_options_are_flowers():
    assert commands("flower-superlink")
    for arguments in commands("flower-superlink"):
        chosen = _parse_args_run_superlink().parse_args(arguments)
        assert chosen.enable_supernode_auth
        assert chosen.host == "127.0.0.1"
        assert chosen.database


def test_the_supernodes_options_are_flowers_and_it_knows_inbox_and_key():
    assert len(commands("flower-supernode")) == 2
    for arguments in commands("flower-supernode"):
        chosen = _parse_args_run_supernode().parse_args(arguments)
        config = parse_config_args([chosen.node_config])
        assert {"inbox", "server-key"} <= set(config)


@pytest.mark.parametrize("arguments", commands("federation.py"), ids=" ".join)
def test_the_scripts_commands_are_the_scripts(arguments):
    federation._parser().parse_args(arguments)


def test_the_doors_options_are_the_doors(monkeypatch):
    (arguments,) = commands("door.py")
    served = {}
    monkeypatch.setattr("sys.argv", ["door.py", *arguments])
    monkeypatch.setattr("door.Door", lambda address, ca: address)
    monkeypatch.setattr("door.uvicorn.run", lambda app, **options: served.update(options, app=app))
    assert door.main() == 0
    assert (served["app"], served["port"]) == ("127.0.0.1:9092", 443)


@pytest.mark.parametrize(
    ("program", "arguments"),
    [(flwr, a) for a in commands("flwr")] + [(afuic, a) for a in commands("flwr-afuic")],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flwr_and_flwr_afuic_know_the_commands_and_their_options(program, arguments):
    command, words = get_command(program), list(arguments)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, words
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known
