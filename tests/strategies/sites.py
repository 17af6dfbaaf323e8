"""Real ClientApps with tiny models, in both dialects, for tests of the engine.

The model is a bit like a network with BatchNorm: a weight and a bias that train, a running
mean and variance, and an int64 counter. Training takes each weight a step towards the
site's own target, so every number can be worked out by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp

from flwr_afuic.app.local import LocalGrid, SpeedModel

NAMES = ("layer.weight", "layer.bias", "norm.running_mean", "norm.running_var")
COUNTER = "norm.num_batches_tracked"
RATE = 0.5

Arrays = list[np.ndarray]
Behaviour = Callable[[int, int, Arrays], Any]


def initial() -> ArrayRecord:
    arrays = {
        "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
        "layer.bias": np.float32([0.25, -0.5]),
        "norm.running_mean": np.float32([0.1, 0.2]),
        "norm.running_var": np.float32([1.0, 1.5]),
        COUNTER: np.asarray(0, dtype=np.int64),
    }
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def small(value: float = 0.0) -> ArrayRecord:
    """One trained array of two entries."""
    return ArrayRecord({"w": Array(np.full(2, value, dtype=np.float32))})


def values(record: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in record.items()}


def examples_of(partition: int) -> int:
    return 10 * (partition + 1)


def learn(partition: int, arrays: Arrays) -> Arrays:
    """Move trained arrays towards the site's target, and set statistics and counter."""
    target = np.float32(partition + 1)
    result = [array + np.float32(RATE) * (target - array) for array in arrays[:2]]
    if len(arrays) == 1:
        return [arrays[0] + np.float32(RATE) * (target - arrays[0])]
    statistics = [np.full(2, 0.1 * target, np.float32), np.full(2, 1 + 0.5 * target, np.float32)]
    return [*result, *statistics, np.asarray(arrays[4] + 3, dtype=arrays[4].dtype)]


def loss_of(partition: int, arrays: Arrays) -> float:
    return float(np.mean((arrays[0] - (partition + 1)) ** 2))


class Site:
    """Counts its calls; ``behaviour`` may replace what a training returns, or raise."""

    def __init__(self, behaviours: Mapping[int, Behaviour] | None = None) -> None:
        self.behaviours = dict(behaviours or {})
        self.calls: dict[int, int] = {}
        self.configs: list[tuple[int, str, dict[str, Any]]] = []

    def train(self, partition: int, arrays: Arrays, config: Mapping[str, Any]) -> Any:
        call = self.calls.get(partition, 0)
        self.calls[partition] = call + 1
        self.configs.append((partition, "train", dict(config)))
        behaviour = self.behaviours.get(partition)
        if behaviour is not None:
            outcome = behaviour(partition, call, arrays)
            if outcome is not None:
                return outcome
        metrics = {"train_loss": loss_of(partition, arrays)}
        return learn(partition, arrays), examples_of(partition), metrics

    def evaluate(self, partition: int, arrays: Arrays, config: Mapping[str, Any]) -> Any:
        self.configs.append((partition, "evaluate", dict(config)))
        metrics = {"bias": float(arrays[-1].ravel()[0]), "partition": float(partition)}
        return loss_of(partition, arrays), examples_of(partition) // 2, metrics


class PlainClient(NumPyClient):
    """A user's NumPyClient that has never heard of this package."""

    def __init__(self, site: Site, partition: int) -> None:
        self.site, self.partition = site, partition

    def fit(self, parameters: Arrays, config: dict[str, Any]) -> Any:
        return self.site.train(self.partition, parameters, config)

    def evaluate(self, parameters: Arrays, config: dict[str, Any]) -> Any:
        return self.site.evaluate(self.partition, parameters, config)


def numpy_app(site: Site, mods: Any = None) -> ClientApp:
    def client_fn(context: Context) -> Any:
        return PlainClient(site, int(context.node_config["partition-id"])).to_client()

    return ClientApp(client_fn=client_fn, mods=mods)


def message_app(site: Site, mods: Any = None) -> ClientApp:
    """A Message-API app as a FedAvg user writes it."""
    app = ClientApp(mods=mods)

    def read(message: Message) -> tuple[Arrays, dict[str, Any]]:
        arrays = message.content["arrays"]
        return [array.numpy() for array in arrays.values()], dict(message.content["config"])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays, config = read(message)
        names = list(message.content["arrays"].keys())
        partition = int(context.node_config["partition-id"])
        result, examples, metrics = site.train(partition, arrays, config)
        names += [f"extra{i}" for i in range(len(result) - len(names))]
        content = RecordDict(
            {
                "arrays": ArrayRecord(
                    {n: Array(np.asarray(a)) for n, a in zip(names, result, strict=False)}
                ),
                "metrics": MetricRecord({**metrics, "num-examples": examples}),
            }
        )
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        arrays, config = read(message)
        partition = int(context.node_config["partition-id"])
        loss, examples, metrics = site.evaluate(partition, arrays, config)
        record = MetricRecord({**metrics, "eval_loss": loss, "num-examples": examples})
        return Message(RecordDict({"metrics": record}), reply_to=message)

    return app


APPS = {"numpy": numpy_app, "message": message_app}


class SpyGrid(LocalGrid):
    """A LocalGrid that fails the test when a node has two messages in flight.

    ``deaf`` nodes take messages and never answer; ``mute`` ones take none.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.in_flight: dict[str, int] = {}
        self.pushes: list[tuple[float, int, str]] = []
        self.deaf: set[int] = set()
        self.mute: set[int] = set()
        self.forgive_late = False
        self.on_push: Callable[[float, int], None] | None = None

    def push_messages(self, messages: Any) -> Any:
        ids = []
        for message in messages:
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            busy = node in self.in_flight.values() and not self.forgive_late
            assert not busy, f"node {node} was sent two messages at once"
            self.pushes.append((self.clock.now(), node, kind))
            if self.on_push is not None:
                self.on_push(self.clock.now(), node)
            if node in self.mute:
                ids.append(None)
                continue
            (message_id,) = super().push_messages([message])
            self.in_flight[message_id] = node
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Any) -> Any:
        found: list[Message] = []
        for message_id in message_ids:
            if self.in_flight.get(message_id) in self.deaf:
                continue
            replies = super().pull_messages([message_id])
            if replies:
                self.in_flight.pop(message_id, None)
            found += replies
        return found

    def pushed(self, node: int, kind: str = "train") -> list[float]:
        return [time for time, at, what in self.pushes if at == node and what.startswith(kind)]


def grid_of(dialect: str, site: Site, nodes: int, **options: Any) -> SpyGrid:
    factors = options.pop("factors", None)
    options.setdefault("speed", SpeedModel(factors=factors))
    return SpyGrid(APPS[dialect](site), nodes, **options)


def node(partition: int) -> int:
    return 101 + partition
