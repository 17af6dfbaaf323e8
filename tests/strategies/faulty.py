"""A network that loses, delays, doubles and reorders, and servers that fall at any step."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.proto.node_pb2 import NodeInfo

from flwr_afuic.app.local import LocalGrid
from flwr_afuic.errors import ConfigError
from flwr_afuic.state import certificates, database
from flwr_afuic.state.vault import Vault

TIMEOUT = 40.0
FAULTS = (
    "late",
    "later",
    "asleep",
    "too-late",
    "unheard",
    "unanswered",
    "twice",
    "again",
    "error",
    "unsent",
)
"""What may happen to a message and its reply.

``late`` and ``later`` replies come after those to later messages; an ``asleep`` site begins
only then; ``too-late`` is after the server has given up. ``unheard`` messages never reach the
site, ``unanswered`` ones do and the reply is lost. A message delivered ``twice`` is
carried out twice; of a reply delivered ``again`` the server gets two. ``unsent`` ones Flower does
not take.
"""
_DELAYS = {"late": 1.5, "later": 12.0, "asleep": 9.0, "too-late": 3 * TIMEOUT}
_NEVER = 1e12


class Crash(BaseException):
    """The end of the server's process."""


class FaultyGrid(LocalGrid):
    """A LocalGrid on which messages meet with what a list says.

    Parameters
    ----------
    faults : iterator of str
        One for each message; "" for none.
    tick : callable
        Told of every step, by name.
    """

    arrived = None  # it delivers itself, and like Flower's own Grid it does not tell what is there

    def __init__(self, *args, faults: Iterator[str], tick: Callable[[str], None], **options):
        super().__init__(*args, **options)
        self._faults = faults
        self._tick = tick
        self._node_of = {node: node - 101 for node in self._contexts}
        self._replies: dict[str, tuple[float, Message, str]] = {}
        self.met: Counter[str] = Counter()

    # ---- nodes --------------------------------------------------------------------------

    def restart(self, partition: int, *, leaves: bool) -> None:
        """Let a site come back under a new node id; the old one may linger."""
        if leaves:
            self.offline.update(n for n, p in self._node_of.items() if p == partition)
        node = 101 + len(self._node_of)
        self._node_of[node] = partition
        config = {"partition-id": partition, "num-partitions": len(self._names)}
        self._contexts[node] = Context(
            run_id=1,
            node_id=node,
            node_config=UserConfig(config),
            state=RecordDict(),
            run_config=UserConfig({}),
        )

    def set_online(self, partition: int, online: bool) -> None:
        nodes = {node for node, number in self._node_of.items() if number == partition}
        self.offline = self.offline - nodes if online else self.offline | nodes

    def partition_of(self, node: int) -> int:
        return self._node_of[node]

    def get_nodes(self):
        online = self.get_node_ids()
        return [NodeInfo(node_id=n, name=self._names[self._node_of[n]]) for n in online]

    # ---- messages -----------------------------------------------------------------------

    def push_messages(self, messages):
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str | None:
        self._tick("push")
        fault = next(self._faults, "")
        node = message.metadata.dst_node_id
        if node not in self._contexts:
            raise ConfigError(f"no node {node}")
        if fault:
            self.met[fault] += 1
        if fault == "unsent":
            return None
        message_id = f"message-{next(self._ids)}"
        message.metadata.__dict__["_message_id"] = message_id
        if node in self.offline or fault == "unheard":
            return message_id
        due = self.clock.now() + self._speed.seconds(
            self._node_of[node], message.metadata.message_type, 4
        )
        due += _DELAYS.get(fault, 0.0)
        message.content = _copied(message.content)
        reply = message if fault == "asleep" else self._answer(message, fault)
        if fault != "unanswered":
            self._replies[message_id] = (due, reply, fault)
        self._tick("pushed")
        return message_id

    def _answer(self, message: Message, fault: str) -> Message:
        reply = self._call(message)
        if fault == "twice":
            reply = self._call(message)
        return Message(Error(8, "died"), reply_to=message) if fault == "error" else reply

    def pull_messages(self, message_ids):
        self._tick("pull")
        found = []
        for message_id in message_ids:
            due, reply, fault = self._replies.get(message_id, (_NEVER, None, ""))
            if due > self.clock.now():
                continue
            del self._replies[message_id]
            reply = self._answer(reply, "") if fault == "asleep" else reply
            found += [reply, reply] if fault == "again" else [reply]
        return found

    def _next_due(self):
        return min((due for due, _, _ in self._replies.values()), default=None)


def _copied(content: RecordDict) -> RecordDict:
    return RecordDict({key: type(record)(dict(record)) for key, record in content.items()})


# ---- servers that fall ------------------------------------------------------------------


def snapshot(directory: Path, target: Path) -> None:
    """Copy a state directory as a kill would leave it, while its server has it open."""
    for folder in (".", "weights", "keys", "keys/old", "certificates"):
        source = directory / folder
        if not source.is_dir():
            continue
        (target / folder).mkdir(parents=True, exist_ok=True)
        for path in source.iterdir():
            # The shared-memory index is made anew by whoever opens the database next.
            if path.is_file() and not path.name.endswith("-shm") and path.name != "run.lock":
                shutil.copyfile(path, target / folder / path.name)


@contextmanager
def watched(directory: Path, tick: Callable[[str], None]) -> Iterator[None]:
    """Tell of every step by which a server's state directory changes, before and after it."""
    database_file = str(directory / "state.sqlite")

    def around(name, function):
        def call(*args, **options):
            tick(f"{name}-")
            result = function(*args, **options)
            tick(f"{name}+")
            return result

        return call

    commit = database.commit

    def committing(connection):
        row = connection.execute("PRAGMA database_list").fetchone()
        ours = row[2] == database_file
        if ours:
            tick("commit-")
        commit(connection)
        if ours:
            tick("commit+")

    with ExitStack() as stack:
        for owner, name, function in (
            (Vault, "put", around("put", Vault.put)),
            (Vault, "delete", around("delete", Vault.delete)),
            (certificates, "write_file", around("certificate", certificates.write_file)),
            (database, "commit", committing),
        ):
            stack.enter_context(patch.object(owner, name, function))
        yield
