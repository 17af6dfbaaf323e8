"""Settings of the ready-made app: what a run config, the demo and the benches can set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from flwr_afuic.errors import ConfigError
from flwr_afuic.wire import Scope

Scenario = Literal["backdoor", "mislabel", "clean", "exclusive", "patient"]
Engine = Literal["local", "virtual", "simulation"]

_MOST_SERVER_LR = 10.0  # as AsyncStrategy's
_MOST_INTEGER = 2**1000  # beyond it Python cannot make a float


@dataclass(frozen=True, kw_only=True)
class AppSettings:
    """One federation on one data set with one erasure in the middle.

    Attributes
    ----------
    dataset, data_dir : str
        Name or path, and where to look; see :func:`flwr_afuic.data.sources.load_dataset`.
    model : str
        A name :func:`flwr_afuic.models.networks.make_model` knows.
    sites : int
        Number of hospitals; ``site-0`` is the one that asks to be forgotten.
    partition, alpha : str, float
        How the training split is divided, and the Dirichlet concentration.
    scenario : {"backdoor", "mislabel", "clean", "exclusive", "patient"}
        What is planted at ``site-0``: a trigger, wrong labels, nothing, every image of one class
        (nobody else has any, and no proxy shows it), or one patient whose record has the wrong
        label (with scope ``samples``, that patient is erased).
    poison_fraction : float
        Share of its images that carry the trigger or a wrong label.
    scope : {"client", "samples"}
        All of the site's data, or part of it.
    forget_fraction : float
        With scope ``samples``, the share erased (planted samples first).
    seed : int
        Root of every random stream.
    local_steps, batch_size, lr, momentum, clip
        Local training at every site.
    buffer_size, server_lr
        Of the asynchronous engine.
    request_round : int
        The request is filed once this many rounds are complete.
    rounds_after : int
        Rounds trained after the merge.
    max_rounds : int
        The run ends here in any case.
    merge, lock, fidelity, prediction_invariance, phi, objective
        Of :class:`flwr_afuic.strategies.AFUIC`.
    verify_rounds : int
        Rounds in which an erasure must hold before it is completed.
    state_dir : str
        On the deployment engine, where the server keeps its state and goes on from; with an
        empty name a run starts anew and issues no certificate.
    straggler : float
        Slow-down of ``site-1`` on the ``virtual`` engine.
    """

    dataset: str = "pneumoniamnist"
    data_dir: str = ""
    model: str = "groupnorm-cnn"
    sites: int = 6
    partition: str = "dirichlet"
    alpha: float = 1.0
    scenario: Scenario = "backdoor"
    poison_fraction: float = 0.6
    scope: Scope = "client"
    forget_fraction: float = 0.3
    seed: int = 0
    local_steps: int = 16
    batch_size: int = 32
    lr: float = 0.05
    momentum: float = 0.9
    clip: float = 5.0
    buffer_size: int = 5
    server_lr: float = 0.5
    request_round: int = 12
    rounds_after: int = 26
    max_rounds: int = 120
    merge: str = "delta"
    lock: bool = True
    fidelity: bool = True
    prediction_invariance: bool = True
    phi: str = "monai"
    objective: str = "reference-bounded"
    verify_rounds: int = 5
    state_dir: str = ""
    straggler: float = 1.0

    def __post_init__(self) -> None:
        _one_of("scenario", self.scenario, get_args(Scenario))
        _one_of("scope", self.scope, get_args(Scope))
        for name, least in (
            ("sites", 3),
            ("local_steps", 1),
            ("batch_size", 1),
            ("buffer_size", 1),
            ("request_round", 1),
            ("rounds_after", 1),
            ("verify_rounds", 1),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("poison_fraction", "forget_fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be in (0, 1]")
        for name in ("alpha", "lr", "clip", "straggler"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive")
        if not 0 < self.server_lr <= _MOST_SERVER_LR:
            raise ConfigError(
                f"server_lr is {self.server_lr}; it must be in (0, {_MOST_SERVER_LR:g}]"
            )
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum is {self.momentum}; it must be in [0, 1)")
        if self.max_rounds <= self.request_round:
            raise ConfigError(
                f"max_rounds ({self.max_rounds}) must exceed request_round ({self.request_round})"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> AppSettings:
        """Build settings from a run config; keys may use dashes, unknown ones are refused."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        chosen: dict[str, Any] = {}
        for key, value in values.items():
            name = key.replace("-", "_")
            if name not in fields:
                raise ConfigError(f"unknown setting {key!r}; known: {', '.join(sorted(fields))}")
            kind = type(fields[name].default)
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                value = float(value) if abs(value) < _MOST_INTEGER else math.inf
            if type(value) is not kind:
                raise ConfigError(f"{key} is {value!r}; it must be of type {kind.__name__}")
            chosen[name] = value
        return cls(**chosen)

    @property
    def target(self) -> str:
        """Name of the site that asks to be forgotten."""
        return "site-0"


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; use one of {', '.join(allowed)}")
