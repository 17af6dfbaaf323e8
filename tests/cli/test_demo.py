"""The demo's commands: what they write and print, and one line for what goes wrong."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from flwr_afuic.app.demo import write_demo
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.bench.hippocampus import HippocampusSettings
from flwr_afuic.cli import commands
from flwr_afuic.cli import demo as demo_module
from flwr_afuic.cli.options import read_config, read_pairs
from flwr_afuic.cli.progress import progress
from flwr_afuic.data.sources import DATA_DIR_VARIABLE
from flwr_afuic.errors import ConfigError, DataError
from tests.app import tiny
from tests.cli.conftest import one_line


@pytest.fixture
def finished(monkeypatch):
    """Let the pipeline return a run made before, and collect the settings it was given."""
    given = []

    def run_demo(settings, *, engine, progress):
        given.append((settings, engine))
        progress("afuic", 1, 2)
        return tiny.once()

    monkeypatch.setattr("flwr_afuic.app.demo.run_demo", run_demo)
    return given


# ---- the commands -----------------------------------------------------------------------


@pytest.mark.slow
def test_demo_writes_everything_and_prints_the_table(cli, finished, tmp_path):
    ran = cli("demo", "--dataset", tiny.data_file(), "--engine", "local", "--out", "out",
              "--json", "figures/demo.json", "--seed", 3, "--merge", "overwrite")  # fmt: skip
    assert ran.status == 0, ran.err
    settings, engine = finished[0]
    assert (settings.seed, settings.merge, engine) == (3, "overwrite", "local")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"summary.json", "record.json", "report.html"}
    assert len([name for name in names if name.endswith(".png")]) == 3
    written = json.loads((tmp_path / "figures" / "demo.json").read_text())
    assert written.keys() >= {"figures", "settings", "seeds", "versions"}
    assert "AFU-IC" in ran.out
    assert "report:" in ran.out
    assert "AFU-IC, erasure on the way: 1 of 2" in ran.err, "plain lines without a terminal"


@pytest.mark.slow
def test_quiet_says_nothing(cli, finished):
    ran = cli("demo", "--dataset", tiny.data_file(), "--engine", "local", "--quiet")
    assert (ran.status, ran.out, ran.err) == (0, "", "")


@pytest.mark.slow
def test_run_takes_a_file_and_pairs_which_win(cli, finished, tmp_path):
    (tmp_path / "s.toml").write_text('dataset = "phantoms"\nlocal-steps = 4\nalpha = 1\n')
    ran = cli("run", "--config", "s.toml", "--set", "local_steps=6", "--set", "lock=off",
              "--engine", "virtual")  # fmt: skip
    assert ran.status == 0, ran.err
    settings, engine = finished[0]
    assert settings == AppSettings(dataset="phantoms", local_steps=6, lock=False, alpha=1.0)
    assert engine == "virtual"


def test_run_shows_its_settings_in_a_form_it_reads(cli, tmp_path):
    ran = cli("run", "--set", "sites=4", "--set", "lock=false", "--show")
    (tmp_path / "again.toml").write_text(ran.out)
    assert AppSettings.from_mapping(read_config(tmp_path / "again.toml")) == AppSettings(
        sites=4, lock=False
    )


@pytest.mark.slow
def test_report_is_made_again_from_the_record(cli, tmp_path):
    write_demo(tiny.once(), tmp_path / "old")
    ran = cli("report", "old")
    assert ran.status == 0, ran.err
    assert (tmp_path / "old" / "report.html").stat().st_size > 10_000
    assert "AFU-IC" in ran.out


# ---- which data -------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch):
    def fetch(entry, folder):
        raise DataError("there is no network")

    monkeypatch.setattr("flwr_afuic.data.sources.fetch", fetch)


@pytest.mark.slow
def test_without_data_and_network_the_demo_takes_phantoms_and_says_so(cli, offline, finished):
    ran = cli("demo", "--engine", "local")
    assert finished[0][0].dataset == "phantoms"
    assert ran.err.startswith("data set: phantoms (SYNTHETIC), because ")
    assert "there is no network" in ran.err


@pytest.mark.slow
def test_with_data_the_demo_takes_pneumoniamnist_and_says_so(cli, finished, tmp_path):
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "pneumoniamnist.npz").write_bytes(b"judged later, by its MD5")
    ran = cli("demo", "--engine", "local", "--data-dir", "held")
    settings = finished[0][0]
    assert settings.dataset == "pneumoniamnist"
    assert settings.data_dir == "", "no path of this machine in what is printed"
    assert os.environ[DATA_DIR_VARIABLE] == str(tmp_path / "held")
    assert ran.err.startswith("data set: pneumoniamnist\n")


def test_an_unknown_data_set_is_one_line(cli):
    one_line(cli("demo", "--dataset", "pneumonia", "--engine", "local"), "'pneumonia'", "known:")


def test_a_missing_file_is_one_line(cli):
    one_line(cli("demo", "--dataset", "nowhere.npz", "--engine", "local"), "nowhere.npz")


def test_a_missing_named_set_is_one_line(cli, offline):
    ran = cli("demo", "--dataset", "pneumoniamnist", "--engine", "local")
    one_line(ran, "there is no network", "--data-dir", "--dataset phantoms")


def test_a_wrong_md5_is_one_line_and_no_reason_to_take_phantoms(cli, tmp_path):
    (tmp_path / "data").mkdir()
    tiny.write_npz(tmp_path / "data" / "pneumoniamnist.npz")
    found = hashlib.md5((tmp_path / "data" / "pneumoniamnist.npz").read_bytes()).hexdigest()
    one_line(cli("demo", "--engine", "local"), "MD5", found)


def test_a_truncated_file_is_one_line(cli, tmp_path):
    whole = tiny.write_npz(tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    one_line(cli("demo", "--dataset", "cut.npz", "--engine", "local"), "cut.npz")


def test_labels_out_of_range_are_one_line(cli, tmp_path):
    labels = np.zeros((600, 1), dtype=np.int64)
    labels[7] = -3
    tiny.write_npz(tmp_path / "bad.npz", train_labels=labels)
    one_line(cli("demo", "--dataset", "bad.npz", "--engine", "local"), "-3")


# ---- other errors -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--scenario", "ghost"], "ghost"),
        (["--merge", "average"], "average"),
        (["--engine", "kubernetes"], "kubernetes"),
        (["--sites", "2"], "sites is 2"),
        (["--phi", "mirror"], "mirror"),
        (["--objective", "hope"], "hope"),
        (["--data-dir", "nowhere"], "nowhere"),
    ],
)
def test_a_bad_setting_is_one_line(cli, arguments, word):
    ran = cli("demo", "--dataset", tiny.data_file(), "--engine", "local", *arguments)
    one_line(ran, word)


def test_results_that_could_not_be_written_are_refused_before_the_run(cli, tmp_path):
    (tmp_path / "file").write_text("")
    one_line(cli("demo", "--dataset", "phantoms", "--out", "file/out"), "file/out")


def test_a_report_without_a_record_is_one_line(cli, tmp_path):
    one_line(cli("report", "nowhere"), "nowhere")
    (tmp_path / "empty").mkdir()
    one_line(cli("report", "empty"), "record.json")


def test_an_unexpected_error_keeps_its_traceback(cli, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("a defect")

    monkeypatch.setattr("flwr_afuic.app.demo.run_demo", broken)
    monkeypatch.setattr(sys, "argv", ["flwr-afuic", "demo", "--dataset", "phantoms"])
    with pytest.raises(RuntimeError, match="a defect"):
        commands.main()


def test_usage_errors_exit_with_2(cli):
    assert cli("demo", "--no-such-option").status == 2


@pytest.mark.parametrize(
    "pair", ["sites", "=4", "sites=four", "lock=maybe", "alpha=wide", "unknown=1"]
)
def test_a_malformed_pair_is_refused(pair):
    with pytest.raises(ConfigError, match=r"sites|lock|alpha|unknown|key=value"):
        AppSettings.from_mapping(read_pairs([pair]))


def test_pairs_take_the_types_of_the_settings_they_are_for():
    pairs = ["tuning=true", "sites=6", "lr=0.01", "size=16,24,16", "seed=3"]
    found = read_pairs(pairs, HippocampusSettings)
    assert HippocampusSettings(**found) == HippocampusSettings(
        tuning=True, sites=6, lr=0.01, size=(16, 24, 16), seed=3
    )


@pytest.mark.parametrize("text", ["sites = ", "[sites", "\xff"])
def test_a_malformed_file_is_refused(text, tmp_path):
    path = tmp_path / "s.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="not TOML"):
        read_config(path)
    with pytest.raises(ConfigError, match="cannot read"):
        read_config(tmp_path / "missing.toml")


def test_the_process_reports_to_nobody_and_its_module_runs():
    script = "import os, flwr_afuic.cli; print(os.environ['FLWR_TELEMETRY_ENABLED'])"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "RAY_"))}
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "0"
    done = subprocess.run(
        [sys.executable, "-m", "flwr_afuic.cli", "demo", "--dataset", "ghost"],
        env=clean, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


# ---- progress ---------------------------------------------------------------------------


def test_progress_is_some_lines_or_none(capsys):
    with progress() as report:
        for done in range(101):
            report("retrain", done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert 10 <= len(lines) <= 12
    assert lines[-1] == "retraining without the erased data: 100 of 100"
    with progress(quiet=True) as report:
        report("retrain", 1, 2)
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_is_bars(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress() as report:
        report("afuic", 3, 120)
        report("retrain", 5, 10)
    shown = capsys.readouterr().err
    assert "AFU-IC" in shown
    assert "5/10" in shown
    assert "3/3" in shown, "a run that ended early is shown as ended"


def test_defaults_of_demo_are_those_of_the_settings():
    import inspect

    given = inspect.signature(demo_module.demo).parameters
    for name, value in vars(AppSettings()).items():
        if name in given and name not in ("dataset", "data_dir"):
            assert given[name].default == value
