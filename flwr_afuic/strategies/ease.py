"""EASE: erasure for federated image-text models with adapters, along forget-exclusive subspaces."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from flwr_afuic.calibration.exclusive import GsdSettings
from flwr_afuic.erasure.book import ErasureRecord, RequestBook
from flwr_afuic.errors import ConfigError, ErasureError
from flwr_afuic.history.decomposition import recording_for_subspaces
from flwr_afuic.history.disk import DiskStore
from flwr_afuic.history.recorder import Recorder, RecorderSettings
from flwr_afuic.history.store import UpdateStore
from flwr_afuic.strategies.afuic import AFUIC
from flwr_afuic.strategies.certification import plain_settings
from flwr_afuic.strategies.ease_erasures import FROM_HISTORY, EaseErasures
from flwr_afuic.strategies.erasing import check_seconds
from flwr_afuic.strategies.erasures import ErasureHooks
from flwr_afuic.strategies.run import FederationRun
from flwr_afuic.strategies.subspace_calibrator import SubspaceCalibrator
from flwr_afuic.unlearning.excision import ExcisionSettings
from flwr_afuic.wire import REASON_CODES


class EASE(AFUIC):
    """Asynchronous training of a dual-tower model that forgets on request.

    After arXiv 2605.00733, whose three remedies are: Bilateral Knowledge Excision at the erasing
    site (:mod:`flwr_afuic.unlearning.excision`), Gradient Subspace Decomposition over the update
    history (:mod:`flwr_afuic.history.decomposition`), and Projection with Forget Lock, on the
    server and at the sites that train on (:mod:`flwr_afuic.calibration.forget_lock`). Engine,
    requests, verification, ledger and certificates are AFU-IC's.

    First the server takes back what it can by itself: a share of what the site added, and all that
    was learned along directions that are the site's own. A site that is still there then excises
    its pairs from what is left; a site that is gone is erased from the history alone, and where it
    has no direction of its own (fully entangled) that fails and says so. That both come together
    is ours: pairs that are only excised are soon found again, along directions that are shared.
    With scope ``samples`` the history shows too much, and the site sends the directions in which
    these samples would be learned again. A class is erased by every site for its own samples of
    it.

    Parameters
    ----------
    history : UpdateStore or path
        Where updates are recorded; a path opens a :class:`~flwr_afuic.history.disk.DiskStore`.
    recording : RecorderSettings, optional
        How; by default :func:`~flwr_afuic.history.decomposition.recording_for_subspaces`.
    excision : ExcisionSettings, optional
        Of the excision at the site.
    gsd : GsdSettings, optional
        Of the decomposition.
    project : bool
        The server's half of the forget lock. The basis still encodes directions of the forgotten
        data, and the lock needs it: see :meth:`drop_forget_lock`.
    lam : float
        Strength of the clients' half, 0 for none: a proximal step that keeps their drift along
        the basis below ``G / lam``. The basis travels with every training task then.
    take_back : bool
        Whether the server takes back what it can by itself before a site that is there excises,
        for scope ``client``; of a site that is gone it always does. [ours]
    beta : float
        Share of what was learned along the basis that it takes back, in (0, 1].
    history_share : float
        Share of the site's recorded updates that it takes out besides, by the rule of MEDU
        (:func:`flwr_afuic.history.unlearn.unlearn`, kappa 1), in [0, 1]: what came in along the
        directions that are shared. [ours]
    directions : int
        Most directions a site sends for scope ``samples``, 0 to 64.
    recovery_rounds : int
        Rounds before the first verification of an erasure from the history.
    virtual_decomposition_seconds : float
        What a decomposition takes on a virtual clock.
    lock : bool
        AFU-IC's half-space besides; off by default.
    **afuic : Any
        Further settings of :class:`~flwr_afuic.strategies.afuic.AFUIC`.

    Raises
    ------
    ConfigError
        If a setting is out of its range.
    """

    methods = ("ease", FROM_HISTORY)

    def __init__(
        self,
        *,
        history: UpdateStore | str | Path,
        recording: RecorderSettings | None = None,
        excision: ExcisionSettings | None = None,
        gsd: GsdSettings | None = None,
        project: bool = True,
        lam: float = 10.0,
        take_back: bool = True,
        beta: float = 1.0,
        history_share: float = 0.9,
        directions: int = 8,
        recovery_rounds: int = 5,
        virtual_decomposition_seconds: float = 1.0,
        lock: bool = False,
        **afuic: Any,
    ) -> None:
        super().__init__(lock=lock, **{"fidelity": False, "prediction_invariance": False, **afuic})
        if not 0.0 <= lam < math.inf:
            raise ConfigError(f"lam is {lam}; it must be finite and not negative")
        if not 0.0 < beta <= 1.0:
            raise ConfigError(f"beta is {beta}; it must be in (0, 1]")
        if not 0.0 <= history_share <= 1.0:
            raise ConfigError(f"history_share is {history_share}; it must be in [0, 1]")
        for name, value, most in (
            ("directions", directions, 64),
            ("recovery_rounds", recovery_rounds, 10**6),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
                raise ConfigError(f"{name} is {value!r}; it must be an integer from 0 to {most}")
        check_seconds("virtual_decomposition_seconds", virtual_decomposition_seconds)
        self.history = history
        self.recording = recording or recording_for_subspaces()
        self.excision = excision or ExcisionSettings()
        self.gsd = gsd or GsdSettings()
        self.project = project
        self.lam = lam
        self.take_back = take_back
        self.beta = beta
        self.history_share = history_share
        self.directions = directions
        self.recovery_rounds = recovery_rounds
        self.virtual_decomposition_seconds = virtual_decomposition_seconds

    def make_erasures(self, book: RequestBook) -> ErasureHooks:
        """Open the history and return the steps of a new run."""
        opened = not isinstance(self.history, UpdateStore)
        store = DiskStore(self.history) if opened else self.history  # type: ignore[arg-type]
        self.recorder = Recorder(store, self.recording)  # type: ignore[arg-type]
        return EaseErasures(self, book, closes=opened)

    def make_calibrator(self, run: FederationRun) -> SubspaceCalibrator:
        """Return the calibration of a run."""
        return SubspaceCalibrator(
            run,
            lock=self.lock,
            phi=self.phi,
            factory=self.model_factory,
            proxies=self.proxies,
            settings=self.invariance,
            fidelity=self.fidelity_steps,
            virtual_seconds=self.virtual_invariance_seconds,
            learn_signature=self.learns_signature,
            projects=self.project,
        )

    def unlearning_for(self, attempt: int) -> ExcisionSettings:
        """Return the settings of an attempt: each further one may take twice the steps."""
        steps = self.excision.steps * 2 ** (attempt - 1)
        return dataclasses.replace(self.excision, steps=steps)

    def unlearns_from_store(self, record: ErasureRecord) -> bool:
        """Whether a request is met from the history: it is noted when the request is opened."""
        return record.details.get("mode") == FROM_HISTORY

    def keeps_history(self, record: ErasureRecord) -> bool:
        """See :class:`ErasureStrategy`: once merged, the basis is all that is needed."""
        return False

    def basis_rank(self, record: ErasureRecord) -> int:
        """See :class:`ErasureStrategy`: only asked for where the history shows too much."""
        return self.directions if record.notice.scope == "samples" else 0

    def known_sites(self) -> frozenset[str]:
        """Every site whose updates are on record, gone or not."""
        recorder = self.recorder
        if recorder is None:
            return frozenset()
        recorded = {p.site for window in recorder.store.windows() for p in window.participants}
        return frozenset(recorded | set(recorder.open_sites))

    # ---- the operator ---------------------------------------------------------------

    def request_class_erasure(self, name: str, reason: str = "other") -> None:
        """Have a class erased: every site files for its own samples of it.

        Sites hear of it with their next task, and again until they have none of it left. May be
        called from any thread while a run is under way.

        Parameters
        ----------
        name : str
            The class, as the sites' ``sample_classes`` name it.
        reason : str
            A code of :data:`~flwr_afuic.wire.REASON_CODES`.

        Raises
        ------
        ErasureError
            If the reason is no code or the name is empty.
        """
        if reason not in REASON_CODES:
            raise ErasureError(f"reason is {reason!r}; use one of {', '.join(REASON_CODES)}")
        if not name:
            raise ErasureError("the class to erase has no name; pass one the sites know")
        self._ease().erase_class(name, reason)

    def drop_forget_lock(self, request_id: str) -> None:
        """Delete a request's basis: its lock ends, at the server and with the sites' next task.

        The basis encodes directions of what was forgotten; a retention policy may want it gone.
        What the sites learn again along it then stays learned.

        Raises
        ------
        ErasureError
            If no lock of that request is held.
        """
        self._ease().drop_lock(request_id)

    def _ease(self) -> EaseErasures:
        hooks = self._erasures()
        if not isinstance(hooks, EaseErasures):
            raise ConfigError("the run's erasures are not EASE's")
        return hooks

    # ---- for certificates and reports ------------------------------------------------

    def describe(self) -> tuple[str, dict[str, Any]]:
        """Return the method's name and its settings, as plain values."""
        _, options = super().describe()
        del options["unlearning"], options["distillation"]
        return "EASE", {
            **options,
            "excision": plain_settings(self.excision),
            "gsd": plain_settings(self.gsd),
            "take_back": self.take_back,
            "beta": self.beta,
            "history_share": self.history_share,
            "codec": plain_settings(self.recording.codec),
        }

    def describe_calibration(self) -> dict[str, Any]:
        """Return what keeps the erased data from being learned again, as plain values."""
        return {**super().describe_calibration(), "project": self.project, "lam": self.lam}
