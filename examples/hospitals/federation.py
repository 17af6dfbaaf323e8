"""A federation of four hospitals with TLS and node authentication, on this machine.

    python federation.py demo            all of it: prepare, up, run with an erasure, verify, down

    python federation.py prepare         certificates, keys, connection, folders, images
    python federation.py up              the SuperLink and a SuperNode for each hospital
    python federation.py run [KEY=VALUE ...]     train, with settings of the app's pyproject.toml
    python federation.py down            stop every process

and the pieces that real machines need, each on its own:

    python federation.py authority DIR                         at the coordinator, once
    python federation.py certificate DIR --host NAME --out DIR at the coordinator; again to renew
    python federation.py state DIR                             at the coordinator, once
    python federation.py node-key PATH                         at each hospital, once
    python federation.py connection ADDRESS --ca FILE          where runs are started

Everything lies in one folder (``--folder``, by default runs/hospitals), with a subfolder for each
machine of a real federation. Between them travel ca.pem, server.pub and node.key.pub only.
"""

from __future__ import annotations

import argparse
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
import tomllib
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from credentials import make_authority, make_node_key, make_server_certificate
from machines import (
    ASKS,
    CONNECTION,
    STARTS_SECONDS,
    Federation,
    FederationFailed,
    connect,
    make_state,
    prepare,
    run_status,
    start_run,
    up,
)
from processes import program

APP = Path(__file__).resolve().parent
ASKS_IN_ROUND = 3
_BEGAN = time.monotonic()
_RUN_SECONDS = 1200.0
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STEP = re.compile(r"\[v(\d+) r(\d+)\] (.*)")
_ROUND = re.compile(r"\[ROUND (\d+)/\d+\] version (\d+)")


def demo(folder: Path, settings: Sequence[str]) -> None:
    """Prepare, start, train, erase, verify; whatever happens, no process stays behind."""
    if (folder / "federation.json").exists():
        Federation.open(folder).services.stop()
        shutil.rmtree(folder)  # an earlier demo's
    say(f"preparing certificates, keys and images in {folder}")
    federation = prepare(folder)
    federation.services.watch()
    try:
        say("starting a SuperLink and four SuperNodes, with TLS and node authentication")
        up(federation)
        request_id = run(federation, erasure=True, settings=settings)
        check_certificate(federation, ASKS, request_id)
    finally:
        for number in _ENDINGS:
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave half of them
        say("stopping every process")
        federation.services.stop()
    say(f"done; everything is in {folder}")


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
        "sites": len(federation.names),
        "until-erased": erasure,
        **tomllib.loads("\n".join(settings)),
    }
    run_id = start_run(federation, APP, config)
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
        missing = {"superlink", "door", *federation.names} - set(federation.services.pids())
        if missing:
            name = min(missing)
            raise FederationFailed(f"{name} has ended: {federation.tail(name)}")
        steps.show()
        if erasure and not request_id and steps.round >= ASKS_IN_ROUND:
            say(f"{ASKS} files an erasure at its own inbox:")
            request_id = file_erasure(federation, ASKS)
        time.sleep(0.5)
    steps.show()
    return request_id


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
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

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
        return self._stream.poll() is not None and not self._reader.is_alive()

    def close(self) -> None:
        """End the stream."""
        self._stream.terminate()
        self._stream.wait()


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
        *("--reason", "marked by scanner 2 and wrongly labelled", "--code", "data-error"),
    )


def check_certificate(federation: Federation, name: str, request_id: str) -> None:
    """Take the certificate from the hospital's inbox, and verify it, as anybody can."""
    folder = federation.site(name)
    inbox, out, key = str(folder / "inbox.sqlite"), folder / "certificates", folder / "server.pub"
    afuic("status", request_id, "--inbox", inbox)
    afuic("certificate", request_id, "--inbox", inbox, "--out", str(out))
    for certificate in sorted(out.glob("*.json")):
        afuic("verify", str(certificate), "--key", str(key))
    afuic("ledger", "verify", "--state", str(federation.state))


def afuic(*arguments: str) -> str:
    """Run `flwr-afuic`, show what it says, and return the last line of it."""
    command = [program("flwr-afuic"), *arguments]
    say(f"$ flwr-afuic {shlex.join(arguments)}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=STARTS_SECONDS)
    for line in (done.stderr + done.stdout).strip().splitlines():
        say(f"  {line}")
    if done.returncode:
        raise FederationFailed(f"`flwr-afuic {arguments[0]}` exited with {done.returncode}")
    return (done.stdout.strip().splitlines() or [""])[-1]


# ---- the command line ---------------------------------------------------------------


def say(text: str) -> None:
    """Print one line of progress, with the seconds since this script began."""
    print(f"{time.monotonic() - _BEGAN:4.0f} s  {text}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    chosen = _parser().parse_args(arguments)
    for number in _ENDINGS:
        signal.signal(number, _end)
    try:
        _run_command(chosen)
    except (FederationFailed, OSError, ValueError, subprocess.TimeoutExpired) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _end(number: int, frame: object) -> None:
    """Leave by way of every ``finally``."""
    print(f"ended by signal {number}", file=sys.stderr)
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in ("prepare", "up", "run", "down", "demo"):
        command = commands.add_parser(name)
        command.add_argument("--folder", type=Path, default=Path("runs/hospitals"))
        if name in ("run", "demo"):
            command.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    commands.add_parser("authority").add_argument("path", type=Path)
    commands.add_parser("node-key").add_argument("path", type=Path)
    commands.add_parser("state").add_argument("path", type=Path)
    certificate = commands.add_parser("certificate")
    certificate.add_argument("path", type=Path, help="folder of the authority")
    certificate.add_argument("--host", action="append", required=True, help="name or address")
    certificate.add_argument("--out", type=Path, required=True)
    connection = commands.add_parser("connection")
    connection.add_argument("address", help="host:port of the SuperLink")
    connection.add_argument("--ca", type=Path, required=True)
    return parser


def _run_command(chosen: argparse.Namespace) -> None:
    if chosen.command == "authority":
        print(make_authority(chosen.path))
    elif chosen.command == "certificate":
        print(make_server_certificate(chosen.path, chosen.out, chosen.host))
    elif chosen.command == "node-key":
        print(make_node_key(chosen.path))
    elif chosen.command == "state":
        print(make_state(chosen.path))
    elif chosen.command == "connection":
        home = Path(os.environ.get("FLWR_HOME", Path.home() / ".flwr"))
        connect(home, chosen.address, chosen.ca)
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
