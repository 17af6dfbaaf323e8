"""What the rule is worth: the bound on quantisation, on step sizes, and the diagnosis."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from flwr_afuic.history.codec import CodecSettings
from flwr_afuic.history.diagnosis import diagnose
from flwr_afuic.history.lattices import LATTICES
from flwr_afuic.history.memory import MemoryStore
from flwr_afuic.history.recorder import RecorderSettings
from flwr_afuic.history.unlearn import unlearn

from .federations import Convex, Vector, logistic_sites, record, train

SIZE = 400
SITES = 10


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    with MemoryStore() as store:
        yield store


@pytest.fixture(scope="module")
def quadratic() -> tuple[Convex, Convex]:
    """Sites that pull to points of their own: training with and without site ``s0``."""
    rng = np.random.default_rng(1)
    gradients = {}
    for index in range(SITES):
        target = 0.02 * rng.normal(size=SIZE)
        curvature = rng.uniform(0.5, 1.5, SIZE)
        gradients[f"s{index}"] = lambda w, t=target, c=curvature: c * (w - t)
    steps = [0.5 * (t + 1) ** -1.1 for t in range(12)]
    rest = {site: gradient for site, gradient in gradients.items() if site != "s0"}
    return train(gradients, SIZE, steps), train(rest, SIZE, steps)


@pytest.mark.parametrize(
    ("lattice", "step"),
    [
        *(("E8", step) for step in (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)),
        *((lattice, step) for lattice in ("Z", "A2") for step in (4.0, 0.5)),
    ],
)
def test_the_error_of_quantisation_adds_up_as_bounded(
    quadratic: tuple[Convex, Convex], lattice: str, step: float
) -> None:
    """E||w'' - w*||^2 = ||w' - w*||^2 + sum_j sigma_j^2 / (U - 1)^2, with equality [D]."""
    trained, retrained = quadratic
    codec = CodecSettings(lattice, step, unit="tensor", hold=0.0)
    settings = RecorderSettings(codec, aggregate=None)
    exact = np.zeros(SIZE)
    variance = 0.0
    for updates in trained.updates:
        mean = sum(update for _, update in updates.values()) / SITES
        deviation = updates["s0"][1] - mean
        exact -= deviation / (SITES - 1)
        std = math.sqrt(float(np.mean(deviation**2)))
        # Entries in the last block's padding are not decoded: they add nothing.
        variance += SIZE * (step * std) ** 2 * LATTICES[lattice].second_moment
    bias = trained.final + exact - retrained.final
    expected = float(bias @ bias) + variance / (SITES - 1) ** 2
    squared, apart, shrunk_apart = [], [], []
    for seed in range(12):
        with MemoryStore() as store:
            store.set("seed", seed)
            only = [{"s0": u["s0"], "rest": _others(u)} for u in trained.updates]
            record(store, only, settings)
            found = unlearn(store, ["s0"])
            correction = found.arrays[0]
            squared.append(float(np.sum((trained.final + correction - retrained.final) ** 2)))
            assert found.noise == pytest.approx((variance / (SITES - 1) ** 2,), rel=1e-3)
            apart.append(float(np.sum((correction - exact) ** 2)))
            shrunk_apart.append(float(np.sum((found.shrunk().arrays[0] - exact) ** 2)))
    # Noise terms: 2 <bias, noise> and the spread of |noise|^2 over 400 entries, 12 draws.
    assert np.mean(squared) == pytest.approx(expected, rel=0.06)
    # James and Stein: of a sum of energy E and noise V, E V / (E + V) is left.
    noise = variance / (SITES - 1) ** 2
    left = 1 / (1 / noise + 1 / float(exact @ exact))
    assert np.mean(shrunk_apart) < np.mean(apart)
    assert np.mean(shrunk_apart) == pytest.approx(left, rel=0.06)
    if step <= 0.25:
        assert expected == pytest.approx(float(bias @ bias), rel=0.05)


def _others(updates: dict[str, tuple[float, Vector]]) -> tuple[float, Vector]:
    """The other sites as one with their weight: the same aggregate, fewer records to write."""
    rest = [update for site, (_, update) in updates.items() if site != "s0"]
    return float(len(rest)), sum(rest) / len(rest)


def test_the_rule_is_off_by_at_most_the_step_sizes(store: MemoryStore) -> None:
    """One local step and gradients bounded by M: ||w' - w*|| <= 2 M sum eta_j [D]."""
    gradients = logistic_sites(1, SITES)
    longest = 0.0
    for decay in (1.1, 0.5):
        steps = [(t + 1) ** -decay for t in range(60)]
        trained = train(gradients, 20, steps)
        retrained = train({s: g for s, g in gradients.items() if s != "s0"}, 20, steps)
        with MemoryStore() as own:
            record(own, trained.updates)
            correction = unlearn(own, ["s0"]).arrays[0]
        for updates, step in zip(trained.updates, steps, strict=True):
            longest = max(longest, *(np.linalg.norm(u) / step for _, u in updates.values()))
        distance = np.linalg.norm(trained.final + correction - retrained.final)
        assert distance <= 2 * longest * sum(steps)


def logistic(decay: float, rounds: int, seed: int) -> tuple[float, float, MemoryStore, Convex]:
    """Distance to the retrained model before and after the correction."""
    gradients = logistic_sites(seed, SITES)
    steps = [(t + 1) ** -decay for t in range(rounds)]
    trained = train(gradients, 20, steps)
    retrained = train({s: g for s, g in gradients.items() if s != "s0"}, 20, steps)
    store = MemoryStore()
    record(store, trained.updates)
    correction = unlearn(store, ["s0"]).arrays[0]
    before = float(np.linalg.norm(trained.final - retrained.final))
    after = float(np.linalg.norm(trained.final + correction - retrained.final))
    return before, after, store, trained


@pytest.mark.parametrize("seed", range(4))
def test_steps_that_do_not_add_up_move_the_model_away_and_draw_a_warning(seed: int) -> None:
    before, after, store, trained = logistic(0.5, 150, seed)
    assert after > before, "a rule known to fail here; if it no longer does, rethink the warning"
    diagnosis = diagnose(
        store, unlearn(store, ["s0"]), initial=[trained.initial], final=[trained.final]
    )
    assert diagnosis.decay == pytest.approx(0.5, abs=0.25)
    assert "too slowly to have a finite sum" in diagnosis.warnings[-1]
    assert len(diagnosis.warnings) == 1 + (diagnosis.ratio > 1)
    store.close()


@pytest.mark.parametrize("seed", range(4))
def test_steps_that_add_up_move_it_closer_and_draw_none(seed: int) -> None:
    before, after, store, trained = logistic(1.5, 150, seed)
    assert after < 0.8 * before
    diagnosis = diagnose(
        store, unlearn(store, ["s0"]), initial=[trained.initial], final=[trained.final]
    )
    assert diagnosis.warnings == ()
    assert diagnosis.ratio < 1
    assert diagnosis.decay == pytest.approx(1.5, abs=0.25)
    store.close()


def test_the_diagnosis_by_hand(store: MemoryStore) -> None:
    ones = np.ones(4, dtype=np.float32)
    rounds = [{"a": (1.0, ones / j), "b": (1.0, -ones / j)} for j in range(1, 7)]
    record(store, rounds)
    correction = unlearn(store, ["a"])
    # d_a = 1/j, so D = -2 * sum 1/j... once over (1 - 1/2): -sum 1/j.
    total = sum(1 / j for j in range(1, 7))
    assert correction.arrays[0] == pytest.approx(-total * np.ones(4))
    found = diagnose(
        store, correction, initial=[np.zeros(4, np.float32)], final=[np.full(4, 7.0, np.float32)]
    )
    assert found.correction == pytest.approx(2 * total)
    assert found.training == pytest.approx(14.0)
    assert found.ratio == pytest.approx(total / 7)
    assert found.steps == pytest.approx(2 * total)
    assert found.decay == pytest.approx(1.0)
    given_steps = diagnose(store, correction, step_sizes=[0.1] * 6)
    assert given_steps.steps == pytest.approx(0.6)
    assert given_steps.decay == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(given_steps.training)
    assert math.isnan(given_steps.ratio)
    assert len(given_steps.warnings) == 1
    near = [np.full(4, total / 3, np.float32)]
    long = diagnose(store, correction, initial=[np.zeros(4, np.float32)], final=near)
    assert long.warnings[0].startswith("the correction is 3.00 times as long as all training")
    assert math.isnan(diagnose(store, correction, step_sizes=[0.1] * 4).decay)
    store.retain(3)
    (gap_warning,) = diagnose(store, unlearn(store, ["a"]), step_sizes=[0.1, 0.01]).warnings
    assert gap_warning.startswith("3 rounds of the forgotten sites removed nothing: a: 3 of 6")
