"""Requests through their steps, over scripted sites: every edge a request can meet."""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from flwr_afuic import wire
from flwr_afuic.errors import ConfigError, ErasureError, StateTransitionError, UnknownSiteError
from flwr_afuic.strategies.afuic import AFUIC
from flwr_afuic.unlearning.level import ForgetScore
from tests.erasure_helpers import (
    FORGOTTEN,
    REMEMBERED,
    PlainClient,
    Site,
    app_of,
    arrays_record,
    federate,
    request_id,
)

LIFE = ["received", "dispatched", "unlearned", "merged", "verifying", "completed"]


def closed(run) -> bool:
    """Stop once every request has come to its end."""
    book = run.hooks.book
    return len(book) > 0 and not any(record.open for record in book)


def three(**changes) -> list[Site]:
    return [Site(n, **changes) for n in range(3)]


def file_at(version, site, samples=(), number=1):
    return {version: lambda strategy: site.file(samples, number)}


def trained_after(outcome, site, event) -> list[float]:
    """Starts of the site's training tasks after the first event of a kind."""
    began = outcome.events(event)[0].time
    return [
        span.start
        for span in outcome.strategy.journal.spans
        if span.site == site and span.kind == "train" and span.start >= began
    ]


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
    refused = outcome.events("refused")
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


def margins(outcome, facts):
    direction = facts.delta / np.linalg.norm(facts.delta)
    return [
        float((outcome.models[v][0].astype(np.float64) - facts.after) @ direction)
        for v in outcome.models
        if v > facts.merge_version
    ]


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


# ---- a site that does not answer as it should ----------------------------------------


def boom():
    raise RuntimeError("patient-0-1 is to blame")


FAULTS = {
    "raises": {"on_unlearn": boom},
    "nan": {"spoil": lambda arrays: [np.full_like(a, np.nan) for a in arrays]},
    "too few arrays": {"spoil": lambda arrays: arrays[:-1]},
    "too many arrays": {"spoil": lambda arrays: [*arrays, arrays[0]]},
    "shape": {"spoil": lambda arrays: [np.zeros((2, 2), np.float32)]},
    "diverged": {"stop_reason": "diverged"},
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_an_unusable_answer_is_tried_again_a_bounded_number_of_times(fault):
    sites = three()
    for name, value in FAULTS[fault].items():
        setattr(sites[0], name, value)
    outcome = federate(
        sites, at=file_at(3, sites[0]), rounds=60, retry_backoff=0.1, stop_when=closed
    )
    states = outcome.states()
    assert states == ["received", *["dispatched", "received"] * 3, "dispatched", "failed"]
    assert outcome.record.reason.startswith("unlearning failed 4 times: ")
    assert "\n" not in outcome.record.reason
    assert "patient" not in outcome.record.reason
    assert len(sites[0].unlearned) == 4
    assert outcome.strategy.merges == []
    assert {e.cause for e in outcome.entries} == {"initial", "merge"}
    assert trained_after(outcome, "site-0", "request") == []


def test_a_delta_that_overflows_the_model_is_never_merged():
    """It is finite, and so is the model it was made for; but that one has grown since."""
    sites = [Site(n, step=8e36) for n in range(3)]
    sites[0].delta = (2.1e38, 0.0, 0.0)
    start = arrays_record()
    start["w"] = type(start["w"])(np.full(3, 1e38, np.float32))
    outcome = federate(
        sites,
        at=file_at(3, sites[0]),
        initial=start,
        rounds=60,
        retry_backoff=0.1,
        stop_when=closed,
    )
    assert outcome.states()[-1] == "failed"
    assert "the merged model is not finite" in outcome.record.reason
    assert np.isfinite(outcome.final()[0]).all()


def test_one_bad_answer_costs_one_retry():
    sites = three()
    tries = []

    def once():
        tries.append(None)
        if len(tries) == 1:
            raise RuntimeError("transient")

    sites[0].on_unlearn = once
    outcome = federate(sites, at=file_at(3, sites[0]), rounds=30, retry_backoff=0.1)
    assert outcome.states() == ["received", "dispatched", *LIFE]
    assert outcome.record.attempts == 1


def test_what_the_site_calls_hopeless_fails_at_once_by_its_code():
    sites = three()

    def hopeless():
        raise ConfigError("patient-0-1 has nothing to anchor on")

    sites[0].on_unlearn = hopeless
    outcome = federate(sites, at=file_at(3, sites[0]))
    assert outcome.states() == ["received", "dispatched", "failed"]
    reason = "the site cannot carry it out: AFUIC-100 (ConfigError); see the site's log"
    assert outcome.record.reason == reason
    assert sites[0].inbox.status(request_id(1)) == "closed"


def test_a_failed_samples_request_lets_the_site_train_on_what_is_kept():
    sites = three()
    sites[0].on_unlearn = boom
    outcome = federate(
        sites, at=file_at(3, sites[0], ["patient-0-1"]), rounds=30, retry_backoff=0.01
    )
    assert outcome.states()[-1] == "failed"
    assert trained_after(outcome, "site-0", "failed")
    assert "patient-0-1" not in sites[0].trained_on[-1]


def test_a_level_that_is_not_met_is_tried_again_and_then_reported():
    sites = three()
    sites[0].scores = lambda: REMEMBERED
    outcome = federate(sites, at=file_at(3, sites[0]), rounds=40)
    attempt = ["received", "dispatched", "unlearned", "merged", "verifying"]
    assert outcome.states() == [*attempt * 3, "failed"]
    assert "completed" not in outcome.states()
    assert outcome.record.reason.startswith("not met after 3 attempts: forget level not met")
    assert "needs >= 0.800" in outcome.record.reason
    assert len(outcome.events("not-met")) == 1
    steps = [wire.decode_json(task.settings, "s")["steps"] for task in sites[0].unlearned]
    first = outcome.strategy.unlearning.steps
    assert steps == [first, 2 * first, 4 * first]


def test_a_further_attempt_can_meet_the_level():
    sites = three()
    answers = iter([REMEMBERED])
    sites[0].scores = lambda: next(answers, FORGOTTEN)
    outcome = federate(sites, at=file_at(3, sites[0]), rounds=30)
    assert outcome.states() == [*LIFE[:5], *LIFE]
    assert outcome.record.attempts == 2
    # Each attempt holds its own half-space.
    for facts in outcome.strategy.merges:
        assert min(margins(outcome, facts)) >= -1e-6


def test_without_any_level_it_is_never_called_complete():
    sites = three(level=None)
    outcome = federate(sites, at=file_at(3, sites[0]))
    assert outcome.states()[-1] == "failed"
    assert outcome.record.reason == "the site sent no forget level to verify against"


def test_an_over_forgetting_is_reported():
    sites = three()
    sites[0].scores = lambda: ForgetScore(9.0, 0.0, 4)
    outcome = federate(sites, at=file_at(3, sites[0]))
    assert outcome.states() == LIFE
    assert outcome.record.verdict.over_forgetting
    assert "over-forgetting" in outcome.record.reason


def test_hostile_numbers_of_a_verification_end_neither_run_nor_request():
    sites = three()
    sites[0].scores = lambda: ForgetScore(float("inf"), 0.0, 4)
    outcome = federate(sites, at=file_at(3, sites[0]))
    assert outcome.states()[-1] == "completed"


# ---- a site that goes ----------------------------------------------------------------


def test_a_site_gone_before_verification_is_completed_unverified():
    sites = three()
    box = []

    def gone(strategy):
        box[0].offline.add(101)

    outcome = federate(
        sites,
        at={3: lambda s: sites[0].file(number=1), 7: gone},
        on_grid=box.append,
        site_timeout=6.0,
        rounds=60,
        verify_rounds=20,
        min_available_nodes=2,
    )
    assert outcome.states() == [*LIFE[:5], "completed-unverified"]
    assert outcome.record.reason.startswith("no usable word from the site for 6 s; ")


def test_a_site_gone_before_unlearning_fails_by_timeout_and_stays_refused():
    sites = three()
    box = []

    def gone(strategy):
        box[0].offline.add(101)

    def back(strategy):
        box[0].offline.clear()

    outcome = federate(
        sites,
        at={3: gone, 9: lambda s: s.request_erasure("site-0"), 40: back},
        on_grid=box.append,
        site_timeout=6.0,
        rounds=60,
        min_available_nodes=2,
    )
    assert outcome.states() == ["received", "failed"]
    assert outcome.record.reason == "no usable word from the site for 6 s"
    assert trained_after(outcome, "site-0", "request") == []


def test_slow_training_of_others_is_not_the_sites_silence():
    """Verification waits for rounds; the site owes nothing meanwhile."""
    sites = three()
    outcome = federate(
        sites,
        at=file_at(2, sites[0]),
        factors={1: 40.0, 2: 40.0},
        site_timeout=20.0,
        rounds=12,
    )
    assert outcome.states() == LIFE


def test_a_long_task_in_flight_is_not_silence_either():
    sites = three()
    outcome = federate(
        sites,
        at={25: lambda s: s.request_erasure("site-0")},
        factors={0: 30.0},
        site_timeout=8.0,
        rounds=170,
        verify_rounds=1,
        stop_when=closed,
    )
    assert outcome.states() == LIFE


def test_a_verification_that_fails_is_asked_again():
    sites = three()
    calls = []

    def once():
        calls.append(None)
        if len(calls) == 1:
            raise RuntimeError("patient-0-1")
        return FORGOTTEN

    sites[0].scores = once
    outcome = federate(sites, at=file_at(3, sites[0]), rounds=20, retry_backoff=0.1)
    assert outcome.states() == LIFE


class Restarting:
    """A grid whose first node comes back under another node id."""

    new_id = 110

    def __call__(self, grid):
        self.grid = grid
        own = grid._names
        grid._names = [*own, *[""] * 7]

    def restart(self):
        grid = self.grid
        old = grid._contexts[101]
        grid.offline.add(101)
        grid._contexts[self.new_id] = Context(
            old.run_id, self.new_id, old.node_config, RecordDict(), old.run_config
        )
        grid._names[self.new_id - 101] = grid._names[0]


@pytest.mark.parametrize("dialect", ["numpy", "message"])
@pytest.mark.parametrize("names", [None, ["hospital-0", "hospital-1", "hospital-2"]])
def test_a_node_that_restarts_under_a_new_id_goes_on_with_its_request(dialect, names):
    sites = three()
    node = Restarting()

    def restart(strategy):
        # While the unlearning is under way; the answer of the old node never comes.
        node.restart()

    tries = []

    def once():
        tries.append(None)
        if len(tries) == 1:
            raise RuntimeError("killed")

    sites[0].on_unlearn = once
    name = names[0] if names else "site-0"
    outcome = federate(
        sites,
        at={3: lambda s: s.request_erasure(name), 6: restart},
        on_grid=node,
        dialect=dialect,
        names=names,
        rounds=60,
        retry_backoff=0.1,
        buffer_size=1,
        stop_when=closed,
    )
    assert outcome.states() == ["received", "dispatched", *LIFE]
    late = [
        s for s in outcome.strategy.journal.accepted if s[0] > outcome.events("request")[0].time
    ]
    assert all(site != name for _, site in late)


def test_a_late_update_of_the_old_node_stays_refused_once_the_site_trains_again():
    sites = three()
    node = Restarting()
    outcome = federate(
        sites,
        at={
            18: lambda strategy: node.restart(),
            25: lambda strategy: sites[0].file(["patient-0-1"], 1),
        },
        factors={0: 30.0},  # the old node's one training ends long after the new node's erasure
        on_grid=node,
        rounds=60,
        min_available_nodes=2,
    )
    assert outcome.states() == LIFE
    late = [s for s in outcome.strategy.journal.spans if s.kind == "train" and s.end - s.start > 10]
    assert [span.site for span in late] == ["site-0"]
    assert late[0].end > outcome.events("merged")[0].time
    assert outcome.strategy.run.hooks.may_train("site-0")
    refused = [event.time for event in outcome.events("refused")]
    assert late[0].end in refused


class AsksFirst(AFUIC):
    """Files for a node before any node has said a word."""

    def make_hooks(self):
        hooks = super().make_hooks()
        plain, asked = hooks.before_dispatch, []

        def before():
            if not asked and hooks.run.roster.members:
                asked.append(hooks.file_for(hooks.run.roster.members[0].site, "site-left"))
            plain()

        hooks.before_dispatch = before
        return hooks


@pytest.mark.parametrize("dialect", ["numpy", "message"])
def test_a_registered_node_that_never_spoke_is_asked_before_it_is_judged(dialect):
    """With authentication the name is known before the client has said what it speaks."""
    sites = three()
    outcome = federate(
        sites,
        names=["hospital-0", "hospital-1", "hospital-2"],
        poll_newcomers=False,
        dialect=dialect,
        strategy_type=AsksFirst,
    )
    assert outcome.record.site == "hospital-0"
    assert outcome.states() == LIFE
    assert sites[0].trained_on == []


def test_a_node_that_never_says_what_it_speaks_is_not_asked_for_ever():
    sites = three()

    class Mute(PlainClient):
        def get_properties(self, config):
            raise RuntimeError("mute")

    app = ClientApp(lambda c: Mute(sites[int(c.node_config["partition-id"])]).to_client())
    outcome = federate(
        sites, app=app, poll_newcomers=False, strategy_type=AsksFirst, retry_backoff=0.1
    )
    assert outcome.states() == ["received", "failed"]
    assert "does not say whether it speaks the erasure protocol" in outcome.record.reason
    polls = [s for s in outcome.strategy.journal.spans if s.kind == "poll"]
    assert len(polls) == outcome.strategy.max_attempts


def test_a_makeshift_name_is_followed():
    """Message-API nodes say who they are with their first reply, after the operator asked."""
    sites = three()

    outcome = federate(sites, dialect="message", strategy_type=AsksFirst, rounds=20)
    assert outcome.record.site == "site-0"
    assert outcome.states() == LIFE
    assert sites[0].trained_on == []


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

    outcome = federate(sites, at={3: lambda s: sites[0].file(number=1), 5: cancel})
    assert outcome.states() == ["received", "dispatched", "cancelled"]
    assert outcome.strategy.merges == []
    late = outcome.events("late")
    assert [e.text for e in late] == ["a delta for a request that is cancelled; dropped"]
    assert sites[0].inbox.status(request_id(1)) == "cancelled"
    assert sites[0].inbox.tombstones() == set()
    assert sites[0].trained_on[-1] == sites[0].ids
    assert outcome.strategy.run.counters.quarantined == 0


def test_cancel_after_the_merge_is_refused():
    sites = three()
    errors = []

    def cancel(strategy):
        try:
            strategy.cancel_erasure(strategy.requests[0].request_id)
        except StateTransitionError as error:
            errors.append(str(error))

    at = dict.fromkeys(range(7, 12), cancel)
    outcome = federate(sites, at={3: lambda s: sites[0].file(number=1), **at})
    assert outcome.states() == LIFE
    assert len(errors) == 5
    with pytest.raises(ErasureError, match="no erasure request"):
        outcome.strategy.cancel_erasure(request_id(9))


def test_a_cancel_from_another_thread_waits_for_the_step_under_way(monkeypatch):
    """The delta has been found good; the cancel comes between that and the next state."""
    sites, answers, threads, held = three(), [], [], []
    read = wire.Evidence.from_json

    def cancel():
        try:
            held[0].cancel_erasure(request_id(1))
        except StateTransitionError as error:
            answers.append(str(error))

    def slowly(text):
        threads.append(threading.Thread(target=cancel))
        threads[-1].start()
        threads[-1].join(timeout=0.2)
        return read(text)

    monkeypatch.setattr(wire.Evidence, "from_json", slowly)
    outcome = federate(sites, at={3: lambda s: (held.append(s), sites[0].file(number=1))})
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
