from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from google.protobuf.message import DecodeError

from flwr_afuic.app.local import LocalGrid
from flwr_afuic.errors import WireError
from flwr_afuic.federation.clock import RealClock, VirtualClock
from flwr_afuic.federation.roster import Member
from flwr_afuic.strategies.codec import NumPyDialect, forget_arrays
from flwr_afuic.strategies.dispatcher import Dispatcher, Task, clock_of
from tests.strategies import sites

pytestmark = pytest.mark.usefixtures("task_identity")


class Mailbox:
    """The part of a Grid that the dispatcher uses."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.replies: dict[str, Message] = {}
        self.takes = True
        self.pulled: list[list[str]] = []

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        # Flower iterates twice over what it is given.
        assert isinstance(messages, list)
        self.sent += messages
        return [f"m{len(self.sent)}"] if self.takes else [None]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.pulled.append(list(message_ids))
        return [self.replies.pop(i) for i in message_ids if i in self.replies]

    def answer(self, message_id: str, index: int) -> Message:
        request = self.sent[index]
        request.metadata.__dict__["_message_id"] = message_id
        self.replies[message_id] = Message(RecordDict(), reply_to=request)
        return self.replies[message_id]


@pytest.fixture
def box() -> Mailbox:
    return Mailbox()


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def dispatcher(box: Mailbox, clock: VirtualClock) -> Dispatcher:
    return Dispatcher(box, clock, timeout=5.0)  # type: ignore[arg-type]


def task(member: Member, version: int = 3) -> Task:
    return Task(member, "train", version, 1)


def content() -> RecordDict:
    return RecordDict({"config": ConfigRecord({"lr": 0.1})})


def test_send_addresses_times_and_marks_the_member(
    dispatcher: Dispatcher, box: Mailbox, clock: VirtualClock
) -> None:
    clock.sleep(2.0)
    member = Member(7, "a")
    job = task(member)
    assert dispatcher.send(job, "train", content())
    (message,) = box.sent
    assert message.metadata.dst_node_id == 7
    assert message.metadata.message_type == "train"
    assert message.metadata.group_id == "3"
    assert message.metadata.ttl == 5.0
    assert (job.sent, job.deadline) == (2.0, 7.0)
    assert (member.busy, member.tasks_sent) == (True, 1)
    assert dispatcher.pending == [job]
    assert dispatcher.next_deadline() == 7.0


def test_never_two_messages_to_one_member(dispatcher: Dispatcher) -> None:
    member = Member(7, "a")
    dispatcher.send(task(member), "train", content())
    with pytest.raises(RuntimeError, match="already has a message in flight"):
        dispatcher.send(task(member), "train", content())


def test_a_message_nobody_takes(dispatcher: Dispatcher, box: Mailbox) -> None:
    box.takes = False
    member = Member(7, "a")
    assert not dispatcher.send(task(member), "train", content())
    assert (member.busy, member.tasks_sent) == (False, 0)
    assert dispatcher.pending == []
    assert dispatcher.next_deadline() is None


def test_replies_come_with_their_tasks(dispatcher: Dispatcher, box: Mailbox) -> None:
    one, two = Member(7, "a"), Member(8, "b")
    first, second = task(one), task(two)
    dispatcher.send(first, "train", content())
    dispatcher.send(second, "train", content())
    assert list(dispatcher.replies()) == []
    reply = box.answer("m2", 1)
    ((done, found),) = dispatcher.replies()
    assert (done, found.metadata) == (second, reply.metadata)
    assert (one.busy, two.busy) == (True, False)
    assert dispatcher.pending == [first]
    assert all(len(ids) == 1 for ids in box.pulled), "one reply at a time"


def test_a_deadline_frees_the_member_and_a_late_reply_is_not_asked_for(
    dispatcher: Dispatcher, box: Mailbox, clock: VirtualClock
) -> None:
    member = Member(7, "a")
    job = task(member)
    dispatcher.send(job, "train", content())
    clock.sleep(4.9)
    assert list(dispatcher.replies()) == []
    clock.sleep(0.1)
    assert list(dispatcher.replies()) == [(job, None)]
    assert not member.busy
    box.answer("m1", 0)
    assert list(dispatcher.replies()) == []


def test_a_reply_on_the_deadline_counts(
    dispatcher: Dispatcher, box: Mailbox, clock: VirtualClock
) -> None:
    job = task(Member(7, "a"))
    dispatcher.send(job, "train", content())
    reply = box.answer("m1", 0)
    clock.sleep(60)
    ((done, found),) = dispatcher.replies()
    assert (done, found.metadata) == (job, reply.metadata)


def test_the_engine_may_empty_a_reply_that_its_grid_still_holds(
    dispatcher: Dispatcher, box: Mailbox
) -> None:
    dispatcher.send(task(Member(7, "a")), "train", content())
    reply = box.answer("m1", 0)
    reply.content["arrays"] = ArrayRecord({"w": Array(np.ones(3, np.float32))})
    ((_, found),) = dispatcher.replies()
    assert found.content["arrays"]["w"] is reply.content["arrays"]["w"], "no copy of the bytes"
    forget_arrays(found)
    assert len(found.content["arrays"]) == 0
    assert len(reply.content["arrays"]) == 1


def test_reading_a_reply_makes_no_circle_that_keeps_its_bytes() -> None:
    arrays = ArrayRecord({"0": Array(np.ones(3, np.float32))})
    counts = MetricRecord({"num_examples": 3})
    reply = RecordDict(
        {
            "fitres.parameters": arrays,
            "fitres.num_examples": counts,
            "fitres.metrics": ConfigRecord(),
        }
    )
    seen, record = weakref.ref(reply), weakref.ref(arrays)
    gc.disable()
    try:
        NumPyDialect().read_train(reply)
        del reply, arrays
        assert seen() is None
        assert record() is None
    finally:
        gc.enable()


def test_whoever_stops_listening_midway_loses_no_reply(
    dispatcher: Dispatcher, box: Mailbox
) -> None:
    for n in (7, 8):
        dispatcher.send(task(Member(n, str(n))), "train", content())
    box.answer("m1", 0)
    box.answer("m2", 1)
    next(dispatcher.replies())
    assert len(list(dispatcher.replies())) == 1


def test_the_grids_own_clock_is_used() -> None:
    grid = LocalGrid(sites.numpy_app(sites.Site()), 1)
    assert clock_of(grid) is grid.clock
    assert isinstance(clock_of(Mailbox()), RealClock)  # type: ignore[arg-type]
    grid.close()


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("y"), DecodeError(), MemoryError()])
def test_a_reply_flower_cannot_read_is_handed_over_as_malformed(
    dispatcher: Dispatcher, box: Mailbox, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = Member(7, "a")
    dispatcher.send(task(member), "train", content())

    def fail(message_ids: Iterable[str]) -> list[Message]:
        raise error

    monkeypatch.setattr(box, "pull_messages", fail)
    ((_, reply),) = dispatcher.replies()
    assert isinstance(reply, WireError)
    assert type(error).__name__ in str(reply)
    assert not member.busy
    assert not dispatcher.pending


def test_a_connection_that_fails_is_no_malformed_reply(
    dispatcher: Dispatcher, box: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher.send(task(Member(7, "a")), "train", content())

    def fail(message_ids: Iterable[str]) -> list[Message]:
        raise ConnectionError("refused")

    monkeypatch.setattr(box, "pull_messages", fail)
    with pytest.raises(ConnectionError):
        list(dispatcher.replies())
