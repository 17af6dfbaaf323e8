"""The parts of ``examples/hospitals``: its app, its credentials, its processes, its script."""

from __future__ import annotations

import datetime
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import credentials
import data
import numpy as np
import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from flwr.app import Context, RecordDict
from flwr.app.user_config import UserConfig
from flwr.cli.supernode.register import try_load_public_key
from machines import HOSPITALS
from processes import Services, wait_until

from flwr_afuic.app.local import LocalGrid
from flwr_afuic.erasure.inbox import SiteInbox
from flwr_afuic.state.reading import read_state, verify_state
from tests.e2e.harness import EXAMPLE

SCRIPT = str(EXAMPLE / "federation.py")


# ---- the app ------------------------------------------------------------------------


class Steward:
    """Beside the client app: files the erasure once the model has learned something."""

    def __init__(self, app, folder, round_: int) -> None:
        self._app, self._folder, self._round, self.request_id = app, folder, round_, ""
        self._lock = threading.Lock()  # sites run side by side

    def __call__(self, message, context):
        task = message.content.get("fitins.config", {})
        with self._lock:
            # With its own hospital's task, whose place among the others is always the same.
            mine = Path(str(context.node_config["inbox"])).parent == self._folder
            later = int(task.get("server-round", 0)) > self._round
            if mine and later and not self.request_id:
                self.request_id = self._file()
        return self._app(message, context)

    def _file(self) -> str:
        with np.load(self._folder / "images.npz") as file:
            held = [str(sample) for sample in file["ids"]]
        ids = (self._folder / "withdrawn.csv").read_text(encoding="utf-8").split()
        inbox = SiteInbox(self._folder / "inbox.sqlite")
        return inbox.file(scope="samples", sample_ids=ids, held=held).request_id


@pytest.mark.slow
def test_the_examples_app_forgets_what_its_steward_asks_for(tmp_path):
    from hospitals import client_app, server_app

    for name in ("coordinator", *HOSPITALS):
        (tmp_path / name).mkdir()
    data.write_data(tmp_path, HOSPITALS, HOSPITALS[0])
    steward = Steward(client_app.app, tmp_path / HOSPITALS[0], round_=4)
    grid = LocalGrid(
        steward,
        len(HOSPITALS),
        names=list(HOSPITALS),
        node_configs={
            number: {
                "data": str(tmp_path / name / "images.npz"),
                "inbox": str(tmp_path / name / "inbox.sqlite"),
            }
            for number, name in enumerate(HOSPITALS)
        },
    )
    app = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))
    config = app["tool"]["flwr"]["app"]["config"] | {
        "state-dir": str(tmp_path / "state"),
        "proxies": str(tmp_path / "coordinator" / "proxies.npz"),
        "verify-rounds": 1,
        "until-erased": True,
    }
    try:
        server_app.app(grid, Context(1, 1, UserConfig(), RecordDict(), UserConfig(config)))
    finally:
        grid.close()
    view = read_state(tmp_path / "state")
    row = view.request(steward.request_id)
    assert (row.site, row.state) == (HOSPITALS[0], "completed")
    evidence = json.loads(row.body["evidence"][-1])
    assert evidence["before"]["accuracy"] > 0.9
    assert row.body["scores"][-1][1]["accuracy"] < 0.6
    assert SiteInbox(tmp_path / HOSPITALS[0] / "inbox.sqlite").certificate(row.id) is not None
    assert verify_state(tmp_path / "state") == []


# ---- credentials --------------------------------------------------------------------


def verify(folder, host, authority="ca.pem"):
    """Verify the server's certificate as a client that connects to ``host`` does."""
    ca = x509.load_pem_x509_certificate((folder / authority).read_bytes())
    leaf = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    name = credentials._general(host)
    builder = PolicyBuilder().store(Store([ca])).time(datetime.datetime.now(datetime.UTC))
    return builder.build_server_verifier(name).verify(leaf, [])


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_server_certificate_is_valid_for_its_names_and_no_other(tmp_path):
    credentials.make_authority(tmp_path)
    credentials.make_server_certificate(tmp_path, tmp_path, ["fl.example.org", "10.1.2.3"])
    for host in ("fl.example.org", "10.1.2.3", "localhost", "127.0.0.1"):
        verify(tmp_path, host)
    for host in ("example.org", "10.1.2.4"):
        with pytest.raises(VerificationError):
            verify(tmp_path, host)


def test_a_renewed_certificate_has_a_new_key_and_the_same_authority(tmp_path):
    credentials.make_authority(tmp_path)
    before = (tmp_path / "ca.pem").read_bytes()
    credentials.make_server_certificate(tmp_path, tmp_path, ["fl.example.org"])
    first = (tmp_path / "server.key").read_bytes()
    credentials.make_authority(tmp_path)
    credentials.make_server_certificate(tmp_path, tmp_path, ["fl.example.org"])
    assert (tmp_path / "ca.pem").read_bytes() == before
    assert (tmp_path / "server.key").read_bytes() != first
    verify(tmp_path, "fl.example.org")


def test_another_authority_vouches_for_nothing(tmp_path):
    for name in ("ours", "theirs"):
        credentials.make_authority(tmp_path / name)
    credentials.make_server_certificate(tmp_path / "ours", tmp_path / "ours", ["fl.example.org"])
    (tmp_path / "theirs" / "ca.pem").rename(tmp_path / "ours" / "theirs.pem")
    with pytest.raises(VerificationError):
        verify(tmp_path / "ours", "fl.example.org", "theirs.pem")


def test_flower_takes_a_nodes_key_and_a_key_is_made_once(tmp_path):
    public = credentials.make_node_key(tmp_path / "node.key")
    private = (tmp_path / "node.key").read_bytes()
    assert try_load_public_key(public)
    assert credentials.make_node_key(tmp_path / "node.key") == public
    assert (tmp_path / "node.key").read_bytes() == private


def test_private_keys_can_be_read_by_their_owner_only(tmp_path):
    old = os.umask(0)
    try:
        credentials.make_authority(tmp_path)
        credentials.make_server_certificate(tmp_path, tmp_path, ["fl.example.org"])
        credentials.make_node_key(tmp_path / "node.key")
    finally:
        os.umask(old)
    assert [mode(tmp_path / name) for name in ("ca.key", "server.key", "node.key")] == [0o600] * 3


# ---- processes ----------------------------------------------------------------------

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) == 1:
    subprocess.Popen([sys.executable, __file__, "helper"], start_new_session=True)
time.sleep(600)
"""


def test_a_service_that_ignores_its_end_and_a_helper_in_its_own_session_are_ended(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("processes._GRACE_SECONDS", 0.5)
    script = tmp_path / "stubborn.py"
    script.write_text(STUBBORN, encoding="utf-8")
    services = Services(tmp_path, "stubborn-test")
    services.start("a", [sys.executable, str(script)], os.environ)
    services.start("b", [sys.executable, str(script)], os.environ)
    assert wait_until(lambda: len(services.family()) == 4, 20.0)
    assert len(services.family("a")) == 2
    services.stop("a")
    assert len(services.family()) == len(services.family("b")) == 2
    services.stop()
    assert services.family() == []


def test_what_runs_is_known_to_another_process_and_what_ended_is_not(tmp_path):
    services = Services(tmp_path, "known-test")
    services.start("a", [sys.executable, "-c", "import time; time.sleep(600)"], os.environ)
    services.start("b", [sys.executable, "-c", ""], os.environ)
    other = Services(tmp_path, "known-test")
    assert wait_until(lambda: list(other.pids()) == ["a"], 20.0)
    other.stop()
    assert services.pids() == {}


def test_what_a_service_said_before_its_last_start_does_not_count(tmp_path):
    services = Services(tmp_path, "said-test")
    for word in ("first", "second"):
        services.start("a", [sys.executable, "-c", f"print({word!r})"], os.environ)
        assert wait_until(lambda word=word: word in services.said("a"), 60.0)
    assert services.said("a") == "second\n"
    assert services.said("b") == ""


OWNER = """
import os, signal, sys
from pathlib import Path
from processes import Services
services = Services(Path(sys.argv[1]), "watch-test")
services.watch()
services.start("a", [sys.executable, sys.argv[2]], os.environ)
print("started", flush=True)
signal.pause()
"""


def test_what_a_killed_owner_leaves_behind_is_ended(tmp_path):
    script = tmp_path / "sleep.py"
    script.write_text("import time; time.sleep(600)", encoding="utf-8")
    command = [sys.executable, "-c", OWNER, str(tmp_path), str(script)]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLE)}
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    services = Services(tmp_path, "watch-test")
    try:
        assert owner.stdout.readline() == b"started\n"
        assert len(services.family()) == 1
    finally:
        owner.kill()
        owner.communicate()
    assert wait_until(lambda: not services.family(), 30.0)


# ---- the script ---------------------------------------------------------------------


def marked(folder) -> list[int]:
    mark = json.loads((folder / "federation.json").read_text(encoding="utf-8"))["mark"]
    return Services(folder, mark).family()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="processes are found under /proc")
def test_a_demo_that_is_interrupted_leaves_no_process_behind(tmp_path):
    folder = tmp_path / "federation"
    command = [sys.executable, SCRIPT, "demo", "--folder", str(folder)]
    log = tmp_path / "demo.log"
    with log.open("wb") as out:
        demo = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        assert wait_until(lambda: _all_run(folder), 400.0)
        demo.send_signal(signal.SIGINT)
        time.sleep(0.2)
        demo.send_signal(signal.SIGINT)  # impatience must not leave half of them
        assert demo.wait(240.0) == 130, log.read_text(encoding="utf-8")
    finally:
        demo.kill()
        demo.wait()
    assert marked(folder) == []


def _all_run(folder) -> bool:
    record = folder / "processes.json"
    return record.exists() and "hospital-3" in record.read_text(encoding="utf-8")


def test_up_without_prepare_says_what_to_do(tmp_path):
    command = [sys.executable, SCRIPT, "up", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error:")
    assert "prepare" in done.stderr
