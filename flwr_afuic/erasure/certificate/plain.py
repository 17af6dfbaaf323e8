"""Values made ready for JSON: plain types, numbers it knows, text that is Unicode, UTC times."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flwr_afuic.erasure.certificate.shape import INFINITE
from flwr_afuic.errors import ErasureError


def plain(value: Any, path: str = "") -> Any:
    """Return a value as ``None``, truth value, number, text, list, or dict with sorted keys.

    Infinities and NaN become words, since JSON has none. What comes from sites may hold half a
    surrogate pair, which no file can; it becomes a question mark.

    Raises
    ------
    ErasureError
        If a value is of another type; the message says where.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value).encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return _number(float(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value), path)
    if isinstance(value, Mapping):
        rows = sorted((plain(str(key)), inner) for key, inner in value.items())
        return {key: plain(inner, f"{path}.{key}".lstrip(".")) for key, inner in rows}
    if isinstance(value, list | tuple):
        return [plain(inner, f"{path}[{index}]") for index, inner in enumerate(value)]
    raise ErasureError(
        f"{path or 'the value'} is of type {type(value).__name__}, which a document cannot hold; "
        "pass numbers, texts, lists and mappings"
    )


def _number(value: float) -> float | str:
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return INFINITE if value > 0 else f"-{INFINITE}"
    return value


def iso_utc(seconds: float) -> str:
    """Return seconds since the epoch as ISO 8601 in UTC, to the millisecond.

    Raises
    ------
    ErasureError
        If the time is no number, or lies outside the years 1 to 9999.

    Examples
    --------
    >>> iso_utc(0.5)
    '1970-01-01T00:00:00.500Z'
    """
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError, TypeError) as error:
        raise ErasureError(f"{seconds!r} is no time in seconds since 1970: {error}") from error
    return moment.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
