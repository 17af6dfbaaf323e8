"""The same clients behind Message-API apps."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from flwr_afuic import wire
from flwr_afuic.clients import message_app
from flwr_afuic.strategies.codec import MessageDialect, to_record
from tests.erasure_helpers import ScriptedClient, Site, request_id

pytestmark = pytest.mark.usefixtures("task_identity")
DIALECT = MessageDialect()


@pytest.fixture
def site():
    return Site(kinds=["trained"])


@pytest.fixture
def call(site):
    app = message_app(lambda context: ScriptedClient(site))

    def send(kind, content):
        message = Message(content, 101, kind, ttl=60.0)
        message.metadata.__dict__["_message_id"] = "m"
        reply = app(message, Context(1, 101, {}, RecordDict(), {}))
        return reply.content

    return send


def model():
    return to_record(["w"], [np.zeros(3, np.float32)])


def test_training_keeps_names_and_splits_numbers_from_words(call):
    content = call("train", DIALECT.train(model(), {wire.SEED: 1, wire.WANT_DELTA: True}, {}))
    assert list(content.array_records["arrays"]) == ["w"]
    reply = DIALECT.read_train(content)
    assert reply.examples == 4
    assert reply.metrics == {"loss": 1.0}
    assert reply.info[wire.KIND] == wire.KIND_DELTA
    assert reply.info[wire.SITE] == "site-0"


def test_unlearning_receives_every_group(site, call):
    site.file(["patient-0-1"], number=1)
    extras = {"reference": [np.ones(3, np.float32)], "proxies": [np.zeros((2, 1, 2, 2))]}
    config = {
        wire.SEED: 1,
        wire.TASK: wire.TASK_UNLEARN,
        wire.REQUEST: request_id(1),
        wire.SCOPE: "samples",
    }
    reply = DIALECT.read_train(call("train", DIALECT.train(model(), config, extras)))
    task = site.unlearned[0]
    assert task.forget_ids == ["patient-0-1"]
    assert [a.tolist() for a in task.snapshot] == [[0, 0, 0]]
    assert [a.tolist() for a in task.reference] == [[1, 1, 1]]
    assert task.proxies.shape == (2, 1, 2, 2)
    assert reply.arrays[0].tolist() == [0, 0, -1]
    assert json.loads(reply.info[wire.EVIDENCE])["steps"] == 10


def test_evaluation_and_verification(site, call):
    reply = DIALECT.read_evaluate(call("evaluate", DIALECT.evaluate(model(), {})))
    assert (reply.loss, reply.examples, reply.metrics["accuracy"]) == (0.5, 4, 0.5)
    site.file(["patient-0-1"], number=1)
    config = {wire.TASK: wire.TASK_VERIFY, wire.REQUEST: request_id(1)}
    reply = DIALECT.read_evaluate(call("evaluate", DIALECT.evaluate(model(), config)))
    assert (reply.loss, reply.metrics["accuracy"]) == (1.1, 0.4)
    assert reply.info[wire.REQUEST] == request_id(1)


def test_a_poll_is_a_query(site, call):
    site.file(["patient-0-1"], number=1)
    info = DIALECT.read_poll(call(*DIALECT.poll({wire.TASK: "poll"})))
    assert info[wire.CLIENT] == wire.PROTOCOL
    assert [n.request_id for n in wire.decode_notices(info[wire.PENDING])] == [request_id(1)]
