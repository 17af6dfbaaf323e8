"""The image-text example runs on generated pairs, from the request to the merge."""

from __future__ import annotations

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if not all(map(find_spec, ("transformers", "peft"))):  # found, not loaded: collecting takes seconds
    pytest.skip("needs flwr-afuic[multimodal]", allow_module_level=True)

EXAMPLE = Path(__file__).parents[2] / "examples" / "multimodal" / "run.py"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
    runpy.run_path(str(EXAMPLE), run_name="__main__")


def test_one_command_trains_erases_and_says_so(monkeypatch, capsys, tmp_path):
    short = ("--rounds", "2", "--after", "1", "--pretraining-steps", "3")
    run(monkeypatch, "--phantoms", *short, "--cache", str(tmp_path))
    said = capsys.readouterr().out
    assert "(synthetic)" in said
    assert "16 adapter arrays, 8192 values" in said
    assert "north files the request" in said
    assert ": erasure" in said
    assert "fully entangled: False" in said


def test_missing_data_end_in_one_line(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="error: data set 'covid_cxr_text' is not in"):
        run(monkeypatch, "--data-dir", str(tmp_path))
