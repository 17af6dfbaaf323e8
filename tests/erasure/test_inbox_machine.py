"""The inbox against a simple model: any order of filings, answers, reopenings and readers."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from flwr_afuic.erasure.inbox import (
    CANCELLED,
    CANCELLING,
    CLOSED,
    FILED,
    KNOWN,
    REFUSED,
    SiteInbox,
)
from flwr_afuic.errors import (
    DuplicateRequestError,
    ErasureError,
    StateTransitionError,
    UnknownSampleError,
)
from tests.erasure_helpers import request_id

SAMPLES = ["a", "b", "c", "d"]
numbers = st.integers(0, 4)
subsets = st.sets(st.sampled_from(SAMPLES)).map(sorted)
OPEN = {FILED, KNOWN, CANCELLING}


class InboxMachine(RuleBasedStateMachine):
    """Two openings of one file, one of them made anew at random."""

    @initialize(first=st.lists(subsets.filter(bool), min_size=3, max_size=3))
    def start(self, first):
        self.folder = tempfile.mkdtemp(prefix="afuic-test-")
        self.path = Path(self.folder) / "inbox.sqlite"
        self.boxes = [SiteInbox(self.path), SiteInbox(self.path)]
        self.turn = False
        self.requests: dict[str, tuple[str, set[str]]] = {}
        self.order: list[str] = []
        self.held: set[str] = set(SAMPLES)
        self.boxes[0].note_held(SAMPLES)
        for number, samples in enumerate(first):
            self.file(0, number, samples, everything=False)

    def teardown(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    @rule(which=st.integers(0, 1))
    def reopen(self, which):
        self.boxes[which] = SiteInbox(self.path)

    @rule(which=st.integers(0, 1), held=st.just(SAMPLES) | subsets)
    def hold(self, which, held):
        self.boxes[which].note_held(held)
        self.held = set(held)

    @rule(which=st.integers(0, 1), number=numbers, samples=subsets, everything=st.booleans())
    def file(self, which, number, samples, everything):
        rid = request_id(number)
        wanted = set(self.held) if everything else set(samples)
        old = self.requests.get(rid)
        try:
            self.boxes[which].file(
                scope="client" if everything else "samples",
                sample_ids=[] if everything else samples,
                held=self.held,
                request_id=rid,
            )
        except UnknownSampleError:
            assert wanted - self.held
        except DuplicateRequestError:
            assert old is not None
        except ErasureError:
            assert not wanted
        else:
            assert wanted
            assert wanted <= self.held
            if old is None:
                self.requests[rid] = (FILED, wanted)
                self.order.append(rid)
            else:
                assert old[1] == wanted

    @rule(
        which=st.integers(0, 1),
        chosen=st.lists(st.integers(0, 4), min_size=1, max_size=3),
        status=st.sampled_from([KNOWN, CLOSED, CANCELLED, REFUSED]),
    )
    def hear(self, which, chosen, status):
        self.boxes[which].mark([request_id(n) for n in chosen], status)
        for rid in map(request_id, chosen):
            before, samples = self.requests.get(rid, ("", set()))
            if before == FILED or (before in OPEN and status != KNOWN):
                self.requests[rid] = (status, samples)

    @rule(which=st.integers(0, 1), chosen=st.lists(numbers, max_size=3))
    def kept(self, which, chosen):
        self.boxes[which].keep([request_id(n) for n in chosen])
        for rid in map(request_id, chosen):
            if self.requests.get(rid, ("",))[0] == CANCELLING:
                self.requests[rid] = (KNOWN, self.requests[rid][1])

    @rule(which=st.integers(0, 1), number=numbers)
    def cancel(self, which, number):
        rid = request_id(number)
        status, samples = self.requests.get(rid, ("", set()))
        if status in ("", CLOSED):
            with pytest.raises(StateTransitionError if status else ErasureError):
                self.boxes[which].cancel(rid)
            return
        after = {FILED: CANCELLING, KNOWN: CANCELLING, REFUSED: CANCELLED}.get(status, status)
        assert self.boxes[which].cancel(rid) == after
        self.requests[rid] = (after, samples)

    @invariant()
    def it_shows_the_model(self):
        self.turn = not self.turn
        box = self.boxes[self.turn]
        shown = {r.notice.request_id: r.status for r in box.requests()}
        assert shown == {rid: status for rid, (status, _) in self.requests.items()}
        assert box.held() == sorted(self.held)
        erased = {
            s for status, samples in self.requests.values() if status != CANCELLED
            for s in samples
        }  # fmt: skip
        assert box.tombstones() == erased & self.held
        assert {n.request_id for n in box.pending()} == self.of(FILED)
        assert {n.request_id for n in box.unfinished()} == self.of(FILED, KNOWN)
        assert set(box.taken_back()) == self.of(CANCELLING)
        assert set(box.taken_back(self.order)) == self.of(CANCELLING, CANCELLED)
        for rid, (_, samples) in self.requests.items():
            if samples <= self.held:
                assert box.forget_set(rid) == sorted(samples)
            else:
                with pytest.raises(UnknownSampleError):
                    box.forget_set(rid)

    def of(self, *statuses):
        return {rid for rid, (status, _) in self.requests.items() if status in statuses}


TestInboxMachine = InboxMachine.TestCase
TestInboxMachine.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)
