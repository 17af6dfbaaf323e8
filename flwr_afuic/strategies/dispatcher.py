"""Messages in flight: at most one per node, each with a deadline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Literal

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from flwr_afuic.errors import WireError
from flwr_afuic.federation.clock import Clock, RealClock
from flwr_afuic.federation.roster import Member
from flwr_afuic.strategies.codec import own_copy

# What Flower raises on a message of hostile bytes; a connection that fails raises something else.
_UNREADABLE = (
    *(ValueError, TypeError, LookupError, AttributeError, RecursionError, MemoryError),
    DecodeError,
)

TaskKind = Literal["train", "evaluate", "unlearn", "verify", "poll", "gate"]


@dataclass
class Task:
    """One message to one site and what the server must remember of it.

    Attributes
    ----------
    version : int
        Version of the global model the message carries.
    note : str
        What else its sender must know of the reply.
    holds_snapshot : bool
        Whether a snapshot of that version is held for its reply.
    refused : bool
        Set when the site asked for erasure meanwhile: the reply will not enter the model.
    """

    member: Member
    kind: TaskKind
    version: int
    round: int
    request_id: str = ""
    note: str = ""
    holds_snapshot: bool = False
    refused: bool = False
    sent: float = 0.0
    deadline: float = field(default=float("inf"))


def clock_of(grid: Grid) -> Clock:
    """Return the grid's own clock where it has one (the in-process grid), else the real one."""
    clock = getattr(grid, "clock", None)
    return RealClock() if clock is None else clock


class Dispatcher:
    """Push tasks, pull replies one at a time, and notice what never came back.

    Parameters
    ----------
    grid : Grid
        Flower's grid.
    clock : Clock
        For deadlines.
    timeout : float
        Seconds a reply may take; also the message's time to live.
    """

    def __init__(self, grid: Grid, clock: Clock, *, timeout: float) -> None:
        self._grid = grid
        self._clock = clock
        self._timeout = timeout
        self._pending: dict[str, Task] = {}
        self._in_hand: Task | None = None

    @property
    def pending(self) -> list[Task]:
        """Tasks in flight, oldest first."""
        return list(self._pending.values())

    @property
    def in_flight(self) -> int:
        """How many tasks are in flight."""
        return len(self._pending)

    @property
    def unjudged(self) -> list[Task]:
        """Tasks in flight, and the one whose reply is being looked at."""
        return self.pending if self._in_hand is None else [*self.pending, self._in_hand]

    def send(self, task: Task, message_type: str, content: RecordDict) -> bool:
        """Send a task to its member; return False if Flower took no message for it."""
        if task.member.busy:
            raise RuntimeError(f"site {task.member.site} already has a message in flight")
        message = Message(
            content,
            task.member.node_id,
            message_type,
            ttl=self._timeout,
            group_id=str(task.version),
        )
        ids = [message_id for message_id in self._grid.push_messages([message]) if message_id]
        if not ids:
            return False
        task.sent = self._clock.now()
        task.deadline = task.sent + self._timeout
        task.member.busy = True
        task.member.tasks_sent += 1
        self._pending[ids[0]] = task
        return True

    def replies(self) -> Iterator[tuple[Task, Message | WireError | None]]:
        """Yield each finished task with its reply, or with None where the deadline passed.

        A reply that Flower itself cannot read comes as the WireError that says so.
        """
        for message_id in self._worth_asking():
            found = self._pull(message_id)
            late = self._clock.now() >= self._pending[message_id].deadline
            if found or late:
                task = self._pending.pop(message_id)
                task.member.busy = False
                self._in_hand = task
                try:
                    yield task, found[0] if found else None
                finally:
                    self._in_hand = None

    def _pull(self, message_id: str) -> list[Message | WireError]:
        try:
            found = list(self._grid.pull_messages([message_id]))
        except _UNREADABLE as error:
            return [WireError(f"Flower cannot read the reply ({type(error).__name__})")]
        for message in found:
            if not isinstance(message, Message) or not (
                message.has_content() or message.has_error()
            ):
                return [WireError("the reply is no message with a content")]
        return [own_copy(message) for message in found]

    def _worth_asking(self) -> list[str]:
        """Ids of all messages in flight, oldest first.

        Of a grid that knows which replies are there only those, and those whose time is up.
        """
        known = getattr(self._grid, "arrived", None)
        if known is None:
            return list(self._pending)
        now = self._clock.now()
        # The timeout is the same for all: who was sent first is late first.
        late = takewhile(lambda item: now >= item[1].deadline, self._pending.items())
        ids = {message_id: None for message_id, _ in late}
        ids.update(dict.fromkeys(known()))
        return [message_id for message_id in ids if message_id in self._pending]

    def next_deadline(self) -> float | None:
        """When the next task in flight expires, or None."""
        oldest = next(iter(self._pending.values()), None)
        return None if oldest is None else oldest.deadline
