"""The command line run in this process, and what a failure of it looks like."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from flwr_afuic.cli import commands


@dataclass
class Ran:
    """How a command ended: exit status, standard output and standard error."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path):
    """Run the command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("AFUIC_DATA_DIR", str(tmp_path / "data"))

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["flwr-afuic", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            commands.main()
        captured = capsys.readouterr()
        return Ran(ended.value.code or 0, captured.out, captured.err)

    return run


def one_line(ran: Ran, *words: str) -> None:
    """Check that a command failed with one line that holds these words."""
    assert ran.status == 1
    lines = [line for line in ran.err.splitlines() if not line.startswith("data set:")]
    assert len(lines) == 1, ran.err
    assert re.fullmatch(r"error: .+ \[AFUIC-\d{3}\]", lines[0])
    for word in words:
        assert word in lines[0]
