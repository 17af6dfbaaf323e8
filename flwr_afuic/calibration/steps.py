"""Settings that every kind of optimisation steps on proxies shares."""

from __future__ import annotations

from dataclasses import dataclass

from flwr_afuic.unlearning.checks import check_count, check_range


@dataclass(frozen=True, kw_only=True)
class ProxySteps:
    """A few SGD steps on proxy images.

    Parameters
    ----------
    steps : int
        Gradient steps.
    lr, momentum : float
        Of SGD.
    clip : float, default 1.0
        Greatest gradient norm.
    batch_size : int, default 64
        Proxy images per step.

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """

    steps: int
    lr: float
    momentum: float = 0.9
    clip: float = 1.0
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("batch_size", self.batch_size)
        check_range("lr", self.lr, above=True)
        check_range("clip", self.clip, above=True)
        check_range("momentum", self.momentum, high=0.999)
