"""A federation of real processes on loopback: a SuperLink and SuperNodes, started and reaped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr_afuic.errors import FederationError

_HOST = "127.0.0.1"
_CONNECTION = "bench"
_MARK = "FLWR_AFUIC_BENCH"
_STARTS = 180.0
_GRACE = 10.0


class Processes:
    """A running federation; see :func:`running`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mark = uuid.uuid4().hex
        self._port = _free_port()
        self._started: list[subprocess.Popen[bytes]] = []
        home = folder / "home"
        home.mkdir(parents=True)
        text = (
            f"[superlink]\ndefault = {json.dumps(_CONNECTION)}\n\n[superlink.{_CONNECTION}]\n"
            f'address = "{_HOST}:{self._port}"\ninsecure = true\n'
        )
        (home / "config.toml").write_text(text, encoding="utf-8")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        self._environment = {
            **os.environ, "PATH": path, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1", _MARK: self._mark,
        }  # fmt: skip

    def start_superlink(self) -> None:
        """Start the SuperLink and wait until it listens."""
        self._start(
            "superlink",
            [_program("flower-superlink"), "--insecure", "--host", _HOST, "--port",
             str(self._port), "--database", str(self.folder / "superlink.sqlite"),
             "--disable-runtime-dependency-installation"],
        )  # fmt: skip
        self.wait_for("the SuperLink listens", lambda: _listening(self._port), _STARTS)

    def start_supernode(self, name: str, config: Mapping[str, Any]) -> None:
        """Start a SuperNode."""
        self._start(
            name,
            [_program("flower-supernode"), "--insecure", "--superlink", f"{_HOST}:{self._port}",
             "--port", str(_free_port()), "--node-config", _toml(config)],
        )  # fmt: skip

    def run(self, app: Path, config: Mapping[str, Any]) -> None:
        """Start a run of an app."""
        done = subprocess.run(
            [_program("flwr"), "run", str(app), _CONNECTION, "-c", _toml(config)],
            env=self._environment, capture_output=True, text=True, timeout=_STARTS, check=False,
        )  # fmt: skip
        if done.returncode:
            said = (done.stdout + done.stderr).strip()[-500:]
            raise FederationError(f"`flwr run` failed: {said}")

    def wait_for(self, what: str, condition: Callable[[], object], seconds: float) -> None:
        """Wait until a condition holds; FederationError with the SuperLink's last words if not."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise FederationError(
                    f"waited {seconds:.0f} s in vain until {what}: {self._tail()}"
                )
            time.sleep(0.2)

    def stop(self) -> None:
        """End every process of the federation, the helpers that Flower starts included."""
        for process in reversed(self._started):
            process.terminate()
        end = time.monotonic() + _GRACE
        while self._family() and time.monotonic() < end:
            time.sleep(0.2)
        for pid in self._family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.wait()

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._started.append(
                subprocess.Popen(
                    command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )
            )  # fmt: skip

    def _family(self) -> list[int]:
        """Return the ids of all processes that carry this federation's mark (Linux)."""
        wanted, found = f"{_MARK}={self._mark}".encode(), []
        for process in self._started:
            process.poll()  # reaps it
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    def _tail(self) -> str:
        text = (self.folder / "superlink.log").read_text(encoding="utf-8", errors="replace")
        return " | ".join(text.strip().splitlines()[-5:])


@contextmanager
def running(folder: Path, sites: Mapping[str, Mapping[str, Any]]) -> Iterator[Processes]:
    """Start a SuperLink and a SuperNode for each site (name and node config); end them after."""
    processes = Processes(folder)
    try:
        processes.start_superlink()
        for name, config in sites.items():
            processes.start_supernode(name, config)
        yield processes
    finally:
        processes.stop()


def _program(name: str) -> str:
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise FederationError(f"{path} is missing; install flwr-afuic in this environment")
    return str(path)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((_HOST, 0))
        return int(listener.getsockname()[1])


def _listening(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection((_HOST, port), timeout=1.0).close()
        return True
    return False


def _toml(values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
