"""MEDU: erasure from a compressed update history, with nothing asked of the erased site."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

from flwr_afuic.erasure.book import ErasureRecord, RequestBook, State
from flwr_afuic.errors import ConfigError
from flwr_afuic.history.disk import DiskStore
from flwr_afuic.history.recorder import Recorder, RecorderSettings
from flwr_afuic.history.store import UpdateStore
from flwr_afuic.history.unlearn import NobodyLeft
from flwr_afuic.strategies.afuic import AFUIC
from flwr_afuic.strategies.certification import plain_settings
from flwr_afuic.strategies.durability import Durability, Part
from flwr_afuic.strategies.erasure_desk import Attempt
from flwr_afuic.strategies.erasures import ErasureHooks
from flwr_afuic.strategies.run import FederationRun
from flwr_afuic.strategies.store_unlearning import StoreRule, StoreUnlearning


class MEDU(AFUIC):
    """Training that records its updates, and erases whole sites from the record.

    After arXiv 2505.03388. Every merged update is stored, compressed; a client-scope erasure is
    computed from the store
    alone and merged at once, so that a hospital that has left can be forgotten. What follows the
    merge is AFU-IC's: lock, prediction invariance, verification where the site is still there,
    certificate. A request for some samples needs their site and is carried out as AFU-IC does;
    so is what the operator files with the method ``afuic``.

    Parameters
    ----------
    history : UpdateStore or path
        Where updates are recorded; a path opens a :class:`~flwr_afuic.history.disk.DiskStore`
        for each run.
    recording : RecorderSettings, optional
        How they are recorded.
    kappa : float
        The rule's constant; 1 is the paper's ``a = 0``.
    nobody_left : {"error", "remove"}
        What to do about a window in which every site is to be forgotten.
    recovery_rounds : int
        Rounds of the retained sites' training before the erasure is first verified: the rule is
        an approximation, and a few rounds mend what it takes too much of.
    shrink : bool
        Whether what is added is the estimate with least error of the sum that was stored
        (:meth:`~flwr_afuic.history.unlearn.Correction.shrunk`); of exact records it is the sum.
    virtual_unlearning_seconds : float
        What computing a correction takes on a virtual clock.
    **afuic : Any
        Settings of :class:`~flwr_afuic.strategies.afuic.AFUIC`.

    Raises
    ------
    ConfigError
        If a setting is out of its range.
    """

    methods = ("medu", "afuic")

    def __init__(
        self,
        *,
        history: UpdateStore | str | Path,
        recording: RecorderSettings | None = None,
        kappa: float = 1.0,
        nobody_left: NobodyLeft = "error",
        recovery_rounds: int = 5,
        shrink: bool = True,
        virtual_unlearning_seconds: float = 1.0,
        **afuic: Any,
    ) -> None:
        super().__init__(**afuic)
        if not 0 < kappa < math.inf:
            raise ConfigError(f"kappa is {kappa}; it must be positive and finite")
        if nobody_left not in get_args(NobodyLeft):
            raise ConfigError(f"nobody_left is {nobody_left!r}; use 'error' or 'remove'")
        if not isinstance(recovery_rounds, int) or recovery_rounds < 0:
            raise ConfigError(
                f"recovery_rounds is {recovery_rounds!r}; it must be an integer of at least 0"
            )
        if not 0 <= virtual_unlearning_seconds < math.inf:
            raise ConfigError(
                f"virtual_unlearning_seconds is {virtual_unlearning_seconds}; it must be finite "
                "and not negative"
            )
        self.history = history
        self.recording = recording or RecorderSettings()
        self.rule = StoreRule(
            kappa, nobody_left, recovery_rounds, virtual_unlearning_seconds, shrink
        )

    def make_erasures(self, book: RequestBook) -> ErasureHooks:
        """Open the history and return the steps of a new run."""
        opened = not isinstance(self.history, UpdateStore)
        store = DiskStore(self.history) if opened else self.history  # type: ignore[arg-type]
        self.recorder = Recorder(store, self.recording)  # type: ignore[arg-type]
        return StoreErasures(self, book, closes=opened)

    def unlearns_from_store(self, record: ErasureRecord) -> bool:
        """Whether a request is met from the history: whole sites are, unless asked otherwise."""
        return record.notice.scope == "client" and record.method != "afuic"

    def known_sites(self) -> frozenset[str]:
        """Every site whose updates are on record, gone or not."""
        recorder = self.recorder
        if recorder is None:
            return frozenset()
        recorded = {p.site for window in recorder.store.windows() for p in window.participants}
        return frozenset(recorded | set(recorder.open_sites))

    def describe(self) -> tuple[str, dict[str, Any]]:
        """Return the method's name and its settings, as plain values."""
        _, options = super().describe()
        return "MEDU", {
            **options,
            "rule": plain_settings(self.rule),
            "codec": plain_settings(self.recording.codec),
            "users": plain_settings(self.recording.users),
        }


class StoreErasures(ErasureHooks):
    """Erasure requests of a run, client scope met from the history."""

    settings: MEDU

    def __init__(self, settings: MEDU, book: RequestBook, *, closes: bool) -> None:
        super().__init__(settings, book)
        self._closes = closes

    def bind(self, run: FederationRun) -> None:
        """See :class:`ErasureHooks`."""
        super().bind(run)
        if self.settings.recorder is None:
            raise ConfigError("MEDU has no history; pass history=...")
        recorder, rule = self.settings.recorder, self.settings.rule
        self.from_store = StoreUnlearning(self.desk, self.merging, recorder, rule)

    def before_dispatch(self) -> None:
        """See :class:`ErasureHooks`; records are deleted once their correction is on disk."""
        with self.guard():
            self.from_store.settle()
        super().before_dispatch()

    def close(self) -> None:
        """See :class:`ErasureHooks`."""
        super().close()
        if self._closes and self.settings.recorder is not None:
            self.settings.recorder.store.close()

    def checkpoint(self) -> Part:
        """See :class:`ErasureHooks`."""
        state, blobs = self.from_store.checkpoint()
        part = super().checkpoint()
        part.state["store"] = state
        part.blobs.update(blobs)
        return part

    def restore(self, state: dict[str, Any], durability: Durability) -> None:
        """See :class:`ErasureHooks`."""
        with self.guard():
            if "store" in state:
                self.from_store.restore(state["store"], durability.blob)
            super().restore(state, durability)

    def _open(self, record: ErasureRecord) -> None:
        if not self.settings.unlearns_from_store(record):
            super()._open(record)
            return
        self.opened.add(record.request_id)
        self._announce(record)

    def _advance(self, record: ErasureRecord) -> None:
        if record.state is not State.RECEIVED or not self.settings.unlearns_from_store(record):
            super()._advance(record)
            return
        if record.request_id not in self.opened:
            self._open(record)
        self.from_store.advance(record)

    def _waits_for_site(self, record: ErasureRecord, attempt: Attempt) -> bool:
        if record.state is State.RECEIVED and self.settings.unlearns_from_store(record):
            return False
        return super()._waits_for_site(record, attempt)
