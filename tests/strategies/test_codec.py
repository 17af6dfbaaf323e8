"""Both dialects: round trips through Flower's own clients, and every malformed reply."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.app.user_config import UserConfig
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_afuic import wire
from flwr_afuic.errors import ConfigError, WireError
from flwr_afuic.strategies.codec import (
    Dialect,
    MessageDialect,
    NumPyDialect,
    dialect_named,
    from_record,
    pack,
    to_record,
)

pytestmark = pytest.mark.usefixtures("task_identity")

NUMPY, MESSAGE = NumPyDialect(), MessageDialect()


def arrays() -> list[np.ndarray]:
    return [
        np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
        np.asarray(3, np.int64),
        np.zeros((0, 2), np.float64),
        np.array([True, False]),
        np.float16([1.5]),
    ]


def same(left: list[np.ndarray], right: list[np.ndarray]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)


def call(app: ClientApp, kind: str, content: RecordDict) -> RecordDict:
    message = Message(content, 5, kind)
    message.metadata.__dict__["_message_id"] = "m"
    context = Context(
        run_id=1,
        node_id=5,
        node_config=UserConfig({}),
        state=RecordDict(),
        run_config=UserConfig({}),
    )
    return app(message, context).content


# ---- records ----------------------------------------------------------------------------


def test_records_keep_names_order_shape_and_dtype() -> None:
    names = ["z", "a", "m.0", "b", "c"]
    record = to_record(names, arrays())
    assert list(record.keys()) == names
    same(from_record(record), arrays())


def test_equal_arrays_make_equal_records() -> None:
    first, second = (to_record(["w"], [np.ones((2, 2), order=order)]) for order in "CF")
    assert first.object_id == second.object_id


def test_a_name_too_few() -> None:
    with pytest.raises(ValueError, match="zip"):
        to_record(["a"], arrays())


def broken(data: bytes, stype: str = "numpy.ndarray") -> ArrayRecord:
    return ArrayRecord({"w": Array("float32", (2,), stype, data)})


def npy(header: str) -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def archive() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, w=np.ones(2))
    return stream.getvalue()


def pickled() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{}], dtype=object))
    return stream.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"PK\x03\x04 half an archive",
        archive(),
        pickled(),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 15 + ",), }"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 30 + ",), }"),
        npy("{'descr': '<f4', 'shape': (2,"),
        npy("(" * 5000),
        npy("{'descr': 'nonsense', 'fortran_order': False, 'shape': (4,), }"),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_undecodable_bytes(data: bytes) -> None:
    with pytest.raises(WireError):
        from_record(broken(data))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60), st.integers(0, 200), st.booleans())
def test_damaged_bytes_decode_or_are_refused(noise: bytes, at: int, keep: bool) -> None:
    stream = io.BytesIO()
    np.save(stream, np.ones(2, np.float32))
    data = stream.getvalue()
    data = data[:at] + noise + (data[at + len(noise) :] if keep else b"")
    try:
        (array,) = from_record(broken(data))
    except WireError:
        return
    assert isinstance(array, np.ndarray)


def test_another_serialisation() -> None:
    with pytest.raises(WireError, match="decoded"):
        from_record(broken(b"", stype="torch"))


# ---- round trips through Flower's clients -------------------------------------------------


class Echo(NumPyClient):
    def get_properties(self, config: dict[str, Any]) -> dict[str, Any]:
        return {"asked": config["why"], wire.SITE: "berlin"}

    def fit(self, parameters: list[np.ndarray], config: dict[str, Any]) -> Any:
        self.config = config
        counts = json.loads(config.get(wire.EXTRAS, "{}"))
        own = len(parameters) - sum(counts.values())
        metrics = {"loss": 0.5, "steps": 3, "ok": True, wire.STEPS: 7, "extra": json.dumps(counts)}
        return [2 * a for a in parameters[:own]], 12, metrics

    def evaluate(self, parameters: list[np.ndarray], config: dict[str, Any]) -> Any:
        return float(parameters[0].sum()), 7, {"accuracy": 0.25, "who": "berlin"}


def echo_app() -> ClientApp:
    return ClientApp(client_fn=lambda context: Echo().to_client())


def doubling_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        record = message.content["arrays"]
        doubled = ArrayRecord({k: Array(np.asarray(2 * a.numpy())) for k, a in record.items()})
        extras = [k for k in message.content.array_records if k != "arrays"]
        content = RecordDict(
            {
                "arrays": doubled,
                "metrics": MetricRecord({"num-examples": 12, "loss": 0.5, "list": [1.0, 2.0]}),
                "afuic": ConfigRecord({wire.SITE: "berlin", "extras": json.dumps(extras)}),
            }
        )
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        loss = float(message.content["arrays"]["x"].numpy().sum())
        record = MetricRecord({"num-examples": 7, "eval_loss": loss, "accuracy": 0.25})
        return Message(RecordDict({"metrics": record}), reply_to=message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        why = message.content["config"]["why"]
        return Message(RecordDict({"a": ConfigRecord({"asked": why})}), reply_to=message)

    return app


def model() -> tuple[ArrayRecord, list[np.ndarray]]:
    own = [np.arange(3, dtype=np.float32), np.asarray(4, np.int64)]
    return to_record(["x", "n"], own), own


@pytest.mark.parametrize(
    ("dialect", "app"), [(NUMPY, echo_app()), (MESSAGE, doubling_app())], ids=["numpy", "message"]
)
def test_train_round_trip(dialect: Dialect, app: ClientApp) -> None:
    record, own = model()
    reply = dialect.read_train(call(app, "train", dialect.train(record, {"lr": 0.1}, {})))
    same(reply.arrays, [2 * own[0], np.asarray(8, np.int64)])
    assert reply.examples == 12
    assert reply.metrics["loss"] == 0.5
    assert "num-examples" not in reply.metrics
    assert not any(key.startswith("afuic.") for key in reply.metrics)


def test_numpy_metrics_are_numbers_and_info_is_everything() -> None:
    record, _ = model()
    reply = NUMPY.read_train(call(echo_app(), "train", NUMPY.train(record, {}, {})))
    assert reply.metrics == {"loss": 0.5, "steps": 3.0}
    assert reply.info[wire.STEPS] == 7
    assert reply.info["ok"] is True


def test_message_info_is_its_config_records() -> None:
    record, _ = model()
    reply = MESSAGE.read_train(call(doubling_app(), "train", MESSAGE.train(record, {}, {})))
    assert reply.metrics == {"loss": 0.5}
    assert reply.info[wire.SITE] == "berlin"


def test_extras_follow_the_model() -> None:
    record, own = model()
    extras = {"reference": [np.ones(2), np.zeros(1)], "proxies": [np.ones((1, 1))]}
    content = NUMPY.train(record, {"lr": 0.1}, extras)
    reply = NUMPY.read_train(call(echo_app(), "train", content))
    assert len(reply.arrays) == len(own)
    assert json.loads(reply.info["extra"]) == {"reference": 2, "proxies": 1}
    assert list(record.keys()) == ["x", "n"], "the model's own record is left as it was"
    content = MESSAGE.train(record, {}, extras)
    reply = MESSAGE.read_train(call(doubling_app(), "train", content))
    assert json.loads(reply.info["extras"]) == ["afuic.reference", "afuic.proxies"]


@pytest.mark.parametrize(
    ("dialect", "app"), [(NUMPY, echo_app()), (MESSAGE, doubling_app())], ids=["numpy", "message"]
)
def test_evaluate_and_poll_round_trip(dialect: Dialect, app: ClientApp) -> None:
    record, _ = model()
    reply = dialect.read_evaluate(call(app, "evaluate", dialect.evaluate(record, {})))
    assert (reply.loss, reply.examples) == (3.0, 7)
    assert reply.metrics["accuracy"] == 0.25
    assert reply.all_metrics["loss"] == 3.0
    kind, content = dialect.poll({"why": "hello"})
    assert dialect.read_poll(call(app, kind, content))["asked"] == "hello"


def test_a_numpy_client_without_properties_has_nothing_to_say() -> None:
    class Silent(NumPyClient):
        pass

    app = ClientApp(client_fn=lambda context: Silent().to_client())
    kind, content = NUMPY.poll({})
    assert NUMPY.read_poll(call(app, kind, content)) == {}


def test_an_evaluation_without_a_loss() -> None:
    record = MetricRecord({"num-examples": 7, "accuracy": 0.25})
    reply = MESSAGE.read_evaluate(RecordDict({"m": record}))
    assert np.isnan(reply.loss)
    assert reply.all_metrics == {"accuracy": 0.25}


# ---- malformed replies --------------------------------------------------------------------


def numpy_train(**changes: Any) -> RecordDict:
    content: dict[str, Any] = {
        "fitres.parameters": to_record(["0"], [np.ones(2)]),
        "fitres.num_examples": MetricRecord({"num_examples": 3}),
        "fitres.metrics": ConfigRecord({"loss": 1.0}),
        "fitres.status": ConfigRecord({"code": 0, "message": ""}),
    }
    content |= {f"fitres.{key}": value for key, value in changes.items()}
    return RecordDict({key: value for key, value in content.items() if value is not None})


def numpy_evaluate(**changes: Any) -> RecordDict:
    content: dict[str, Any] = {
        "evaluateres.loss": MetricRecord({"loss": 0.5}),
        "evaluateres.num_examples": MetricRecord({"num_examples": 3}),
        "evaluateres.metrics": ConfigRecord({"accuracy": 1.0}),
        "evaluateres.status": ConfigRecord({"code": 0, "message": ""}),
    }
    content |= {f"evaluateres.{key}": value for key, value in changes.items()}
    return RecordDict({key: value for key, value in content.items() if value is not None})


def message_train(examples: Any = 3, **changes: Any) -> RecordDict:
    content: dict[str, Any] = {
        "arrays": to_record(["w"], [np.ones(2)]),
        "metrics": MetricRecord({"num-examples": examples, "loss": 1.0}),
    }
    content |= changes
    return RecordDict({key: value for key, value in content.items() if value is not None})


def test_the_sound_ones_are_sound() -> None:
    assert NUMPY.read_train(numpy_train()).examples == 3
    assert NUMPY.read_evaluate(numpy_evaluate()).loss == 0.5
    assert MESSAGE.read_train(message_train()).examples == 3
    assert MESSAGE.read_evaluate(message_train(arrays=None)).loss == 1.0
    assert NUMPY.read_train(numpy_train(status=None)).examples == 3


def status(code: int) -> ConfigRecord:
    return ConfigRecord({"code": code, "message": "no such model"})


OTHER = MetricRecord({"other": 1})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"parameters": None}, "lacks 'fitres.parameters'"),
        ({"num_examples": None}, "lacks 'fitres.num_examples'"),
        ({"metrics": None}, "lacks 'fitres.metrics'"),
        ({"num_examples": OTHER}, "lacks 'num_examples'"),
        ({"parameters": ConfigRecord({"a": 1})}, "lacks 'fitres.parameters'"),
        ({"num_examples": ConfigRecord({"num_examples": 3})}, "lacks"),
        ({"num_examples": MetricRecord({"num_examples": 2.5})}, "2.5; it must be a whole"),
        ({"num_examples": MetricRecord({"num_examples": float("nan")})}, "whole number"),
        ({"num_examples": MetricRecord({"num_examples": float("inf")})}, "whole number"),
        ({"num_examples": MetricRecord({"num_examples": 1e300})}, "no site holds that many"),
        ({"num_examples": MetricRecord({"num_examples": 2**60})}, "no site holds that many"),
        ({"num_examples": MetricRecord({"num_examples": [3]})}, "expected a number, got list"),
        ({"status": status(2)}, "status 2: 'no such model'"),
        ({"parameters": broken(b"junk")}, "cannot be decoded"),
    ],
    ids=str,
)
def test_malformed_numpy_train(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(WireError, match=match):
        NUMPY.read_train(numpy_train(**changes))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"loss": None}, "lacks 'evaluateres.loss'"),
        ({"num_examples": None}, "lacks"),
        ({"metrics": None}, "lacks"),
        ({"loss": MetricRecord({"loss": [0.5]})}, "expected a number"),
        ({"num_examples": MetricRecord({"num_examples": 0.5})}, "whole"),
        ({"status": status(1)}, "status 1"),
    ],
    ids=str,
)
def test_malformed_numpy_evaluate(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(WireError, match=match):
        NUMPY.read_evaluate(numpy_evaluate(**changes))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"arrays": None}, "holds 0 ArrayRecords; it must hold one"),
        ({"more": to_record(["w"], [np.ones(1)])}, "holds 2 ArrayRecords"),
        ({"metrics": None}, "got 0 MetricRecords"),
        ({"more": OTHER}, "got 2 MetricRecords"),
        ({"metrics": OTHER}, "'num-examples'"),
        ({"examples": 2.5}, "whole number"),
        ({"examples": [3, 4]}, "expected a number, got list"),
        ({"arrays": broken(b"junk")}, "cannot be decoded"),
    ],
    ids=str,
)
def test_malformed_message_train(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(WireError, match=match):
        MESSAGE.read_train(message_train(**changes))


@pytest.mark.parametrize("dialect", [NUMPY, MESSAGE], ids=["numpy", "message"])
def test_a_boolean_is_no_number_of_examples(dialect: Dialect) -> None:
    content = numpy_train() if dialect is NUMPY else message_train()
    (record,) = content.metric_records.values()
    key = "num_examples" if dialect is NUMPY else "num-examples"
    record._data[key] = True  # Flower's own setter refuses it; the wire might not
    with pytest.raises(WireError, match="got bool"):
        dialect.read_train(content)


def test_whole_floats_are_whole() -> None:
    assert MESSAGE.read_train(message_train(examples=3.0)).examples == 3
    assert MESSAGE.read_train(message_train(examples=-3)).examples == -3, "judged by the screen"


def test_an_empty_reply() -> None:
    for dialect in (NUMPY, MESSAGE):
        with pytest.raises(WireError):
            dialect.read_train(RecordDict())
        with pytest.raises(WireError):
            dialect.read_evaluate(RecordDict())
        assert dialect.read_poll(RecordDict()) == {}


def test_each_dialect_refuses_the_others_replies() -> None:
    with pytest.raises(WireError):
        NUMPY.read_train(message_train())
    with pytest.raises(WireError):
        MESSAGE.read_train(numpy_train(num_examples=OTHER))


def test_names() -> None:
    assert isinstance(dialect_named("numpy"), NumPyDialect)
    assert isinstance(dialect_named("message"), MessageDialect)
    with pytest.raises(ConfigError, match="unknown client dialect 'grpc'"):
        dialect_named("grpc")


def test_packed_models_are_one_copy_and_read_back_bit_by_bit() -> None:
    arrays = [
        np.arange(6, dtype=np.float32).reshape(2, 3), np.asarray(3, np.int64),
        np.zeros((0, 2), np.float32), np.asfortranarray(np.ones((2, 3))),
    ]  # fmt: skip
    copies = [array.copy() for array in arrays]
    record = pack(["a", "b", "c", "d"], arrays)
    for array, copy, packed in zip(arrays, copies, record.values(), strict=True):
        assert array.tobytes() == copy.tobytes()
        assert (array.shape, array.dtype) == (copy.shape, copy.dtype)
        assert packed.data == Array(np.asarray(copy, order="C")).data, "as Flower writes it"
    assert not arrays[0].flags.writeable
    assert not arrays[0].flags.owndata
