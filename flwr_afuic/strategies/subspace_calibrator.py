"""Calibration along forget-exclusive bases: EASE's forget lock on the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from flwr_afuic.calibration.blocks import BlockBasis, Blocks
from flwr_afuic.calibration.forget_lock import ForgetLock
from flwr_afuic.calibration.pinned import PinnedSubspaces
from flwr_afuic.federation.layout import Vector
from flwr_afuic.strategies.calibrator import Calibrator
from flwr_afuic.strategies.run import FederationRun

_COORDINATES = "coordinates"
Blobs = dict[tuple[str, str], dict[str, Vector]]


class SubspaceCalibrator(Calibrator):
    """A calibrator whose lock also pins the model along the basis of each erasure.

    Pins live in the same :class:`~flwr_afuic.calibration.lock.RelearningLock` as half-spaces do,
    so that one projection meets both.

    Parameters
    ----------
    run : FederationRun
        The run whose versions are calibrated.
    projects : bool
        Whether the model is projected back; sites may hold the lock without it.
    **calibration : Any
        See :class:`Calibrator`.
    """

    def __init__(self, run: FederationRun, *, projects: bool = True, **calibration: Any) -> None:
        super().__init__(run, **calibration)
        self._projects = projects
        self._beside = PinnedSubspaces()
        layout = run.layout
        trained = [spec for spec in layout.specs if spec.kind == "trained"]
        self.blocks = Blocks([s.name for s in trained], [s.size for s in trained])
        self._awaited: dict[str, BlockBasis] = {}

    @property
    def pinned(self) -> PinnedSubspaces:
        """The bases held: the lock's, or, where the server does not project, beside it."""
        return self.lock.pinned if self._projects else self._beside

    def expect(self, request_id: str, basis: BlockBasis | None) -> None:
        """Say which basis the next merge of a request is to be pinned along."""
        self._awaited.pop(request_id, None)
        if basis is not None and basis.rank:
            self._awaited[request_id] = basis

    def hold(
        self, request_id: str, delta: Vector, origin: Vector, before: Vector | None = None
    ) -> None:
        """See :class:`Calibrator`; a further attempt's pin takes the place of the one before."""
        super().hold(request_id, delta, origin, before)
        request = request_id.split("/")[0]
        basis = self._awaited.pop(request, None)
        if basis is not None:
            self.pinned.add(request, basis, origin)

    def hold_basis(self, request_id: str, basis: Vector, origin: Vector) -> None:
        """See :class:`Calibrator`: what the site sent has gone into the pinned basis already."""

    @contextmanager
    def unpinned(self, request_id: str) -> Iterator[None]:
        """Leave a request's own pin aside: a further attempt may move along its basis."""
        pins = self.pinned
        held = pins.held(request_id) if request_id in pins else None
        if held is not None:
            pins.remove(request_id)
        try:
            yield
        finally:
            if held is not None:
                pins.restore(request_id, *held)

    def drop(self, request_id: str) -> bool:
        """Let go of a request's basis, for good; False if none is held."""
        if request_id not in self.pinned:
            return False
        self.pinned.remove(request_id)
        return True

    def client_lock(self, strength: float) -> ForgetLock | None:
        """Return what sites that train are to hold, None where there is nothing."""
        pins = self.pinned
        if not len(pins) or strength == 0.0:
            return None
        return ForgetLock([pins.held(key) for key in pins.keys], strength)

    def checkpoint(self) -> tuple[dict[str, Any], Blobs]:
        """See :class:`Calibrator`."""
        state, blobs = super().checkpoint()
        pins = self.pinned
        for key in pins.keys:
            basis, at = pins.held(key)
            blobs["subspace", key] = {**basis.rows, _COORDINATES: at}
        return {**state, "pins": list(pins.keys)}, blobs

    def restore(
        self, state: dict[str, Any], blob: Callable[[str, str], dict[str, Vector]], signature: str
    ) -> None:
        """See :class:`Calibrator`."""
        super().restore(state, blob, signature)
        for key in state.get("pins", []):
            arrays = {name: np.asarray(a, np.float64) for name, a in blob("subspace", key).items()}
            at = arrays.pop(_COORDINATES)
            ordered = {block: arrays[block] for block in self.blocks if block in arrays}
            self.pinned.restore(key, BlockBasis(self.blocks, ordered), at)
