"""AFU-IC: asynchronous federated unlearning with invariance calibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, get_args

from numpy.typing import NDArray
from torch import Tensor, nn

from flwr_afuic.calibration.fidelity import FidelitySettings
from flwr_afuic.calibration.invariance import InvarianceSettings
from flwr_afuic.calibration.transforms import Phi, make_phi
from flwr_afuic.errors import ConfigError
from flwr_afuic.strategies.admission import AdmissionSettings
from flwr_afuic.strategies.calibrator import Calibrator
from flwr_afuic.strategies.certification import plain_settings
from flwr_afuic.strategies.erasing import ErasureStrategy, MergeRule, check_seconds
from flwr_afuic.strategies.gate import GateSettings
from flwr_afuic.strategies.run import FederationRun
from flwr_afuic.unlearning.excision import ExcisionSettings
from flwr_afuic.unlearning.privacy import DeltaPrivacy
from flwr_afuic.unlearning.reference import DistillationSettings
from flwr_afuic.unlearning.settings import UnlearningSettings


class AFUIC(ErasureStrategy):
    """Asynchronous training that forgets on request (arXiv 2604.26809).

    A site's erasure request is carried out beside training: the site unlearns from a
    snapshot, its delta is merged into the current model, and server-side invariance
    calibration keeps the model from relearning. Use it where ``FedAvg`` was used; sites
    whose clients know nothing of erasure train as before.

    Parameters
    ----------
    model_factory : callable, optional
        Returns a fresh ``torch.nn.Module`` of the federation's model, its ``state_dict`` in
        the order of the initial arrays. Needed, with ``proxies``, for the proxy-distilled
        reference and prediction invariance.
    proxies : Tensor or ndarray, shape (n, c, h, w), optional
        Unlabelled images like the task's, that belong to no site. Without them the site
        anchors on its own kept or held-out data, the forget level is its hold-out's, and
        prediction invariance is off.
    proxies_provenance : str
        Where the proxies come from and under which licence; printed in reports.
    merge : {"delta", "overwrite"}
        ``delta`` adds the unlearning to the current model (ours); ``overwrite`` replaces the
        model by the unlearned snapshot, which is how readers describe the paper's
        algorithm 1, and loses what retained sites learned meanwhile.
    lock : bool
        The relearning lock: a half-space the model may not leave after a merge (ours).
    lock_per_layer : bool
        Lock each layer's part of a delta instead of the whole delta (for comparison).
    fidelity : bool
        A few steps on the proxies before each ``delta`` merge that keep the model's
        predictions (ours), see :func:`~flwr_afuic.calibration.fidelity.keep_fidelity`.
    prediction_invariance : bool
        KL consistency under ``phi`` on the proxies after each merge (the paper's Eq. 4).
    phi : str or Phi
        Transformation of prediction invariance: ``"monai"`` (random augmentations), ``"identity"``
        (a control that does nothing), ``"signature"`` (learned at each merge: what the models
        before and after it disagree on; for comparison), or any callable of that interface.
    unlearning : UnlearningSettings
        Local unlearning at the site; the default objective is reference-bounded (ours).
    distillation : DistillationSettings
        Making of the proxy-distilled reference.
    invariance : InvarianceSettings
        Steps of prediction invariance.
    fidelity_settings : FidelitySettings
        Steps that keep fidelity at a merge.
    verify_rounds : int
        Rounds in which the forget level must hold before a request is completed.
    watch_every : int
        Rounds between further verifications of a completed request whose site stayed.
    max_attempts : int
        Unlearnings per request before it is reported as not met.
    erasure_norm_factor : float
        Erasure deltas whose norm exceeds this multiple of the median of recent updates are
        refused.
    gate : GateSettings
        When a merge that would cost too much is held for the operator.
    admission : AdmissionSettings
        Who may ask, and how old a request may be.
    privacy : DeltaPrivacy
        Clipping and noise the sites put on their deltas; small requests are protected by default.
    batch_size, batch_seconds : int, float
        Small sample requests of a site wait until so many of them are there, or so long, and
        are unlearned as one; 1 turns it off.
    relearning_rank : int
        Rank of the relearning basis asked of the site, 0 for none; the lock then holds along its
        directions, too.
    site_timeout : float
        Seconds without news of a site after which its request is closed: as
        ``completed-unverified`` after a merge, as ``failed`` before one.
    virtual_reference_seconds, virtual_invariance_seconds : float
        What these server computations take on a virtual clock.
    **engine : Any
        Settings of :class:`~flwr_afuic.strategies.asynchronous.AsyncStrategy`.

    Raises
    ------
    ConfigError
        If a setting is out of its range or contradicts another.

    Examples
    --------
    >>> strategy = AFUIC(buffer_size=4, seed=1)
    >>> strategy.merge
    'delta'
    """

    methods: tuple[str, ...] = ("afuic",)

    def __init__(
        self,
        *,
        model_factory: Callable[[], nn.Module] | None = None,
        proxies: Tensor | NDArray[Any] | None = None,
        proxies_provenance: str = "",
        merge: MergeRule = "delta",
        lock: bool = True,
        lock_per_layer: bool = False,
        fidelity: bool = True,
        prediction_invariance: bool = True,
        phi: str | Phi = "monai",
        unlearning: UnlearningSettings | None = None,
        distillation: DistillationSettings | None = None,
        invariance: InvarianceSettings | None = None,
        fidelity_settings: FidelitySettings | None = None,
        verify_rounds: int = 5,
        watch_every: int = 5,
        max_attempts: int = 3,
        erasure_norm_factor: float = 30.0,
        gate: GateSettings | None = None,
        admission: AdmissionSettings | None = None,
        privacy: DeltaPrivacy | None = None,
        batch_size: int = 1,
        batch_seconds: float = 3600.0,
        relearning_rank: int = 0,
        site_timeout: float = 3600.0,
        virtual_reference_seconds: float = 5.0,
        virtual_invariance_seconds: float = 0.2,
        **engine: Any,
    ) -> None:
        super().__init__(
            model_factory=model_factory,
            proxies=proxies,
            proxies_provenance=proxies_provenance,
            distillation=distillation,
            verify_rounds=verify_rounds,
            watch_every=watch_every,
            max_attempts=max_attempts,
            erasure_norm_factor=erasure_norm_factor,
            gate=gate,
            admission=admission,
            privacy=privacy,
            batch_size=batch_size,
            batch_seconds=batch_seconds,
            site_timeout=site_timeout,
            virtual_reference_seconds=virtual_reference_seconds,
            **engine,
        )
        if merge not in get_args(MergeRule):
            raise ConfigError(f"merge is {merge!r}; use 'delta' or 'overwrite'")
        if not isinstance(relearning_rank, int) or not 0 <= relearning_rank <= 64:
            raise ConfigError(
                f"relearning_rank is {relearning_rank!r}; it must be an integer from 0 to 64"
            )
        check_seconds("virtual_invariance_seconds", virtual_invariance_seconds)
        self.merge: MergeRule = merge
        self.lock = lock
        self.lock_per_layer = lock_per_layer
        self.prediction_invariance = prediction_invariance and self.proxies is not None
        use_fidelity = fidelity and merge == "delta" and self.proxies is not None
        self.fidelity_steps = (fidelity_settings or FidelitySettings()) if use_fidelity else None
        self.learns_signature = phi == "signature" and self.prediction_invariance
        self.phi: Phi | None = None
        if phi != "signature":
            chosen = make_phi(phi) if isinstance(phi, str) else phi  # a wrong name never passes
            self.phi = chosen if self.prediction_invariance else None
        self.unlearning = unlearning or UnlearningSettings()
        self.invariance = invariance or InvarianceSettings()
        self.relearning_rank = relearning_rank
        self.virtual_invariance_seconds = virtual_invariance_seconds

    def make_calibrator(self, run: FederationRun) -> Calibrator:
        """Return the invariance calibration of a run."""
        return Calibrator(
            run,
            lock=self.lock,
            phi=self.phi,
            factory=self.model_factory,
            proxies=self.proxies,
            settings=self.invariance,
            fidelity=self.fidelity_steps,
            virtual_seconds=self.virtual_invariance_seconds,
            learn_signature=self.learns_signature,
            per_layer=self.lock_per_layer,
        )

    def unlearning_for(self, attempt: int) -> UnlearningSettings | ExcisionSettings:
        """Return the settings of an attempt: each further one may take twice the steps."""
        steps = self.unlearning.steps * 2 ** (attempt - 1)
        return dataclasses.replace(self.unlearning, steps=steps)

    # ---- for certificates and reports ------------------------------------------------

    def describe(self) -> tuple[str, dict[str, Any]]:
        """Return the method's name and its settings, as plain values."""
        options = {
            "merge": self.merge,
            "verify_rounds": self.verify_rounds,
            "max_attempts": self.max_attempts,
            "erasure_norm_factor": self.erasure_norm_factor,
            "gate": plain_settings(self.gate),
            "unlearning": plain_settings(self.unlearning),
            "distillation": plain_settings(self.distillation),
        }
        return "AFU-IC", options

    def describe_calibration(self) -> dict[str, Any]:
        """Return what keeps the erased data from being learned again, as plain values."""
        return {
            "lock": self.lock,
            "lock_per_layer": self.lock_per_layer,
            "relearning_rank": self.relearning_rank,
            "fidelity": None
            if self.fidelity_steps is None
            else plain_settings(self.fidelity_steps),
            "prediction_invariance": (
                plain_settings(self.invariance) if self.prediction_invariance else None
            ),
        }
