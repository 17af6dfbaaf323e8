"""Erasures of plain clients, by the operator, across runs; and what crosses the wire."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from flwr_afuic import wire
from flwr_afuic.errors import ConfigError, ErasureError, StateTransitionError, UnknownSiteError
from flwr_afuic.strategies.afuic import AFUIC
from tests.erasure_helpers import (
    FORGOTTEN,
    Site,
    app_of,
    federate,
    request_id,
)
from tests.strategies.lives import LIFE, boom, file_at, three, trained_after

# ---- clients that know nothing of erasure --------------------------------------------


def test_a_plain_client_trains_unchanged():
    sites = three(plain=True)
    outcome = federate(sites, rounds=6)
    counters = outcome.strategy.run.counters
    assert counters.accepted >= 18
    assert counters.quarantined == counters.failed == counters.refused == 0
    assert outcome.final()[0][0] > 0.3


def test_an_erasure_of_a_plain_client_fails_with_its_reason_and_it_stays_refused():
    sites = [Site(0, plain=True), Site(1), Site(2)]
    outcome = federate(sites, at={3: lambda s: s.request_erasure("node-101")})
    assert outcome.states() == ["received", "failed"]
    assert "does not speak the erasure protocol; derive it from ErasureClient" in (
        outcome.record.reason
    )
    assert trained_after(outcome, "node-101", "request") == []
    assert not outcome.strategy.run.hooks.may_train("node-101")


# ---- the operator --------------------------------------------------------------------


def test_an_operators_request_erases_the_whole_site():
    sites = three()
    ids = []
    outcome = federate(sites, at={3: lambda s: ids.append(s.request_erasure("site-0"))})
    assert outcome.record.request_id == ids[0]
    assert outcome.states() == LIFE
    assert sites[0].unlearned[0].forget_ids == sites[0].ids
    assert sites[0].inbox.tombstones() == set(sites[0].ids)
    assert outcome.events("refused-request") == []


def test_a_filed_request_shows_at_once_and_can_be_cancelled_at_once():
    sites = three()

    def both(strategy):
        request = strategy.request_erasure("site-0")
        assert strategy.requests[0].request_id == request
        strategy.cancel_erasure(request)

    outcome = federate(sites, at={3: both})
    assert outcome.states() == ["received", "cancelled"]
    assert sites[0].unlearned == []
    assert any("site-0" in entry.sites for entry in outcome.entries[-4:])


def test_unknown_sites_and_reasons_and_unstarted_strategies_are_said():
    texts = []

    def ask(strategy):
        for site, reason in (("site-9", "site-left"), ("site-0", "because")):
            try:
                strategy.request_erasure(site, reason)
            except ErasureError as error:
                texts.append((type(error), str(error)))

    outcome = federate(three(), at={2: ask}, rounds=3)
    assert outcome.strategy.requests == []
    (kind, unknown), (_, reason) = texts
    assert kind is UnknownSiteError
    assert unknown == "no site 'site-9' in this federation; it has: site-0, site-1, site-2"
    assert reason.startswith("reason is 'because'; use one of")
    for call in (lambda s: s.request_erasure("a"), lambda s: s.cancel_erasure(request_id())):
        with pytest.raises(ConfigError, match="has not been started"):
            call(AFUIC())


def test_after_the_end_nothing_is_filed_in_vain():
    outcome = federate(three(), rounds=2)
    with pytest.raises(ErasureError, match="the run has ended"):
        outcome.strategy.request_erasure("site-0")
    assert outcome.strategy.requests == []


def test_cancel_before_the_merge_frees_the_site_and_its_samples():
    sites = three()

    def cancel(strategy):
        assert strategy.requests[0].state == "dispatched"
        strategy.cancel_erasure(strategy.requests[0].request_id)

    outcome = federate(sites, at={3: lambda s: s.request_erasure("site-0"), 5: cancel})
    assert outcome.states() == ["received", "dispatched", "cancelled"]
    assert outcome.strategy.merges == []
    late = outcome.events("late")
    assert [e.text for e in late] == ["a delta for a request that is cancelled; dropped"]
    assert sites[0].inbox.status(outcome.record.request_id) == "cancelled"
    assert sites[0].inbox.tombstones() == set()
    assert sites[0].trained_on[-1] == sites[0].ids
    assert outcome.strategy.run.counters.quarantined == 0


def test_what_a_site_filed_the_operator_cannot_take_back():
    sites = three()
    texts = []

    def cancel(strategy):
        with pytest.raises(StateTransitionError, match="only its steward") as caught:
            strategy.cancel_erasure(request_id(1))
        texts.append(str(caught.value))

    outcome = federate(sites, at={3: lambda s: sites[0].file(number=1), 5: cancel})
    assert outcome.states() == LIFE
    assert len(texts) == 1


def test_cancel_after_the_merge_is_refused():
    sites = three()
    errors = []

    def cancel(strategy):
        try:
            strategy.cancel_erasure(strategy.requests[0].request_id)
        except StateTransitionError as error:
            errors.append(str(error))

    at = dict.fromkeys(range(7, 12), cancel)
    outcome = federate(sites, at={3: lambda s: s.request_erasure("site-0"), **at})
    assert outcome.states() == LIFE
    assert len(errors) == 5
    assert "only a request that is not yet merged" in errors[0] or "cannot follow" in errors[0]
    with pytest.raises(ErasureError, match="no erasure request"):
        outcome.strategy.cancel_erasure(request_id(9))


def test_a_cancel_from_another_thread_waits_for_the_step_under_way(monkeypatch):
    """The delta has been found good; the cancel comes between that and the next state."""
    sites, answers, threads, held = three(), [], [], []
    read = wire.Evidence.from_json

    def cancel():
        try:
            held[0].cancel_erasure(held[0].requests[0].request_id)
        except StateTransitionError as error:
            answers.append(str(error))

    def slowly(text):
        threads.append(threading.Thread(target=cancel))
        threads[-1].start()
        threads[-1].join(timeout=0.2)
        return read(text)

    monkeypatch.setattr(wire.Evidence, "from_json", slowly)
    outcome = federate(sites, at={3: lambda s: (held.append(s), s.request_erasure("site-0"))})
    threads[0].join()
    assert outcome.states() == LIFE
    assert len(answers) == 1


def test_filing_and_cancelling_from_threads_never_breaks_the_run():
    sites = [Site(n) for n in range(5)]
    for site in sites:
        site.delta = (0.0, 0.0, -0.1)
    faults, stop = [], threading.Event()

    def meddle(strategy):
        rng = np.random.default_rng(0)
        while not stop.is_set():
            try:
                request = strategy.request_erasure(f"site-{rng.integers(3)}")
                if rng.random() < 0.7:
                    strategy.cancel_erasure(request)
            except (StateTransitionError, ErasureError):
                pass
            except Exception as error:  # noqa: BLE001
                faults.append(error)
            stop.wait(0.01)

    threads = []

    def begin(strategy):
        for _ in range(3):
            threads.append(threading.Thread(target=meddle, args=(strategy,)))
            threads[-1].start()

    try:
        outcome = federate(sites, at={2: begin}, rounds=25, verify_rounds=1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert faults == []
    assert outcome.strategy.requests
    assert outcome.strategy.run.round >= 25


# ---- across runs ---------------------------------------------------------------------


def test_a_request_that_arrives_as_the_run_ends_is_taken_up_by_the_next():
    sites = three()
    first = federate(sites, at=file_at(3, sites[0]), rounds=3)
    assert first.states()[-1] != "completed"
    second = federate(sites, rounds=14)
    assert second.states() == LIFE
    assert second.record.request_id == request_id(1)
    assert sites[0].trained_on == first_training(sites[0])
    third = federate(sites, rounds=4, max_backoff=1.0)
    assert third.strategy.requests == []


def first_training(site):
    """No list of rows trained on holds an erased sample once it is filed."""
    return [rows for rows in site.trained_on if rows == site.ids]


def test_an_operators_unfinished_request_is_told_to_the_next_run_by_the_site():
    sites = three()
    ids = []
    federate(
        sites,
        at={3: lambda s: ids.append(s.request_erasure("site-0"))},
        rounds=8,
        verify_rounds=50,
    )
    second = federate(sites, rounds=14)
    assert [r.request_id for r in second.strategy.requests] == ids
    assert second.states() == LIFE


# ---- mid-evaluation, and everything that crosses the wire -----------------------------


def test_a_request_filed_during_an_evaluation_is_taken_with_its_reply():
    sites = three()
    sites[0].on_test = lambda: sites[0].file(number=1)
    outcome = federate(sites, evaluate_every=2)
    assert outcome.states() == LIFE
    spans = [s for s in outcome.strategy.journal.spans if s.site == "site-0"]
    request = outcome.events("request")[0]
    assert any(s.kind == "evaluate" and s.end == request.time for s in spans)
    assert trained_after(outcome, "site-0", "request") == []


@pytest.mark.parametrize("dialect", ["numpy", "message"])
def test_no_sample_id_ever_crosses_the_wire(dialect):
    sites = three()
    # With everything that can go wrong on the way, too.
    faults = iter([boom])
    sites[0].on_unlearn = lambda: next(faults, lambda: None)()
    trips = iter([boom])
    sites[1].on_train = lambda: next(trips, lambda: None)()
    scores = iter([boom])
    sites[0].scores = lambda: next(scores, lambda: FORGOTTEN)() or FORGOTTEN
    sites[0].inbox.file(
        scope="samples",
        sample_ids=["patient-0-1"],
        held=sites[0].ids,
        note="patient-0-1 rang",
        request_id=request_id(2),
    )
    outcome = federate(
        sites,
        at={5: lambda s: sites[0].file(number=1)},
        dialect=dialect,
        rounds=40,
        retry_backoff=0.1,
        evaluate_every=2,
    )
    assert {r.state for r in outcome.strategy.requests} == {"completed"}
    crossed = outcome.grid.everything()
    assert b"afuic.pending-requests" in crossed
    assert request_id(1).encode() in crossed
    assert b"patient" not in crossed
    assert "patient" not in str(outcome.strategy.journal.to_dict())


def test_the_search_of_messages_would_find_an_id():
    sites = three()
    sites[0].file(["patient-0-1"], 1)
    sites[0].name = "patient-0-1"
    outcome = federate(sites, rounds=2, app=app_of(sites))
    assert b"patient-0-1" in outcome.grid.everything()
