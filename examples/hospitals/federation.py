"""A federation of four hospitals with TLS and node authentication, on this machine.

    python federation.py demo            all of it: prepare, up, run with an erasure, verify, down

    python federation.py prepare         certificates, keys, connection, folders, data
    python federation.py up              the SuperLink and a SuperNode for each hospital
    python federation.py run             train; ends with the run's state
    python federation.py down            stop every process

and the pieces that real machines need, each on its own:

    python federation.py authority DIR                     at the coordinator, once
    python federation.py certificate DIR --host NAME ...   at the coordinator; again to renew
    python federation.py node-key PATH                     at each hospital, once

Everything lies in one folder (``--folder``, by default runs/hospitals): one subfolder for each
machine of a real federation, and what only travels between them is public.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from credentials import make_authority, make_node_key, make_server_certificate
from data import write_data
from processes import Services, free_port, listening, program, wait_until

APP = Path(__file__).resolve().parent
CONNECTION = "hospitals"
HOST = "127.0.0.1"
HOSPITALS = 4
ASKS = "hospital-0"
ASKS_IN_ROUND = 3
_BEGAN = time.monotonic()
_STARTS_SECONDS = 90.0
_RUN_SECONDS = 1200.0
_STEP = re.compile(r"\[v(\d+) r(\d+)\] (.*)")
_ROUND = re.compile(r"\[ROUND (\d+)/\d+\] version (\d+)")


class FederationFailed(Exception):
    """Something of the federation did not come to pass; the text says what, and where to look."""


@dataclass(frozen=True)
class Federation:
    """A prepared federation: its folder, port and processes."""

    folder: Path
    port: int
    services: Services

    @classmethod
    def open(cls, folder: Path) -> Federation:
        """Read a folder that :func:`prepare` made."""
        record = folder / "federation.json"
        if not record.exists():
            raise FederationFailed(f"{folder} is not prepared; run `prepare` first")
        values = json.loads(record.read_text(encoding="utf-8"))
        return cls(folder, int(values["port"]), Services(folder, values["mark"]))

    @property
    def coordinator(self) -> Path:
        """The coordinator's own folder: SuperLink, state directory, authority."""
        return self.folder / "coordinator"

    @property
    def state(self) -> Path:
        """The state directory of the server app."""
        return self.coordinator / "state"

    def site(self, name: str) -> Path:
        """A hospital's own folder: key, images, inbox."""
        return self.folder / name

    def environment(self, home: Path) -> dict[str, str]:
        """Return the environment of a process whose Flower home is ``home``."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        return {
            **os.environ,
            "PATH": path,
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
        }

    def flwr(self, *arguments: str) -> dict[str, object]:
        """Run Flower's command line at the coordinator; returns the JSON it prints."""
        done = subprocess.run(
            [program("flwr"), *arguments, "--format", "json"],
            env=self.environment(self.coordinator / "flwr"),
            capture_output=True,
            text=True,
            timeout=_STARTS_SECONDS,
        )
        try:
            answer: dict[str, object] = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            answer = {}
        if done.returncode or not answer.get("success"):
            text = (done.stdout + done.stderr).strip()
            raise FederationFailed(f"`flwr {' '.join(arguments)}` failed:\n{text}")
        return answer


# ---- prepare ------------------------------------------------------------------------


def prepare(folder: Path) -> Federation:
    """Make certificates, keys, the connection entry, the folders and each hospital's images."""
    if (folder / "federation.json").exists():
        raise FederationFailed(f"{folder} is prepared already; use it, or remove it first")
    coordinator = folder / "coordinator"
    authority = make_authority(folder / "authority")
    make_server_certificate(folder / "authority", coordinator, [HOST])
    shutil.copyfile(authority, coordinator / "ca.pem")
    for name in hospitals():
        make_node_key(folder / name / "node.key")
        shutil.copyfile(authority, folder / name / "ca.pem")
    write_data(folder, hospitals(), ASKS)
    for private in (folder / "authority", coordinator, *(folder / name for name in hospitals())):
        private.chmod(0o700)  # on real machines: owned by the account the service runs under
    port = free_port()
    connect(coordinator / "flwr", f"{HOST}:{port}", coordinator / "ca.pem")
    record = {"port": port, "mark": uuid.uuid4().hex}
    (folder / "federation.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    return Federation.open(folder)


def hospitals() -> list[str]:
    """Return the hospitals' names, under which their keys are registered."""
    return [f"hospital-{number}" for number in range(HOSPITALS)]


def connect(home: Path, address: str, authority: Path) -> None:
    """Tell Flower's command line where the SuperLink is, in ``$FLWR_HOME/config.toml``."""
    home.mkdir(parents=True, exist_ok=True)
    text = (
        f"[superlink]\ndefault = {json.dumps(CONNECTION)}\n\n"
        f"[superlink.{CONNECTION}]\n"
        f"address = {json.dumps(address)}\n"
        f"root-certificates = {json.dumps(str(authority.resolve()))}\n"
    )
    (home / "config.toml").write_text(text, encoding="utf-8")


# ---- up and down --------------------------------------------------------------------


def up(federation: Federation) -> None:
    """Start the SuperLink, register the hospitals' keys, and start their SuperNodes."""
    running = federation.services.pids()
    if "superlink" not in running:
        start_superlink(federation)
    register(federation)
    starting = [name for name in hospitals() if name not in running]
    for name in starting:
        start_supernode(federation, name)
    for name in starting:
        await_supernode(federation, name)


def start_superlink(federation: Federation) -> None:
    """Start the SuperLink and wait until it listens."""
    folder = federation.coordinator
    if listening(HOST, federation.port):
        raise FederationFailed(f"port {federation.port} is in use by another program")
    command = [
        program("flower-superlink"),
        *("--host", HOST, "--port", str(federation.port)),
        *("--database", str(folder / "superlink.sqlite")),
        *("--ssl-ca-certfile", str(folder / "ca.pem")),
        *("--ssl-certfile", str(folder / "server.pem")),
        *("--ssl-keyfile", str(folder / "server.key")),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    ]
    federation.services.start("superlink", command, federation.environment(folder / "flwr"))
    if not wait_until(lambda: listening(HOST, federation.port), _STARTS_SECONDS):
        raise FederationFailed(f"the SuperLink does not listen: {_tail(federation, 'superlink')}")


def register(federation: Federation) -> None:
    """Register each hospital's public key under its name; the SuperLink's database keeps it."""
    note = federation.coordinator / "registered.json"
    done = json.loads(note.read_text(encoding="utf-8")) if note.exists() else []
    for name in hospitals():
        if name not in done:
            key = federation.site(name) / "node.key.pub"
            federation.flwr("supernode", "register", str(key), CONNECTION, "--name", name)
            done.append(name)
            note.write_text(json.dumps(done) + "\n", encoding="utf-8")


def start_supernode(federation: Federation, name: str) -> None:
    """Start a hospital's SuperNode; it connects to the SuperLink, never the other way round."""
    folder = federation.site(name)
    node_config = {
        "data": str((folder / "images.npz").resolve()),
        "inbox": str((folder / "inbox.sqlite").resolve()),
    }
    command = [
        program("flower-supernode"),
        *("--superlink", f"{HOST}:{federation.port}"),
        *("--root-certificates", str(folder / "ca.pem")),
        *("--auth-supernode-private-key", str(folder / "node.key")),
        *("--port", str(free_port())),  # for its own helper processes on this machine
        *("--node-config", " ".join(f"{k}={json.dumps(v)}" for k, v in node_config.items())),
    ]
    federation.services.start(name, command, federation.environment(folder / "flwr"))


def await_supernode(federation: Federation, name: str) -> None:
    """Wait until a SuperNode is connected, and start it again where it was refused too early.

    The SuperLink takes a SuperNode that was killed for alive for up to a minute, and refuses it
    as long. A service manager does the same with "restart on failure".
    """
    end = time.monotonic() + _STARTS_SECONDS
    while not _connected(federation, name):
        if time.monotonic() > end:
            raise FederationFailed(f"{name} does not connect: {_tail(federation, name)}")
        if name not in federation.services.pids():
            time.sleep(5.0)
            start_supernode(federation, name)
        time.sleep(0.3)


def _connected(federation: Federation, name: str) -> bool:
    """Whether the SuperNode's log says so, after the last start it tells of."""
    log = federation.services.log(name)
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    alive = name in federation.services.pids()
    return alive and text.rfind("SuperNode ID:") > text.rfind("Starting Flower SuperNode")


# ---- run ----------------------------------------------------------------------------


def run(federation: Federation, *, erasure: bool, settings: Sequence[str] = ()) -> str:
    """Start a run, show its steps, and file an erasure once the model has learned something.

    Returns
    -------
    str
        The id of the erasure's request; empty without one.

    Raises
    ------
    FederationFailed
        If the run does not end as completed.
    """
    config = {
        "state-dir": str(federation.state.resolve()),
        "proxies": str((federation.coordinator / "proxies.npz").resolve()),
        "sites": HOSPITALS,
        "until-erased": erasure,
    }
    options = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
    answer = federation.flwr("run", str(APP), CONNECTION, "-c", " ".join([options, *settings]))
    run_id = str(answer["run-id"])
    say(f"run {run_id} started")
    steps = Steps(federation, run_id)
    try:
        request_id = _accompany(federation, steps, erasure=erasure)
    finally:
        steps.close()
    status = run_status(federation, run_id)
    if status != "finished:completed":
        said = "".join(steps.last)
        raise FederationFailed(f"the run ended as {status}; the last it said:\n{said}")
    if erasure and not request_id:
        raise FederationFailed(
            "the run was over before the erasure could be filed; set more rounds"
        )
    return request_id


def _accompany(federation: Federation, steps: Steps, *, erasure: bool) -> str:
    """Show a run's steps until it is over; file the erasure on the way, and return its id."""
    request_id = ""
    end = time.monotonic() + _RUN_SECONDS
    while not steps.over:
        if time.monotonic() > end:
            raise FederationFailed(f"the run is not over after {_RUN_SECONDS:g} s")
        _check_services(federation)
        steps.show()
        if erasure and not request_id and steps.round >= ASKS_IN_ROUND:
            say(f"{ASKS} files an erasure at its own inbox:")
            request_id = file_erasure(federation, ASKS)
        time.sleep(0.5)
    steps.show()
    return request_id


def run_status(federation: Federation, run_id: str) -> str:
    """Return how a run stands: `flwr run` exits with 0 even where the run failed."""
    answer = federation.flwr("ls", CONNECTION, "--run-id", run_id)
    runs = answer.get("runs")
    if not isinstance(runs, list) or not runs:
        raise FederationFailed(f"the SuperLink knows no run {run_id}")
    return str(runs[0]["status"])


class Steps:
    """What a run says of itself, as it says it: Flower streams the server app's log."""

    def __init__(self, federation: Federation, run_id: str) -> None:
        self.round = 0
        self.last: deque[str] = deque(maxlen=20)
        self._stream = subprocess.Popen(
            [program("flwr"), "log", run_id, CONNECTION, "--stream"],
            env=federation.environment(federation.coordinator / "flwr"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._stream.stdout or ():
            self._lines.put(line)

    def show(self) -> None:
        """Print what is new: each round, and each step of an erasure."""
        while not self._lines.empty():
            line = self._lines.get()
            self.last.append(line)
            step, done = _STEP.search(line), _ROUND.search(line)
            if step is not None:
                say(f"  version {step[1]:>2}, round {step[2]:>2}: {step[3].strip()}")
            elif done is not None:
                self.round = int(done[1])
                say(f"  round {done[1]} is complete: version {done[2]}")

    @property
    def over(self) -> bool:
        """Whether the stream has ended, as it does with the run."""
        return self._stream.poll() is not None

    def close(self) -> None:
        """End the stream."""
        self._stream.terminate()
        self._stream.wait()


def _check_services(federation: Federation) -> None:
    missing = {"superlink", *hospitals()} - set(federation.services.pids())
    if missing:
        name = min(missing)
        raise FederationFailed(f"{name} has ended: {_tail(federation, name)}")


def _tail(federation: Federation, name: str, lines: int = 15) -> str:
    log = federation.services.log(name)
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return f"see {log}\n" + "\n".join(text.splitlines()[-lines:])


# ---- the erasure --------------------------------------------------------------------


def file_erasure(federation: Federation, name: str) -> str:
    """File an erasure as the hospital's data steward does, on the hospital's own machine.

    Returns
    -------
    str
        The request's id.
    """
    folder = federation.site(name)
    return afuic(
        *("request", "--inbox", str(folder / "inbox.sqlite")),
        *("--samples", str(folder / "withdrawn.csv")),
        *("--reason", "wrong labels, found on 3 May", "--code", "data-error"),
    )


def check_certificate(federation: Federation, name: str, request_id: str) -> None:
    """Take the certificate from the hospital's inbox, and verify it, as anybody can.

    The public key it is verified with must have come another way, from the operator.
    """
    folder = federation.site(name)
    inbox, out = str(folder / "inbox.sqlite"), folder / "certificates"
    key = folder / "server.pub"
    shutil.copyfile(federation.state / "keys" / "server.pub", key)
    afuic("status", request_id, "--inbox", inbox)
    afuic("certificate", request_id, "--inbox", inbox, "--out", str(out))
    for certificate in sorted(out.glob("*.json")):
        afuic("verify", str(certificate), "--key", str(key))
    afuic("ledger", "verify", "--state", str(federation.state))


def afuic(*arguments: str) -> str:
    """Run `flwr-afuic`, show what it says, and return the last line of it."""
    command = [program("flwr-afuic"), *arguments]
    say(f"$ flwr-afuic {shlex.join(arguments)}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=_STARTS_SECONDS)
    for line in (done.stderr + done.stdout).strip().splitlines():
        say(f"  {line}")
    if done.returncode:
        raise FederationFailed(f"`flwr-afuic {arguments[0]}` exited with {done.returncode}")
    return (done.stdout.strip().splitlines() or [""])[-1]


# ---- the command line ---------------------------------------------------------------


def demo(folder: Path, settings: Sequence[str]) -> None:
    """Prepare, start, train, erase, verify; whatever happens, no process stays behind."""
    if (folder / "federation.json").exists():
        Federation.open(folder).services.stop()
        shutil.rmtree(folder)  # an earlier demo's
    say(f"preparing certificates, keys and images in {folder}")
    federation = prepare(folder)
    try:
        say("starting a SuperLink and four SuperNodes, with TLS and node authentication")
        up(federation)
        request_id = run(federation, erasure=True, settings=settings)
        check_certificate(federation, ASKS, request_id)
    finally:
        say("stopping every process")
        federation.services.stop()
    say(f"done; everything is in {folder}")


def say(text: str) -> None:
    """Print one line of progress, with the seconds since this script began."""
    print(f"{time.monotonic() - _BEGAN:4.0f} s  {text}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "up", "run", "down", "demo"):
        command = commands.add_parser(name)
        command.add_argument("--folder", type=Path, default=Path("runs/hospitals"))
        if name in ("run", "demo"):
            command.add_argument("settings", nargs="*", help="run config, as key=value")
    command = commands.add_parser("authority")
    command.add_argument("path", type=Path)
    command = commands.add_parser("certificate")
    command.add_argument("path", type=Path)
    command.add_argument("--host", action="append", required=True)
    command.add_argument("--out", type=Path)
    command = commands.add_parser("node-key")
    command.add_argument("path", type=Path)
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        _run_command(chosen)
    except (FederationFailed, FileNotFoundError, subprocess.TimeoutExpired) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _run_command(chosen: argparse.Namespace) -> None:
    if chosen.command == "authority":
        print(make_authority(chosen.path))
    elif chosen.command == "certificate":
        print(make_server_certificate(chosen.path, chosen.out or chosen.path, chosen.host))
    elif chosen.command == "node-key":
        print(make_node_key(chosen.path))
    elif chosen.command == "demo":
        demo(chosen.folder, chosen.settings)
    elif chosen.command == "prepare":
        prepare(chosen.folder)
    elif chosen.command == "up":
        up(Federation.open(chosen.folder))
    elif chosen.command == "run":
        run(Federation.open(chosen.folder), erasure=False, settings=chosen.settings)
    else:
        Federation.open(chosen.folder).services.stop()


if __name__ == "__main__":
    sys.exit(main())
