"""A federation of real processes: started, looked at, killed at any step, and reaped.

Certificates, keys and the start of every service are those of ``examples/hospitals``.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from flwr_afuic.erasure.inbox import SiteInbox
from flwr_afuic.errors import StateError
from flwr_afuic.state.reading import StateView, read_state, verify_state
from flwr_afuic.state.vault import Vault

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "hospitals"
APP = Path(__file__).parent / "app"
sys.path.insert(0, str(EXAMPLE))
sys.path.insert(0, str(APP))

import machines  # noqa: E402
from crashes.holding import HURRY, VARIABLE  # noqa: E402
from crashes.task import ERASURE_STEP, sample_ids, weight_of  # noqa: E402

NAMES = ("hospital-0", "hospital-1", "hospital-2")
PATIENCE = 400.0  # machines are busy at times
PER_REQUEST = 10


class Cluster:
    """One federation and what a test does to it."""

    def __init__(
        self,
        folder: Path,
        names: tuple[str, ...] = NAMES,
        *,
        reference: bool = False,
    ) -> None:
        self._reference = reference
        self.federation = machines.prepare(folder, names)
        self.hold_folder = folder / "hold"
        self.hold_folder.mkdir()
        self.run_id = ""
        self.requests: dict[str, str] = {}
        self._filed: dict[str, int] = dict.fromkeys(names, 0)
        self._versions: dict[int, str] = {}
        self._waited_for: dict[str, str] = {}
        os.environ[VARIABLE] = str(self.hold_folder)  # every service inherits it

    # ---- services ------------------------------------------------------------------

    @property
    def services(self):
        return self.federation.services

    def _config(self, name: str) -> dict[str, str]:
        trained = str(self.federation.site(name) / "trained.txt")
        return {**machines.node_config(self.federation, name), "name": name, "trained": trained}

    def start(self) -> None:
        """Start everything, and a run."""
        self.services.watch()
        machines.start_superlink(self.federation)
        machines.start_door(self.federation)
        machines.register(self.federation)
        for name in self.federation.names:
            self.start_site(name)
        for name in self.federation.names:
            self.await_site(name)
        self.start_run()
        self.await_training()

    def start_site(self, name: str) -> None:
        machines.start_supernode(self.federation, name, self._config(name))

    def await_site(self, name: str) -> None:
        """Wait for a SuperNode that was started, which the SuperLink may refuse for a minute."""
        machines.await_supernode(self.federation, name, self._config(name))

    def start_run(self) -> None:
        config = {
            "state-dir": str(self.federation.state),
            "sites": len(self.federation.names),
            "reference": self._reference,
        }
        self.run_id = machines.start_run(self.federation, APP, config)

    def server_app(self) -> list[int]:
        """Ids of the server app's processes: there should be one."""
        return [pid for pid in self.services.family("superlink") if _runs(pid, "flwr-serverapp")]

    def close(self) -> None:
        for hold in self.hold_folder.glob("hold-*"):
            hold.unlink()
        self.services.stop()
        os.environ.pop(VARIABLE, None)

    # ---- kill -9 -------------------------------------------------------------------

    def kill_server_app(self) -> None:
        self._kill(self.server_app())

    def kill_superlink(self) -> None:
        """Kill the SuperLink; its helpers must end by themselves."""
        self._kill([self.services.pids()["superlink"]])
        self.wait_for(
            "the SuperLink's helpers end", lambda: not self.services.family("superlink"), 30.0
        )

    def kill_site(self, name: str) -> None:
        """Kill a SuperNode and the client it has at work."""
        self._kill(self.services.family(name))

    def _kill(self, pids: list[int]) -> None:
        assert pids, "there is nothing to kill"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.wait_for("killed processes end", lambda: not set(pids) & set(self.services.family()))

    # ---- steps ---------------------------------------------------------------------

    def hold(self, site: str, *steps: str) -> None:
        """Hold whoever comes to these steps of an erasure of the site."""
        for step in steps:
            (self.hold_folder / f"hold-{step}-{site}").touch()

    def is_held(self, step: str) -> bool:
        return (self.hold_folder / f"at-{step}").exists()

    def await_held(self, step: str) -> None:
        self.wait_for(f"somebody comes to {step!r}", lambda: self.is_held(step))

    def let_go(self, step: str) -> None:
        """Let whoever is held at a step go on, if it still lives."""
        (self.hold_folder / f"hold-{step}").unlink()
        (self.hold_folder / f"at-{step}").unlink(missing_ok=True)

    def survive(self, process: str, step: str, site: str) -> None:
        """Kill a process at a held step of a site's erasure, and start what it takes to go on."""
        held = f"{step}-{site}"
        self.await_held(held)
        self.note_versions()
        if process == "supernode":
            self.kill_site(site)
            self.let_go(held)
            self.start_site(site)
            return
        if process == "superlink":
            self.kill_superlink()
            self.let_go(held)
            machines.start_superlink(self.federation)
        else:
            self.kill_server_app()
            self.let_go(held)
        self.start_run()

    # ---- requests ------------------------------------------------------------------

    def inbox(self, name: str) -> SiteInbox:
        return SiteInbox(self.federation.site(name) / "inbox.sqlite")

    def samples(self, name: str) -> list[str]:
        """Return the next samples of a site that no request has named yet."""
        first = self._filed[name] * PER_REQUEST
        self._filed[name] += 1
        return sample_ids(name)[first : first + PER_REQUEST]

    def file(self, name: str) -> str:
        """File an erasure at a site, as its data steward does."""
        notice = self.inbox(name).file(
            scope="samples", sample_ids=self.samples(name), held=sample_ids(name)
        )
        self.note_request(notice.request_id, name)
        return notice.request_id

    def note_request(self, request_id: str, name: str) -> None:
        """Expect a site's request to be completed; until it is, training is short."""
        self.requests[request_id] = name
        self._hurry(**{request_id: name})

    def trained(self, name: str) -> list[set[str]]:
        """Return the samples of each training of a site, the oldest first."""
        lines = (self.federation.site(name) / "trained.txt").read_text(encoding="utf-8")
        return [set(line.split(",")) for line in lines.splitlines()]

    def state_of(self, request_id: str) -> str:
        row = self.look().request(request_id)
        return "" if row is None else row.state

    def look(self) -> StateView:
        return read_state(self.federation.state)

    def await_training(self, versions: int = 3) -> None:
        """Wait until so many more versions are on disk."""
        begun = self.federation.state / "state.sqlite"
        before = len(self.look().versions) if begun.exists() else 0

        def more() -> bool:
            try:
                return len(self.look().versions) >= before + versions
            except StateError:
                return False  # the server is just making it

        self._hurry(training="anybody")
        self.wait_for(f"{versions} more versions are made", more)
        self._take_time("training")

    def await_certificate(self, request_id: str) -> None:
        """Wait until a request is completed and its site has the certificate."""
        name = self.requests[request_id]
        self.wait_for(
            f"request {request_id} of {name} is certified",
            lambda: self.inbox(name).certificate(request_id) is not None,
        )
        assert self.state_of(request_id) == "completed"
        self._take_time(request_id)

    def _hurry(self, **reasons: str) -> None:
        """Have training be short for a reason, and shortest at the site that is its value."""
        self._waited_for.update(reasons)
        self._tell()

    def _take_time(self, reason: str) -> None:
        self._waited_for.pop(reason, None)
        self._tell()

    def _tell(self) -> None:
        hurry, text = self.hold_folder / HURRY, " ".join(self._waited_for.values())
        if not text:
            hurry.unlink(missing_ok=True)
            return
        part = hurry.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.replace(hurry)

    # ---- what must hold ------------------------------------------------------------

    def note_versions(self) -> None:
        """Remember what is on disk: none of it may be gone or different later."""
        for row in self.look().versions:
            assert self._versions.setdefault(row.number, row.digest) == row.digest

    def check_state(self) -> None:
        """Check that no version and no request was lost, and nothing was applied twice."""
        view = self.look()
        assert verify_state(self.federation.state) == []
        numbers = [row.number for row in view.versions]
        assert numbers == list(range(len(numbers)))
        self.note_versions()
        moves = [row.body for row in view.ledger if row.kind == "state"]
        for request_id, name in self.requests.items():
            assert view.request(request_id).state == "completed", name
            merged = [m for m in moves if m["request"] == request_id and m["state"] == "merged"]
            assert len(merged) == 1, f"{request_id} of {name} was merged {len(merged)} times"
        newest = view.holdings["version", str(numbers[-1])]
        model = np.concatenate(
            [a.reshape(-1) for a in Vault(self.federation.state / "weights").get(newest).values()]
        )
        for name in self.federation.names:
            done = sum(site == name for site in self.requests.values())
            assert model[weight_of(name)] == ERASURE_STEP * done, name

    # ---- waiting -------------------------------------------------------------------

    def wait_for(
        self, what: str, condition: Callable[[], object], seconds: float = PATIENCE
    ) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"waited {seconds:g} s in vain until {what}\n{self.tails()}")
            time.sleep(0.2)

    def tails(self) -> str:
        logs = [*self.services.log("x").parent.glob("*.log"), *self.hold_folder.glob("*.log")]
        try:
            parts = [f"{row.id} of {row.site} is {row.state}" for row in self.look().requests]
        except StateError as error:
            parts = [str(error)]
        for log in sorted(logs):
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            parts.append("\n".join([f"--- {log}", *lines[-20:]]))
        return "\n".join(parts)


def _runs(pid: int, name: str) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(Path(part.decode("utf-8", "replace")).name == name for part in command[:2])
