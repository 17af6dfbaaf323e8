"""Settings of one local unlearning, as they cross the wire."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from flwr_afuic.errors import ConfigError, WireError
from flwr_afuic.unlearning.checks import check_count, check_range
from flwr_afuic.unlearning.objectives import UnlearningObjective, make_objective


@dataclass(frozen=True, kw_only=True)
class UnlearningSettings:
    """Settings of one local unlearning; scalars only, so that they can cross the wire.

    Parameters
    ----------
    objective : str, default "reference-bounded"
        A name ``make_objective`` knows.
    objective_option : float or None
        The objective's one number (``margin``, ``bound`` or ``beta``); None takes its default.
    steps : int, default 60
        Gradient steps of one attempt.
    attempts : int, default 3
        Most attempts; another follows only where the forget level is not met yet.
    lr : float, default 0.1
        Of SGD, at the start of an attempt; decays to zero along a half cosine.
    momentum : float, default 0.5
        Higher values overshoot the reference.
    clip : float, default 1.0
        Greatest gradient norm.
    batch_size : int, default 64
        Erased images per step.
    anchor_batch_size : int, default 64
        Anchor images per step.
    anchor_weight : float, default 10.0
        Weight of ``KL(f_{w_s} || f_w)`` on the anchor images; 0 leaves the anchor out.
    check_every : int, default 20
        Steps between scorings of D_f; the objective may end the unlearning there.

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """

    objective: str = "reference-bounded"
    objective_option: float | None = None
    steps: int = 60
    attempts: int = 3
    lr: float = 0.1
    momentum: float = 0.5
    clip: float = 1.0
    batch_size: int = 64
    anchor_batch_size: int = 64
    anchor_weight: float = 10.0
    check_every: int = 20

    def __post_init__(self) -> None:
        for name in ("steps", "attempts", "batch_size", "anchor_batch_size", "check_every"):
            check_count(name, getattr(self, name))
        for name in ("lr", "clip"):
            check_range(name, getattr(self, name), above=True)
        check_range("anchor_weight", self.anchor_weight)
        check_range("momentum", self.momentum, high=0.999)
        self.make_objective()

    def make_objective(self) -> UnlearningObjective:
        """Build the objective these settings name."""
        if self.objective_option is None:
            return make_objective(self.objective)
        option = _OPTION_OF.get(self.objective)
        if option is None:
            make_objective(self.objective)  # an unknown name is the more helpful complaint
            raise ConfigError(f"objective {self.objective!r} takes no objective_option")
        return make_objective(self.objective, **{option: self.objective_option})

    def to_json(self) -> str:
        """Write the settings as one JSON object of scalars."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> UnlearningSettings:
        """Read settings written by ``to_json``; nothing is taken on trust.

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
        if not isinstance(values, dict):
            raise WireError(
                f"unlearning settings must be a JSON object, got {type(values).__name__}"
            )
        return cls(**{name: _typed(name, value) for name, value in values.items()})


_OPTION_OF = {"reference-bounded": "margin", "ascent": "bound", "anchored-npo": "beta"}


def _typed(name: str, value: Any) -> Any:
    defaults = {field.name: field.default for field in dataclasses.fields(UnlearningSettings)}
    if name not in defaults:
        raise WireError(
            f"unknown unlearning setting {name!r}; known: {', '.join(sorted(defaults))}"
        )
    default = defaults[name]
    if name == "objective_option" and value is None:
        return None
    if isinstance(value, bool):
        raise WireError(f"unlearning setting {name!r} must be a number, got {value!r}")
    if isinstance(default, str) and isinstance(value, str):
        return value
    if isinstance(default, int) and isinstance(value, int):
        return value
    if isinstance(default, float | None) and isinstance(value, int | float):
        return float(value)
    raise WireError(f"unlearning setting {name!r} has the wrong type: {value!r}")
