"""What a run's requests find in the history, made beside training, and what is done with it.

GSD reads the history in the background, and so does the sum of what the erased site contributed; a
merge waits for both, training does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from logging import WARNING

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.calibration.blocks import BlockBasis
from flwr_afuic.calibration.exclusive import GsdSettings
from flwr_afuic.erasure.record import ErasureRecord
from flwr_afuic.errors import AfuicError
from flwr_afuic.federation.journal import Span
from flwr_afuic.federation.layout import Arrays, Vector
from flwr_afuic.federation.worker import Job
from flwr_afuic.history.decomposition import Decomposition, decompose_history
from flwr_afuic.history.recorder import Recorder
from flwr_afuic.history.unlearn import Correction, unlearn
from flwr_afuic.strategies.erasure_desk import ErasureDesk
from flwr_afuic.strategies.gate import FidelityGate
from flwr_afuic.strategies.merging import Merging
from flwr_afuic.strategies.subspace_calibrator import SubspaceCalibrator

_Found = tuple[Decomposition, Correction | None]


@dataclass
class _Work:
    attempt: int
    job: Job[_Found] | None
    found: Decomposition | None = None
    correction: Correction | None = None
    over: bool = False


class ForgetSubspaces:
    """The decomposition of each request, and its site's contributions, made once an attempt.

    Parameters
    ----------
    desk : ErasureDesk
        The run's requests.
    recorder : Recorder
        The history.
    calibrator : SubspaceCalibrator
        Knows the model's blocks.
    settings : GsdSettings
        Of the decomposition.
    virtual_seconds : float
        What it takes on a virtual clock.
    sums : bool
        Whether the site's contributions are wanted, too.
    """

    def __init__(
        self,
        desk: ErasureDesk,
        recorder: Recorder,
        calibrator: SubspaceCalibrator,
        settings: GsdSettings,
        virtual_seconds: float,
        *,
        sums: bool = True,
    ) -> None:
        self._desk = desk
        self._recorder = recorder
        self._calibrator = calibrator
        self._settings = settings
        self._virtual_seconds = virtual_seconds
        self._sums = sums
        self._work: dict[str, _Work] = {}

    def ready(self, record: ErasureRecord, directions: Vector | None) -> bool:
        """Whether the decomposition is there; starts it where it is not under way.

        Parameters
        ----------
        record : ErasureRecord
        directions : ndarray, shape (r, p), or None
            What the site says its erased samples would teach, for scope ``samples``.
        """
        work = self._work.get(record.request_id)
        if work is None or work.attempt != record.attempts:
            work = self._work[record.request_id] = self._start(record, directions)
        if work.over or work.job is None:
            return True
        if not work.job.done():
            return False
        self._take(record, work, work.job)
        return True

    def basis(self, record: ErasureRecord) -> BlockBasis | None:
        """Return the basis found for a request, None where there is none."""
        work = self._work.get(record.request_id)
        found = work.found if work is not None else None
        return None if found is None or found.entangled else found.basis

    def correction(self, record: ErasureRecord) -> Correction | None:
        """Return what takes the site's recorded updates out, None where none was wanted."""
        work = self._work.get(record.request_id)
        return None if work is None else work.correction

    def forget(self, record: ErasureRecord) -> None:
        """Let go of what was found, once it is merged."""
        self._work.pop(record.request_id, None)

    def _start(self, record: ErasureRecord, directions: NDArray[np.floating] | None) -> _Work:
        if record.notice.scope == "samples" and directions is None:
            self._say(record, "the site sent no directions of the erased samples; no forget lock")
            return _Work(record.attempts, None, over=True)
        store, blocks, settings = self._recorder.store, self._calibrator.blocks, self._settings
        self._recorder.close()  # what is in the window under way counts as well
        gone = [
            other.site
            for other in self._desk.book
            if other.notice.scope == "client" and other.merged_before and other is not record
        ]
        given = directions if record.notice.scope == "samples" else None
        site = record.site
        summed = self._sums and given is None and not record.merged_before

        def compute() -> _Found:
            found = decompose_history(
                store, site, blocks, settings=settings, without=gone, directions=given
            )
            return found, unlearn(store, [site], nobody_left="remove") if summed else None

        job = self._desk.run.worker.submit(compute, virtual_seconds=self._virtual_seconds)
        return _Work(record.attempts, job)

    def _take(self, record: ErasureRecord, work: _Work, job: Job[_Found]) -> None:
        work.over, work.job = True, None
        run = self._desk.run
        span = Span("server", "decomposition", job.start - run.started, job.end - run.started)
        run.journal.server_spans.append(span)
        try:
            found, work.correction = job.result()
        except AfuicError as error:
            self._say(record, f"no forget lock: {error}")
            return
        except Exception as error:  # noqa: BLE001 - the disk may fail; training goes on
            self._say(record, f"no forget lock: the history could not be read: {error}")
            return
        work.found = found
        record.details["subspaces"] = found.summary()
        if found.entangled:
            self._say(
                record,
                "fully entangled: no direction is the erased data's alone; no forget lock, and no "
                "removal along a subspace is claimed",
            )
            return
        text = f"{found.basis.rank} forget-exclusive directions in {len(found.basis.ranks)} blocks"
        run.note("decomposed", record.site, text)

    def _say(self, record: ErasureRecord, text: str) -> None:
        record.details["subspaces_note"] = text
        self._desk.run.note("no-subspace", record.site, text, level=WARNING)


class ForgetMerging(Merging):
    """Merges an excision once its basis is known, and pins the model along it."""

    def __init__(
        self,
        desk: ErasureDesk,
        calibrator: SubspaceCalibrator,
        gate: FidelityGate,
        subspaces: ForgetSubspaces,
    ) -> None:
        super().__init__(desk, calibrator, gate)
        self._pins = calibrator
        self._subspaces = subspaces

    def try_merge(self, record: ErasureRecord) -> None:
        """See :class:`Merging`; waits for the decomposition first."""
        attempt = self._desk.attempts[record.request_id]
        if attempt.delta is not None and self._subspaces.ready(record, attempt.basis):
            super().try_merge(record)

    def _merged(self, record: ErasureRecord, delta: Vector, step: Vector | None = None) -> Arrays:
        with self._pins.unpinned(record.request_id):
            return super()._merged(record, delta, step)

    def adopt(self, record: ErasureRecord, delta: Vector, merged: Arrays) -> None:
        """See :class:`Merging`."""
        self._pins.expect(record.request_id, self._subspaces.basis(record))
        super().adopt(record, delta, merged)
        self._subspaces.forget(record)
