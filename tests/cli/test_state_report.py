"""``flwr-afuic report --state``."""

from __future__ import annotations

import subprocess
import sys

from tests.cli.conftest import one_line
from tests.cli.service import certify, make_state, record, uuid


def test_a_page_and_a_text(cli, tmp_path):
    state = make_state(tmp_path / "state", record(1, "completed"), record(2, "held"))
    certify(state, 1)
    ran = cli("report", "--state", state, "--out", "shown")
    assert ran.status == 0
    assert "[Needs attention] The erasure of 12 samples at hospital-a is held" in ran.out
    assert f"flwr-afuic release {uuid(2)} --state {state}" in ran.out
    assert ran.out.endswith("report: shown/federation.html\n")
    assert "hospital-a" in (tmp_path / "shown" / "federation.html").read_text()


def test_without_out_it_has_a_folder_of_its_own(cli, tmp_path):
    state = make_state(tmp_path / "state")
    assert cli("report", "--state", state).out.endswith("federation-report/federation.html\n")
    assert (tmp_path / "federation-report" / "federation.html").is_file()


def test_json_alone_writes_no_page(cli, tmp_path):
    state = make_state(tmp_path / "state", record(1, "verifying"))
    told = cli("report", "--state", state, "--json").json()
    assert [request["state"] for request in told["requests"]] == ["verifying"]
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert cli("report", "--state", state, "--json", "--out", "shown").json()["version"] == 1
    assert (tmp_path / "shown" / "federation.html").is_file()


def test_one_thing_is_reported_on(cli, tmp_path):
    one_line(cli("report"), "name what to report on")
    one_line(cli("report", "runs/demo", "--state", "x"), "name what to report on")
    one_line(cli("report", "runs/demo", "--json"), "go with --state")
    one_line(cli("report", "--state", tmp_path / "typo"), "is no state directory")


def test_it_needs_neither_torch_nor_flower(tmp_path):
    state = make_state(tmp_path / "state", record(1, "completed"))
    script = (
        "import sys\n"
        "from flwr_afuic.report.state_view import read_report\n"
        "from flwr_afuic.report.state_page import render_state\n"
        "from flwr_afuic.report.state_text import state_text\n"
        "from flwr_afuic.report.state_json import state_json\n"
        f"report = read_report({str(state)!r})\n"
        "assert render_state(report) and state_text(report) and state_json(report)\n"
        "heavy = {'torch', 'flwr', 'monai', 'ray'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
