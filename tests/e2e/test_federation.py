"""Real processes with TLS and node authentication, as at hospitals."""

from __future__ import annotations

import subprocess
import sys

import machines
import pytest
from credentials import make_node_key
from processes import free_ports, program

from tests.e2e.harness import APP, EXAMPLE

pytestmark = pytest.mark.slow


def afuic(*arguments: object) -> str:
    command = [program("flwr-afuic"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_node_whose_key_is_not_registered_is_refused(cluster, tmp_path):
    make_node_key(tmp_path / "node.key")
    command = [
        program("flower-supernode"),
        *("--superlink", f"{machines.HOST}:{cluster.federation.door}"),
        *("--root-certificates", str(cluster.federation.coordinator / "ca.pem")),
        *("--auth-supernode-private-key", str(tmp_path / "node.key")),
        *("--port", str(free_ports(1)[0])),
    ]
    environment = cluster.federation.environment(tmp_path / "flwr")
    cluster.services.start("stranger", command, environment)
    cluster.wait_for("the stranger ends", lambda: not cluster.services.family("stranger"), 90.0)
    log = cluster.services.log("stranger").read_text(encoding="utf-8", errors="replace")
    assert "SuperNode ID:" not in log
    nodes = cluster.federation.flwr("supernode", "list", machines.CONNECTION)["nodes"]
    assert len(nodes) == len(cluster.federation.names)


def test_through_the_door_nobody_starts_a_run_registers_a_node_or_looks_around(cluster, tmp_path):
    make_node_key(tmp_path / "node.key")
    address = f"{machines.HOST}:{cluster.federation.door}"
    machines.connect(tmp_path / "flwr", address, cluster.federation.coordinator / "ca.pem")
    environment = cluster.federation.environment(tmp_path / "flwr")
    for arguments in (
        ("run", str(APP)),
        ("supernode", "register", str(tmp_path / "node.key.pub"), "hospitals", "--name", "x"),
        ("ls",),
    ):
        command = [program("flwr"), *arguments, "--format", "json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode or '"success": true' not in done.stdout.lower(), done.stdout
    nodes = cluster.federation.flwr("supernode", "list", machines.CONNECTION)["nodes"]
    assert len(nodes) == len(cluster.federation.names)
    runs = cluster.federation.flwr("ls", machines.CONNECTION)["runs"]
    assert [run["run-id"] for run in runs][:1] == [cluster.run_id]


def test_a_run_that_fails_is_told_by_the_exit_code_and_leaves_others_alone(cluster):
    script, folder = str(EXAMPLE / "federation.py"), str(cluster.federation.folder)
    command = [sys.executable, script, "run", "--folder", folder, "verify-rounds=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout
    assert "verify_rounds is 0" in done.stderr
    cluster.await_training(1)


def test_a_server_whose_certificate_another_authority_signed_is_refused(cluster, tmp_path):
    machines.make_authority(tmp_path)
    command = [
        program("flower-supernode"),
        *("--superlink", f"{machines.HOST}:{cluster.federation.door}"),
        *("--root-certificates", str(tmp_path / "ca.pem")),
        *("--auth-supernode-private-key", str(cluster.federation.site("hospital-0") / "node.key")),
        *("--port", str(free_ports(1)[0]), "--max-retries", "1"),
    ]
    environment = cluster.federation.environment(tmp_path / "flwr")
    cluster.services.start("deceived", command, environment)
    cluster.wait_for("it gives up", lambda: not cluster.services.family("deceived"), 90.0)
    log = cluster.services.log("deceived").read_text(encoding="utf-8", errors="replace")
    assert "SuperNode ID:" not in log


def test_an_erasure_filed_while_training_runs_ends_with_a_verified_certificate(cluster, tmp_path):
    name = "hospital-1"
    cluster.await_training()
    inbox = cluster.federation.site(name) / "inbox.sqlite"
    samples = cluster.samples(name)
    listed = tmp_path / "ids.csv"
    listed.write_text("\n".join(samples), encoding="utf-8")
    reason = ("--reason", "a letter")
    request_id = afuic("request", "--inbox", inbox, "--samples", listed, *reason).strip()
    before = len(cluster.trained(name)) + 1  # one training may be under way
    cluster.note_request(request_id, name)
    cluster.await_certificate(request_id)
    cluster.check_state()
    key = cluster.federation.state / "keys" / "server.pub"
    for path in afuic("certificate", request_id, "--inbox", inbox, "--out", tmp_path).split():
        if path.endswith(".json"):
            assert afuic("verify", path, "--key", key).startswith("valid")
    assert all(trained.isdisjoint(samples) for trained in cluster.trained(name)[before:])


def test_a_hospital_that_is_offline_when_it_asks_is_heard_once_it_is_back(cluster):
    name = "hospital-2"
    cluster.services.stop(name)
    assert not cluster.services.family(name)
    before = len(cluster.trained(name))
    request_id = cluster.file(name)
    erased = cluster.inbox(name).forget_set(request_id)
    cluster.start_site(name)
    cluster.await_site(name)
    cluster.await_certificate(request_id)
    cluster.check_state()
    cluster.wait_for("it trains again", lambda: len(cluster.trained(name)) > before)
    assert all(trained.isdisjoint(erased) for trained in cluster.trained(name)[before:])
