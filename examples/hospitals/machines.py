"""The machines of the federation: what lies on each of them, and what is started there.

Each has a folder of its own, as on a disk of its own: ``coordinator`` and one for each hospital.
The commands that are started here are those a service manager starts on real machines.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from credentials import make_authority, make_node_key, make_server_certificate
from processes import Services, free_ports, listening, program, wait_until

from flwr_afuic.state.store import StateStore

CONNECTION = "hospitals"
HOST = "127.0.0.1"
HOSPITALS = ("hospital-0", "hospital-1", "hospital-2", "hospital-3")
ASKS = HOSPITALS[0]
STARTS_SECONDS = 120.0
_SUPERLINK, _DOOR = "superlink", "door"


class FederationFailed(Exception):
    """Something of the federation did not come to pass; the text says what, and where to look."""


@dataclass(frozen=True)
class Federation:
    """A prepared federation.

    Attributes
    ----------
    folder : Path
        Holds a subfolder for each machine.
    port : int
        Of the SuperLink; reached from the coordinator's own machine only.
    door : int
        The one port that hospitals connect to.
    names : tuple of str
        The hospitals, by the names under which their keys are registered.
    services : Services
        What runs.
    """

    folder: Path
    port: int
    door: int
    names: tuple[str, ...]
    services: Services

    @classmethod
    def open(cls, folder: Path) -> Federation:
        """Read a folder that :func:`prepare` made."""
        record = folder / "federation.json"
        if not record.exists():
            raise FederationFailed(f"{folder} is not prepared; run `prepare` first")
        values = json.loads(record.read_text(encoding="utf-8"))
        services = Services(folder, values["mark"])
        return cls(folder, values["port"], values["door"], tuple(values["names"]), services)

    @property
    def coordinator(self) -> Path:
        """The coordinator's own folder: SuperLink, state directory, connection."""
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
            "PATH": path,  # Flower's services start flower-superexec and others by name
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
        }

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """Run Flower's command line at the coordinator; returns the JSON it prints."""
        done = subprocess.run(
            [program("flwr"), *arguments, "--format", "json"],
            env=self.environment(self.coordinator / "flwr"),
            capture_output=True,
            text=True,
            timeout=STARTS_SECONDS,
        )
        try:
            answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            answer = {}
        if done.returncode or not answer.get("success"):
            text = (done.stdout + done.stderr).strip()
            raise FederationFailed(f"`flwr {' '.join(arguments)}` failed:\n{text}")
        return answer

    def tail(self, name: str, lines: int = 15) -> str:
        """Return where a service's log is, and its last lines."""
        log = self.services.log(name)
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        return f"see {log}\n" + "\n".join(text.splitlines()[-lines:])


# ---- prepare ------------------------------------------------------------------------


def prepare(folder: Path, names: Sequence[str] = HOSPITALS) -> Federation:
    """Make certificates, keys, the connection entry, the folders and each hospital's images."""
    if (folder / "federation.json").exists():
        raise FederationFailed(f"{folder} is prepared already; use it, or remove it first")
    coordinator = folder / "coordinator"
    authority = make_authority(folder / "authority")
    make_server_certificate(folder / "authority", coordinator, [HOST])
    shutil.copyfile(authority, coordinator / "ca.pem")
    signing_key = make_state(coordinator / "state")
    for name in names:
        make_node_key(folder / name / "node.key")
        shutil.copyfile(authority, folder / name / "ca.pem")
        shutil.copyfile(signing_key, folder / name / "server.pub")
    from data import write_data  # with torch, which nothing else here needs

    write_data(folder, names, ASKS)
    for private in (folder / "authority", coordinator, *(folder / name for name in names)):
        private.chmod(0o700)  # on real machines: owned by the account the service runs under
    port, door = free_ports(2)
    connect(coordinator / "flwr", f"{HOST}:{port}", coordinator / "ca.pem")
    record = {"port": port, "door": door, "names": list(names), "mark": uuid.uuid4().hex}
    (folder / "federation.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    return Federation.open(folder)


def make_state(directory: Path) -> Path:
    """Make the server's state directory and, in it, the key it signs certificates with; once.

    Returns
    -------
    Path
        Of the public key, which every hospital gets before it first meets the server.
    """
    StateStore(directory).close()
    return directory / "keys" / "server.pub"


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


# ---- up -----------------------------------------------------------------------------


def up(federation: Federation) -> None:
    """Start the SuperLink, register the hospitals' keys, and start their SuperNodes."""
    running = federation.services.pids()
    if _SUPERLINK not in running:
        start_superlink(federation)
    if _DOOR not in running:
        start_door(federation)
    register(federation)
    starting = [name for name in federation.names if name not in running]
    for name in starting:
        start_supernode(federation, name, node_config(federation, name))
    for name in starting:
        await_supernode(federation, name, node_config(federation, name))


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
    federation.services.start(_SUPERLINK, command, federation.environment(folder / "flwr"))
    if not wait_until(lambda: listening(HOST, federation.port), STARTS_SECONDS):
        raise FederationFailed(f"the SuperLink does not listen: {federation.tail(_SUPERLINK)}")


def start_door(federation: Federation) -> None:
    """Open the door for hospitals: it lets nobody near what starts runs and registers nodes."""
    folder = federation.coordinator
    command = [
        sys.executable,
        str(Path(__file__).with_name("door.py")),
        *("--host", HOST, "--port", str(federation.door)),
        *("--superlink", f"{HOST}:{federation.port}", "--ca", str(folder / "ca.pem")),
        *("--certificate", str(folder / "server.pem"), "--key", str(folder / "server.key")),
    ]
    federation.services.start(_DOOR, command, federation.environment(folder / "flwr"))
    if not wait_until(lambda: listening(HOST, federation.door), STARTS_SECONDS):
        raise FederationFailed(f"the door does not open: {federation.tail(_DOOR)}")


def register(federation: Federation) -> None:
    """Register each hospital's public key under its name; the SuperLink's database keeps it."""
    note = federation.coordinator / "registered.json"
    done = json.loads(note.read_text(encoding="utf-8")) if note.exists() else []
    for name in federation.names:
        if name not in done:
            key = federation.site(name) / "node.key.pub"
            federation.flwr("supernode", "register", str(key), CONNECTION, "--name", name)
            done.append(name)
            note.write_text(json.dumps(done) + "\n", encoding="utf-8")


def node_config(federation: Federation, name: str) -> dict[str, str]:
    """Return what a hospital's client app is told of its machine."""
    folder = federation.site(name).resolve()
    return {
        "data": str(folder / "images.npz"),
        "inbox": str(folder / "inbox.sqlite"),
        "server-key": str(folder / "server.pub"),
    }


def start_supernode(federation: Federation, name: str, config: Mapping[str, str]) -> None:
    """Start a hospital's SuperNode; it connects to the coordinator, never the other way round."""
    folder = federation.site(name)
    command = [
        program("flower-supernode"),
        *("--superlink", f"{HOST}:{federation.door}"),
        *("--root-certificates", str(folder / "ca.pem")),
        *("--auth-supernode-private-key", str(folder / "node.key")),
        *("--port", str(free_ports(1)[0])),  # for its own helper processes on this machine
        *("--node-config", toml(config)),
    ]
    federation.services.start(name, command, federation.environment(folder / "flwr"))


def await_supernode(federation: Federation, name: str, config: Mapping[str, str]) -> None:
    """Wait until a SuperNode is connected, and start it again where it was refused too early.

    The SuperLink takes a SuperNode that was killed for alive for up to a minute, and refuses it
    as long. A service manager does the same with "restart on failure".
    """
    end = time.monotonic() + STARTS_SECONDS
    while not connected(federation, name):
        if time.monotonic() > end:
            raise FederationFailed(f"{name} does not connect: {federation.tail(name)}")
        if name not in federation.services.pids():
            time.sleep(5.0)
            start_supernode(federation, name, config)
        time.sleep(0.3)


def connected(federation: Federation, name: str) -> bool:
    """Whether the SuperNode has said so since it was started."""
    services = federation.services
    return name in services.pids() and "SuperNode ID:" in services.said(name)


# ---- runs ---------------------------------------------------------------------------


def start_run(federation: Federation, app: Path, config: Mapping[str, Any]) -> str:
    """Start a run of an app; returns its id. Every key must stand in the app's pyproject.toml."""
    answer = federation.flwr("run", str(app), CONNECTION, "-c", toml(config))
    return str(answer["run-id"])


def run_status(federation: Federation, run_id: str) -> str:
    """Return how a run stands: `flwr run` exits with 0 even where the run fails later."""
    runs = federation.flwr("ls", CONNECTION, "--run-id", run_id).get("runs")
    if not isinstance(runs, list) or not runs:
        raise FederationFailed(f"the SuperLink knows no run {run_id}")
    return str(runs[0]["status"])


def toml(values: Mapping[str, Any]) -> str:
    """Write settings as Flower's options take them: ``key=value``, strings in quotes."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
