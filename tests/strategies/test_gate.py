"""The fidelity gate and the norm bound: an erasure must not be a way to ruin the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flwr_afuic.errors import ConfigError, StateTransitionError
from flwr_afuic.models.arrays import get_arrays
from flwr_afuic.strategies.gate import GateSettings, disagreement
from tests.erasure_helpers import federate, toy_model
from tests.strategies.lives import LIFE, file_at, three

HELD = ["received", "dispatched", "unlearned", "held"]


def third_entry(arrays) -> float:
    """What an erasure of a scripted site moves, and training does not by much."""
    return float(arrays[0][2])


def costly(limit=-0.5):
    """A score that falls as soon as the third entry does."""
    return GateSettings(score=lambda arrays: 1.0 if third_entry(arrays) > limit else 0.0)


def still(sites):
    """Sites whose training moves the model so little that only an erasure shows."""
    for site in sites:
        site.step = 0.0
    return sites


BOUNDLESS = {"erasure_norm_factor": 1e6}  # beside such training any erasure is out of proportion


def test_a_merge_that_costs_too_much_is_held_and_said():
    sites = still(three())
    outcome = federate(sites, at=file_at(3, sites[0]), gate=costly(), **BOUNDLESS)
    assert outcome.states() == HELD
    assert outcome.record.open
    assert "the merge costs 1.000, more than 0.15; release it" in outcome.record.reason
    assert outcome.strategy.merges == []
    assert third_entry(outcome.final()) > -0.5


def test_the_operator_releases_a_held_merge():
    sites = still(three())
    at = {
        **file_at(3, sites[0]),
        8: lambda s: s.release_erasure(s.requests[0].request_id),
    }
    outcome = federate(sites, at=at, gate=costly(), **BOUNDLESS)
    assert outcome.states() == [*HELD, "merged", "verifying", "completed"]
    assert len(outcome.strategy.merges) == 1


def test_the_operator_rejects_a_held_merge():
    sites = still(three())
    at = {**file_at(3, sites[0]), 8: lambda s: s.reject_erasure(s.requests[0].request_id)}
    outcome = federate(sites, at=at, gate=costly(), **BOUNDLESS)
    assert outcome.states() == [*HELD, "failed"]
    assert outcome.record.reason.startswith("rejected by the operator")
    assert third_entry(outcome.final()) > -0.5


def test_only_a_held_merge_can_be_released_or_rejected():
    sites = three()
    texts = []

    def meddle(strategy):
        for call in (strategy.release_erasure, strategy.reject_erasure):
            with pytest.raises(StateTransitionError, match="only a held one") as caught:
                call(strategy.requests[0].request_id)
            texts.append(str(caught.value))

    federate(sites, at={**file_at(3, sites[0]), 4: meddle})
    assert len(texts) == 2


def test_a_site_with_samples_trains_on_while_its_merge_is_held():
    sites = still(three())
    outcome = federate(
        sites, at=file_at(3, sites[0], ["patient-0-1"]), gate=costly(), **BOUNDLESS, rounds=16
    )
    assert outcome.states() == HELD
    kept = [sample for sample in sites[0].ids if sample != "patient-0-1"]
    assert sites[0].trained_on[-1] == kept


def test_a_held_merge_survives_a_restart_and_is_released_then(tmp_path):
    sites = still(three())
    federate(
        sites, at=file_at(3, sites[0]), gate=costly(), **BOUNDLESS, state_dir=tmp_path, rounds=10
    )

    def release(strategy):
        strategy.release_erasure(strategy.requests[0].request_id)

    outcome = federate(
        sites, rounds=20, gate=costly(), **BOUNDLESS, state_dir=tmp_path, at={17: release}
    )
    assert outcome.states() == [*HELD, "merged", "verifying", "completed"]


def test_a_score_that_is_no_number_holds_the_merge():
    sites = three()
    gate = GateSettings(score=lambda arrays: float("nan"))
    assert federate(sites, at=file_at(3, sites[0]), gate=gate).states() == HELD


def test_a_score_that_fails_holds_the_merge():
    def score(arrays):
        raise RuntimeError("no licence")

    sites = three()
    outcome = federate(sites, at=file_at(3, sites[0]), gate=GateSettings(score=score))
    assert outcome.states() == HELD
    assert "no licence" in outcome.record.reason


@pytest.mark.parametrize("after", [0.5, 0.2])
def test_retained_sites_judge_where_there_are_no_proxies(after):
    sites = still(three())
    outcome = federate(
        sites,
        at=file_at(3, sites[0]),
        gate=GateSettings(by="sites"),
        app=judging(sites, after),
        **BOUNDLESS,
    )
    assert outcome.states() == (LIFE if after == 0.5 else HELD)
    judged = [s for s in outcome.strategy.journal.spans if s.kind == "gate"]
    assert sorted(s.site for s in judged) == ["site-1"] * 2 + ["site-2"] * 2
    assert outcome.strategy.run.counters.quarantined == 0


def judging(sites, after):
    """An app whose sites score the model by its third entry."""
    from flwr.clientapp import ClientApp

    from tests.erasure_helpers import ScriptedClient

    class Judge(ScriptedClient):
        def test(self, parameters, config):
            accuracy = 0.5 if third_entry(parameters) > -0.5 else after
            return 0.5, 4, {"accuracy": accuracy}

    def make(context):
        return Judge(sites[int(context.node_config["partition-id"])]).to_client()

    return ClientApp(make)


def test_where_nobody_can_judge_the_merge_is_made_and_that_is_said():
    sites = three(plain=True)
    sites[0].plain = False
    gate = GateSettings(by="proxies")
    outcome = federate(sites, at=file_at(3, sites[0]), gate=gate)
    assert outcome.states() == LIFE
    (event,) = outcome.events("gate-skipped")
    assert "no proxies" in event.text


def test_a_judge_that_fails_is_left_out():
    sites = three()

    def fail():
        raise RuntimeError("out of memory")

    sites[1].on_test = fail
    outcome = federate(sites, at=file_at(3, sites[0]), gate=GateSettings(by="sites"), rounds=20)
    assert outcome.states() == LIFE


def test_a_delta_out_of_all_proportion_is_refused():
    sites = three()
    sites[0].delta = (0.0, 0.0, -1e4)
    outcome = federate(sites, at=file_at(4, sites[0]), erasure_norm_factor=50.0, rounds=30)
    assert outcome.record.state == "failed"
    assert outcome.strategy.merges == []
    assert "over 50 times the median" in outcome.events("quarantined")[0].text
    assert third_entry(outcome.final()) > -10


def test_disagreement_counts_changed_predictions():
    model = toy_model()
    proxies = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    arrays = get_arrays(model)
    assert disagreement(toy_model, proxies, arrays, arrays) == 0.0
    flipped = [*arrays[:-2], -arrays[-2], -arrays[-1]]
    assert disagreement(toy_model, proxies, arrays, flipped) == 1.0
    changed = [*arrays[:-1], arrays[-1] + np.array([100.0, 0.0], np.float32)]
    with torch.no_grad():
        second = float((model(proxies).argmax(1) == 1).float().mean())
    assert disagreement(toy_model, proxies, arrays, changed) == pytest.approx(second)


@pytest.mark.parametrize(
    "changes", [{"by": "me"}, {"max_cost": 0.0}, {"max_cost": 1.5}, {"sites": 0}, {"sites": 1.5}]
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError):
        GateSettings(**changes)
