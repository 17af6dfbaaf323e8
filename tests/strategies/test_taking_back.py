"""EASE's taking back: what the server takes out by its history before a site excises."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from flwr_afuic.calibration.exclusive import GsdSettings
from flwr_afuic.history.unlearn import unlearn
from flwr_afuic.strategies.gate import GateSettings
from tests.erasure_helpers import FORGOTTEN, LEVEL, REMEMBERED
from tests.strategies.paired import PairsClient, ask, ease, flat, make_sites


def test_the_server_takes_back_first_and_the_site_excises_what_is_left():
    sites = make_sites()
    outcome = ease(sites, at={6: ask}, lam=25.0)
    record, (task,) = outcome.record, sites[0].unlearned
    base = flat(outcome.models[record.base_version])
    taken = flat(task.snapshot) - base
    learned = np.linalg.norm(base - flat(outcome.models[0]))
    assert np.linalg.norm(taken) / learned == pytest.approx(record.details["taken_back"], rel=1e-4)
    assert record.details["history_coverage"]
    # Along the site's own directions all is taken back, before the site moves there at all.
    basis, _ = outcome.strategy._hooks.pins.pinned.held(record.request_id)
    begun = basis.coordinates(flat(outcome.models[0]))
    np.testing.assert_allclose(basis.coordinates(flat(task.snapshot)), begun, atol=1e-5)
    # Both parts are merged, once, and into what the others learned meanwhile.
    (facts,) = outcome.strategy.merges
    np.testing.assert_allclose(facts.after - facts.current, facts.delta, atol=1e-6)
    np.testing.assert_allclose(facts.base, base, atol=1e-6)
    assert np.linalg.norm(facts.delta - taken) < np.linalg.norm(taken)


def test_what_the_history_takes_out_is_medus_rule():
    sites = make_sites()
    none = GsdSettings(tau=0.0)  # nothing is the site's alone
    outcome = ease(sites, at={6: ask}, gsd=none, history_share=0.5)
    (task,) = sites[0].unlearned
    taken = flat(task.snapshot) - flat(outcome.models[outcome.record.base_version])
    rule = unlearn(outcome.strategy.recorder.store, ["site-0"], nobody_left="remove")
    np.testing.assert_allclose(taken, 0.5 * flat(rule.arrays), atol=1e-6)
    assert len(outcome.strategy._hooks.pins.pinned) == 0


def test_nothing_is_taken_back_where_that_is_not_wanted():
    sites = make_sites()
    outcome = ease(sites, at={6: ask}, take_back=False)
    (task,) = sites[0].unlearned
    np.testing.assert_array_equal(
        flat(task.snapshot), flat(outcome.models[outcome.record.base_version])
    )
    assert "taken_back" not in outcome.record.details
    assert outcome.states()[-1] == "completed"


def test_a_further_attempt_takes_nothing_back_again():
    told = iter([REMEMBERED] * 2)

    class Forgetful(PairsClient):
        def unlearn(self, task):
            arrays, evidence = super().unlearn(task)
            return arrays, dataclasses.replace(evidence, reference=LEVEL)

        def score(self, parameters, sample_ids):
            return next(told, FORGOTTEN)

    sites = make_sites()
    outcome = ease(sites, at={6: ask}, client=Forgetful, rounds=30)
    assert outcome.states()[-1] == "completed"
    versions = [flat(model) for model in outcome.models.values()]
    as_they_were = [
        any(np.array_equal(flat(task.snapshot), version) for version in versions)
        for task in sites[0].unlearned
    ]
    assert len(as_they_were) > 1
    assert as_they_were == [False] + [True] * (len(as_they_were) - 1)
    first, *further = outcome.strategy.merges
    for facts in further:
        assert np.linalg.norm(facts.delta) < np.linalg.norm(first.delta)


def test_a_gate_judges_the_sites_part_and_not_the_servers():
    asked = []

    def score(arrays):
        asked.append(flat(arrays))
        return 1.0

    sites = make_sites()
    outcome = ease(sites, at={6: ask}, gate=GateSettings(score=score))
    assert outcome.states()[-1] == "completed"
    (facts,) = outcome.strategy.merges
    apart = np.linalg.norm(asked[1] - asked[0])
    assert apart < 0.5 * np.linalg.norm(facts.delta)


@pytest.mark.parametrize("step", ["unlearned", "dispatched"])
def test_a_crash_takes_back_once(tmp_path, step):
    class Fall(Exception):
        pass

    def fall(event):
        if event.kind == step:
            raise Fall

    history, state = tmp_path / "history", tmp_path / "state"
    sites = make_sites()
    with pytest.raises(Fall):
        ease(sites, at={6: ask}, history=history, state_dir=state, on_event=fall)
    outcome = ease(sites, history=history, state_dir=state, rounds=20)
    assert outcome.states()[-1] == "completed"
    (facts,) = outcome.strategy.merges
    expected = flat(sites[0].unlearned[-1].snapshot) - facts.base
    share = np.linalg.norm(expected) / np.linalg.norm(facts.base - outcome.strategy._hooks._initial)
    assert outcome.record.details["taken_back"] == pytest.approx(share, rel=1e-4)
    np.testing.assert_allclose(facts.after - facts.current, facts.delta, atol=1e-6)
    assert np.linalg.norm(facts.delta - expected) < np.linalg.norm(expected)
