"""What a message costs in real processes: how much of it is ours, how much Flower's own.

A SuperLink and four SuperNodes on loopback. Flower starts a process for each message. Two runs on
the same SuperNodes: a client as Flower's tutorials write one, and ours; the same model, the same
images, one step of training.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from flwr_afuic.bench.wall_processes import Processes, running
from flwr_afuic.bench.wall_site import OURS, PARTS, PLAIN, write_images
from flwr_afuic.errors import ConfigError

BEGIN = "<!-- table: flwr-afuic bench wall overhead -->"

_IMAGES = 2_000
_RUN_SECONDS = 600.0
_OURS = ("library", "start", "data", "codec")
_PYPROJECT = """[project]
name = "wall"
version = "0.1.0"
description = "What a message costs."
license = { text = "Apache-2.0" }
dependencies = []

[tool.flwr.app]
publisher = "flwr-afuic"

[tool.flwr.app.components]
serverapp = "wall.server_app:app"
clientapp = "wall.client_app:app"

[tool.flwr.app.config]
arm = "plain"
sites = 4
rounds = 2
state-dir = ""
report = ""
"""
_SERVER = """from flwr_afuic.bench.wall_server import make_app

app = make_app()
"""
_CLIENT = """import time

entered = time.time()

from flwr_afuic.bench.wall_site import make_app

app = make_app(entered)
"""


@dataclass(frozen=True)
class Arm:
    """Medians of one run, in seconds.

    Attributes
    ----------
    messages : int
        Train messages answered.
    message : float
        From sending one to its reply at hand.
    inside : float
        Of that, from where Flower comes to the client's module to the end of its ``fit``.
    parts : dict of str to float
        Of that, each of :data:`~flwr_afuic.bench.wall_site.PARTS`.
    server : float
        Of the engine, for each message: encode, decode, judge, merge, commit to disk.
    """

    messages: int
    message: float
    inside: float
    parts: dict[str, float]
    server: float


@dataclass(frozen=True)
class Overhead:
    """Both runs."""

    plain: Arm
    ours: Arm
    sites: int

    @property
    def own(self) -> float:
        """Seconds of a message that are ours: library, client, data, protocol, server."""
        return sum(self.ours.parts[part] for part in _OURS) + self.ours.server

    @property
    def flower(self) -> float:
        """Seconds of a message that are Flower's own: its processes, its transport, its polling."""
        return self.plain.message - self.plain.inside

    def figures(self) -> dict[str, float]:
        """Flat figures."""
        found = {
            "wall/overhead_ratio": self.own / self.flower,
            "wall/overhead_seconds": self.own,
            "wall/flower_seconds": self.flower,
            "wall/server_seconds": self.ours.server,
            "wall/message_vs_plain": self.ours.message / self.plain.message,
        }
        return found | {f"wall/ours/{part}_seconds": self.ours.parts[part] for part in PARTS}

    def markdown(self) -> str:
        """Write the table."""
        rows = [
            f"A SuperLink and {self.sites} SuperNodes on loopback, {_IMAGES:,} generated images of "
            f"28x28 at each site, one step of training; medians over {self.plain.messages} and "
            f"{self.ours.messages} messages, in seconds:",
            "",
            "| client | a message | of it in the client's code | import torch | import flwr-afuic "
            "| make the client | load data | protocol | training | the server, a message |",
            "|" + " --- |" * 10,
        ]
        for name, arm in (("plain", self.plain), ("erasure client", self.ours)):
            parts = " | ".join(f"{arm.parts[part]:.3f}" for part in PARTS)
            rows.append(
                f"| {name} | {arm.message:.2f} | {arm.inside:.2f} | {parts} | {arm.server:.3f} |"
            )
        rows += [
            "",
            f"Ours of a message (library, client, data, protocol, server): {self.own:.3f} s; "
            f"Flower's own (processes, transport, polling): {self.flower:.2f} s; "
            f"ratio {self.own / self.flower:.3f}.",
        ]
        return "\n".join(rows)


def measure_overhead(*, rounds: int = 2, sites: int = 4) -> Overhead:
    """Run both clients on the same real processes.

    Parameters
    ----------
    rounds : int
        Of each run: so many messages a site, at least 1.
    sites : int
        SuperNodes, at least 1.

    Raises
    ------
    ConfigError
        If a number is out of its range.
    FederationError
        If a process does not start, or a run does not end.
    """
    for name, value in (("rounds", rounds), ("sites", sites)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    with TemporaryDirectory(prefix="flwr-afuic-wall-") as name:
        folder = Path(name)
        app = _write_app(folder / "app")
        nodes = {f"site-{n}": _node(folder / f"site-{n}", n) for n in range(sites)}
        with running(folder / "processes", nodes) as processes:
            plain = _arm(processes, app, PLAIN, rounds, folder, sites)
            ours = _arm(processes, app, OURS, rounds, folder, sites)
    return Overhead(plain, ours, sites)


def _write_app(folder: Path) -> Path:
    (folder / "wall").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(_PYPROJECT, encoding="utf-8")
    for name, text in (("__init__", ""), ("server_app", _SERVER), ("client_app", _CLIENT)):
        (folder / "wall" / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


def _node(folder: Path, number: int) -> dict[str, str | int]:
    folder.mkdir()
    write_images(folder / "images.npz", _IMAGES, number)
    return {
        "partition-id": number,
        "data": str(folder / "images.npz"),
        "inbox": str(folder / "inbox.sqlite"),
        "log": str(folder / "parts.jsonl"),
    }


def _arm(processes: Processes, app: Path, arm: str, rounds: int, folder: Path, sites: int) -> Arm:
    logs = [folder / f"site-{n}" / "parts.jsonl" for n in range(sites)]
    for log in logs:
        log.unlink(missing_ok=True)
    report = folder / f"{arm}.json"
    config = {"arm": arm, "sites": sites, "rounds": rounds, "report": str(report),
              "state-dir": str(folder / f"state-{arm}")}  # fmt: skip
    processes.run(app, config)
    processes.wait_for(f"the {arm} run ends", report.exists, _RUN_SECONDS)
    told = json.loads(report.read_text(encoding="utf-8"))
    lines = [line for log in logs if log.exists() for line in log.read_text().splitlines()]
    rows = [json.loads(line) for line in lines]
    return Arm(
        messages=len(told["messages"]),
        message=median(told["messages"]),
        inside=median(row["inside"] for row in rows),
        parts={part: median(row[part] for row in rows) for part in PARTS},
        server=float(told["server"]),
    )
