"""Erasures of sites that answer wrongly, late, under a new name, or not at all."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from flwr_afuic import wire
from flwr_afuic.errors import ConfigError
from flwr_afuic.strategies.afuic import AFUIC
from flwr_afuic.unlearning.level import ForgetScore
from tests.erasure_helpers import (
    FORGOTTEN,
    REMEMBERED,
    PlainClient,
    Site,
    arrays_record,
    federate,
)
from tests.strategies.lives import LIFE, boom, closed, file_at, margins, three, trained_after

# ---- a site that does not answer as it should ----------------------------------------


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
    (told,) = sites[0].inbox.requests()
    assert (told.status, told.failure) == ("failed", "not-unlearned")


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
    refused = [event.time for event in outcome.events("update-refused")]
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
