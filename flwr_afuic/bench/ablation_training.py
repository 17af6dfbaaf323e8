"""Training of the retained sites from a merged model on, under one calibration."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from flwr_afuic.calibration.invariance import InvarianceSettings
from flwr_afuic.calibration.transforms import make_phi
from flwr_afuic.errors import ConfigError
from flwr_afuic.federation.journal import VersionEntry
from flwr_afuic.federation.layout import Arrays, Vector
from flwr_afuic.strategies.bounds import NoUnlearning
from flwr_afuic.strategies.calibrator import Calibrator
from flwr_afuic.strategies.hooks import RunHooks
from flwr_afuic.strategies.run import FederationRun

_KEY = "erasure"
_VIRTUAL_SECONDS = 0.2


@dataclass(frozen=True)
class Calibration:
    """What keeps the erased data from being learned again.

    Attributes
    ----------
    phi : str
        Transformation of prediction invariance, a name of :func:`make_phi`; empty for none.
    lock : bool
        Lock the direction of the delta.
    rank : int
        Lock so many directions of the relearning basis, too.
    per_layer : bool
        Lock the delta's direction layer by layer.
    """

    phi: str = ""
    lock: bool = False
    rank: int = 0
    per_layer: bool = False

    def __post_init__(self) -> None:
        if (self.rank or self.per_layer) and not self.lock:
            raise ConfigError("rank and per_layer say what a lock holds; set lock=True as well")


class CalibratedTraining(NoUnlearning):
    """Retained sites train on from a model an erasure was just merged into, calibrated.

    Parameters
    ----------
    calibration : Calibration
    delta : ndarray, shape (p,)
        Of the erasure.
    before : ndarray, shape (p,)
        The model right before the merge; the first model of ``start()`` is that right after.
    basis : ndarray, shape (r, p), or None
        The relearning basis, with ``rank``.
    factory, proxies : callable and Tensor
        For prediction invariance.
    **engine : Any
        Settings of :class:`NoUnlearning`.
    """

    def __init__(
        self,
        calibration: Calibration,
        *,
        delta: Vector,
        before: Vector,
        basis: Vector | None,
        factory: Callable[[], nn.Module],
        proxies: Tensor,
        **engine: Any,
    ) -> None:
        super().__init__(**engine)
        self.calibration = calibration
        self.proxies = proxies
        self._factory, self._delta, self._before, self._basis = factory, delta, before, basis

    def make_hooks(self) -> RunHooks:
        """See :class:`NoUnlearning`."""
        return _Calibrated(self, self.without)

    def make_calibrator(self, run: FederationRun) -> Calibrator:
        """Return the calibration of a run, with the erasure already held."""
        chosen = self.calibration
        learned = chosen.phi == "signature"
        calibrator = Calibrator(
            run,
            lock=chosen.lock,
            phi=make_phi(chosen.phi) if chosen.phi and not learned else None,
            factory=self._factory,
            proxies=self.proxies if chosen.phi else None,
            settings=InvarianceSettings(),
            fidelity=None,
            virtual_seconds=_VIRTUAL_SECONDS,
            learn_signature=learned,
            per_layer=chosen.per_layer,
        )
        after = run.layout.flatten(run.arrays)
        calibrator.hold(_KEY, self._delta, after, self._before)
        if chosen.rank and self._basis is not None:
            calibrator.hold_basis(_KEY, self._basis, after)
        return calibrator


class _Calibrated(RunHooks):
    def __init__(self, settings: CalibratedTraining, without: Collection[str]) -> None:
        self._settings, self._without = settings, frozenset(without)

    def bind(self, run: FederationRun) -> None:
        super().bind(run)
        self._calibrator = self._settings.make_calibrator(run)

    def may_train(self, site: str) -> bool:
        return site not in self._without

    def finish(self, previous: Arrays, candidate: Arrays) -> Arrays:
        return self._calibrator.finish(candidate)

    def after_version(self, entry: VersionEntry) -> None:
        self._calibrator.after_version()
