"""Flower's records, read and written. Nothing else in the code base knows these keys.

Two client dialects, chosen per federation: ``numpy`` for ``NumPyClient`` apps behind a
``client_fn`` and ``message`` for Message-API apps (``@app.train()``), today's FedAvg users.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.common.constant import SType
from numpy.typing import NDArray

from flwr_afuic import wire
from flwr_afuic.errors import ConfigError, WireError
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.federation.packing import file_of, header, viewed

# More than any site can hold; beyond it, products and sums of weights lose exactness.
_SECURE_AGGREGATION = "secaggplus"
_MOST_EXAMPLES = 2**53
_Record = TypeVar("_Record", ArrayRecord, MetricRecord, ConfigRecord)


@dataclass(frozen=True)
class TrainReply:
    """A decoded training or unlearning reply."""

    arrays: Arrays
    examples: int
    metrics: dict[str, float]
    info: dict[str, Any]


@dataclass(frozen=True)
class EvaluateReply:
    """A decoded evaluation reply; ``loss`` is NaN where the client reports none."""

    loss: float
    examples: int
    metrics: dict[str, float]
    info: dict[str, Any]

    @property
    def all_metrics(self) -> dict[str, float]:
        """The metrics, with the loss under ``loss`` where there is one."""
        return self.metrics if np.isnan(self.loss) else {"loss": self.loss, **self.metrics}


def to_record(names: list[str], arrays: Arrays) -> ArrayRecord:
    """Pack arrays under their names."""
    return ArrayRecord({name: _encode(a) for name, a in zip(names, arrays, strict=True)})


def pack(names: list[str], arrays: Arrays) -> ArrayRecord:
    """Pack arrays, and put read-only views of the record in their place: one copy, not two."""
    packed = {}
    for index, name in enumerate(names):
        packed[name] = _encode(arrays[index])
        arrays[index] = _view(packed[name])
    return ArrayRecord(packed)


def from_record(record: ArrayRecord) -> Arrays:
    """Unpack every array, in order, as read-only views where that can be.

    WireError on undecodable bytes.
    """
    try:
        decoded = [_view(array) for array in record.values()]
    except Exception as error:
        # Hostile bytes make NumPy's readers raise all sorts, and none may end the run.
        raise WireError(f"an array of the reply cannot be decoded: {error}") from error
    if not all(isinstance(array, np.ndarray) for array in decoded):
        raise WireError("an array of the reply is an archive, not one array")
    return decoded


def _encode(array: NDArray[Any]) -> Array:
    """Serialise as Flower does, with one copy, or none where the array lies in such a file."""
    values = np.asarray(array, order="C")
    data = file_of(values)
    if data is None:
        head = header(str(values.dtype), values.shape)
        if not head:
            return Array(values)
        data = b"".join((head, values.reshape(-1).view(np.uint8).data))
    return Array(str(values.dtype), values.shape, SType.NUMPY, data)


def _view(array: Array) -> NDArray[Any]:
    """Look at an array's values in the bytes that hold them; copy only where that fails.

    What the bytes say counts: a NumPyClient's reply leaves the record's own fields empty.
    """
    found = viewed(array.data) if array.stype == SType.NUMPY else None
    return array.numpy() if found is None else found


def own_copy(message: Message) -> Message:
    """Return a message with records of its own, which hold the same arrays.

    Whoever handed the message over may hold it, too, and hand it over again.
    """
    own = copy(message)
    if message.has_content():
        own.content = RecordDict({key: record.copy() for key, record in message.content.items()})
    return own


def forget_arrays(message: Message) -> None:
    """Let go of the arrays of a message of one's own; views of them that were taken stay whole.

    The loop holds the message until the next one: without this its bytes would stay in memory
    while a new model is made.
    """
    for record in _of_kind(message.content, ArrayRecord).values():
        record.clear()


def _of_kind(content: RecordDict, kind: type[_Record]) -> dict[str, _Record]:
    """Return the records of one kind.

    Flower's own properties for that make circles of references, in which a message's arrays stay
    in memory until Python's collector comes by, some models later.
    """
    return {key: record for key, record in content.items() if isinstance(record, kind)}


class Dialect(ABC):
    """How tasks become messages and replies become values."""

    name: ClassVar[str]

    @abstractmethod
    def train(
        self, arrays: ArrayRecord, config: Mapping[str, Any], extras: Mapping[str, Arrays]
    ) -> RecordDict:
        """Build the content of a train message; ``extras`` are further groups of arrays."""

    @abstractmethod
    def evaluate(self, arrays: ArrayRecord, config: Mapping[str, Any]) -> RecordDict:
        """Build the content of an evaluate message."""

    @abstractmethod
    def poll(self, config: Mapping[str, Any]) -> tuple[str, RecordDict]:
        """Build the message type and content of a light poll."""

    @abstractmethod
    def read_train(self, content: RecordDict) -> TrainReply:
        """Decode a train reply; WireError says what it lacks."""

    @abstractmethod
    def read_evaluate(self, content: RecordDict) -> EvaluateReply:
        """Decode an evaluate reply; WireError says what it lacks."""

    @abstractmethod
    def read_poll(self, content: RecordDict) -> dict[str, Any]:
        """Decode a poll reply into scalars; empty for a client that has none."""


class NumPyDialect(Dialect):
    """NumPyClients behind a ``client_fn``: arrays are a bare list, extras follow the model's."""

    name = "numpy"

    def train(
        self, arrays: ArrayRecord, config: Mapping[str, Any], extras: Mapping[str, Arrays]
    ) -> RecordDict:
        """See :meth:`Dialect.train`."""
        entries = dict(config)
        record = _numbered(arrays)
        if extras:
            for group, members in extras.items():
                for index, array in enumerate(members):
                    record[f"{group}/{index}"] = Array(np.asarray(array, order="C"))
            entries[wire.EXTRAS] = json.dumps({g: len(a) for g, a in extras.items()})
        return RecordDict({"fitins.parameters": record, "fitins.config": ConfigRecord(entries)})

    def evaluate(self, arrays: ArrayRecord, config: Mapping[str, Any]) -> RecordDict:
        """See :meth:`Dialect.evaluate`."""
        return RecordDict(
            {
                "evaluateins.parameters": _numbered(arrays),
                "evaluateins.config": ConfigRecord(dict(config)),
            }
        )

    def poll(self, config: Mapping[str, Any]) -> tuple[str, RecordDict]:
        """See :meth:`Dialect.poll`."""
        content = RecordDict({"getpropertiesins.config": ConfigRecord(dict(config))})
        return "get_properties", content

    def read_train(self, content: RecordDict) -> TrainReply:
        """See :meth:`Dialect.read_train`."""
        _check_status(content, "fitres")
        try:
            record = _of_kind(content, ArrayRecord)["fitres.parameters"]
            examples = _of_kind(content, MetricRecord)["fitres.num_examples"]["num_examples"]
            info = dict(_of_kind(content, ConfigRecord)["fitres.metrics"])
        except KeyError as error:
            raise WireError(f"the train reply lacks {error}") from error
        return TrainReply(from_record(record), _whole(examples), _numeric(info), info)

    def read_evaluate(self, content: RecordDict) -> EvaluateReply:
        """See :meth:`Dialect.read_evaluate`."""
        _check_status(content, "evaluateres")
        try:
            loss = _of_kind(content, MetricRecord)["evaluateres.loss"]["loss"]
            examples = _of_kind(content, MetricRecord)["evaluateres.num_examples"]["num_examples"]
            info = dict(_of_kind(content, ConfigRecord)["evaluateres.metrics"])
        except KeyError as error:
            raise WireError(f"the evaluate reply lacks {error}") from error
        return EvaluateReply(_real(loss), _whole(examples), _numeric(info), info)

    def read_poll(self, content: RecordDict) -> dict[str, Any]:
        """See :meth:`Dialect.read_poll`."""
        record = _of_kind(content, ConfigRecord).get("getpropertiesres.properties")
        return {} if record is None else dict(record)


class MessageDialect(Dialect):
    """Message-API clients: ``arrays`` and ``config`` in, one array and one metric record out."""

    name = "message"

    def train(
        self, arrays: ArrayRecord, config: Mapping[str, Any], extras: Mapping[str, Arrays]
    ) -> RecordDict:
        """See :meth:`Dialect.train`."""
        content = RecordDict({"arrays": arrays, "config": ConfigRecord(dict(config))})
        for group, members in extras.items():
            names = [str(index) for index in range(len(members))]
            content[f"afuic.{group}"] = to_record(names, members)
        return content

    def evaluate(self, arrays: ArrayRecord, config: Mapping[str, Any]) -> RecordDict:
        """See :meth:`Dialect.evaluate`."""
        return RecordDict({"arrays": arrays, "config": ConfigRecord(dict(config))})

    def poll(self, config: Mapping[str, Any]) -> tuple[str, RecordDict]:
        """See :meth:`Dialect.poll`."""
        return MessageType.QUERY, RecordDict({"config": ConfigRecord(dict(config))})

    def read_train(self, content: RecordDict) -> TrainReply:
        """See :meth:`Dialect.read_train`."""
        records = list(_of_kind(content, ArrayRecord).values())
        if len(records) != 1:
            raise WireError(f"the train reply holds {len(records)} ArrayRecords; it must hold one")
        metrics, examples = self._metrics(content, "train")
        return TrainReply(from_record(records[0]), examples, metrics, _configs(content))

    def read_evaluate(self, content: RecordDict) -> EvaluateReply:
        """See :meth:`Dialect.read_evaluate`."""
        metrics, examples = self._metrics(content, "evaluate")
        loss = metrics.get("eval_loss", metrics.get("loss", float("nan")))
        return EvaluateReply(loss, examples, metrics, _configs(content))

    def read_poll(self, content: RecordDict) -> dict[str, Any]:
        """See :meth:`Dialect.read_poll`."""
        return _configs(content)

    @staticmethod
    def _metrics(content: RecordDict, what: str) -> tuple[dict[str, float], int]:
        records = list(_of_kind(content, MetricRecord).values())
        if len(records) != 1 or "num-examples" not in records[0]:
            raise WireError(
                f"the {what} reply must hold one MetricRecord with 'num-examples', "
                f"got {len(records)} MetricRecords"
            )
        values = dict(records[0])
        return _numeric(values), _whole(values.pop("num-examples"))


def dialect_named(name: str) -> Dialect:
    """Return the dialect of that name; ConfigError lists the known ones."""
    for dialect in (NumPyDialect(), MessageDialect()):
        if dialect.name == name:
            return dialect
    raise ConfigError(f"unknown client dialect {name!r}; use 'numpy' or 'message'")


def explain_error(reason: str) -> str:
    """Return the last line of a client's error, or what to do where we know better."""
    if _SECURE_AGGREGATION in reason:
        return (
            f"the site runs Flower's secure aggregation ({_SECURE_AGGREGATION}), which hides the "
            "single updates that quarantine and erasure need; remove its mod from the ClientApp"
        )
    return reason.splitlines()[-1] if reason else "no reason given"


def _numbered(arrays: ArrayRecord) -> ArrayRecord:
    # The names a NumPyClient's reply will carry: Flower's privacy mods compare the two.
    return ArrayRecord({str(index): array for index, array in enumerate(arrays.values())})


def _configs(content: RecordDict) -> dict[str, Any]:
    return {k: v for record in _of_kind(content, ConfigRecord).values() for k, v in record.items()}


def _check_status(content: RecordDict, prefix: str) -> None:
    status = _of_kind(content, ConfigRecord).get(f"{prefix}.status")
    if status is not None and status.get("code", 0) != 0:
        raise WireError(
            f"the client reports status {status.get('code')!r}: {status.get('message', '')!r}"
        )


def _whole(value: object) -> int:
    number = _real(value)
    if not np.isfinite(number) or number != int(number):
        raise WireError(f"the number of examples is {value!r}; it must be a whole number")
    whole = value if isinstance(value, int) else int(number)  # a float of a large int rounds
    if abs(whole) > _MOST_EXAMPLES:
        raise WireError(f"the number of examples is {value!r}; no site holds that many")
    return whole


def _real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WireError(f"expected a number, got {type(value).__name__}")
    return float(value)


def _numeric(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and not key.startswith("afuic.")
        and key != "num-examples"
    }
