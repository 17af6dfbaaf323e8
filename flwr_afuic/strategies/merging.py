"""The merge of an erasure's delta: bounded, judged by the gate, and made exactly once."""

from __future__ import annotations

import numpy as np

from flwr_afuic.calibration.fidelity import confine
from flwr_afuic.erasure.book import ErasureRecord, State
from flwr_afuic.errors import StateTransitionError, WireError
from flwr_afuic.federation.layout import Arrays, Vector
from flwr_afuic.strategies.calibrator import Calibrator
from flwr_afuic.strategies.erasure_desk import Attempt, ErasureDesk, MergeFacts
from flwr_afuic.strategies.gate import FidelityGate


class Merging:
    """From a site's delta to a version that holds the erasure.

    Parameters
    ----------
    desk : ErasureDesk
        The run's requests.
    calibrator : Calibrator
        Is told of every merged delta.
    gate : FidelityGate
        Judges every merge before it is made.
    """

    def __init__(self, desk: ErasureDesk, calibrator: Calibrator, gate: FidelityGate) -> None:
        self._desk = desk
        self._calibrator = calibrator
        self._gate = gate

    def check(self, record: ErasureRecord, delta: Vector) -> None:
        """Refuse, before anything moves, a delta that is too large; WireError says why."""
        if not self._desk.settings.unlearns_from_store(record):
            self._bound(delta)
        self._merged(record, delta)

    def begin(self, record: ErasureRecord, delta: Vector, basis: Vector | None) -> None:
        """Take a site's delta over, and merge it as soon as it may be."""
        attempt = self._desk.attempts[record.request_id]
        attempt.delta, attempt.basis = delta, basis
        attempt.fidelity_job = self._calibrator.start_fidelity(attempt.whole(delta))
        self.try_merge(record)

    def _bound(self, delta: Vector) -> None:
        """Refuse a delta that is out of all proportion to what retained sites send."""
        run, factor = self._desk.run, self._desk.settings.erasure_norm_factor
        typical = run.intake.screen.typical_norm
        norm = float(np.linalg.norm(delta))
        if typical is not None and norm > factor * typical:
            raise WireError(
                f"the erasure delta's norm {norm:.3g} is over {factor:g} times the median "
                f"{typical:.3g} of recent updates"
            )

    def resume(self, record: ErasureRecord) -> None:
        """Take up again a delta that an earlier run had received."""
        attempt = self._desk.attempts[record.request_id]
        if record.state is State.UNLEARNED and attempt.delta is not None:
            whole = attempt.whole(attempt.delta)
            attempt.fidelity_job = self._calibrator.start_fidelity(whole)

    def try_merge(self, record: ErasureRecord) -> None:
        """Merge a delta once the fidelity steps for it are done and the gate lets it pass."""
        attempt = self._desk.attempts[record.request_id]
        job, delta = attempt.fidelity_job, attempt.delta
        if delta is None or (job is not None and not job.done()):
            return
        if record.state is State.HELD and not record.released:
            return
        if attempt.step is None and job is not None:
            attempt.step = self._calibrator.fidelity_step(job)
            attempt.fidelity_job = None
        case = None if record.released else attempt.gate
        if case is not None and self._gate.verdict(case) is None:
            self._gate.ask(case)  # no candidate is computed before it may be merged
            return
        try:
            merged = self._merged(record, delta, attempt.step)
        except WireError as error:  # it fitted the model at its arrival, but not this one
            self._desk.close(record, State.FAILED, str(error))
            return
        if record.released or self._passes(record, attempt, merged):
            self.adopt(record, delta, merged)

    def _passes(self, record: ErasureRecord, attempt: Attempt, merged: Arrays) -> bool:
        """Whether the gate lets a candidate pass now; a candidate it holds waits.

        What the server computed itself is no attack, and its dip is what recovery rounds mend.
        """
        if self._desk.settings.unlearns_from_store(record):
            return True
        if attempt.gate is None:
            before = self._judged_against(attempt)
            attempt.gate = self._gate.open(record.request_id, before, merged, record.site)
            if attempt.gate is None:
                return True
        verdict = self._gate.verdict(attempt.gate)
        if verdict is None:
            self._gate.ask(attempt.gate)
            return False
        attempt.gate = None
        self._gate.note(verdict, record.site)
        if not verdict.held:
            return True
        bound = self._desk.settings.gate.max_cost
        text = f"{verdict.text}, more than {bound:g}; release it to merge it, or reject it"
        self._desk.move(record, State.HELD, text)
        if record.notice.scope == "samples":
            self._desk.readmit(record.site)
        return False

    def _judged_against(self, attempt: Attempt) -> Arrays:
        """Return the model that a merge is compared with: what the server adds is no attack."""
        run = self._desk.run
        if attempt.taken_back is None:
            return run.arrays
        vector = run.layout.flatten(run.arrays) + attempt.taken_back
        return run.layout.with_trained(vector, run.arrays)

    def release(self, record: ErasureRecord) -> None:
        """Let a held delta be merged, on the operator's word; from any thread."""
        if record.state is not State.HELD:
            raise StateTransitionError(
                f"request {record.request_id} is {record.state}; only a held one can be released"
            )
        record.released = True  # the loop merges it when it comes by
        self._desk.book.note(record, "released")

    def reject(self, record: ErasureRecord) -> None:
        """Close a held request without merging it, on the operator's word."""
        if record.state is not State.HELD:
            raise StateTransitionError(
                f"request {record.request_id} is {record.state}; only a held one can be rejected"
            )
        self._desk.close(record, State.FAILED, "rejected by the operator; its delta is dropped")

    def _merged(self, record: ErasureRecord, delta: Vector, step: Vector | None = None) -> Arrays:
        """Merge the delta into the current model: ``w <- w_c + d``, not weighted by staleness.

        What the server takes back by itself belongs to ``d``; the fidelity ``step``, confined,
        comes on top. With ``merge="overwrite"``, the paper's rule, the model becomes ``w_s + d``
        and what the retained sites learned since the snapshot is lost. What earlier erasures
        locked stays locked. Statistics and counters stay those of the current model: they carry
        no delta.
        """
        run, settings = self._desk.run, self._desk.settings
        layout, attempt = run.layout, self._desk.attempts[record.request_id]
        snapshot = layout.flatten(attempt.snapshot)
        current = layout.flatten(run.arrays)
        start = snapshot if settings.merge == "overwrite" else current
        with np.errstate(over="ignore"):
            whole = attempt.whole(delta)
            if step is not None:
                start = start + confine(step, delta=whole, progress=current - snapshot)
            vector = self._calibrator.allowed(start + whole)
            merged = layout.with_trained(vector, run.arrays)
        if layout.problems(merged):
            raise WireError("the erasure delta is so large that the merged model is not finite")
        return merged

    def adopt(self, record: ErasureRecord, delta: Vector, merged: Arrays) -> None:
        """Make ``merged`` the next version, and have it verified from now on."""
        desk, run = self._desk, self._desk.run
        attempt = desk.attempts[record.request_id]
        snapshot, current = (run.layout.flatten(a) for a in (attempt.snapshot, run.arrays))
        delta = attempt.whole(delta)
        staleness = run.version - attempt.version
        # Noted first: whoever hears of the new version can no longer cancel.
        record.merge_version, record.merge_round = run.version + 1, run.round
        run.adopt(merged, "erasure", (record.site,))
        after = run.layout.flatten(run.arrays)
        facts = (snapshot, current, after, delta)
        desk.settings.merges.append(
            MergeFacts(record.request_id, attempt.version, run.version, staleness, *facts)
        )
        key = f"{record.request_id}/{record.attempts}"
        self._calibrator.hold(key, delta, after, current)
        if attempt.basis is not None:
            self._calibrator.hold_basis(key, attempt.basis, after)
        text = f"version {run.version}, staleness {staleness}, norm {np.linalg.norm(delta):.3f}"
        desk.move(record, State.MERGED, text)
        attempt.release()
        attempt.since = run.clock.now()
        attempt.next_verification = run.round
        desk.move(record, State.VERIFYING, "the site scores the model on the erased data")
        if record.notice.scope == "samples":
            desk.readmit(record.site)
        run.commit()
