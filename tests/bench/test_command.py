"""``flwr-afuic bench figures`` from finished runs."""

import json
import sys

import pytest

from flwr_afuic.bench.figures import BEGIN, END
from flwr_afuic.cli import commands
from tests.bench.test_figures import kept, summary  # noqa: F401 - kept is a fixture


@pytest.fixture
def bench(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["flwr-afuic", "bench", "figures", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            commands.main()
        return ended.value.code or 0, *capsys.readouterr()

    return run


def test_it_prints_writes_and_fills(bench, kept):  # noqa: F811
    folder = kept([summary(0), summary(1, planted=False), summary(2)])
    document = folder / "README.md"
    document.write_text(f"{BEGIN}\n{END}\n")
    status, out, err = bench(
        "--datasets", "phantoms", "--planted", 2, "--out", folder, "--json", folder / "f.json",
        "--markdown", document, "--silent-failures",
    )  # fmt: skip
    assert status == 0, err
    assert "**phantoms**" in out
    assert "0 silent failures in 3 requests" in out
    assert "phantoms seed 1: left out" in err
    written = json.loads((folder / "f.json").read_text())
    assert written.keys() >= {"figures", "settings", "seeds", "versions", "left_out"}
    assert written["seeds"] == {"phantoms": [0, 2]}
    assert all(isinstance(value, float) for value in written["figures"].values())
    assert "seed" not in written["settings"]["phantoms"]
    assert "| **AFU-IC** |" in document.read_text()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--datasets", "phantoms,phantoms"], "phantoms,phantoms"),
        (["--datasets", " "], "name each data set once"),
        (["--planted", "0"], "--planted is 0"),
        (["--seeds", "x"], "--seeds 'x'"),
        (["--workers", "0"], "workers is 0"),
        (["--engine", "kubernetes"], "unknown engine"),
        (["--set", "sites=2"], "sites is 2"),
    ],
)
def test_bad_input_is_one_line(bench, arguments, word, tmp_path):
    status, _, err = bench("--out", tmp_path, *arguments)
    assert status == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert word in err
