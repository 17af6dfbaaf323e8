"""Erasures met from the server's own history: nothing is asked of the site, which may be gone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from logging import WARNING
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.erasure.record import ErasureRecord, State
from flwr_afuic.errors import HistoryError, WireError
from flwr_afuic.federation.layout import Arrays, Vector
from flwr_afuic.federation.worker import Job
from flwr_afuic.history.coverage import Coverage
from flwr_afuic.history.diagnosis import diagnose
from flwr_afuic.history.recorder import Recorder
from flwr_afuic.history.sealed import seal
from flwr_afuic.history.unlearn import Correction, NobodyLeft, unlearn
from flwr_afuic.strategies.certification import note_history
from flwr_afuic.strategies.erasure_desk import Attempt, ErasureDesk
from flwr_afuic.strategies.merging import Merging


@dataclass(frozen=True)
class StoreRule:
    """Constants of MEDU's rule; see :func:`~flwr_afuic.history.unlearn.unlearn`."""

    kappa: float = 1.0
    nobody_left: NobodyLeft = "error"
    recovery_rounds: int = 5
    virtual_seconds: float = 1.0
    shrink: bool = True


class StoreUnlearning:
    """From a request to the correction that the history gives for it.

    A further deletion is computed over every site ever forgotten; what earlier ones have already
    added to the model is taken off the new correction. One deletion follows another.

    Parameters
    ----------
    desk : ErasureDesk
        The run's requests.
    merging : Merging
        Takes the corrections over.
    recorder : Recorder
        The history.
    rule : StoreRule
        How it is unlearned from.
    """

    def __init__(
        self, desk: ErasureDesk, merging: Merging, recorder: Recorder, rule: StoreRule
    ) -> None:
        self._desk = desk
        self._merging = merging
        self._recorder = recorder
        self._rule = rule
        self._at_work: str | None = None
        self._job: Job[Correction] | None = None
        self._found: Correction | None = None
        self._applied: Correction | None = None
        self._to_seal: Correction | None = None
        self._initial = desk.run.layout.trained(desk.run.arrays)

    # ---- one request ----------------------------------------------------------------

    def advance(self, record: ErasureRecord) -> None:
        """Take a received request as far as it can go now."""
        attempt = self._desk.attempts.get(record.request_id)
        if attempt is None:
            if self._at_work is None:
                self._begin(record)
            return
        if attempt.delta is not None:
            self._merging.try_merge(record)
        elif self._job is not None and self._job.done():
            self._take(record, self._job)

    def _begin(self, record: ErasureRecord) -> None:
        desk, run, rule = self._desk, self._desk.run, self._rule
        record.attempts += 1
        record.base_version = run.version
        record.verified_rounds = 0
        desk.settings.base_models.setdefault(run.version, run.arrays)
        desk.attempts[record.request_id] = Attempt(run.version, run.arrays, None, run.clock.now())
        self._at_work = record.request_id
        store = self._recorder.store
        self._recorder.close()  # what the site has in the window under way counts as well
        sites = {record.site, *(self._applied.sites if self._applied else ())}

        def compute() -> Correction:
            found = unlearn(store, sites, kappa=rule.kappa, nobody_left=rule.nobody_left)
            return found.shrunk() if rule.shrink else found

        self._job = run.worker.submit(compute, virtual_seconds=rule.virtual_seconds)

    def _take(self, record: ErasureRecord, job: Job[Correction]) -> None:
        run = self._desk.run
        self._job = None
        try:
            found = job.result()
        except HistoryError as error:
            self._end(record, str(error))
            return
        except Exception as error:  # noqa: BLE001 - the disk may fail; training goes on
            self._end(record, f"the history could not be read: {error}")
            return
        self._found = found
        trained = run.layout.trained(run.arrays)
        if self._applied is not None:  # the rule's w_T is the model without earlier corrections
            pairs = zip(trained, self._applied.arrays, strict=True)
            trained = [array - part for array, part in pairs]
        verdict = diagnose(self._recorder.store, found, initial=self._initial, final=trained)
        for warning in verdict.warnings:
            run.note("medu-warning", record.site, warning, level=WARNING)
        record.details = {
            "kappa": found.kappa,
            "forgotten_sites": list(found.sites),
            "windows": found.windows,
            "coverage": found.coverage.share,
            "coverage_by_site": found.coverage.summary(),
            "sealed_error": found.coverage.sealed_error,
            "correction_norm": found.norm,
            "ratio_to_training": verdict.ratio if np.isfinite(verdict.ratio) else None,
            "warnings": list(verdict.warnings),
        }
        run.note("corrected", record.site, "; ".join(found.coverage.summary()))
        delta = _flat(found.arrays)
        if self._applied is not None:
            delta = delta - _flat(self._applied.arrays)
        try:
            self._merging.check(record, delta)
        except WireError as error:
            self._end(record, str(error))
            return
        self._merging.begin(record, delta, None)

    def _end(self, record: ErasureRecord, text: str) -> None:
        self._at_work = None
        self._found = None
        self._desk.close(record, State.FAILED, text)

    # ---- after the merge ------------------------------------------------------------

    def settle(self) -> None:
        """Delete the records of a site whose correction is merged and committed for good."""
        self._promote()
        if self._to_seal is None or self._unsettled():
            return
        correction, self._to_seal = self._to_seal, None
        gone = seal(self._recorder.store, correction)
        for record in self._desk.book:
            mine = [deletion for deletion in gone if deletion.site == record.site]
            if mine and record.merged_before and self._desk.settings.unlearns_from_store(record):
                size = sum(deletion.bytes for deletion in mine)
                note_history(self._desk, record, len(mine), size)

    def _unsettled(self) -> bool:
        """Whether the merge is not on disk yet, where there is a disk."""
        return self._desk.run.durability is not None and self._desk.book.unsaved

    def _promote(self) -> None:
        """Note that the correction at work has become part of the model, or never will."""
        if self._at_work is None:
            return
        record = self._desk.book.get(self._at_work)
        if record.state in (State.RECEIVED, State.HELD):
            return
        if record.merged_before and self._found is not None:
            self._applied = self._to_seal = self._found
            attempt = self._desk.attempts[record.request_id]
            attempt.next_verification = self._desk.run.round + self._rule.recovery_rounds
        self._at_work, self._found, self._job = None, None, None

    # ---- across runs ----------------------------------------------------------------

    def checkpoint(self) -> tuple[dict[str, Any], dict[tuple[str, str], Mapping[str, Any]]]:
        """Return what belongs on disk: the corrections that are part of the model."""
        self._promote()
        if self._applied is None:
            return {"initial": True}, {("initial", "0"): _named(self._initial)}
        applied = self._applied
        key = _key_of(applied.sites)
        state = {"sites": list(applied.sites), "kappa": applied.kappa, "through": applied.through}
        return {"initial": True, **state, "key": key}, {
            ("initial", "0"): _named(self._initial),
            ("correction", key): _named(applied.arrays),
        }

    def restore(
        self, state: Mapping[str, Any], blob: Callable[[str, str], Mapping[str, NDArray[Any]]]
    ) -> None:
        """Go on from :meth:`checkpoint`; a correction not sealed yet is sealed then."""
        if state.get("initial"):
            self._initial = list(blob("initial", "0").values())
        if "key" not in state:
            return
        arrays = [np.asarray(a) for a in blob("correction", state["key"]).values()]
        sites = tuple(state["sites"])
        self._applied = Correction(
            sites, float(state["kappa"]), arrays, Coverage(), 0, state["through"]
        )
        sealed = self._recorder.store.get("sealed")
        if sealed is None or set(sealed["sites"]) != set(sites):
            self._to_seal = self._applied


def _key_of(sites: tuple[str, ...]) -> str:
    """Name a forget set, the same in every process."""
    return hashlib.sha256(json.dumps(sites).encode()).hexdigest()[:16]


def _flat(arrays: list[NDArray[np.float64]]) -> Vector:
    return np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in arrays])


def _named(arrays: Arrays) -> dict[str, NDArray[Any]]:
    return {str(number): np.asarray(array) for number, array in enumerate(arrays)}
