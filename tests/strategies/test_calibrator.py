"""The calibrator on a run that is a stand-in: steps join the next version, the lock is last."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from flwr_afuic.calibration.fidelity import FidelitySettings
from flwr_afuic.calibration.invariance import InvarianceSettings
from flwr_afuic.calibration.transforms import IdentityPhi, MonaiPhi, SignaturePhi
from flwr_afuic.federation.clock import VirtualClock
from flwr_afuic.federation.journal import Journal
from flwr_afuic.federation.layout import Layout
from flwr_afuic.federation.worker import Worker
from flwr_afuic.models.arrays import get_arrays
from flwr_afuic.strategies.calibrator import Calibrator
from tests.erasure_helpers import norm_model, toy_data, toy_model

PROXIES = toy_data(900, n=16)[0]


class StandIn(SimpleNamespace):
    def note(self, kind, site="", text="", *, level=0):
        self.notes.append((kind, text))


def stand_in(build=toy_model):
    model = build()
    arrays = get_arrays(model)
    clock = VirtualClock()
    return StandIn(
        arrays=arrays,
        version=3,
        started=0.0,
        clock=clock,
        layout=Layout.of(model.state_dict(), arrays),
        journal=Journal(),
        worker=Worker(clock),
        settings=SimpleNamespace(seed=7),
        notes=[],
    )


def calibrator(run, **changes):
    values = {
        "lock": True,
        "phi": None,
        "factory": toy_model,
        "proxies": PROXIES,
        "settings": InvarianceSettings(steps=3, batch_size=8, lr=0.1),
        "fidelity": None,
        "virtual_seconds": 2.0,
    }
    return Calibrator(run, **{**values, **changes})


def hold(made, run, sign=1.0, key="a/1"):
    """Hold the half-space through the current model along its first entry."""
    origin = run.layout.flatten(run.arrays)
    delta = np.zeros_like(origin)
    delta[0] = sign
    made.hold(key, delta, origin)
    return origin


def moved(run, by):
    vector = run.layout.flatten(run.arrays)
    vector[0] += by
    return run.layout.with_trained(vector, run.arrays)


def first(run, arrays):
    return run.layout.flatten(arrays)[0]


def test_before_any_erasure_it_touches_nothing():
    run = stand_in()
    made = calibrator(run, phi=MonaiPhi())
    candidate = moved(run, -1.0)
    made.after_version()
    assert made.finish(candidate) is candidate
    assert run.journal.server_spans == []


def test_the_lock_stops_what_goes_back_and_nothing_else():
    run = stand_in()
    made = calibrator(run)
    origin = hold(made, run)
    onward = moved(run, 0.5)
    assert made.finish(onward) is onward
    back = made.finish(moved(run, -0.5))
    assert first(run, back) == pytest.approx(origin[0])
    np.testing.assert_allclose(run.layout.flatten(back)[1:], origin[1:], atol=1e-6)


def test_a_lock_that_is_off_locks_nothing():
    run = stand_in()
    made = calibrator(run, lock=False)
    hold(made, run)
    candidate = moved(run, -0.5)
    assert made.finish(candidate) is candidate


def test_a_zero_delta_holds_nothing():
    run = stand_in()
    made = calibrator(run)
    origin = run.layout.flatten(run.arrays)
    made.hold("a/1", np.zeros_like(origin), origin)
    assert len(made.lock) == 0


def test_invariance_steps_join_the_version_after_they_are_done():
    run = stand_in()
    made = calibrator(run, phi=MonaiPhi(), lock=False)
    hold(made, run)
    made.after_version()
    candidate = moved(run, 0.0)
    assert made.finish(candidate) is candidate  # still running
    run.clock.sleep(2.0)
    stepped = made.finish(candidate)
    assert not np.array_equal(run.layout.flatten(stepped), run.layout.flatten(candidate))
    assert made.finish(candidate) is candidate  # once only
    (span,) = run.journal.server_spans
    assert (span.kind, span.start, span.end) == ("invariance", 0.0, 2.0)


def test_one_calibration_at_a_time():
    run = stand_in()
    made = calibrator(run, phi=MonaiPhi())
    hold(made, run)
    made.after_version()
    job = made._job
    made.after_version()
    assert made._job is job


def test_the_lock_is_applied_after_the_invariance_step():
    class Pull(IdentityPhi):
        """A stand-in for a Phi whose steps go straight back."""

    run = stand_in()
    made = calibrator(run, phi=Pull())
    origin = hold(made, run)
    made.after_version()
    made._job.future = type(made._job.future)()
    step = np.zeros_like(origin)
    step[0], step[1] = -3.0, 1.0
    made._job.future.set_result(step)
    run.clock.sleep(2.0)
    after = run.layout.flatten(made.finish(moved(run, 0.25)))
    assert after[0] == pytest.approx(origin[0])
    assert after[1] == pytest.approx(origin[1] + 1.0)


def broken_factory():
    raise RuntimeError("no memory")


@pytest.mark.parametrize("fault", ["raises", "not finite"])
def test_invariance_that_fails_is_noted_and_training_goes_on(fault):
    run = stand_in()
    made = calibrator(run, phi=MonaiPhi(), factory=broken_factory)
    if fault == "not finite":
        nan = nn.Parameter(torch.full((1,), float("nan")))

        class Poison(IdentityPhi):
            def __call__(self, images, *, generator):
                return images * nan

        made = calibrator(run, phi=Poison())
    hold(made, run)
    made.after_version()
    run.clock.sleep(2.0)
    candidate = moved(run, 0.5)
    assert made.finish(candidate) is candidate
    assert run.notes[0][0] == "invariance-failed"
    assert len(run.notes) == 1


def test_statistics_stay_the_candidates():
    run = stand_in(norm_model)
    made = calibrator(run, phi=MonaiPhi(), factory=norm_model)
    hold(made, run)
    made.after_version()
    run.clock.sleep(2.0)
    candidate = moved(run, -1.0)
    for spec, array in zip(run.layout.specs, candidate, strict=True):
        if spec.kind != "trained":
            array += 5
    after = made.finish(candidate)
    for spec, old, new in zip(run.layout.specs, candidate, after, strict=True):
        if spec.kind != "trained":
            assert np.array_equal(old, new)
            assert old.dtype == new.dtype


def test_locks_that_contradict_each_other_give_way_to_the_older():
    run = stand_in()
    made = calibrator(run)
    origin = hold(made, run, key="a/1")
    delta = np.zeros_like(origin)
    delta[0] = -1.0
    made.hold("b/1", delta, origin - 1e-3 * np.eye(1, len(origin))[0])
    assert first(run, made.finish(moved(run, -1.0))) == pytest.approx(origin[0], abs=1e-6)
    assert made.lock.keys == ("a/1",)
    assert run.notes[0][0] == "lock-dropped"
    assert "the lock of b/1 is dropped" in run.notes[0][1]


def test_fidelity_is_off_without_settings_factory_or_proxies():
    run = stand_in()
    delta = np.ones(run.layout.trained_size)
    on = FidelitySettings(steps=2, batch_size=8)
    assert calibrator(run).start_fidelity(delta) is None
    assert calibrator(run, fidelity=on, proxies=None).start_fidelity(delta) is None
    assert calibrator(run, fidelity=on, factory=None).start_fidelity(delta) is None


def test_fidelity_steps_go_from_the_merged_model_and_leave_the_run_alone():
    run = stand_in()
    made = calibrator(run, fidelity=FidelitySettings(steps=5, batch_size=8, lr=0.1))
    before = run.layout.flatten(run.arrays)
    delta = np.random.default_rng(0).normal(size=len(before)) / 5
    job = made.start_fidelity(delta)
    run.clock.sleep(2.0)
    step = made.fidelity_step(job)
    assert step.shape == before.shape
    assert np.linalg.norm(step) > 0
    assert np.array_equal(run.layout.flatten(run.arrays), before)
    assert [span.kind for span in run.journal.server_spans] == ["fidelity"]


def test_fidelity_that_fails_is_noted_and_left_out():
    run = stand_in()
    made = calibrator(run, fidelity=FidelitySettings(), factory=broken_factory)
    job = made.start_fidelity(np.zeros(run.layout.trained_size))
    assert made.fidelity_step(job) is None
    assert run.notes == [
        ("fidelity-failed", "the merge goes on without fidelity steps, which failed: no memory")
    ]


def test_a_signature_is_learned_at_each_merge_from_the_models_around_it():
    run = stand_in()
    made = calibrator(run, lock=False, learn_signature=True)
    origin = run.layout.flatten(run.arrays)
    made.hold("a/1", np.ones_like(origin), origin)
    made.after_version()
    assert made._job is None, "without the model before the merge there is nothing to learn from"
    rng = np.random.default_rng(0)
    patterns = []
    for key in ("b/1", "c/1"):
        before = origin + rng.normal(size=origin.shape)
        made.hold(key, np.ones_like(origin), origin, before)
        made.after_version()
        run.clock.sleep(2.0)
        assert not np.array_equal(
            run.layout.flatten(made.finish(run.arrays)), run.layout.flatten(run.arrays)
        )
        assert isinstance(made._phi, SignaturePhi)
        patterns.append(made._phi.perturbation)
    assert not torch.equal(*patterns)


def test_a_lock_per_layer_lets_no_layer_return():
    run = stand_in()
    layout = run.layout
    origin = layout.flatten(run.arrays)
    delta = np.ones_like(origin)
    whole, layered = calibrator(run), calibrator(run, per_layer=True)
    for one in (whole, layered):
        one.hold("request", delta, origin)
    first = np.arange(len(origin)) < layout.specs[0].size + layout.specs[1].size  # weight and bias
    back = origin + np.where(first, -1.0, 1.0 + first.sum() / (~first).sum())
    assert whole.allowed(back) is back  # the other layers go further on
    held = layered.allowed(back)
    assert (held - origin)[first] @ delta[first] >= -1e-6
    state, blobs = layered.checkpoint()
    assert len(state["locks"]) == len(blobs) > 1
