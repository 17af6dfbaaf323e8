"""The server's peak memory against the number of clients, each run in a process of its own.

    python -m flwr_afuic.bench.server_memory KIND CLIENTS PARAMETERS VERSIONS

Prints one JSON object. The whole engine runs, with a Grid that makes each reply when it is asked
for, as a network would hand it over; the sites are no processes, and take no memory.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from flwr_afuic import wire
from flwr_afuic.bench.history_peak import largest_mib
from flwr_afuic.bench.scale import quiet_log, resident
from flwr_afuic.bench.server_sizes import sizes_of
from flwr_afuic.errors import FederationError
from flwr_afuic.federation.chunks import SHARED_FROM, squared_norm
from flwr_afuic.federation.kernels import passes
from flwr_afuic.strategies.afuic import AFUIC
from flwr_afuic.strategies.asynchronous import AsyncStrategy
from flwr_afuic.unlearning.level import ForgetScore

KINDS = ("deltas", "weights", "withdrawable", "erasure")
"""Delta clients; weight clients; delta clients and AFUIC; the same with an erasure open."""

_LEVEL = ForgetScore(2.3, 0.1, 16)
_PATTERN = (np.random.default_rng(0).standard_normal(1 << 16) * 1e-3).astype(np.float32).tobytes()


@dataclass(frozen=True)
class Peak:
    """Peak memory of one run, in bytes, and of one model copy."""

    kind: str
    clients: int
    peak: int
    model: int

    @property
    def copies(self) -> float:
        """Model copies that fit the peak."""
        return self.peak / self.model


def measure(kind: str, clients: int, parameters: int, versions: int = 3) -> Peak:
    """Run in a new process and return its peak above what it took before there was a model."""
    numbers = [str(clients), str(parameters), str(versions)]
    command = [sys.executable, "-m", "flwr_afuic.bench.server_memory", kind, *numbers]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise FederationError(f"the process that measures memory failed: {last}")
    return Peak(kind, clients, json.loads(done.stdout)["peak"], 4 * parameters)


def _array(size: int, shift: int) -> Array:
    """Return a generated array, its bytes made in one allocation."""
    stream = BytesIO()
    fields = {"descr": "<f4", "fortran_order": False, "shape": (size,)}
    np.lib.format.write_array_header_1_0(stream, fields)
    whole, rest = divmod(4 * size, len(_PATTERN))
    start = 4 * (shift % 1000)
    rolled = _PATTERN[start:] + _PATTERN[:start]
    data = b"".join([stream.getvalue(), *[rolled] * whole, rolled[:rest]])
    return Array("float32", (size,), "numpy.ndarray", data)


def _record(parameters: int, shift: int) -> ArrayRecord:
    sizes = sizes_of(parameters)
    return ArrayRecord({str(n): _array(size, shift + n) for n, size in enumerate(sizes)})


class MakingGrid(Grid):
    """A Grid that makes a node's reply when it is pulled, and keeps no arrays meanwhile."""

    def __init__(self, clients: int, parameters: int, *, deltas: bool) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self._parameters, self._deltas = parameters, deltas
        self._nodes = [NodeInfo(node_id=2 + n, name="") for n in range(clients)]
        self._asked: dict[str, tuple[Message, str, dict[str, Any]]] = {}
        self._sent = 0

    def get_nodes(self) -> Iterable[NodeInfo]:
        """All nodes."""
        return self._nodes

    def get_node_ids(self) -> Iterable[int]:
        """Ids of all nodes."""
        return [node.node_id for node in self._nodes]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Remember what was asked, without the model."""
        ids = []
        for message in messages:
            self._sent += 1
            message_id = f"m{self._sent}"
            message.metadata.__dict__["_message_id"] = message_id
            # Not by content.config_records: that makes a circle which keeps the model alive.
            records = [r for r in message.content.values() if isinstance(r, ConfigRecord)]
            config = {key: value for record in records for key, value in record.items()}
            message.content = RecordDict()
            self._asked[message_id] = (message, message.metadata.message_type, config)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Make the replies."""
        return [self._reply(*self._asked.pop(i)) for i in message_ids if i in self._asked]

    def _reply(self, asked: Message, kind: str, config: dict[str, Any]) -> Message:
        node = asked.metadata.dst_node_id
        words: dict[str, Any] = {wire.SITE: f"site-{node}", wire.CLIENT: wire.PROTOCOL}
        if wire.REQUEST in config:
            words[wire.REQUEST] = config[wire.REQUEST]
        if kind.startswith("get_properties"):
            content = RecordDict({"getpropertiesres.properties": ConfigRecord(words)})
        elif kind.startswith("evaluate"):
            content = RecordDict(
                {
                    "evaluateres.loss": MetricRecord({"loss": _LEVEL.loss}),
                    "evaluateres.num_examples": MetricRecord({"num_examples": 16}),
                    "evaluateres.metrics": ConfigRecord({**words, "accuracy": 0.1}),
                }
            )
        else:
            content = self._trained(config, words, node)
        return Message(content, reply_to=asked)

    def _trained(self, config: dict[str, Any], words: dict[str, Any], node: int) -> RecordDict:
        if config.get(wire.TASK) == wire.TASK_UNLEARN:
            words[wire.KIND] = wire.KIND_ERASURE
            words[wire.EVIDENCE] = wire.Evidence(
                before=ForgetScore(1.0, 0.9, 16), after=_LEVEL, reference=None, holdout=_LEVEL,
                steps=1, stop_reason="steps", delta_norm=1.0,
            ).to_json()  # fmt: skip
        elif self._deltas:
            words[wire.KIND] = wire.KIND_DELTA
        return RecordDict(
            {
                "fitres.parameters": _record(self._parameters, node),
                "fitres.num_examples": MetricRecord({"num_examples": 10}),
                "fitres.metrics": ConfigRecord(words),
            }
        )

    def set_run(self, run: Run) -> None:
        """Nothing here depends on a run."""

    @property
    def run(self) -> Run:
        """An empty run."""
        return Run.create_empty(1)

    def create_message(self, *arguments: Any, **options: Any) -> Message:
        """Flower's deprecated helper, which nobody calls."""
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Not used by an asynchronous engine."""
        raise NotImplementedError


def run(kind: str, clients: int, parameters: int, versions: int) -> int:
    """Run the engine; return by how many bytes the peak exceeds what was taken before."""
    engine: dict[str, Any] = {
        "mode": "sync", "evaluate_every": 0, "poll_interval": 0.001, "drain_seconds": 0.0,
        "min_available_nodes": clients,
    }  # fmt: skip
    strategy: AsyncStrategy
    if kind in ("deltas", "weights"):
        strategy = AsyncStrategy(**engine, client_deltas=kind == "deltas")
    else:
        strategy = AFUIC(**engine, stop_when=_filer if kind == "erasure" else None)
    _load_passes()
    grid = MakingGrid(clients, parameters, deltas=kind != "weights")
    gc.collect()
    with quiet_log():
        before = resident()
        strategy.start(grid, _record(parameters, 0), num_rounds=versions)
    return int(largest_mib() * 2**20) - before


def _load_passes() -> None:
    """Load what sums large models: code, which takes as much memory for any model."""
    high, low, one = np.zeros(1, np.float32), np.zeros(1, np.uint16), np.ones(1, np.float32)
    use = passes()
    use.weigh(high, low, 1.0)
    use.pair(high, low, 1.0, one, 1.0)
    use.fold(high, low, one, 1.0)
    use.finish(high, low, one, 1.0, one, 1.0)
    use.step(high, low, one, 1.0)
    squared_norm(np.ones(SHARED_FROM, np.float32))


def _filer(run: Any) -> bool:
    if run.round == 1 and not len(run.settings.book):
        run.settings.request_erasure(run.roster.members[0].site)
    return False


def main(arguments: list[str]) -> None:
    """Measure and print."""
    kind, *numbers = arguments
    clients, parameters, versions = (int(number) for number in numbers)
    sys.stdout.write(json.dumps({"peak": run(kind, clients, parameters, versions)}))


if __name__ == "__main__":
    main(sys.argv[1:])
