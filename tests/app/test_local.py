"""The in-process grid: Flower's own ClientApp under a virtual clock."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flwr_afuic import wire
from flwr_afuic.app.local import LocalGrid, SpeedModel, run_local
from flwr_afuic.errors import ConfigError
from flwr_afuic.strategies.codec import from_record
from tests.strategies import sites


def talkative(steps: object = None) -> ClientApp:
    """Answers with what it sees; counts its messages in ``context.state``."""
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        seen = context.state.config_records.get("seen", ConfigRecord({"count": 0}))
        seen["count"] = int(seen["count"]) + 1
        context.state["seen"] = seen
        config: dict[str, Any] = {
            "node": {**context.node_config}["partition-id"],
            "of": context.node_config["num-partitions"],
            "extra": str(context.node_config.get("extra", "")),
            "run": str(context.run_config.get("lr", "")),
            "count": seen["count"],
        }
        if steps is not None:
            config[wire.STEPS] = steps
        return Message(RecordDict({"c": ConfigRecord(config)}), reply_to=message)

    app.train()(answer)
    app.evaluate()(answer)
    return app


def ask(grid: LocalGrid, partition: int, kind: str = "train") -> str:
    message = Message(RecordDict({"config": ConfigRecord({"a": 1})}), sites.node(partition), kind)
    (message_id,) = grid.push_messages([message])
    return message_id


def wait(grid: LocalGrid, message_id: str) -> Message:
    for _ in range(100):
        found = list(grid.pull_messages([message_id]))
        if found:
            return found[0]
        grid.clock.sleep(60)
    pytest.fail("no reply")


def config_of(reply: Message) -> ConfigRecord:
    return reply.content.config_records["c"]


# ---- speed ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "steps", "partition", "expected"),
    [
        ("train", None, 0, 0.2 + 0.05 * 16),
        ("train", 40, 0, 0.2 + 0.05 * 40),
        ("train", 0, 0, 0.2),
        ("evaluate", None, 0, 0.2 + 0.05 * 2),
        ("get_properties", None, 0, 0.3),
        ("train", 40, 1, 3 * 2.2),
    ],
)
def test_speed_model(kind: str, steps: int | None, partition: int, expected: float) -> None:
    speed = SpeedModel(factors={1: 3.0})
    assert speed.seconds(partition, kind, steps) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("steps", "seconds"),
    [(None, 1.0), (40, 2.2), (-3, 0.2), (True, 1.0), ("many", 1.0), (2.5, 1.0)],
)
def test_reported_steps_set_the_duration(steps: object, seconds: float) -> None:
    grid = LocalGrid(talkative(steps), 1)
    wait(grid, ask(grid, 0))
    assert grid.clock.now() == pytest.approx(seconds)
    grid.close()


# ---- messages -------------------------------------------------------------------------------


def test_replies_become_visible_in_virtual_time_in_the_order_of_speed() -> None:
    grid = LocalGrid(talkative(), 3, speed=SpeedModel(factors={0: 3.0, 2: 2.0}))
    ids = [ask(grid, partition) for partition in range(3)]
    arrivals = []
    while len(arrivals) < 3:
        for reply in grid.pull_messages(ids):
            arrivals.append((grid.clock.now(), config_of(reply)["node"]))
        grid.clock.sleep(60)
    assert arrivals == [(1.0, 1), (2.0, 2), (3.0, 0)]
    assert list(grid.pull_messages(ids)) == [], "a reply is handed out once"
    grid.close()


def test_a_reply_names_the_message_it_answers() -> None:
    grid = LocalGrid(talkative(), 2)
    first, second = ask(grid, 0), ask(grid, 1)
    assert first != second
    reply = wait(grid, second)
    assert reply.metadata.reply_to_message_id == second
    assert reply.metadata.src_node_id == sites.node(1)
    grid.close()


def test_contexts_are_each_nodes_own_and_last() -> None:
    grid = LocalGrid(talkative(), 2, node_configs={1: {"extra": "slow"}}, run_config={"lr": 0.1})
    wait(grid, ask(grid, 0))
    first, other = config_of(wait(grid, ask(grid, 0))), config_of(wait(grid, ask(grid, 1)))
    assert (first["node"], first["count"], first["extra"], first["of"]) == (0, 2, "", 2)
    assert (other["node"], other["count"], other["extra"]) == (1, 1, "slow")
    assert other["run"] == "0.1"
    grid.close()


def test_an_exception_is_an_error_reply_as_in_flower() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise ValueError("label 9 is out of range")

    grid = LocalGrid(app, 1)
    reply = wait(grid, ask(grid, 0))
    assert reply.has_error()
    assert reply.error.code == 2
    assert reply.error.reason == "ValueError: label 9 is out of range"
    assert wait(grid, ask(grid, 0, "evaluate")).has_error(), "no evaluate function is one too"
    grid.close()


def test_a_fault_of_the_interpreter_is_no_fault_of_the_site() -> None:
    app, calls = ClientApp(), []

    @app.train()
    def train(message: Message, context: Context) -> Message:
        records = len(message.content)
        calls.append(records)
        message.content.clear()
        if len(calls) == 1:
            raise SystemError("AST constructor recursion depth mismatch (before=65, after=66)")
        return Message(RecordDict({"m": MetricRecord({"records": records})}), reply_to=message)

    grid = LocalGrid(app, 1)
    content = RecordDict({"c": ConfigRecord({"x": 1})})
    message = grid.create_message(content, "train", 101, "1")
    (reply,) = grid.send_and_receive([message])
    grid.close()
    assert not reply.has_error()
    assert calls == [1, 1]


def test_a_client_that_empties_its_message_empties_its_own_copy() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        message.content["arrays"].clear()
        message.content["config"]["lr"] = 99.0
        del message.content["config"]
        return Message(RecordDict({"m": MetricRecord({"ok": 1})}), reply_to=message)

    grid = LocalGrid(app, 1)
    content = RecordDict({"arrays": sites.small(1.0), "config": ConfigRecord({"lr": 0.1})})
    (message_id,) = grid.push_messages([Message(content, sites.node(0), "train")])
    assert not wait(grid, message_id).has_error()
    assert content["config"]["lr"] == 0.1
    np.testing.assert_array_equal(from_record(content["arrays"])[0], [1, 1])
    grid.close()


def test_nodes_names_and_who_is_offline() -> None:
    grid = LocalGrid(talkative(), 3, names=["a", "b", "c"])
    assert list(grid.get_node_ids()) == [101, 102, 103]
    grid.offline.add(102)
    assert [(node.node_id, node.name) for node in grid.get_nodes()] == [(101, "a"), (103, "c")]
    grid.close()
    unnamed = LocalGrid(talkative(), 1)
    assert [node.name for node in unnamed.get_nodes()] == [""]
    unnamed.close()


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_nodes is 0"):
        LocalGrid(talkative(), 0)
    with pytest.raises(ConfigError, match="2 names for 3 nodes"):
        LocalGrid(talkative(), 3, names=["a", "b"])
    grid = LocalGrid(talkative(), 1)
    with pytest.raises(ConfigError, match=r"no node 7; this grid has \[101\]"):
        grid.push_messages([Message(RecordDict(), 7, "train")])
    grid.close()


# ---- send_and_receive -----------------------------------------------------------------------


def messages(nodes: int) -> list[Message]:
    return [Message(RecordDict(), sites.node(p), "train") for p in range(nodes)]


def test_send_and_receive_returns_in_the_order_of_sending() -> None:
    grid = LocalGrid(talkative(), 3, speed=SpeedModel(factors={0: 5.0}))
    replies = list(grid.send_and_receive(messages(3)))
    assert [config_of(reply)["node"] for reply in replies] == [0, 1, 2]
    assert grid.clock.now() == 5.0
    grid.close()


def test_send_and_receive_keeps_its_timeout() -> None:
    grid = LocalGrid(talkative(), 3, speed=SpeedModel(factors={0: 5.0}))
    replies = list(grid.send_and_receive(messages(3), timeout=2.0))
    assert [config_of(reply)["node"] for reply in replies] == [1, 2]
    assert grid.clock.now() == 2.0
    grid.close()


# ---- the rest -------------------------------------------------------------------------------


def test_sites_train_side_by_side() -> None:
    together = threading.Barrier(2, timeout=10)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        together.wait()
        return Message(RecordDict(), reply_to=message)

    grid = LocalGrid(app, 2, threads=2)
    replies = list(grid.send_and_receive(messages(2)))
    assert not any(reply.has_error() for reply in replies)
    grid.close()


def test_stragglers_cost_no_real_time() -> None:
    grid = LocalGrid(talkative(), 1, speed=SpeedModel(factors={0: 1e6}))
    began = time.monotonic()
    message_id = ask(grid, 0)
    grid.clock.sleep(1e7)
    assert grid.clock.now() == pytest.approx(1e6)
    assert list(grid.pull_messages([message_id]))
    assert time.monotonic() - began < 5
    grid.close()


def test_run_local_closes_also_after_an_error() -> None:
    grids: list[LocalGrid] = []

    def main(grid: LocalGrid) -> None:
        grids.append(grid)
        raise RuntimeError("server")

    with pytest.raises(RuntimeError, match="server"):
        run_local(main, talkative(), 2)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="after shutdown"):
        ask(grids[0], 0)
    done = run_local(lambda grid: None, talkative(), 2, threads=1)
    assert isinstance(done, LocalGrid)


def test_flowers_interface_is_complete() -> None:
    grid = LocalGrid(talkative(), 1)
    grid.set_run(grid.run)
    message = grid.create_message(RecordDict(), "train", sites.node(0), "g", ttl=5.0)
    assert message.metadata.group_id == "g"
    (message_id,) = grid.push_messages([message])
    assert not wait(grid, message_id).has_error()
    grid.close()
