"""Processes of a federation on one machine: started in the background, and all of them reaped.

Flower's services start helpers of their own (``flower-superexec``, ``flwr-serverapp``,
``flwr-clientapp``), some in sessions of their own, and one in the middle of a task can outlive
its parent. So each service carries a mark in its environment, which its helpers inherit, and what
carries the mark is found under ``/proc`` (Linux) and ended by its process id.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

MARK = "HOSPITALS_FEDERATION"
_SERVICE = "HOSPITALS_SERVICE"
_GRACE_SECONDS = 10.0


class Services:
    """The services of one federation folder.

    Parameters
    ----------
    folder : Path
        Holds ``processes.json`` (name and process id) and ``logs/``.
    mark : str
        What marks this federation's processes; unique to the folder.
    """

    def __init__(self, folder: Path, mark: str) -> None:
        self._folder = folder
        self._record = folder / "processes.json"
        self._logs = folder / "logs"
        self.mark = mark
        self._children: list[subprocess.Popen[bytes]] = []
        self._watcher: subprocess.Popen[bytes] | None = None

    def log(self, name: str) -> Path:
        """Return the file a service writes to."""
        return self._logs / f"{name}.log"

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Start a service in the background and remember it; returns its process id."""
        self._logs.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            said = log.tell()
            process = subprocess.Popen(
                list(command),
                env={**environment, MARK: self.mark, _SERVICE: name},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this script, which ends them in order
            )
        self._children.append(process)
        self._remember({**self._recorded(), name: {"pid": process.pid, "said": said}})
        return process.pid

    def said(self, name: str) -> str:
        """Return what a service has written to its log since it was started last."""
        if name not in self._recorded():
            return ""
        text = self.log(name).read_bytes()[self._recorded()[name]["said"] :]
        return text.decode("utf-8", "replace")

    def watch(self) -> None:
        """End everything once this process is gone, even by ``kill -9``; until :meth:`stop`."""
        if self._watcher is None:
            self._watcher = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), str(self._folder), self.mark],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )

    def pids(self) -> dict[str, int]:
        """Return the services still running, by name."""
        family = set(self.family())
        pids = {name: entry["pid"] for name, entry in self._recorded().items()}
        return {name: pid for name, pid in pids.items() if pid in family}

    def family(self, name: str | None = None) -> list[int]:
        """Return the ids of all running processes that carry the mark, helpers included.

        With a name only those of that service: itself and its helpers.
        """
        self._children = [child for child in self._children if child.poll() is None]
        wanted = {f"{MARK}={self.mark}".encode()}
        if name is not None:
            wanted.add(f"{_SERVICE}={name}".encode())
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == os.getpid():
                continue
            try:
                if wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                    found.append(int(folder.name))
            except OSError:
                continue  # it ended meanwhile, or is another user's
        return sorted(found)

    def stop(self, *names: str) -> None:
        """Stop the services of these names; without names, every process of the federation.

        The first one started goes last: it is the one that the others take leave of.
        """
        if names:
            self._stop(list(names))
            return
        running = list(self.pids())
        self._stop(running[1:])
        self._stop(running[:1])
        self._kill(self.family())
        self._record.unlink(missing_ok=True)
        if self._watcher is not None:
            self._watcher.communicate()  # closes its input: it looks once more, and ends
            self._watcher = None

    def _stop(self, names: Sequence[str]) -> None:
        for pid in [pid for name, pid in self.pids().items() if name in names]:
            _signal(pid, signal.SIGTERM)
        # Helpers end by themselves once their parent is gone; whoever does not is ended here.
        wait_until(lambda: not self._families(names), _GRACE_SECONDS)
        self._kill(self._families(names))

    def _families(self, names: Sequence[str]) -> list[int]:
        return [pid for name in names for pid in self.family(name)]

    def _kill(self, pids: Sequence[int]) -> None:
        for pid in pids:
            _signal(pid, signal.SIGKILL)
        wait_until(lambda: not set(pids) & set(self.family()), _GRACE_SECONDS)

    def _recorded(self) -> dict[str, dict[str, int]]:
        if not self._record.exists():
            return {}
        entries: dict[str, dict[str, int]] = json.loads(self._record.read_text(encoding="utf-8"))
        return entries

    def _remember(self, entries: Mapping[str, Mapping[str, int]]) -> None:
        beside = self._record.with_suffix(".part")
        beside.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
        beside.replace(self._record)  # the watcher may read it at any moment


def program(name: str) -> str:
    """Return the path of a program installed beside this Python."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: install flwr-afuic in this environment")
    return str(path)


def free_ports(count: int) -> list[int]:
    """Return different ports of the loopback interface that nobody listens on."""
    with contextlib.ExitStack() as listeners:
        found = [listeners.enter_context(socket.socket()) for _ in range(count)]
        for listener in found:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in found]


def listening(host: str, port: int) -> bool:
    """Whether somebody accepts connections there."""
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def wait_until(condition: Callable[[], object], seconds: float, pause: float = 0.1) -> bool:
    """Call ``condition`` until it is true or the time is up; returns the last answer."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(pause)
    return True


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _watch() -> None:
    """Wait until whoever started this is gone, and end what it left behind."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    services = Services(Path(sys.argv[1]), sys.argv[2])
    sys.stdin.read()
    services.stop()


if __name__ == "__main__":
    _watch()
