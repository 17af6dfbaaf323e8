"""The ``local`` and ``virtual`` engines: an in-process Grid that calls the real ClientApp.

Tasks run in a small thread pool; their replies become visible in virtual time, so the
order of events, and with it every number, is the same on every run. A speed model says
how long a task takes at a site; stragglers cost no real time.
"""

from __future__ import annotations

import heapq
import itertools
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from flwr_afuic import wire
from flwr_afuic.errors import ConfigError
from flwr_afuic.federation.clock import VirtualClock
from flwr_afuic.seeds import derive_seed

_RUN_ID = 1
_SERVER_NODE_ID = 1
_FIRST_NODE_ID = 101
_APP_EXCEPTION = 2


@dataclass(frozen=True)
class SpeedModel:
    """How long a task takes at a site, in virtual seconds.

    Attributes
    ----------
    seconds_per_step : float
        For clients that report their gradient steps (``afuic.steps``).
    overhead : float
        Fixed cost of any message.
    default_steps : int
        Assumed where a client does not report its steps.
    factors : mapping of int to float
        Slow-down by partition; 1 where not given.
    tail : float or None
        Index, above 1, of a Pareto distribution of mean 1 that multiplies each task's duration:
        the smaller, the more often a task takes many times as long. None for fixed speeds.
    seed : int
        Of those draws; a task's depends on its site and its number there alone.
    """

    seconds_per_step: float = 0.05
    overhead: float = 0.2
    default_steps: int = 16
    factors: Mapping[int, float] | None = None
    tail: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tail is not None and not 1 < self.tail < float("inf"):
            raise ConfigError(f"tail is {self.tail}; it must exceed 1, or there is no mean")

    def seconds(self, partition: int, kind: str, steps: int | None, task: int = 0) -> float:
        """Return the duration of one task of message type ``kind``, the site's ``task``-th."""
        factor = (self.factors or {}).get(partition, 1.0)
        if steps is None:
            steps = self.default_steps if kind.startswith("train") else 2
        return (
            factor * self._luck(partition, task) * (self.overhead + self.seconds_per_step * steps)
        )

    def _luck(self, partition: int, task: int) -> float:
        if self.tail is None:
            return 1.0
        rng = np.random.default_rng(derive_seed(self.seed, "speed", partition, task))
        return float(1 + rng.pareto(self.tail)) * (self.tail - 1) / self.tail


@dataclass
class _Flight:
    future: Future[Message]
    partition: int
    kind: str
    sent: float
    number: int
    order: int
    due: float | None = None


class LocalGrid(Grid):
    """A Grid whose nodes live in this process, under a virtual clock.

    Parameters
    ----------
    client_app : ClientApp
        Flower's own ClientApp, called as a SuperNode would call it.
    num_nodes : int
        Number of nodes; node ``i`` has ``partition-id`` ``i``.
    speed : SpeedModel
        Durations.
    node_configs : mapping of int to mapping, optional
        Further ``node_config`` entries by partition.
    names : sequence of str, optional
        Registered names, as node authentication would give them.
    run_config : mapping, optional
        The run config every context carries.
    threads : int
        Tasks that run at once; 0 runs each in the caller's thread, as soon as it is sent.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_nodes: int,
        *,
        speed: SpeedModel | None = None,
        node_configs: Mapping[int, Mapping[str, bool | float | int | str]] | None = None,
        names: list[str] | None = None,
        run_config: Mapping[str, bool | float | int | str] | None = None,
        threads: int = 2,
    ) -> None:
        if num_nodes < 1:
            raise ConfigError(f"num_nodes is {num_nodes}; it must be at least 1")
        if names is not None and len(names) != num_nodes:
            raise ConfigError(f"{len(names)} names for {num_nodes} nodes; give one for each")
        # Building a Message outside a Flower run needs an identity to send from.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = _RUN_ID, 1, 1
        self._app = client_app
        self._speed = speed or SpeedModel()
        self._names = names or [""] * num_nodes
        self._pool = (
            ThreadPoolExecutor(max_workers=threads, thread_name_prefix="site") if threads else None
        )
        self._flights: dict[str, _Flight] = {}
        self._sent: dict[int, int] = {}
        self._new: list[str] = []
        self._due_times: list[tuple[float, int, str]] = []
        self._arrived: dict[str, int] = {}
        self._ids = itertools.count(1)
        self.clock = VirtualClock(self._next_due)
        self.offline: set[int] = set()
        self._contexts: dict[int, Context] = {}
        for partition in range(num_nodes):
            node_id = _FIRST_NODE_ID + partition
            config = {"partition-id": partition, "num-partitions": num_nodes}
            config.update((node_configs or {}).get(partition, {}))  # type: ignore[arg-type]
            self._contexts[node_id] = Context(
                run_id=_RUN_ID,
                node_id=node_id,
                node_config=UserConfig(config),
                state=RecordDict(),
                run_config=UserConfig(dict(run_config or {})),
            )

    def set_run(self, run: Run) -> None:
        """Accept Flower's run information; nothing here depends on it."""

    @property
    def run(self) -> Run:
        """Run information: an empty run with this grid's id."""
        return Run.create_empty(_RUN_ID)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Build a message, as Flower's deprecated helper does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Node ids that are online."""
        return [node for node in self._contexts if node not in self.offline]

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Nodes that are online, with their registered names."""
        return [
            NodeInfo(node_id=node, name=self._names[node - _FIRST_NODE_ID])
            for node in self.get_node_ids()
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Start each message's task; returns the message ids."""
        ids = []
        for message in messages:
            order = next(self._ids)
            message_id = f"local-{order}"
            message.metadata.__dict__["_message_id"] = message_id
            message.content = _own_copy(message.content)
            node = message.metadata.dst_node_id
            if node not in self._contexts:
                raise ConfigError(f"no node {node}; this grid has {sorted(self._contexts)}")
            partition = node - _FIRST_NODE_ID
            self._sent[partition] = number = self._sent.get(partition, 0) + 1
            self._flights[message_id] = _Flight(
                self._start(message),
                partition,
                message.metadata.message_type,
                self.clock.now(),
                number,
                order,
            )
            self._new.append(message_id)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies whose virtual time has come."""
        found = []
        for message_id in message_ids:
            flight = self._flights.get(message_id)
            if flight is not None and self._due(flight) <= self.clock.now():
                del self._flights[message_id]
                self._arrived.pop(message_id, None)
                found.append(flight.future.result())
        return found

    def arrived(self) -> list[str]:
        """Ids of the messages whose replies can be pulled now, in order of sending."""
        self._schedule()
        while self._due_times and self._due_times[0][0] <= self.clock.now():
            _, order, message_id = heapq.heappop(self._due_times)
            if message_id in self._flights:
                self._arrived[message_id] = order
        return sorted(self._arrived, key=self._arrived.__getitem__)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, let virtual time pass, and return the replies in order of sending."""
        ids = list(self.push_messages(messages))
        limit = float("inf") if timeout is None else self.clock.now() + timeout
        replies: dict[str, Message] = {}
        while len(replies) < len(ids) and self.clock.now() < limit:
            for message_id in ids:
                for reply in self.pull_messages([message_id]):
                    replies[message_id] = reply
            if len(replies) < len(ids):
                self.clock.sleep(min(60.0, limit - self.clock.now()))
        return [replies[message_id] for message_id in ids if message_id in replies]

    def close(self) -> None:
        """Wait for tasks under way and stop the pool."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, message: Message) -> Future[Message]:
        if self._pool is not None:
            return self._pool.submit(self._call, message)
        done: Future[Message] = Future()
        done.set_result(self._call(message))
        return done

    def _call(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        spare = _own_copy(message.content)
        try:
            try:
                return self._app(message, context)
            except SystemError as fault:
                if "AST constructor" not in str(fault):
                    raise
                # CPython 3.11 counts the depth of what it parses for all threads together: NumPy
                # reading the headers of arrays in two of them can meet "AST constructor recursion
                # depth mismatch". No site is to blame: it is asked again.
                message.content = spare
                return self._app(message, context)
        except Exception as error:  # noqa: BLE001 - a site's exception is a reply, as in Flower
            reason = "".join(traceback.format_exception_only(error)).strip()
            return Message(Error(_APP_EXCEPTION, reason), reply_to=message)

    def _due(self, flight: _Flight) -> float:
        if flight.due is None:
            reply = flight.future.result()
            steps = None if reply.has_error() else _steps(reply.content)
            flight.due = flight.sent + self._speed.seconds(
                flight.partition, flight.kind, steps, flight.number
            )
        return flight.due

    def _schedule(self) -> None:
        """Find out when each new message's reply is due, which its client's steps tell."""
        for message_id in self._new:
            flight = self._flights.get(message_id)
            if flight is not None:
                entry = (self._due(flight), flight.order, message_id)
                heapq.heappush(self._due_times, entry)
        self._new.clear()

    def _next_due(self) -> float | None:
        self._schedule()
        if self._arrived:
            return min(self._due(self._flights[message_id]) for message_id in self._arrived)
        while self._due_times and self._due_times[0][2] not in self._flights:
            heapq.heappop(self._due_times)
        return self._due_times[0][0] if self._due_times else None


def run_local(
    server_main: Callable[[Grid], None], client_app: ClientApp, num_nodes: int, **options: object
) -> LocalGrid:
    """Run ``server_main(grid)`` on a fresh :class:`LocalGrid` and close it."""
    grid = LocalGrid(client_app, num_nodes, **options)  # type: ignore[arg-type]
    try:
        server_main(grid)
    finally:
        grid.close()
    return grid


def _own_copy(content: RecordDict) -> RecordDict:
    """Copy the records, as a wire would: a client may empty its own, not the server's."""
    return RecordDict(
        {key: type(record)(dict(record)) for key, record in content.items()}  # type: ignore[arg-type]
    )


def _steps(content: RecordDict) -> int | None:
    for record in content.values():
        if isinstance(record, ConfigRecord):
            steps = record.get(wire.STEPS)
            if isinstance(steps, int) and not isinstance(steps, bool):
                return max(0, steps)
    return None
