"""The erasure protocol for Message-API apps: the same clients behind ``@app.train()``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flwr_afuic import wire
from flwr_afuic.clients.erasure_client import ErasureClient
from flwr_afuic.federation.layout import Arrays

_EXTRA_PREFIX = "afuic."


def message_app(make_client: Callable[[Context], ErasureClient]) -> ClientApp:
    """Build a Message-API ClientApp around an erasure client.

    Parameters
    ----------
    make_client : callable
        From the node's context to its client, as a ``client_fn`` would.

    Returns
    -------
    ClientApp
        With train, evaluate and query functions; for strategies with ``dialect="message"``.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client, config = make_client(context), _config(message)
        names, arrays = _model(message)
        counts = {}
        for key, record in message.content.array_records.items():
            if key.startswith(_EXTRA_PREFIX):
                group = [array.numpy() for array in record.values()]
                counts[key.removeprefix(_EXTRA_PREFIX)] = len(group)
                arrays += group
        if counts:
            config[wire.EXTRAS] = json.dumps(counts)
        result, examples, metrics = client.fit(arrays, config)
        # What follows the model's arrays rides in the same record, under names of its own.
        names += [f"{_EXTRA_PREFIX}extra/{i}" for i in range(len(result) - len(names))]
        record = ArrayRecord(
            {n: Array(np.asarray(a, order="C")) for n, a in zip(names, result, strict=True)}
        )
        content = _reply(metrics, examples)
        content["arrays"] = record
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        _, arrays = _model(message)
        loss, examples, metrics = make_client(context).evaluate(arrays, _config(message))
        return Message(_reply({**metrics, "loss": float(loss)}, examples), reply_to=message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        properties = make_client(context).get_properties(_config(message))
        return Message(RecordDict({"afuic": ConfigRecord(dict(properties))}), reply_to=message)

    return app


def _config(message: Message) -> dict[str, Any]:
    return {k: v for r in message.content.config_records.values() for k, v in r.items()}


def _model(message: Message) -> tuple[list[str], Arrays]:
    record = message.content.array_records["arrays"]
    return list(record.keys()), [array.numpy() for array in record.values()]


def _reply(metrics: dict[str, Any], examples: int) -> RecordDict:
    """Split metrics: numbers into the MetricRecord, the protocol's scalars into a ConfigRecord."""
    numbers: dict[str, Any] = {"num-examples": int(examples)}
    scalars: dict[str, Any] = {}
    for key, value in metrics.items():
        ours = key.startswith(_EXTRA_PREFIX)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        (numbers if number and not ours else scalars)[key] = value
    return RecordDict({"metrics": MetricRecord(numbers), "afuic": ConfigRecord(scalars)})
