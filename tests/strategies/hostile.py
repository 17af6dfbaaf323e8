"""A federation under attack: two hospitals of which every message may arrive mutated, one honest.

What may move the model is decided here from outside, from the bytes that arrived alone: an update
that is well-formed in every respect, within the norm bound, and applied to the last digit.
"""

from __future__ import annotations

import io
import json
import math
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.node_pb2 import NodeInfo

from flwr_afuic import wire
from flwr_afuic.app.local import LocalGrid
from flwr_afuic.federation.journal import VersionEntry
from tests.erasure_helpers import Site
from tests.strategies.mutation import mutated

HONEST = 2
NORM_FACTOR, ERASURE_NORM_FACTOR = 20.0, 30.0
_WINDOW, _ENOUGH = 32, 5
_SECONDS = {0: 1.0, 1: 1.3, HONEST: 23.0}

Arrays = list[np.ndarray]


@dataclass
class Delivery:
    """One reply as it reached the server, and the task it answers."""

    kind: str
    site: int
    base_version: int
    base: Arrays
    request: str
    true: bool
    arrived: Message | Exception
    applied: bool = False


@dataclass
class Plan:
    """What the grid does to replies: how many are still to be mutated, and how often."""

    rng: random.Random
    share: float = 0.0
    left: int = 0
    others: list[str] = field(default_factory=list)


class HostileGrid(LocalGrid):
    """A LocalGrid on which replies of the first two sites arrive mutated."""

    arrived = None  # it delivers itself, and like Flower's own Grid it does not tell what is there

    def __init__(self, *args: Any, plan: Plan, dialect: str, judge: Judge, **options: Any) -> None:
        super().__init__(*args, **options)
        self._plan, self._dialect, self._judge = plan, dialect, judge
        self._due: dict[str, tuple[float, Delivery]] = {}
        self._truths: dict[Any, Message] = {}
        self._seen: deque[Message] = deque(maxlen=40)
        self._node_of = {node: node - 101 for node in self._contexts}

    # ---- nodes --------------------------------------------------------------------------

    def restart(self, site: int) -> None:
        """Let a site come back under a new node id, so that it is asked who it is."""
        old = next(n for n, s in self._node_of.items() if s == site and n not in self.offline)
        node = 101 + len(self._node_of)
        self._node_of[node], self._contexts[node] = site, self._contexts[old]
        self.offline = self.offline | {old}

    def get_nodes(self) -> list[NodeInfo]:
        names = self._names
        return [NodeInfo(node_id=n, name=names[self._node_of[n]]) for n in self.get_node_ids()]

    # ---- messages -----------------------------------------------------------------------

    def push_messages(self, messages: Any) -> list[str]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        message_id = f"message-{next(self._ids)}"
        message.metadata.__dict__["_message_id"] = message_id
        site = self._node_of[message.metadata.dst_node_id]
        config = next(
            (dict(r) for r in message.content.values() if isinstance(r, ConfigRecord)), {}
        )
        kind = str(config.get(wire.TASK, ""))
        sent = [a.numpy() for r in message.content.array_records.values() for a in r.values()]
        plan = self._plan
        true = site == HONEST or plan.left <= 0 or plan.rng.random() >= plan.share
        if true:
            arrived: Message | Exception = self._answer(message)
        else:
            plan.left -= 1
            arrived = self._other(self._truth(message, site, kind, config))
        version = int(config.get(wire.VERSION, 0))
        request = str(config.get(wire.REQUEST, ""))
        delivery = Delivery(kind, site, version, sent, request, true, arrived)
        self._due[message_id] = (self.clock.now() + _SECONDS[site], delivery)
        return message_id

    def _answer(self, message: Message) -> Message:
        reply = self._call(message)
        reply.__dict__["_asked"] = message
        self._seen.append(reply)
        return reply

    def _truth(self, message: Message, site: int, kind: str, config: dict[str, Any]) -> Message:
        """Return what a site would answer; for a task much like an earlier one, the same again."""
        news = bool(config.get(wire.KNOWN)), config.get(wire.REQUEST)
        key = (site, kind, message.metadata.message_type, *news)
        if key not in self._truths:
            self._truths[key] = self._answer(message)
        return self._truths[key]

    def _other(self, reply: Message) -> Message | Exception:
        rng = self._plan.rng
        if rng.random() < 0.06:
            return rng.choice(self._seen)  # an old reply, maybe another's, once more
        return mutated(reply, rng, self._plan.others)

    def pull_messages(self, message_ids: Any) -> list[Message]:
        found = []
        for message_id in message_ids:
            due, delivery = self._due.get(message_id, (math.inf, None))
            if delivery is None or due > self.clock.now():
                continue
            del self._due[message_id]
            self._judge.deliver(delivery)
            if isinstance(delivery.arrived, Exception):
                raise delivery.arrived
            found.append(delivery.arrived)
        return found

    def _next_due(self) -> float | None:
        return min((due for due, _ in self._due.values()), default=None)


class Judge:
    """Says whether what moved the model may have.

    Attributes
    ----------
    met : Counter
        Replies by the task they answer: true ones, mutated ones, and mutated ones that are valid.
    honest_asks : bool
        Whether the honest site has filed a request, so that its updates may be discarded.
    """

    def __init__(self, dialect: str, sites: list[Site], *, named: bool = True) -> None:
        self._dialect, self._sites, self._named = dialect, sites, named
        self._model: Arrays = []
        self._norms: dict[str, deque[float]] = {}
        self._deltas: dict[str, list[Arrays]] = {}
        self._last: Delivery | None = None
        self.met: Counter[str] = Counter()
        self.honest_asks = False

    # ---- what is seen -------------------------------------------------------------------

    def deliver(self, delivery: Delivery) -> None:
        self._conclude()
        self._last = delivery
        if delivery.kind == wire.TASK_UNLEARN:
            delta = self._lawful_erasure(delivery)
            if delta is not None:
                site = self._sites[delivery.site].name
                self._deltas.setdefault(site, []).append(delta)

    def on_version(self, entry: VersionEntry, arrays: Arrays) -> None:
        if entry.cause not in ("initial", "resumed"):
            check = self._merge if entry.cause == "merge" else self._erasure
            check(entry, arrays)
        self._model = [np.array(a) for a in arrays]

    def look(self, arrays: Arrays) -> None:
        """See the model as it is now: nothing may have moved it but what was announced."""
        for now, then in zip(arrays, self._model, strict=True):
            assert now.dtype == then.dtype
            assert now.tobytes() == then.tobytes(), "the model was changed in place"

    def _conclude(self) -> None:
        """Count the last reply, once nothing more can come of it."""
        last, self._last = self._last, None
        if last is None:
            return
        if last.true:
            self.met[f"true {last.kind}"] += 1
            self.met[f"true {last.kind} applied"] += last.applied
            asks = not self._named or self.honest_asks
            if last.site == HONEST and last.kind == wire.TASK_TRAIN and not asks:
                assert last.applied, "the honest site's update did not enter the model"
            return
        lawful = last.kind == wire.TASK_TRAIN and self._lawful_update(last) is not None
        lawful |= last.kind == wire.TASK_UNLEARN and self._lawful_erasure(last) is not None
        self.met[f"valid {last.kind}" if lawful else last.kind] += 1
        self.met["mutated"] += not lawful

    def end(self) -> None:
        self._conclude()

    # ---- what may move the model ----------------------------------------------------------

    def _merge(self, entry: VersionEntry, arrays: Arrays) -> None:
        last = self._last
        assert last is not None, f"{entry} without a reply"
        assert last.kind == wire.TASK_TRAIN, f"{entry} after a reply to {last.kind!r}"
        assert not last.applied, "one reply was applied twice"
        if self._named:
            assert entry.sites == (self._sites[last.site].name,)
        update = self._lawful_update(last)
        assert update is not None, f"{entry} of {last.arrived}"
        factor = (1 + entry.version - 1 - last.base_version) ** -0.5
        if _norm(update) > 0:
            self._norms.setdefault(entry.sites[0], deque(maxlen=_WINDOW)).append(_norm(update))
        expected = [
            self._model[0] + factor * update[0].astype(np.float64),
            *(
                (1 - factor) * a + factor * b
                for a, b in zip(self._model[1:], update[1:], strict=True)
            ),
        ]
        _same(arrays, expected, entry)
        last.applied = True

    def _erasure(self, entry: VersionEntry, arrays: Arrays) -> None:
        # The site's newest well-formed delta, and nothing else than its trained entries.
        known = [self._deltas.get(entry.sites[0], [])] if self._named else self._deltas.values()
        newest = [deltas[-1] for deltas in known if deltas]
        assert newest, f"{entry} without an erasure delta of that site"
        moved = arrays[0] - self._model[0].astype(np.float64)
        delta = min(newest, key=lambda delta: np.linalg.norm(moved - delta[0]))
        _same(arrays, [self._model[0] + delta[0].astype(np.float64), *self._model[1:]], entry)
        self.met["erasures"] += 1

    def _typical(self) -> float:
        known = list(self._norms.values())
        enough = sum(map(len, known)) >= _ENOUGH
        return float(np.median([np.median(norms) for norms in known])) if enough else math.inf

    def _read(self, delivery: Delivery) -> tuple[Arrays, dict[str, Any]] | None:
        """Read arrays and config of a reply, if they are what the model's must look like."""
        arrived = delivery.arrived
        if isinstance(arrived, Exception) or not arrived.has_content():
            return None
        found = (_numpy_parts if self._dialect == "numpy" else _message_parts)(arrived.content)
        if found is None:
            return None
        record, examples, info = found
        arrays = [_decoded(array) for array in record.values()]
        if len(arrays) != len(self._model):
            return None
        for array, model in zip(arrays, self._model, strict=True):
            if array is None or array.shape != model.shape or array.dtype != model.dtype:
                return None
            if not np.isfinite(array).all():
                return None
        if isinstance(examples, bool) or not isinstance(examples, int | float):
            return None
        if delivery.kind == wire.TASK_TRAIN and not (1 <= examples <= 2**53 and examples % 1 == 0):
            return None
        return arrays, info

    def _lawful_update(self, delivery: Delivery) -> Arrays | None:
        found = self._read(delivery)
        if found is None:
            return None
        arrays, info = found
        if info.get(wire.KIND) != wire.KIND_DELTA:
            arrays = [arrays[0] - delivery.base[0], *arrays[1:]]
        norm = _norm(arrays)
        return arrays if norm <= NORM_FACTOR * self._typical() and math.isfinite(norm) else None

    def _lawful_erasure(self, delivery: Delivery) -> Arrays | None:
        found = self._read(delivery)
        if found is None:
            return None
        arrays, info = found
        if info.get(wire.KIND) != wire.KIND_ERASURE or info.get(wire.REQUEST) != delivery.request:
            return None
        if info.get(wire.FAILURE) or not _is_evidence(info.get(wire.EVIDENCE)):
            return None
        return arrays if _norm(arrays) <= ERASURE_NORM_FACTOR * self._typical() else None


def _same(arrays: Arrays, expected: Arrays, entry: VersionEntry) -> None:
    for now, then in zip(arrays, expected, strict=True):
        then = np.rint(then) if now.dtype.kind == "i" else then
        np.testing.assert_allclose(
            now, then.astype(now.dtype), rtol=1e-6, atol=1e-30, err_msg=str(entry)
        )


def _norm(arrays: Arrays) -> float:
    return float(np.linalg.norm(arrays[0].astype(np.float64)))


def _decoded(array: Array) -> np.ndarray | None:
    if array.stype != "numpy.ndarray":
        return None
    try:
        value = np.load(io.BytesIO(array.data), allow_pickle=False)
    except Exception:  # noqa: BLE001 - whatever it is, it is no array
        return None
    return value if isinstance(value, np.ndarray) else None


def _numpy_parts(content: RecordDict) -> tuple[ArrayRecord, Any, dict[str, Any]] | None:
    record, info = content.get("fitres.parameters"), content.get("fitres.metrics")
    examples, status = content.get("fitres.num_examples"), content.get("fitres.status")
    if not isinstance(record, ArrayRecord) or not isinstance(info, ConfigRecord):
        return None
    if not isinstance(examples, MetricRecord) or "num_examples" not in examples:
        return None
    if isinstance(status, ConfigRecord) and status.get("code", 0) != 0:
        return None
    return record, examples["num_examples"], dict(info)


def _message_parts(content: RecordDict) -> tuple[ArrayRecord, Any, dict[str, Any]] | None:
    records = list(content.values())
    arrays = [r for r in records if isinstance(r, ArrayRecord)]
    metrics = [r for r in records if isinstance(r, MetricRecord)]
    if len(arrays) != 1 or len(metrics) != 1 or "num-examples" not in metrics[0]:
        return None
    info = {k: v for r in records if isinstance(r, ConfigRecord) for k, v in r.items()}
    return arrays[0], metrics[0]["num-examples"], info


def _is_evidence(text: Any) -> bool:
    """Whether a text is evidence in which every number can be one."""
    try:
        row = json.loads(text)
        scores = [row["before"], row["after"]]
        scores += [row[key] for key in ("reference", "holdout") if row[key] is not None]
        for score in scores:
            loss, accuracy = float(score["loss"]), float(score["accuracy"])
            if not (loss >= 0 and 0 <= accuracy <= 1 and 1 <= int(score["count"]) <= 2**53):
                return False
        if abs(int(row["steps"])) > 2**53:
            return False
        return math.isfinite(float(row["delta_norm"])) and row["stop_reason"] != "diverged"
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return False
