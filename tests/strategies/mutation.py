"""Mutations of what a site sends: of its values, and of the bytes Flower carries them in.

``mutated`` takes a true reply and returns what arrives in its place: another content, or the
exception with which Flower's own grid fails to read the message.
"""

from __future__ import annotations

import io
import json
import random
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from flwr_afuic import wire
from tests.strategies.countable import new_id

Json = Any

BIG = (2**31, 2**53 + 1, 2**63 - 1, -(2**63), 10**30, 10**400, -1, 0)
FLOATS = (0.0, -0.0, -1.0, 0.5, 1e-300, 1e300, 1.7e308, float("nan"), float("inf"), -float("inf"))
TEXTS = (
    "",
    " ",
    "\x00",
    "\ud800",
    "ü" * 40,
    "a" * 20_000,
    "../../etc",
    "'; DROP TABLE request",
    "<b>",
)
JSONS = (
    "",
    "null",
    "[]",
    "{}",
    "[[]]",
    '"x"',
    "NaN",
    "[" * 3000,
    "{" * 10,
    "1e999",
    "[null]",
    "tru",
)
FLOWER_INTS = (0, 1, -1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63))
_ARRAY_TYPES = ("float32", "float64", "int64", "complex128", "bool", "<U3", "uint8")


def mutated(reply: Message, rng: random.Random, others: list[str]) -> Message | Exception:
    """Return what arrives in the place of a true reply.

    Parameters
    ----------
    reply : Message
        The true reply.
    rng : random.Random
        Decides what happens to it.
    others : list of str
        Ids of requests and names of sites, of which a forger may speak.
    """
    draw = rng.random()
    if draw < 0.02 or not reply.has_content():
        return Message(
            Error(rng.choice((0, 1, 2, 8, 999)), rng.choice(TEXTS[:3])), reply_to=reply_of(reply)
        )
    if draw < 0.4:
        return _other_bytes(reply, rng)
    content = _copy(reply.content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _change(content, rng, others)
    return Message(content, reply_to=reply_of(reply))


def reply_of(reply: Message) -> Message:
    """Return a message that a reply can be made to."""
    return reply.__dict__["_asked"]


# ---- bytes ------------------------------------------------------------------------------


def _other_bytes(reply: Message, rng: random.Random) -> Message | Exception:
    """Change bytes of one of the objects a message travels as; read it as Flower's grid does.

    The SuperLink checks an object's head, so heads stay well-formed.
    """
    contents = reply.__dict__.get("_contents")
    if contents is None:
        contents = {key: obj.deflate() for key, obj in get_all_nested_objects(reply).items()}
        reply.__dict__["_contents"] = contents
    damaged = dict(contents)
    *others, head = damaged
    target = rng.choice(others) if others and rng.random() < 0.97 else head
    kind, children, body = _parts(damaged[target])
    draw = rng.random()
    if draw < 0.05:
        kind = rng.choice(
            ("Array", "ArrayRecord", "ConfigRecord", "MetricRecord", "RecordDict", "Message")
        )
    elif draw < 0.1 and children:
        children = rng.choice((children[::-1], children[:-1], [*children, others[0]]))
    else:
        body = _damage(body, rng)
    damaged[target] = f"{kind} {','.join(children)} {len(body)}".encode() + b"\x00" + body
    try:
        arrived = inflate_object_from_contents(head, damaged)
        arrived.metadata.__dict__["_message_id"] = head  # what HttpGrid does with it
    except Exception as error:  # noqa: BLE001 - whatever Flower raises, its grid raises
        return error
    return arrived


def _parts(content: bytes) -> tuple[str, list[str], bytes]:
    head, _, body = content.partition(b"\x00")
    kind, children, _ = head.decode().split(" ")
    return kind, children.split(",") if children else [], body


def _damage(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, double or insert a few bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(changed) + 1)
        how = rng.randrange(6)
        if how < 3 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif how == 3:
            del changed[at : at + rng.choice((1, 2, 16, 10_000))]
        elif how == 4:
            changed[at:at] = rng.randbytes(rng.choice((1, 4, 32)))
        else:
            end = at + rng.choice((1, 8, 64))
            changed[at:at] = changed[at:end]
    return bytes(changed)


# ---- values -----------------------------------------------------------------------------


def _copy(content: RecordDict) -> RecordDict:
    return RecordDict({key: type(record)(dict(record)) for key, record in content.items()})


def _change(content: RecordDict, rng: random.Random, others: list[str]) -> None:
    """Change one thing in a content, in place."""
    if not content:
        return
    draw = rng.random()
    if draw < 0.06:
        _change_records(content, rng)
        return
    records = [key for key, record in content.items() if len(record)]
    # Arrays and configs are where the harm would be.
    heavy = [k for k in records if isinstance(content[k], ArrayRecord | ConfigRecord)]
    key = rng.choice(heavy if heavy and rng.random() < 0.85 else records or list(content))
    record = content[key]
    if isinstance(record, ArrayRecord):
        _change_arrays(record, rng)
    elif isinstance(record, MetricRecord):
        _change_metrics(record, rng)
    else:
        _change_config(record, rng, others)


def _change_records(content: RecordDict, rng: random.Random) -> None:
    key = rng.choice(list(content))
    record = content.pop(key)
    how = rng.randrange(4)
    if how == 0:
        content[f"{key}x"] = record
    elif how == 1:
        content[key] = rng.choice((ArrayRecord(), ConfigRecord(), MetricRecord()))
    elif how == 2:
        content[key] = record
        content[f"{key}.again"] = type(record)(dict(record))


def _change_metrics(record: MetricRecord, rng: random.Random) -> None:
    key = rng.choice(list(record) or ["num_examples"])
    how = rng.randrange(4)
    if how == 0:
        record.pop(key, None)
    elif how == 1:
        record[key] = rng.choice(FLOWER_INTS)
    elif how == 2:
        record[key] = rng.choice(FLOATS)
    else:
        record[key] = rng.choice(([], [1, 2], [float("nan")]))


def _change_arrays(record: ArrayRecord, rng: random.Random) -> None:
    keys = list(record)
    if not keys:
        return
    key = rng.choice(keys)
    how = rng.randrange(10)
    if how == 0:
        del record[key]
    elif how == 1:
        record[f"{key}x"] = record[key]
    elif how == 2:
        keep = dict(record)
        record.clear()
        for name in rng.sample(keys, len(keys)):
            record[name] = keep[name]
    elif how == 3:
        array = record[key]
        data = _damage(array.data, rng)
        record[key] = Array(array.dtype, array.shape, array.stype, data)
    elif how == 4:
        array = record[key]
        others = (rng.choice(_ARRAY_TYPES), array.shape, array.stype, array.data)
        record[key] = Array(*rng.choice((others, (array.dtype, (9, 9), array.stype, array.data))))
    elif how == 5:
        record[key] = Array(record[key].dtype, record[key].shape, "numpy.ndarray", _strange(rng))
    else:
        with suppress(Exception):  # an earlier change made it unreadable
            record[key] = Array(np.asarray(_other_values(record[key].numpy(), rng)))


def _other_values(array: np.ndarray, rng: random.Random) -> np.ndarray:
    how = rng.randrange(6)
    if how == 0:
        return array.astype(rng.choice(("float64", "float16", "int64", "complex64", "bool")))
    if how == 1:
        return array.reshape(rng.choice(((1, *array.shape), (array.size, 1), (-1,))))
    if how == 2:
        size = rng.choice((0, 1, array.size + 1, 5000))
        return np.resize(array, size) if array.size else np.zeros(size, array.dtype)
    changed = np.array(array)
    if how == 3 and array.dtype.kind == "f" and array.size:
        changed.flat[rng.randrange(array.size)] = rng.choice((np.nan, np.inf, -np.inf))
    elif how == 4:
        with np.errstate(all="ignore"):
            changed = (changed * rng.choice((1e3, 1e12, -1e30, 3e38))).astype(array.dtype)
    elif array.size:
        raw = bytearray(changed.tobytes())
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        changed = np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)
    return changed


def _strange(rng: random.Random) -> bytes:
    """Return bytes that NumPy's readers might stumble over."""
    stream = io.BytesIO()
    how = rng.randrange(5)
    if how == 0:
        return b""
    if how == 1:
        np.savez(stream, w=np.ones(3))
    elif how == 2:
        np.save(stream, np.array([{}], dtype=object))
    elif how == 3:
        return rng.randbytes(rng.choice((1, 16, 300)))
    else:
        shape = rng.choice(("9" * 15, "9" * 30, "-1", "3,3,3", "2**9", ""))
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape},), }}\n".encode()
        return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    return stream.getvalue()


# ---- configs ----------------------------------------------------------------------------

_KEYS = (
    *(wire.KIND, wire.REQUEST, wire.EVIDENCE, wire.PENDING, wire.CANCEL, wire.SITE, wire.CLIENT),
    wire.SCORED,
    *(wire.FAILURE, wire.LEVEL, wire.SEEN_HEAD, wire.HAVE_CERTIFICATES, wire.STEPS, wire.EXTRAS),
    *("accuracy", "loss"),
)


def _change_config(record: ConfigRecord, rng: random.Random, others: list[str]) -> None:
    how = rng.randrange(8)
    known = [key for key in record if key.startswith("afuic.")] or list(record)
    key = rng.choice(known) if known and how < 5 else rng.choice(_KEYS)
    texts = [k for k in known if str(record[k])[:1] in ("{", "[")]
    if how in (1, 2) and texts:
        key = rng.choice(texts)
    elif how == 3 and rng.random() < 0.4:
        key = wire.PENDING
    value = record.get(key)
    if how == 0:
        record.pop(key, None)
    elif how in (1, 2) and isinstance(value, str) and value[:1] in ("{", "["):
        record[key] = _other_json(value, rng, others)
    elif how == 3:
        record[key] = _forged(key, rng, others)
    elif how == 4 and isinstance(value, str):
        text = _damage(value.encode("utf-8", "replace"), rng)
        record[key] = text.decode("utf-8", "replace")
    else:
        record[key] = _any_value(rng)


def _any_value(rng: random.Random) -> Any:
    sort = rng.randrange(8)
    choices: tuple[Callable[[], Any], ...] = (
        lambda: rng.choice(FLOWER_INTS),
        lambda: rng.choice(FLOATS),
        lambda: rng.choice([text for text in TEXTS if text != "\ud800"]),
        lambda: rng.choice(JSONS),
        lambda: rng.choice((True, False)),
        lambda: rng.randbytes(rng.choice((0, 5, 300))),
        lambda: rng.choice(([], [1, 2], [0.5], ["a"], [True], [b"x"])),
        lambda: "weights",
    )
    return choices[sort]()


def _forged(key: str, rng: random.Random, others: list[str]) -> Any:
    """Return a value that is well-formed, and somebody else's, old, repeated or untimely."""
    other = rng.choice(others)
    if key == wire.KIND:
        return rng.choice(("delta", "weights", "erasure", "gradient", ""))
    if key == wire.CANCEL:
        ids = [o for o in others if wire.is_uuid(o)] or [str(uuid.UUID(int=5))]
        # What a site takes back of its own is lawful; a forger takes back another's.
        return ",".join(rng.choice(ids) for _ in range(rng.choice((1, 2, 70))))
    if key == wire.PENDING:
        return json.dumps([notice(rng, others) for _ in range(rng.choice((1, 1, 2, 70)))])
    if key == wire.SEEN_HEAD:
        head = {"seq": rng.choice(BIG), "hash": "0" * 64, "federation": "x", "time": 0.0}
        return json.dumps({**head, "key": "00" * 32, "signature": "00" * 64})
    return other


def notice(rng: random.Random, others: list[str]) -> dict[str, Any]:
    """Return an erasure notice: repeated, another's, expired, postdated, or with a wrong field."""
    row: dict[str, Any] = {
        "request_id": rng.choice(
            [*(o for o in others if wire.is_uuid(o)), new_id(rng.getrandbits(90))]
        ),
        "scope": "samples",
        "count": 1,
        "commitment": "ab" * 32,
        "reason": "other",
        "filed_at": time.time() + rng.choice((0, -91 * 86400, 2 * 86400)),
    }
    if rng.random() < 0.7:
        key = rng.choice(list(row))
        row[key] = _any_json(rng)
    if rng.random() < 0.1:
        row.pop(rng.choice(list(row)))
    if rng.random() < 0.05:
        row["further"] = 1
    return row


def _other_json(text: str, rng: random.Random, others: list[str]) -> str:
    """Change one value inside a JSON text."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return rng.choice(JSONS)
    places = list(_places(document))
    if not places or rng.random() < 0.05:
        return rng.choice(JSONS)
    container, key = rng.choice(places)
    how = rng.randrange(5)
    if how == 0 and isinstance(container, dict):
        del container[key]
    elif how == 1:
        container[key] = rng.choice(others)
    else:
        container[key] = _any_json(rng)
    return json.dumps(document)


def _places(document: Json):
    if isinstance(document, dict | list):
        for key in list(document) if isinstance(document, dict) else range(len(document)):
            yield document, key
            yield from _places(document[key])


def _any_json(rng: random.Random) -> Json:
    pool: tuple[Json, ...] = (
        *BIG,
        *FLOATS,
        *TEXTS,
        None,
        True,
        False,
        [],
        {},
        [1],
        {"a": 1},
        "samples",
    )
    return rng.choice((rng.choice(pool), rng.choice(BIG), rng.choice(TEXTS)))
