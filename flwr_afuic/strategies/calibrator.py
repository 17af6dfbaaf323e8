"""Server-side invariance calibration of every version after a merge.

Two parts, each on or off: the relearning lock, a projection of the next model, and
prediction invariance, a few optimisation steps on proxies. The steps run in the
background on one version and their change joins the next merge, so that nobody waits;
the lock is applied last, to the combined step.
"""

from __future__ import annotations

from collections.abc import Callable
from logging import WARNING
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flwr_afuic.calibration.fidelity import FidelitySettings, keep_fidelity
from flwr_afuic.calibration.invariance import InvarianceSettings, calibrate
from flwr_afuic.calibration.layers import by_layer
from flwr_afuic.calibration.lock import RelearningLock
from flwr_afuic.calibration.transforms import MonaiPhi, Phi, SignaturePhi
from flwr_afuic.errors import ConfigError
from flwr_afuic.federation.journal import Span
from flwr_afuic.federation.layout import Arrays, Vector
from flwr_afuic.federation.worker import Job
from flwr_afuic.models.arrays import get_arrays, set_arrays
from flwr_afuic.seeds import derive_seed
from flwr_afuic.strategies.run import FederationRun

ModelFactory = Callable[[], nn.Module]


class Calibrator:
    """Invariance calibration of one run.

    Parameters
    ----------
    run : FederationRun
        The run whose versions are calibrated.
    lock : bool
        Keep ``<w - w_merge, d> >= 0`` for the delta ``d`` of every erasure, from its merge on
        (our reading of "keeps the model from relearning", arXiv 2604.26809).
    phi : Phi or None
        Transformation of prediction invariance (the paper's Eq. 4); None turns it off.
    factory, proxies : callable and Tensor of shape (n, c, h, w)
        Needed for prediction invariance.
    settings : InvarianceSettings
        Of the optimisation steps.
    fidelity : FidelitySettings or None
        Of the steps before each merge that keep the model's predictions; None turns them off.
    virtual_seconds : float
        What one calibration takes on a virtual clock.
    learn_signature : bool
        Learn the transformation at each merge instead of being given ``phi``.
    per_layer : bool
        Lock each layer's part of ``d`` instead of the whole of it.
    """

    def __init__(
        self,
        run: FederationRun,
        *,
        lock: bool,
        phi: Phi | None,
        factory: ModelFactory | None,
        proxies: Tensor | None,
        settings: InvarianceSettings,
        fidelity: FidelitySettings | None,
        virtual_seconds: float,
        learn_signature: bool = False,
        per_layer: bool = False,
    ) -> None:
        self._run = run
        self._use_lock = lock
        self._phi = phi
        self._factory = factory
        self._proxies = proxies
        self._settings = settings
        self._fidelity = fidelity
        self._virtual_seconds = virtual_seconds
        self._job: Job[Vector] | None = None
        self._active = False
        self._learn_signature = learn_signature
        self._per_layer = per_layer
        self._merge: tuple[Vector, Vector] | None = None
        self._held: list[str] = []
        self.lock = RelearningLock()

    def hold(
        self, request_id: str, delta: Vector, origin: Vector, before: Vector | None = None
    ) -> None:
        """Start calibrating against one erasure.

        Parameters
        ----------
        request_id : str
            Key of its half-space; a further attempt of the same request adds another.
        delta : ndarray, shape (p,)
            The merged delta over trained arrays.
        origin : ndarray, shape (p,)
            The model right after the merge.
        before : ndarray, shape (p,), optional
            The model right before it; with ``learn_signature``, what the two disagree on
            becomes the transformation of prediction invariance.
        """
        self._active = True
        if self._learn_signature and before is not None:
            self._phi, self._merge = None, (before, origin)
        if self._use_lock and float(np.linalg.norm(delta)) > 0:
            parts = {request_id: delta}
            if self._per_layer:
                layers = by_layer(self._run.layout, delta)
                parts = {f"{request_id}/layer-{name}": part for name, part in layers.items()}
            for key, part in parts.items():
                self.lock.add(key, part, origin)
                self._held.append(key)

    def hold_basis(self, request_id: str, basis: Vector, origin: Vector) -> None:
        """Lock every direction of a relearning basis, too.

        Parameters
        ----------
        request_id : str
            As in :meth:`hold`.
        basis : ndarray, shape (r, p)
            Orthonormal rows along which the site's data would be learned again.
        origin : ndarray, shape (p,)
            The model right after the merge.
        """
        if not self._use_lock:
            return
        for number, row in enumerate(basis):
            key = f"{request_id}/basis-{number}"
            self.lock.add(key, -row, origin)
            self._held.append(key)

    def checkpoint(self) -> tuple[dict[str, Any], dict[tuple[str, str], dict[str, Vector]]]:
        """Return state and arrays for a checkpoint: locks, and what a signature learns from."""
        blobs = {("lock", key): {"direction": self.lock.held(key)[0]} for key in self._held}
        if self._merge is not None:
            before, after = self._merge
            blobs["signature", self._held[-1] if self._held else "merge"] = {
                "before": before,
                "after": after,
            }
        offsets = [[key, self.lock.held(key)[1]] for key in self._held]
        return {"active": self._active, "locks": offsets}, blobs

    def restore(
        self, state: dict[str, Any], blob: Callable[[str, str], dict[str, Vector]], signature: str
    ) -> None:
        """Go on from :meth:`checkpoint`; ``blob`` reads arrays by purpose and key."""
        self._active = bool(state["active"])
        for key, offset in state["locks"]:
            self.lock.restore(key, blob("lock", key)["direction"], float(offset))
            self._held.append(key)
        if signature:
            arrays = blob("signature", signature)
            self._phi, self._merge = None, (arrays["before"], arrays["after"])

    def finish(self, candidate: Arrays) -> Arrays:
        """Calibrate the next version: add finished invariance steps, then apply the lock."""
        layout = self._run.layout
        step = self._collect()
        if step is None and not len(self.lock):
            return candidate
        before = layout.flatten(candidate)
        after = self.allowed(before if step is None else before + step)
        return candidate if after is before else layout.with_trained(after, candidate)

    def allowed(self, vector: Vector) -> Vector:
        """Return the nearest model every erasure's lock allows: ``vector`` itself where it is one.

        Else it is a view of ``vector``, which is overwritten.

        Two erasures may leave no model between them, if a site answers with the opposite of
        another's delta. The later lock then goes, and the journal says so: a half-space held
        by one site must not end everybody's training.
        """
        while len(self.lock):
            try:
                return np.asarray(self.lock.project(vector, into=vector[:]), dtype=np.float64)
            except ConfigError as error:
                dropped = self._held.pop()
                self.lock.remove(dropped)
                text = f"the lock of {dropped} is dropped: {error}"
                self._run.note("lock-dropped", "", text, level=WARNING)
        return vector

    def start_fidelity(self, delta: Vector) -> Job[Vector] | None:
        """Start the fidelity steps for a delta in the background; None where they are off."""
        factory, proxies, settings = self._factory, self._proxies, self._fidelity
        if settings is None or factory is None or proxies is None:
            return None
        run = self._run
        arrays = run.arrays
        merged = run.layout.with_trained(run.layout.flatten(arrays) + delta, arrays)
        seed = derive_seed(run.settings.seed, "fidelity", run.version)

        def compute() -> Vector:
            teacher, model = factory(), factory()
            set_arrays(teacher, arrays)
            set_arrays(model, merged)
            with torch.enable_grad():
                keep_fidelity(model, teacher, proxies, MonaiPhi(), settings=settings, seed=seed)
            return run.layout.flatten(get_arrays(model)) - run.layout.flatten(merged)

        return run.worker.submit(compute, virtual_seconds=self._virtual_seconds)

    def fidelity_step(self, job: Job[Vector]) -> Vector | None:
        """Return what finished fidelity steps changed; None, with a note, where they failed."""
        started = self._run.started
        self._run.journal.server_spans.append(
            Span("server", "fidelity", job.start - started, job.end - started)
        )
        try:
            step = job.result()
        except Exception as error:  # noqa: BLE001 - user code failed; the merge goes on without
            text = f"the merge goes on without fidelity steps, which failed: {error}"
            self._run.note("fidelity-failed", "", text, level=WARNING)
            return None
        if not bool(np.isfinite(step).all()):
            text = "the merge goes on without fidelity steps, which diverged"
            self._run.note("fidelity-failed", "", text, level=WARNING)
            return None
        return step

    def after_version(self) -> None:
        """Start invariance steps on the newest version, unless some are still running."""
        if not self._active or self._job is not None:
            return
        if self._factory is None or self._proxies is None:
            return
        if self._phi is None and self._merge is None:
            return
        factory, proxies = self._factory, self._proxies
        run, settings = self._run, self._settings
        arrays, version = run.arrays, run.version
        seed = derive_seed(run.settings.seed, "invariance", version)

        def compute() -> Vector:
            model = factory()
            set_arrays(model, arrays)
            with torch.enable_grad():
                calibrate(model, proxies, self._chosen_phi(), settings=settings, seed=seed)
            return run.layout.flatten(get_arrays(model)) - run.layout.flatten(arrays)

        self._job = run.worker.submit(compute, virtual_seconds=self._virtual_seconds)

    def _chosen_phi(self) -> Phi:
        """Return the transformation, learned from the last merge where it is a signature."""
        if self._phi is None:
            if self._factory is None or self._proxies is None or self._merge is None:
                raise ConfigError("a learned signature needs a merge, model_factory and proxies")
            layout, seed = self._run.layout, derive_seed(self._run.settings.seed, "signature")
            before, after = self._factory(), self._factory()
            for model, vector in zip((before, after), self._merge, strict=True):
                set_arrays(model, layout.with_trained(vector, self._run.arrays))
            self._phi = SignaturePhi.learn(before, after, self._proxies, seed=seed)
        return self._phi

    def _collect(self) -> Vector | None:
        job = self._job
        if job is None or not job.done():
            return None
        self._job = None
        started = self._run.started
        self._run.journal.server_spans.append(
            Span("server", "invariance", job.start - started, job.end - started)
        )
        try:
            step = job.result()
        except Exception as error:  # noqa: BLE001 - user code failed; training goes on without
            self._phi = self._merge = None
            text = f"prediction invariance failed and is off from now on: {error}"
            self._run.note("invariance-failed", "", text, level=WARNING)
            return None
        if not bool(np.isfinite(step).all()):
            text = "prediction invariance diverged; its step is left out"
            self._run.note("invariance-failed", "", text, level=WARNING)
            return None
        return step
