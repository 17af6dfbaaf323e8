"""How much memory it takes to unlearn from a large history, in a process of its own.

    python -m flwr_afuic.bench.history_peak write FOLDER CLIENTS ROUNDS PARAMETERS
    python -m flwr_afuic.bench.history_peak unlearn FOLDER SITE [SITE ...]

Each prints one JSON object. The updates are generated (Laplace, a few drawn and shifted): memory
and bytes are what is measured here, not models.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import HistoryError
from flwr_afuic.history.codec import CodecSettings
from flwr_afuic.history.disk import DiskStore
from flwr_afuic.history.encoder import RecordEncoder
from flwr_afuic.history.store import Participant, Window
from flwr_afuic.history.unlearn import unlearn

_DISTINCT = 8
_UNIT = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there


@dataclass(frozen=True)
class HistorySize:
    """How large a history is generated: clients in each of the rounds, and parameters."""

    clients: int = 100
    rounds: int = 20
    parameters: int = 1_000_000
    erased: int = 5


@dataclass(frozen=True)
class Peak:
    """What a process took at most, in MiB.

    Attributes
    ----------
    peak, before : float
        Largest resident set of the unlearning process, and that before it began.
    seconds : float
        Of unlearning.
    records : int
        Records that were decoded.
    disk : int
        Bytes of the history.
    writer : float
        Largest resident set of the process that wrote it.
    """

    peak: float
    before: float
    seconds: float
    records: int
    disk: int
    writer: float


def history_peak(size: HistorySize, folder: Path) -> Peak:
    """Write a history in one process, unlearn sites from it in another.

    Raises
    ------
    HistoryError
        If one of them failed.
    """
    numbers = [str(n) for n in (size.clients, size.rounds, size.parameters)]
    written = _process(["write", str(folder), *numbers])
    erased = [_site(number) for number in range(size.erased)]
    found = _process(["unlearn", str(folder), *erased])
    return Peak(
        found["peak"], found["before"], found["seconds"], found["records"], written["disk"],
        written["peak"],
    )  # fmt: skip


def _process(arguments: Sequence[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "flwr_afuic.bench.history_peak", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise HistoryError(f"the process that {arguments[0]}s a history failed: {last}")
    return dict(json.loads(done.stdout))


def _site(number: int) -> str:
    return f"site-{number:03d}"


def _write(folder: Path, clients: int, rounds: int, parameters: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    drawn = [rng.laplace(size=parameters).astype(np.float32) for _ in range(_DISTINCT)]
    with DiskStore(folder) as store:
        encoder = RecordEncoder(store, CodecSettings())
        store.set("seed", 0)
        store.check_layout([drawn[0]])
        for round_ in range(1, rounds + 1):
            with store.begin() as writer:
                participants = []
                for number in range(clients):
                    update = _shifted(drawn, round_ * clients + number)
                    site = _site(number)
                    writer.write(site, encoder.encode(writer.number, site, [update]))
                    norm = float(np.linalg.norm(update))
                    participants.append(Participant(site, 1 / clients, norm, "stored"))
                writer.commit(Window(round_, round_, round_, 1.0, tuple(participants)))
        return {"disk": store.bytes_stored(), "peak": largest_mib()}


def _shifted(drawn: list[NDArray[np.float32]], index: int) -> NDArray[np.float32]:
    return np.roll(drawn[index % _DISTINCT], 7919 * index)


def _unlearn(folder: Path, sites: Sequence[str]) -> dict[str, Any]:
    before = largest_mib()
    began = time.monotonic()
    with DiskStore(folder, exclusive=False) as store:
        correction = unlearn(store, sites)
    return {
        "peak": largest_mib(),
        "before": before,
        "seconds": time.monotonic() - began,
        "records": sum(correction.coverage.used.values()),
    }


def largest_mib() -> float:
    """Return the largest resident set of this process so far, in MiB.

    On Linux ``ru_maxrss`` also counts the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _UNIT


def main(arguments: Sequence[str]) -> None:
    """Write a history, or unlearn from one; print what it took."""
    task, folder, *rest = arguments
    if task == "write":
        clients, rounds, parameters = (int(number) for number in rest)
        found = _write(Path(folder), clients, rounds, parameters)
    else:
        found = _unlearn(Path(folder), rest)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
