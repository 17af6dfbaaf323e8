"""An erasure's whole life: steps, merge, lock, and several requests."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tests.erasure_helpers import (
    FORGOTTEN,
    REMEMBERED,
    Site,
    arrays_record,
    federate,
    request_id,
)
from tests.strategies.lives import LIFE, file_at, margins, three, trained_after

# ---- the whole life ------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["numpy", "message"])
@pytest.mark.parametrize("kinds", [None, ["trained"]])
def test_a_request_goes_through_every_step(dialect, kinds):
    sites = three(kinds=kinds)
    outcome = federate(sites, at=file_at(3, sites[0]), dialect=dialect)
    assert outcome.states() == LIFE
    record = outcome.record
    assert (record.site, record.attempts, record.verified_rounds) == ("site-0", 1, 2)
    assert record.evidence[0].steps == 10
    assert sites[0].unlearned[0].forget_ids == sites[0].ids
    assert trained_after(outcome, "site-0", "request") == []
    assert sites[0].inbox.status(request_id(1)) == "closed"
    assert outcome.strategy.run.counters.quarantined == 0


def test_retained_sites_never_wait():
    """Between any two tasks of a retained site lies no time at all."""
    sites = three()
    outcome = federate(sites, at=file_at(3, sites[0]), rounds=20)
    assert outcome.states() == LIFE
    for name in ("site-1", "site-2"):
        spans = [s for s in outcome.strategy.journal.spans if s.site == name]
        gaps = [b.start - a.end for a, b in pairwise(spans)]
        assert max(gaps) < 1e-9


def test_an_update_in_flight_is_refused():
    """The poll of a site that never trains tells of a request while its training runs."""
    sites = three()
    outcome = federate(
        sites,
        at={3: lambda strategy: strategy.request_erasure("site-0")},
        factors={0: 6.0},
        rounds=40,
    )
    assert outcome.states() == LIFE
    refused = outcome.events("update-refused")
    assert [event.site for event in refused] == ["site-0"]
    later = [e for e in outcome.entries if e.time >= outcome.events("request")[0].time]
    assert all("site-0" not in e.sites for e in later if e.cause == "merge")


def test_an_unmerged_update_is_withdrawn_without_a_trace():
    """The next model is bitwise that of a run in which the site never sent an update."""

    def run(file_in_task):
        sites = [Site(0, step=0.3, unlearning_steps=200), Site(1), Site(2)]
        tasks = []

        def train():
            tasks.append(None)
            if len(tasks) == file_in_task:
                sites[0].file(number=1)

        sites[0].on_train = train
        return federate(sites, buffer_size=6, factors={1: 2.0, 2: 2.2}, rounds=6)

    waiting, never = run(3), run(1)
    text = waiting.events("request")[0].text
    assert "2 unmerged update(s) of the site discarded" in text
    assert "discarded" not in never.events("request")[0].text
    assert waiting.entries[1].sites == never.entries[1].sites
    assert "site-0" not in waiting.entries[1].sites
    assert np.array_equal(waiting.models[1][0], never.models[1][0])
    assert np.array_equal(waiting.models[0][0], waiting.models[waiting.record.base_version][0])


# ---- merge and lock ------------------------------------------------------------------


@pytest.mark.parametrize("merge", ["delta", "overwrite"])
def test_the_merge_is_exactly_its_rule(merge):
    sites = three(kinds=["trained"])
    sites[0].delta = (0.25, -0.5, -1.0)
    outcome = federate(sites, at=file_at(3, sites[0]), merge=merge, lock=False)
    facts = outcome.strategy.merges[0]
    assert facts.staleness > 0
    delta = facts.delta
    np.testing.assert_allclose(delta, sites[0].delta, atol=1e-6)
    base, before = outcome.models[facts.base_version], outcome.models[facts.merge_version - 1]
    start = base if merge == "overwrite" else before
    expected = (start[0].astype(np.float64) + delta).astype(np.float32)
    assert np.array_equal(outcome.models[facts.merge_version][0], expected)
    assert np.array_equal(facts.current, before[0].astype(np.float64))
    assert np.array_equal(facts.base, base[0].astype(np.float64))


def test_the_lock_holds_in_every_later_version():
    sites = three()  # everybody climbs by .1 a step: against the delta's third entry
    held = federate(sites, at=file_at(3, sites[0]))
    assert min(margins(held, held.strategy.merges[0])) >= -1e-6
    sites = three()
    free = federate(sites, at=file_at(3, sites[0]), lock=False)
    assert min(margins(free, free.strategy.merges[0])) < -0.1


@pytest.mark.parametrize("merge", ["delta", "overwrite"])
def test_a_second_erasure_does_not_undo_the_first(merge):
    """Its snapshot is older than the first merge, and its delta points the other way."""
    sites = three()
    sites[1].delta = (0.5, 0.0, 0.8)
    outcome = federate(
        sites,
        at={3: lambda s: (sites[0].file(number=1), sites[1].file(number=2))},
        factors={1: 3.0},
        merge=merge,
        rounds=30,
        buffer_size=1,
    )
    assert outcome.states(0) == outcome.states(1) == LIFE
    assert {facts.request_id for facts in outcome.strategy.merges} == {request_id(1), request_id(2)}
    for facts in outcome.strategy.merges:
        assert min(margins(outcome, facts)) >= -1e-6


def test_an_answer_opposite_to_anothers_ends_nobodys_training():
    sites = three()
    sites[1].delta = (0.0, 0.0, 1.0)
    outcome = federate(
        sites,
        at={3: lambda s: (sites[0].file(number=1), sites[1].file(number=2))},
        rounds=30,
        buffer_size=1,
    )
    assert outcome.states(0) == LIFE
    assert outcome.strategy.run.round == 30


def test_statistics_and_counters_stay_those_of_the_current_model():
    sites = three(kinds=["trained", "statistic", "counter"])
    outcome = federate(sites, at=file_at(3, sites[0]), initial=arrays_record(with_norm=True))
    assert outcome.states() == LIFE
    version = outcome.strategy.merges[0].merge_version
    before, after = outcome.models[version - 1], outcome.models[version]
    assert not np.array_equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
    assert before[2] == after[2]
    assert after[2].dtype == np.int64
    assert outcome.strategy.merges[0].delta.shape == (3,)
    # Afterwards the lock moves trained arrays only: statistics go on being averaged.
    assert outcome.final()[1][0] > after[1][0]


# ---- several requests ----------------------------------------------------------------


def test_overlapping_requests_of_two_sites_both_complete():
    sites = [Site(n) for n in range(4)]
    outcome = federate(
        sites, at={3: lambda s: (sites[0].file(number=1), sites[1].file(["patient-1-0"], 2))}
    )
    assert sorted(r.request_id for r in outcome.strategy.requests) == [request_id(1), request_id(2)]
    assert outcome.states(0) == outcome.states(1) == LIFE


def test_requests_of_one_site_follow_each_other():
    """The second is unlearned from a model in which the first is merged."""
    sites = three()
    outcome = federate(
        sites,
        at={3: lambda s: (sites[0].file(["patient-0-0"], 1), sites[0].file(["patient-0-1"], 2))},
        rounds=30,
    )
    assert outcome.states(0) == outcome.states(1) == LIFE
    first, second = outcome.strategy.merges
    assert second.base_version >= first.merge_version
    # It trains again only when both deltas are in.
    merged = [e.time for e in outcome.events("merged")]
    resumed = trained_after(outcome, "site-0", "request")
    assert resumed
    assert min(resumed) >= max(merged)


def test_a_request_filed_during_the_unlearning_is_not_lost():
    sites = three()
    sites[0].on_unlearn = lambda: sites[0].file(["patient-0-2"], 2)
    outcome = federate(sites, at=file_at(3, sites[0]), rounds=30)
    assert outcome.states(0)[-1] == "completed"
    assert [r.request_id for r in outcome.strategy.requests] == [request_id(1), request_id(2)]
    assert outcome.states(1)[:4] == LIFE[:4]
    # It came with the very reply that brought the first delta.
    assert outcome.events("request")[1].time == outcome.events("merged")[0].time
    assert [t.forget_ids for t in sites[0].unlearned][1] == ["patient-0-2"]


def test_the_same_request_twice_takes_effect_once():
    sites = three()
    outcome = federate(
        sites,
        at={v: (lambda s: sites[0].file(number=1)) for v in (3, 4, 8)},
        rounds=20,
    )
    assert len(outcome.strategy.requests) == 1
    assert outcome.states() == LIFE
    assert len(sites[0].unlearned) == 1


def test_a_site_cannot_speak_for_another():
    sites = three()
    outcome = federate(
        sites, at={3: lambda s: (sites[0].file(number=1), sites[1].file(["patient-1-0"], 1))}
    )
    assert [r.site for r in outcome.strategy.requests] == ["site-0"]
    assert len(outcome.events("refused-request")) == 1
    assert "with other content" in outcome.events("refused-request")[0].text


def test_samples_scope_trains_again_on_what_is_kept():
    sites = three()
    outcome = federate(sites, at=file_at(3, sites[0], ["patient-0-1"]), rounds=20)
    assert outcome.states() == LIFE
    resumed = trained_after(outcome, "site-0", "request")
    assert min(resumed) >= outcome.events("merged")[0].time
    kept = [i for i in sites[0].ids if i != "patient-0-1"]
    assert sites[0].trained_on[-1] == kept
    assert any("site-0" in e.sites for e in outcome.entries[-6:] if e.cause == "merge")


def test_a_completed_samples_request_is_watched_and_reopened():
    sites = three()
    answers = iter([FORGOTTEN, FORGOTTEN, REMEMBERED])
    sites[0].scores = lambda: next(answers, FORGOTTEN)
    outcome = federate(sites, at=file_at(3, sites[0], ["patient-0-1"]), rounds=40, watch_every=3)
    states = outcome.states()
    assert states == [*LIFE, "verifying", *LIFE]
    step = outcome.record.history[6]
    assert step.text.startswith("resurfaced: forget level not met")
    assert outcome.record.attempts == 2
