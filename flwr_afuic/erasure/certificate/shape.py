"""The shape of a JSON document, and every way in which a document differs from it.

A shape is a test of one value, a mapping of field names to shapes (every field is required and
no other may occur), ``Each(shape)`` for a list, ``Maybe(shape)`` where ``null`` may stand, or
``Later(shape)`` of a field that may be missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from flwr_afuic.wire import is_uuid


@dataclass(frozen=True)
class Leaf:
    """One value: what it must be, in words, and the test of it."""

    words: str
    test: Callable[[object], bool]


@dataclass(frozen=True)
class Each:
    """A list whose entries all have one shape."""

    shape: Shape
    least: int = 0


@dataclass(frozen=True)
class Maybe:
    """A shape, or ``null``."""

    shape: Shape


@dataclass(frozen=True)
class Later:
    """The shape of a field that documents of earlier programs do not have."""

    shape: Shape


Shape: TypeAlias = "Leaf | Each | Maybe | Later | Mapping[str, Shape]"


def differences(value: object, shape: Shape, path: str = "") -> Iterator[str]:
    """Yield every difference of a value from a shape, each with the path to it."""
    if isinstance(shape, Later):
        yield from differences(value, shape.shape, path)
    elif isinstance(shape, Maybe):
        if value is not None:
            yield from differences(value, shape.shape, path)
    elif isinstance(shape, Leaf):
        if not shape.test(value):
            yield f"{path} is {shown(value)}; it must be {shape.words}"
    elif isinstance(shape, Each):
        yield from _in_list(value, shape, path)
    else:
        yield from _in_object(value, shape, path)


def _in_list(value: object, shape: Each, path: str) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"{path} is {shown(value)}; it must be a list"
        return
    if len(value) < shape.least:
        yield f"{path} holds {len(value)} entries; it must hold at least {shape.least}"
    for index, entry in enumerate(value):
        yield from differences(entry, shape.shape, f"{path}[{index}]")


def _in_object(value: object, shape: Mapping[str, Shape], path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path or 'the document'} is {shown(value)}; it must be a JSON object"
        return
    for name, inner in shape.items():
        where = f"{path}.{name}" if path else name
        if name not in value:
            if not isinstance(inner, Later):
                yield f"{where} is missing"
        else:
            yield from differences(value[name], inner, where)
    for name in value:
        if name not in shape:
            yield f"{path + '.' if path else ''}{shown(name)} is no field of this format"


def shown(value: object) -> str:
    """Return a value for an error message: short, and without control characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def one_of(*words: str) -> Leaf:
    """Return the shape of a word out of a few."""
    return Leaf(" or ".join(words), lambda value: isinstance(value, str) and value in words)


def pattern(words: str, expression: str) -> Leaf:
    """Return the shape of a string that matches an expression from end to end."""
    compiled = re.compile(expression)
    return Leaf(words, lambda v: isinstance(v, str) and compiled.fullmatch(v) is not None)


def whole(least: int) -> Leaf:
    """Return the shape of an integer of at least ``least``."""
    return Leaf(f"a whole number of at least {least}", lambda v: type(v) is int and v >= least)


def _is_number(value: object) -> bool:
    if type(value) is int:
        return abs(value) < 10**300  # beyond it Python cannot make a float
    return isinstance(value, float) and math.isfinite(value)


INFINITE = "infinite"
"""How an infinite loss is written: JSON has no word for it."""

BOOLEAN = Leaf("true or false", lambda v: isinstance(v, bool))
TEXT = Leaf("a text", lambda v: isinstance(v, str))
WORDS = Leaf("a text that is not empty", lambda v: isinstance(v, str) and bool(v.strip()))
NUMBER = Leaf("a number", _is_number)
LOSS = Leaf(
    "a number of at least 0, or 'infinite'",
    lambda v: v == INFINITE or (_is_number(v) and v >= 0),  # type: ignore[operator]
)
SHARE = Leaf("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1)  # type: ignore[operator]
UUID_TEXT = Leaf("a UUID in its usual form (lowercase, with hyphens)", is_uuid)
SHA256 = pattern("64 lowercase hexadecimal digits", "[0-9a-f]{64}")
KEY_ID = pattern("16 lowercase hexadecimal digits", "[0-9a-f]{16}")
TIME = pattern("a time like 2026-05-31T12:30:00Z", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")
OBJECT = Leaf("a JSON object", lambda v: isinstance(v, dict))
