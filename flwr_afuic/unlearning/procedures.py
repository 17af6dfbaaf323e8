"""What a site can be asked to do on its erased data besides the default, by its settings' name."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from flwr_afuic.errors import WireError
from flwr_afuic.unlearning.ascent import PgaSettings
from flwr_afuic.unlearning.contrast import FcuSettings
from flwr_afuic.unlearning.excision import ExcisionSettings
from flwr_afuic.unlearning.settings import UnlearningSettings

LocalSettings = UnlearningSettings | PgaSettings | FcuSettings | ExcisionSettings

_KINDS: dict[str, type[PgaSettings] | type[FcuSettings] | type[ExcisionSettings]] = {
    "pga": PgaSettings,
    "fcu": FcuSettings,
    "bke": ExcisionSettings,
    "pairs-ascent": ExcisionSettings,
}


def write_settings(settings: PgaSettings | FcuSettings | ExcisionSettings) -> str:
    """Write settings as one JSON object of scalars."""
    return json.dumps(dataclasses.asdict(settings), sort_keys=True, allow_nan=False)


def read_settings(text: str) -> LocalSettings:
    """Read the settings of an unlearning task; nothing is taken on trust.

    Raises
    ------
    WireError
        If the text is no JSON object, or names an unknown or mistyped setting.
    ConfigError
        If a value is out of its range.
    """
    try:
        values = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError(f"unlearning settings are no JSON: {error}") from error
    name = values.get("objective") if isinstance(values, dict) else None
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        return UnlearningSettings.from_json(text)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in defaults:
            raise WireError(f"unknown setting {key!r} of {name}; known: {', '.join(defaults)}")
        if not _fits(value, defaults[key]):
            raise WireError(f"setting {key!r} of {name} has the wrong type: {value!r}")
    return kind(**values)


def _fits(value: Any, default: Any) -> bool:
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)
