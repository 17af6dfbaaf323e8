"""What every strategy that takes erasure requests has in common, whatever its method."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flwr_afuic.calibration.invariance import InvarianceSettings
from flwr_afuic.erasure.book import ErasureRecord, RequestBook
from flwr_afuic.errors import ConfigError
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.strategies.admission import AdmissionSettings
from flwr_afuic.strategies.asynchronous import AsyncStrategy
from flwr_afuic.strategies.calibrator import Calibrator
from flwr_afuic.strategies.certification import plain_settings
from flwr_afuic.strategies.erasure_desk import MergeFacts
from flwr_afuic.strategies.erasures import ErasureHooks
from flwr_afuic.strategies.gate import GateSettings
from flwr_afuic.strategies.hooks import RunHooks
from flwr_afuic.strategies.run import FederationRun
from flwr_afuic.unlearning.excision import ExcisionSettings
from flwr_afuic.unlearning.privacy import DeltaPrivacy
from flwr_afuic.unlearning.reference import DistillationSettings
from flwr_afuic.unlearning.settings import UnlearningSettings

MergeRule = Literal["delta", "overwrite"]


class ErasureStrategy(AsyncStrategy):
    """Asynchronous training that takes erasure requests; a method says how they are met.

    Parameters
    ----------
    model_factory : callable, optional
        Returns a fresh ``torch.nn.Module`` of the federation's model, its ``state_dict`` in
        the order of the initial arrays.
    proxies : Tensor or ndarray, shape (n, c, *spatial), optional
        Unlabelled images like the task's, that belong to no site.
    proxies_provenance : str
        Where the proxies come from and under which licence; printed in reports.
    distillation : DistillationSettings
        Making of the proxy-distilled reference.
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
    site_timeout : float
        Seconds without news of a site after which its request is closed: as
        ``completed-unverified`` after a merge, as ``failed`` before one.
    virtual_reference_seconds : float
        What making a reference takes on a virtual clock.
    **engine : Any
        Settings of :class:`~flwr_afuic.strategies.asynchronous.AsyncStrategy`.

    Raises
    ------
    ConfigError
        If a setting is out of its range or contradicts another.
    """

    withdrawable_updates = True
    methods: tuple[str, ...] = ()
    merge: MergeRule = "delta"
    relearning_rank = 0

    def __init__(
        self,
        *,
        model_factory: Callable[[], nn.Module] | None = None,
        proxies: Tensor | NDArray[Any] | None = None,
        proxies_provenance: str = "",
        distillation: DistillationSettings | None = None,
        verify_rounds: int = 5,
        watch_every: int = 5,
        max_attempts: int = 3,
        erasure_norm_factor: float = 30.0,
        gate: GateSettings | None = None,
        admission: AdmissionSettings | None = None,
        privacy: DeltaPrivacy | None = None,
        batch_size: int = 1,
        batch_seconds: float = 3600.0,
        site_timeout: float = 3600.0,
        virtual_reference_seconds: float = 5.0,
        **engine: Any,
    ) -> None:
        super().__init__(**engine)
        for name, value in (
            ("verify_rounds", verify_rounds),
            ("watch_every", watch_every),
            ("max_attempts", max_attempts),
            ("batch_size", batch_size),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be an integer of at least 1")
        if not erasure_norm_factor > 1 or not batch_seconds > 0:
            raise ConfigError(
                f"erasure_norm_factor ({erasure_norm_factor}) must exceed 1 and batch_seconds "
                f"({batch_seconds}) be positive"
            )
        if not site_timeout > 0:
            raise ConfigError(f"site_timeout is {site_timeout}; it must be positive (seconds)")
        check_seconds("virtual_reference_seconds", virtual_reference_seconds)
        if proxies is not None and model_factory is None:
            raise ConfigError(
                "proxies without model_factory: the server cannot run the model on them; pass "
                "model_factory=... as well"
            )
        self.model_factory = model_factory
        self.proxies = None if proxies is None else _as_images(proxies)
        self.proxies_provenance = proxies_provenance
        self.distillation = distillation or DistillationSettings()
        self.verify_rounds = verify_rounds
        self.watch_every = watch_every
        self.max_attempts = max_attempts
        self.erasure_norm_factor = erasure_norm_factor
        self.gate = gate or GateSettings()
        self.admission = admission or AdmissionSettings()
        self.privacy = privacy or DeltaPrivacy()
        self.batch_size = batch_size
        self.batch_seconds = batch_seconds
        self.site_timeout = site_timeout
        self.virtual_reference_seconds = virtual_reference_seconds
        self.book = RequestBook()
        self.merges: list[MergeFacts] = []
        self.base_models: dict[int, Arrays] = {}
        self._hooks: ErasureHooks | None = None

    # ---- what a method says ---------------------------------------------------------

    def make_erasures(self, book: RequestBook) -> ErasureHooks:
        """Return the steps by which a new run meets its requests."""
        return ErasureHooks(self, book)

    def make_calibrator(self, run: FederationRun) -> Calibrator:
        """Return what keeps the erased data from being learned again; here, nothing does."""
        return Calibrator(
            run,
            lock=False,
            phi=None,
            factory=None,
            proxies=None,
            settings=InvarianceSettings(),
            fidelity=None,
            virtual_seconds=0.0,
        )

    def unlearning_for(self, attempt: int) -> UnlearningSettings | ExcisionSettings:
        """Return the settings with which a site is asked to unlearn."""
        return UnlearningSettings()

    def unlearns_from_store(self, record: ErasureRecord) -> bool:
        """Whether a request is met from the server's own history, without its site."""
        return False

    def keeps_history(self, record: ErasureRecord) -> bool:
        """Whether the stored updates of an erased site are what it is unlearned by, still."""
        return self.unlearns_from_store(record)

    def basis_rank(self, record: ErasureRecord) -> int:
        """Return how many directions a site is asked for, in which it would learn D_f again."""
        return self.relearning_rank

    def known_sites(self) -> frozenset[str]:
        """Sites that need not be connected for the operator to have them erased."""
        return frozenset()

    # ---- requests -------------------------------------------------------------------

    def make_hooks(self) -> RunHooks:
        """Return the erasure steps for a new run, with an empty book."""
        self.book = RequestBook()
        self.merges = []
        self.base_models = {}
        self._hooks = self.make_erasures(self.book)
        return self._hooks

    @property
    def requests(self) -> list[ErasureRecord]:
        """Every erasure request of the run, oldest first."""
        return list(self.book)

    def request_erasure(self, site: str, reason: str = "site-left") -> str:
        """File a client-scope erasure for a site, as the federation's operator.

        Parameters
        ----------
        site : str
            Name of the site: its registered name, or its partition id.
        reason : str
            A code of :data:`~flwr_afuic.wire.REASON_CODES`.

        Returns
        -------
        str
            The request's id. May be called from any thread while a run is under way.

        Raises
        ------
        UnknownSiteError
            If the federation has no such site.
        ErasureError
            If the reason is no code, or the run has ended.
        """
        self._current()
        return self._erasures().file_for(site, reason)

    def cancel_erasure(self, request_id: str) -> None:
        """Cancel a request the operator filed, not merged yet; its site trains again.

        May be called from any thread while a run is under way. What a site filed only its own
        steward can take back.

        Raises
        ------
        StateTransitionError
            Once a delta of the request is merged, or the request is closed; or a site filed it.
        ErasureError
            If there is no such request.
        """
        self._erasures().cancel(request_id)

    def release_erasure(self, request_id: str) -> None:
        """Merge an erasure that the fidelity gate holds; StateTransitionError if it is not held."""
        self._erasures().decide(request_id, release=True)

    def reject_erasure(self, request_id: str) -> None:
        """Close a held erasure without merging it; StateTransitionError if it is not held."""
        self._erasures().decide(request_id, release=False)

    # ---- for certificates and reports ------------------------------------------------

    def describe(self) -> tuple[str, dict[str, Any]]:
        """Return the method's name and its settings, as plain values."""
        return type(self).__name__, {"verify_rounds": self.verify_rounds}

    def describe_calibration(self) -> dict[str, Any]:
        """Return what keeps the erased data from being learned again, as plain values."""
        return {"lock": False}

    def describe_privacy(self) -> dict[str, Any]:
        """Return what the sites are asked to put on their deltas, as plain values."""
        return {
            **plain_settings(self.privacy),
            "batch_size": self.batch_size,
            "batch_seconds": self.batch_seconds,
        }

    def _erasures(self) -> ErasureHooks:
        if self._hooks is None:
            raise ConfigError("this strategy has not been started; call start() first")
        return self._hooks


def check_seconds(name: str, seconds: float) -> None:
    """Raise ConfigError unless ``seconds`` is finite and not negative."""
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"{name} is {seconds}; it must be finite and not negative")


def _as_images(proxies: Tensor | NDArray[Any]) -> Tensor:
    images = torch.as_tensor(np.asarray(proxies), dtype=torch.float32)
    if images.ndim not in (4, 5) or not len(images):
        raise ConfigError(
            f"proxies have shape {tuple(images.shape)}; they must be (n, channels, *spatial), with "
            "two or three spatial axes"
        )
    if not bool(torch.isfinite(images).all()):
        raise ConfigError("proxies hold NaN or infinity; remove those images")
    return images
