"""Range checks shared by the settings of unlearning and calibration."""

from __future__ import annotations

import math

from flwr_afuic.errors import ConfigError


def check_count(name: str, value: int) -> None:
    """Raise ConfigError unless ``value`` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be an integer >= 1, got {value!r}")


def check_range(
    name: str, value: float, *, low: float = 0.0, high: float = math.inf, above: bool = False
) -> None:
    """Raise ConfigError unless ``value`` is finite and in ``[low, high]``.

    With ``above``, ``low`` itself is refused too.
    """
    inside = math.isfinite(value) and low <= value <= high and not (above and value == low)
    if not inside:
        bound = f"{'>' if above else '>='} {low:g}"
        if math.isfinite(high):
            bound += f" and <= {high:g}"
        raise ConfigError(f"{name} must be finite, {bound}, got {value!r}")
