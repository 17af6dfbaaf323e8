"""Times and sizes for reading: UTC, ages, bytes."""

from __future__ import annotations

import math
import time
from typing import TypeGuard

from flwr_afuic.erasure.certificate.page import size

__all__ = ["age", "known", "minute", "moment", "moment_of", "size"]

_UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))
UNKNOWN = "not known"
_LATEST = 253_402_300_800.0
"""The end of the year 9999, in seconds since the epoch."""


def known(seconds: float | None) -> TypeGuard[float]:
    """Whether a time is one that a calendar has; a site's clock may say anything."""
    return isinstance(seconds, float | int) and 0 < seconds < _LATEST


def moment(seconds: float | None) -> str:
    """Return seconds since the epoch as date and time in UTC, to the second.

    Examples
    --------
    >>> moment(1_781_870_400.0), moment(None)
    ('2026-06-19 12:00:00', 'not known')
    """
    return _format(seconds, "%Y-%m-%d %H:%M:%S")


def moment_of(seconds: float | None) -> str:
    """Return the same with its zone, for a sentence."""
    text = moment(seconds)
    return text if text == UNKNOWN else f"{text} UTC"


def minute(seconds: float | None) -> str:
    """Return the same to the minute."""
    return _format(seconds, "%Y-%m-%d %H:%M")


def _format(seconds: float | None, form: str) -> str:
    return time.strftime(form, time.gmtime(seconds)) if known(seconds) else UNKNOWN


def age(seconds: float | None) -> str:
    """Return a duration in its two largest units.

    Examples
    --------
    >>> age(200_000), age(61), age(0.2), age(7200)
    ('2 d 7 h', '1 min 1 s', '0 s', '2 h')
    """
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    left = max(0.0, seconds)
    for index, (unit, length) in enumerate(_UNITS):
        if left < length and unit != "s":
            continue
        whole = int(left // length)
        text = f"{whole} {unit}"
        if index + 1 < len(_UNITS) and whole < 10:
            next_unit, next_length = _UNITS[index + 1]
            rest = int((left - whole * length) // next_length)
            text += f" {rest} {next_unit}" if rest else ""
        return text
    return "0 s"
