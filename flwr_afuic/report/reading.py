"""Checks on plain JSON values that gather every problem instead of stopping at the first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from flwr_afuic.errors import DataError

_T = TypeVar("_T")

Series = tuple[float | None, ...]


class Reader:
    """Takes typed values out of a JSON object and remembers what was wrong.

    Parameters
    ----------
    raw : Mapping
        The JSON object.
    where : str
        Its place in the whole document, for messages (``"events[3]"``); empty at the top.
    problems : list of str
        Problems found so far; shared with readers of nested objects.
    """

    def __init__(self, raw: Mapping[str, Any], where: str, problems: list[str]) -> None:
        self.raw = raw
        self.where = where
        self.problems = problems

    def place(self, key: str) -> str:
        """Return the full name of a key of this object."""
        return f"{self.where}.{key}" if self.where else key

    def required(self, key: str, kind: type[_T], default: _T) -> _T:
        """Return ``raw[key]`` if it has the type ``kind``; else note it and return ``default``."""
        if key not in self.raw:
            self.problems.append(f"{self.place(key)} is missing")
            return default
        return self.optional(key, kind, default)

    def optional(self, key: str, kind: type[_T], default: _T) -> _T:
        """Return ``raw[key]``, or ``default`` where it is absent or null."""
        value = self.raw.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.problems.append(
                f"{self.place(key)} is {shown(value)}, expected {_NAMES.get(kind, kind.__name__)}"
            )
            return default
        return value

    def number(self, key: str) -> float | None:
        """Return a finite number, or None where it is absent, null or not finite."""
        return number_or_none(self.raw.get(key), self.place(key), self.problems)

    def second(self, key: str) -> float:
        """Return a number that has to be there, in seconds; 0 where it is not."""
        value = self.number(key)
        if value is None:
            self.problems.append(f"{self.place(key)} is not a finite number of seconds")
            return 0.0
        return value

    def objects(self, key: str) -> list[Reader]:
        """Return a reader for each object of an optional list."""
        found: list[Reader] = []
        for index, item in enumerate(self.optional(key, list, [])):
            where = f"{self.place(key)}[{index}]"
            if isinstance(item, Mapping):
                found.append(Reader(item, where, self.problems))
            else:
                self.problems.append(f"{where} is {shown(item)}, expected an object")
        return found

    def plain(self, key: str) -> dict[str, Any]:
        """Return an optional object of plain JSON values, non-finite numbers as None."""
        value = self.optional(key, dict, {})
        cleaned = _clean(value, self.place(key), self.problems)
        return cleaned if isinstance(cleaned, dict) else {}

    def series(self, key: str, *, share: bool) -> Series:
        """Return a list of numbers and nulls; ``share`` asks for values from 0 to 1."""
        items = self.optional(key, list, [])
        where = self.place(key)
        read = tuple(
            number_or_none(item, f"{where}[{index}]", self.problems)
            for index, item in enumerate(items)
        )
        if share:
            for index, value in enumerate(read):
                check_share(value, f"{where}[{index}]", self.problems)
        return read


_SHOWN_PROBLEMS = 5

_NAMES: dict[type, str] = {
    str: "text",
    int: "a whole number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


def refuse(problems: list[str]) -> None:
    """Raise DataError in one line that names the problems found, if there are any."""
    if not problems:
        return
    rest = len(problems) - _SHOWN_PROBLEMS
    more = f"; and {rest} more" if rest > 0 else ""
    listed = "; ".join(problems[:_SHOWN_PROBLEMS])
    raise DataError(f"run record is damaged: {listed}{more}. Write it again with the run itself.")


def shown(value: object) -> str:
    """Return a short form of any value for an error message."""
    form = repr(value)
    return form if len(form) <= 40 else form[:37] + "..."


def number_or_none(value: object, where: str, problems: list[str]) -> float | None:
    """Return a finite float, or None for null, NaN and infinity; note anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        problems.append(f"{where} is {shown(value)}, expected a number or null")
        return None
    return float(value) if math.isfinite(value) else None


def check_share(value: float | None, where: str, problems: list[str]) -> None:
    """Note a score that is not between 0 and 1 (a percentage, most likely)."""
    if value is not None and not -1e-9 <= value <= 1 + 1e-9:
        problems.append(f"{where} is {value:g}, expected a share from 0 to 1")


def _clean(value: Any, where: str, problems: list[str]) -> Any:
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                problems.append(f"{where} has the key {shown(key)}, expected text")
        return {str(k): _clean(v, f"{where}.{k}", problems) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item, f"{where}[{index}]", problems) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    problems.append(f"{where} is a {type(value).__name__}, which is not plain JSON; convert it")
    return None
