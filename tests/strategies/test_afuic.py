"""AFUIC as its users meet it: settings, and whole runs over small torch models."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_afuic.calibration.invariance import InvarianceSettings
from flwr_afuic.calibration.transforms import IdentityPhi
from flwr_afuic.errors import ConfigError
from flwr_afuic.strategies.afuic import AFUIC
from flwr_afuic.unlearning.inference import score
from flwr_afuic.unlearning.reference import DistillationSettings
from flwr_afuic.unlearning.settings import UnlearningSettings
from tests.erasure_helpers import (
    ToyClient,
    federate,
    norm_model,
    request_id,
    toy_app,
    toy_data,
    toy_model,
    toy_sites,
)

LIFE = ["received", "dispatched", "unlearned", "merged", "verifying", "completed"]
UNLEARNING = UnlearningSettings(steps=20, lr=0.2, batch_size=8, anchor_batch_size=8)
PROXIES = toy_data(900, n=32)[0]


def options(**changes):
    return {
        "model_factory": toy_model,
        "proxies": PROXIES,
        "unlearning": UNLEARNING,
        "distillation": DistillationSettings(steps=30, batch_size=16),
        "invariance": InvarianceSettings(steps=2, batch_size=16),
        "virtual_reference_seconds": 0.5,
        **changes,
    }


def run(*, build=toy_model, samples=(), rounds=22, sites=None, dialect="numpy", at=3, **changes):
    sites = sites or toy_sites()
    outcome = federate(
        sites,
        at={at: lambda strategy: sites[0].file(samples, 1)},
        app=toy_app(sites, build, dialect),
        initial=ArrayRecord(build().state_dict()),
        dialect=dialect,
        rounds=rounds,
        **options(**changes),
    )
    return outcome, sites


def forgotten(outcome, version, sites) -> float:
    """Loss of one version on what site 0 trained on."""
    model = toy_model()
    names = list(model.state_dict())
    arrays = [torch.from_numpy(a) for a in outcome.models[version]]
    model.load_state_dict(dict(zip(names, arrays, strict=True)))
    data = ToyClient(sites[0]).data()
    return score(model, data.images, data.labels).loss


# ---- settings ------------------------------------------------------------------------

WRONG = [
    ({"merge": "replace"}, "merge is 'replace'; use 'delta' or 'overwrite'"),
    ({"verify_rounds": 0}, "verify_rounds is 0; it must be an integer of at least 1"),
    ({"verify_rounds": True}, "verify_rounds is True; it must be an integer of at least 1"),
    ({"watch_every": 1.5}, "watch_every is 1.5; it must be an integer of at least 1"),
    ({"max_attempts": -1}, "max_attempts is -1; it must be an integer of at least 1"),
    ({"site_timeout": 0}, "site_timeout is 0; it must be positive (seconds)"),
    ({"site_timeout": float("nan")}, "site_timeout is nan; it must be positive (seconds)"),
    (
        {"virtual_reference_seconds": -1.0},
        "virtual_reference_seconds is -1.0; it must be finite and not negative",
    ),
    (
        {"virtual_invariance_seconds": float("inf")},
        "virtual_invariance_seconds is inf; it must be finite and not negative",
    ),
    (
        {"proxies": PROXIES},
        "proxies without model_factory: the server cannot run the model on them; pass "
        "model_factory=... as well",
    ),
    (
        {"proxies": np.zeros((3, 4)), "model_factory": toy_model},
        "proxies have shape (3, 4); they must be (n, channels, *spatial), with two or three "
        "spatial axes",
    ),
    (
        {"proxies": np.zeros((0, 1, 4, 4)), "model_factory": toy_model},
        "proxies have shape (0, 1, 4, 4); they must be (n, channels, *spatial), with two or three "
        "spatial axes",
    ),
    (
        {"proxies": np.full((1, 1, 4, 4), np.nan), "model_factory": toy_model},
        "proxies hold NaN or infinity; remove those images",
    ),
    ({"buffer_size": 0}, "buffer_size is 0; it must be an integer of at least 1"),
    ({"mode": "turbo"}, "mode is 'turbo'; use 'async' or 'sync'"),
]


@pytest.mark.parametrize(("wrong", "text"), WRONG, ids=[str(list(w)) for w, _ in WRONG])
def test_a_wrong_setting_is_one_clear_line(wrong, text):
    with pytest.raises(ConfigError) as caught:
        AFUIC(**wrong)
    assert str(caught.value) == text


def test_a_phi_nobody_knows_is_refused_even_where_it_would_not_be_used():
    with pytest.raises(ConfigError, match="mirror"):
        AFUIC(phi="mirror")


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["verify_rounds", "watch_every", "max_attempts", "buffer_size"]),
    st.one_of(st.integers(max_value=0), st.floats(), st.text(max_size=3), st.none()),
)
def test_counts_are_counts(name, value):
    with pytest.raises(ConfigError) as caught:
        AFUIC(**{name: value})
    assert str(caught.value).startswith(f"{name} is ")
    assert "\n" not in str(caught.value)


def test_a_factory_of_another_model_is_found_out_before_training():
    def other():
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))

    with pytest.raises(ConfigError, match="model_factory does not build the model of initial"):
        run(model_factory=other)


def test_proxies_the_model_cannot_take_are_found_out_before_training():
    with pytest.raises(ConfigError, match=r"cannot run on proxies of shape \(4, 3, 9, 9\)"):
        run(proxies=np.zeros((4, 3, 9, 9), np.float32))


def test_the_defaults_are_the_designs():
    strategy = AFUIC(model_factory=toy_model, proxies=PROXIES)
    assert (strategy.merge, strategy.lock, strategy.prediction_invariance) == ("delta", True, True)
    assert strategy.verify_rounds == 5
    assert strategy.proxies.dtype == torch.float32
    assert AFUIC().prediction_invariance is False
    assert AFUIC().phi is None


def test_each_further_attempt_may_take_twice_the_steps():
    strategy = AFUIC(unlearning=UnlearningSettings(steps=10))
    assert [strategy.unlearning_for(n).steps for n in (1, 2, 3)] == [10, 20, 40]


# ---- whole runs ----------------------------------------------------------------------


def test_forgetting_with_proxies_from_request_to_completion():
    outcome, sites = run()
    assert outcome.states() == LIFE
    assert isinstance(outcome.result, Result)
    record = outcome.record
    assert record.evidence[0].reference is not None
    assert record.verdict.met
    # What site 0 alone believed is gone at the merge, and does not come back.
    before = forgotten(outcome, record.base_version, sites)
    later = [forgotten(outcome, v, sites) for v in outcome.models if v >= record.merge_version]
    assert min(later) > before
    kinds = {span.kind for span in outcome.strategy.journal.server_spans}
    assert {"reference", "invariance"} <= kinds
    assert len([s for s in outcome.strategy.journal.server_spans if s.kind == "reference"]) == 1
    assert outcome.strategy.run.counters.quarantined == 0


def test_retained_sites_do_not_wait_for_reference_fidelity_or_invariance():
    outcome, _ = run(virtual_reference_seconds=8.0, virtual_invariance_seconds=3.0, rounds=50)
    assert outcome.states() == LIFE
    for name in ("site-1", "site-2"):
        spans = [s for s in outcome.strategy.journal.spans if s.site == name]
        assert all(b.start - a.end < 1e-9 for a, b in pairwise(spans))


@pytest.mark.parametrize("merge", ["delta", "overwrite"])
def test_without_fidelity_steps_the_merge_is_its_rule_to_the_last_bit(merge):
    parts = {"fidelity": False, "lock": False, "prediction_invariance": False}
    outcome, _ = run(merge=merge, **parts)
    facts = outcome.strategy.merges[0]
    layout = outcome.strategy.run.layout
    before = outcome.models[facts.merge_version - 1]
    base = outcome.models[facts.base_version]
    start = layout.flatten(base if merge == "overwrite" else before)
    expected = layout.with_trained(start + facts.delta, before)
    got = outcome.models[facts.merge_version]
    assert all(np.array_equal(a, b) for a, b in zip(expected, got, strict=True))


def test_the_lock_holds_with_invariance_steps_on():
    outcome, _ = run()
    facts, layout = outcome.strategy.merges[0], outcome.strategy.run.layout
    direction = facts.delta / np.linalg.norm(facts.delta)
    later = [v for v in outcome.models if v > facts.merge_version]
    assert len(later) > 5
    for version in later:
        moved = layout.flatten(outcome.models[version]) - facts.after
        assert float(moved @ direction) >= -1e-5


def test_without_proxies_the_hold_out_is_the_level():
    outcome, _ = run(model_factory=None, proxies=None, max_attempts=1)
    record = outcome.record
    assert outcome.states()[:5] == LIFE[:5]
    assert record.evidence[0].reference == record.evidence[0].holdout
    assert outcome.strategy.journal.server_spans == []
    assert b"proxies" not in outcome.grid.everything()
    assert record.verdict is not None
    assert (outcome.states()[-1] == "completed") is record.verdict.met


def test_samples_scope_forgets_part_and_trains_on_the_rest():
    gone = [f"patient-0-{row}" for row in range(6)]
    outcome, sites = run(samples=gone, rounds=30)
    assert outcome.record.notice.count == 6
    assert outcome.states()[-1] == "completed"
    assert any("site-0" in entry.sites for entry in outcome.entries[-8:])
    assert sites[0].inbox.tombstones() == set(gone)


@pytest.mark.parametrize("dialect", ["numpy", "message"])
def test_no_sample_id_crosses_with_torch_clients_either(dialect):
    outcome, _ = run(dialect=dialect)
    assert outcome.states() == LIFE
    assert request_id(1).encode() in outcome.grid.everything()
    assert b"patient" not in outcome.grid.everything()


def test_both_dialects_take_the_same_steps():
    numpy_run, _ = run()
    message_run, _ = run(dialect="message")
    assert numpy_run.states() == message_run.states() == LIFE


def journal(outcome) -> str:
    return json.dumps(outcome.strategy.journal.to_dict(), sort_keys=True)


def test_the_same_seed_gives_the_same_bits_twice():
    (one, _), (two, _), (other, _) = run(), run(), run(seed=1, rounds=3)
    assert all(
        np.array_equal(a, b)
        for v in one.models
        for a, b in zip(one.models[v], two.models[v], strict=True)
    )
    assert journal(one) == journal(two)
    assert not np.array_equal(one.final()[0], other.final()[0])


def test_identity_phi_changes_nothing():
    """The control: prediction invariance under the identity has no gradient."""
    on, _ = run(phi="identity", fidelity=False)
    off, _ = run(prediction_invariance=False, fidelity=False)
    assert isinstance(on.strategy.phi, IdentityPhi)
    assert len(on.models) == len(off.models)
    for version in on.models:
        for a, b in zip(on.models[version], off.models[version], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_learned_signature_calibrates_after_the_merge():
    learned, _ = run(phi="signature")
    off, _ = run(prediction_invariance=False)
    assert learned.states() == off.states()
    assert learned.events("invariance-failed") == []
    assert not np.array_equal(learned.final()[0], off.final()[0])


def test_batch_norm_statistics_are_untouched_by_the_merge_and_out_of_the_lock():
    outcome, _ = run(build=norm_model, model_factory=norm_model)
    record, layout = outcome.record, outcome.strategy.run.layout
    assert record.merge_version is not None
    before = outcome.models[record.merge_version - 1]
    after = outcome.models[record.merge_version]
    kinds = [spec.kind for spec in layout.specs]
    assert kinds.count("statistic") == 2
    assert kinds.count("counter") == 1
    for kind, old, new in zip(kinds, before, after, strict=True):
        if kind == "trained":
            assert not np.array_equal(old, new)
        else:
            assert np.array_equal(old, new)
            assert old.dtype == new.dtype
    size = sum(a.size for a, k in zip(after, kinds, strict=True) if k == "trained")
    assert outcome.strategy.merges[0].delta.shape == (size,)
    assert outcome.strategy.run.hooks.calibrator.lock.state_dict()["directions"].shape[1] == size


def test_a_failing_reference_fails_the_request_and_nothing_else():
    builds = []

    def factory():
        builds.append(None)
        if len(builds) > 1:
            raise RuntimeError("out of memory")
        return toy_model()

    outcome, _ = run(model_factory=factory, rounds=10)
    assert outcome.states() == ["received", "failed"]
    assert outcome.record.reason == (
        "the proxy-distilled reference could not be made: out of memory"
    )
    assert outcome.strategy.run.round == 10


def test_a_new_start_has_an_empty_book():
    sites = toy_sites()
    strategy = AFUIC(buffer_size=2, min_available_nodes=3, evaluate_every=0)
    assert strategy.requests == []
    assert strategy.make_hooks() is not strategy.make_hooks()
    assert len(sites) == 3


def test_the_summary_shows_no_proxy_image(caplog):
    strategy = AFUIC(model_factory=toy_model, proxies=torch.full((3, 1, 4, 4), 0.123))
    with caplog.at_level("INFO", logger="flwr"):
        strategy.summary()
    assert "proxies: of shape (3, 1, 4, 4)" in caplog.text
    assert "0.123" not in caplog.text
