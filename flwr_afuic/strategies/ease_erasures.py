"""How a run of EASE takes its requests: by excision at the site, or along the history alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from flwr_afuic import wire
from flwr_afuic.erasure.book import ErasureRecord, RequestBook, State
from flwr_afuic.errors import ConfigError, ErasureError, WireError
from flwr_afuic.federation.layout import Arrays, Vector
from flwr_afuic.federation.roster import Member
from flwr_afuic.strategies.durability import Durability, Part
from flwr_afuic.strategies.erasure_desk import Attempt
from flwr_afuic.strategies.erasures import ErasureHooks
from flwr_afuic.strategies.forget_subspaces import ForgetMerging, ForgetSubspaces
from flwr_afuic.strategies.gate import FidelityGate
from flwr_afuic.strategies.merging import Merging
from flwr_afuic.strategies.run import FederationRun
from flwr_afuic.strategies.subspace_calibrator import SubspaceCalibrator
from flwr_afuic.unlearning.excision import excise_parameters

if TYPE_CHECKING:
    from flwr_afuic.strategies.ease import EASE

FROM_HISTORY = "ease-history"
_INITIAL = "initial"


class EaseErasures(ErasureHooks):
    """Erasure requests of one run of EASE.

    Parameters
    ----------
    settings : EASE
        The strategy.
    book : RequestBook
        Where requests live.
    closes : bool
        Whether the history was opened for this run, and is closed with it.
    """

    settings: EASE

    def __init__(self, settings: EASE, book: RequestBook, *, closes: bool) -> None:
        super().__init__(settings, book)
        self._closes = closes
        self._classes: dict[str, str] = {}

    def bind(self, run: FederationRun) -> None:
        """See :class:`ErasureHooks`."""
        super().bind(run)
        self._initial: Vector = run.layout.flatten(run.arrays)

    def make_merging(self, gate: FidelityGate) -> Merging:
        """See :class:`ErasureHooks`."""
        settings, calibrator = self.settings, self.calibrator
        if settings.recorder is None or not isinstance(calibrator, SubspaceCalibrator):
            raise ConfigError("EASE has no history; pass history=...")
        self.pins = calibrator
        self.subspaces = ForgetSubspaces(
            self.desk,
            settings.recorder,
            calibrator,
            settings.gsd,
            settings.virtual_decomposition_seconds,
            sums=settings.history_share > 0,
        )
        return ForgetMerging(self.desk, calibrator, gate, self.subspaces)

    def close(self) -> None:
        """See :class:`ErasureHooks`."""
        super().close()
        if self._closes and self.settings.recorder is not None:
            self.settings.recorder.store.close()

    # ---- what sites are told --------------------------------------------------------

    def task_config(self, member: Member) -> dict[str, wire.Scalar]:
        """See :class:`ErasureHooks`; names the classes that are erased."""
        told = super().task_config(member)
        return {**told, wire.ERASE_CLASSES: json.dumps(self._classes)} if self._classes else told

    def training_extras(self, member: Member) -> tuple[dict[str, wire.Scalar], dict[str, Arrays]]:
        """See :class:`RunHooks`: the forget lock, for clients that hold one."""
        entries, extras = super().training_extras(member)
        lock = self.pins.client_lock(self.settings.lam) if member.holds_lock else None
        if lock is None:
            return entries, extras
        arrays, text = lock.pack()
        return {**entries, wire.FORGET_LOCK: text}, {**extras, wire.KIND_LOCK: arrays}

    def erase_class(self, name: str, reason: str) -> None:
        """Have every site file for its samples of a class; from any thread."""
        with self._lock:
            self._classes[name] = reason
            self.book.say("class-erasure", {"class": name, "reason": reason})
            self.run.note("class-erasure", "", f"{name} ({reason})")

    def drop_lock(self, request_id: str) -> None:
        """Delete a request's basis; from any thread. ErasureError if none is held."""
        with self._lock:
            record = self.book.get(request_id)
            if not self.pins.drop(request_id):
                raise ErasureError(f"no forget lock of request {request_id} is held")
            self.book.note(record, "forget-lock-dropped")
            self.run.note("forget-lock-dropped", record.site, request_id)

    # ---- requests move on -----------------------------------------------------------

    def _open(self, record: ErasureRecord) -> None:
        if record.notice.scope == "client" and self._is_gone(record):
            record.details["mode"] = FROM_HISTORY
            self.book.changed.add(record.request_id)
            self.opened.add(record.request_id)
            self._announce(record)
            return
        super()._open(record)

    def _is_gone(self, record: ErasureRecord) -> bool:
        """Whether nobody is there to excise: what the operator asks, or sees, of a lost site."""
        if record.method or record.filed_by == "site":
            return record.method == FROM_HISTORY
        return not any(m.site == record.site and m.connected for m in self.run.roster.members)

    def _advance(self, record: ErasureRecord) -> None:
        if record.state is State.RECEIVED and record.request_id not in self.opened:
            self._open(record)
        if record.state is State.RECEIVED and self.settings.unlearns_from_store(record):
            self._from_history(record)
            return
        if record.state is State.RECEIVED and not self._may_excise(record):
            return
        super()._advance(record)
        begun = record.state in (State.RECEIVED, State.DISPATCHED) and record.request_id in (
            self.desk.attempts
        )
        if begun and record.notice.scope == "client":
            self.subspaces.ready(record, None)  # made while the site excises

    def _may_excise(self, record: ErasureRecord) -> bool:
        """Whether a site may begin: what the server takes back comes first, where it does."""
        wanted = self.settings.take_back and record.notice.scope == "client"
        if not wanted or record.merged_before:  # it is taken back once
            return True
        attempt = self.desk.attempts.get(record.request_id) or self.tasks.begin(record)
        if attempt is None or not self.subspaces.ready(record, None):
            return False
        if attempt.taken_back is None:
            snapshot = self.run.layout.flatten(attempt.snapshot)
            attempt.taken_back = self._taken_back(record, snapshot)
        return True

    def _taken_back(self, record: ErasureRecord, start: Vector) -> Vector | None:
        """Return what the server takes out of a model by itself, None where it knows nothing.

        What the site added, by the rule of MEDU, and then all that was learned along the
        directions that are the site's alone. [ours]
        """
        settings, after = self.settings, start
        correction, basis = self.subspaces.correction(record), self.subspaces.basis(record)
        if correction is not None and settings.history_share:
            parts = [part.reshape(-1) for part in correction.arrays]
            after = after + settings.history_share * np.concatenate(parts)
            record.details["history_coverage"] = correction.coverage.summary()
        if basis is not None:
            after = excise_parameters(after, self._initial, basis, settings.beta)
        if after is start:
            return None
        learned = max(float(np.linalg.norm(start - self._initial)), 1e-300)
        record.details["taken_back"] = float(np.linalg.norm(after - start)) / learned
        return after - start

    def _from_history(self, record: ErasureRecord) -> None:
        """Take the model back along the site's own directions, once they are known."""
        run, desk = self.run, self.desk
        attempt = desk.attempts.get(record.request_id)
        if attempt is None:
            record.attempts += 1
            record.base_version, record.verified_rounds = run.version, 0
            self.settings.base_models.setdefault(run.version, run.arrays)
            attempt = Attempt(run.version, run.arrays, None, run.clock.now())
            desk.attempts[record.request_id] = attempt
        if attempt.delta is not None:
            self.merging.try_merge(record)
        elif self.subspaces.ready(record, None):
            self._take_back(record, attempt)
        if record.merged_before and record.request_id in desk.attempts:
            later = run.round + self.settings.recovery_rounds
            attempt.next_verification = max(attempt.next_verification, later)

    def _take_back(self, record: ErasureRecord, attempt: Attempt) -> None:
        delta = self._taken_back(record, self.run.layout.flatten(self.run.arrays))
        if delta is None or self.subspaces.basis(record) is None:
            why = record.details.get("subspaces_note", "no direction is the site's alone")
            self.desk.close(record, State.FAILED, f"cannot be erased from the history: {why}")
            return
        try:
            self.merging.check(record, delta)
        except WireError as error:
            self.desk.close(record, State.FAILED, str(error))
            return
        self.merging.begin(record, delta, None)

    def _waits_for_site(self, record: ErasureRecord, attempt: Attempt) -> bool:
        if record.state is State.RECEIVED and self.settings.unlearns_from_store(record):
            return False
        return super()._waits_for_site(record, attempt)

    # ---- on disk --------------------------------------------------------------------

    def checkpoint(self) -> Part:
        """See :class:`ErasureHooks`."""
        part = super().checkpoint()
        part.state["ease"] = {"classes": dict(self._classes)}
        part.blobs[_INITIAL, "0"] = {"0": self._initial}
        return part

    def restore(self, state: dict[str, Any], durability: Durability) -> None:
        """See :class:`ErasureHooks`."""
        with self.guard():
            saved: Mapping[str, Any] = state.get("ease", {})
            if saved:
                self._classes = dict(saved["classes"])
                self._initial = np.asarray(durability.blob(_INITIAL, "0")["0"], dtype=np.float64)
            super().restore(state, durability)
