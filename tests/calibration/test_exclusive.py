"""Forget-exclusive directions: apart from what is retained, and still those that were planted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_afuic.calibration.exclusive import (
    GsdSettings,
    decompose,
    forget_exclusive,
    pairwise_exclusive,
    retained_span,
)
from flwr_afuic.calibration.subspaces import energy_basis, orthonormal
from flwr_afuic.errors import ConfigError

D, T, CLIENTS = 1000, 40, 6


def planted(seed: int, noise: float = 4e-4):
    """Six shared directions, and three of the forgotten client alone, each weaker."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(D, 9)))[0].T
    shared, own = directions[:6], directions[6:]

    def updates(basis, strengths):
        parts = (rng.normal(size=(T, len(basis))) * strengths) @ basis
        return parts + noise * rng.normal(size=(T, D))

    clients = [updates(shared, np.ones(6)) for _ in range(CLIENTS)]
    strengths = np.concatenate([np.ones(6), [0.8, 0.7, 0.6]])
    return updates(directions, strengths), clients, own


@pytest.mark.parametrize("seed", range(5))
def test_planted_directions_are_captured(seed):
    forget, clients, own = planted(seed)
    found = decompose(forget, clients)
    assert len(found.basis) == 3
    assert np.linalg.norm(own @ found.basis.T, axis=1).min() >= 0.99
    assert found.cosines[:6].min() > 0.98
    assert found.cosines[6:].max() < 0.05


def test_it_is_the_energy_cut_that_loses_a_weak_direction():
    forget, clients, own = planted(0)
    kept = {
        energy: np.linalg.norm(
            own @ decompose(forget, clients, GsdSettings(energy=energy)).basis.T, axis=1
        ).min()
        for energy in (0.99, 0.8)
    }
    assert kept[0.99] > 0.99
    assert kept[0.8] < 0.5


@pytest.mark.parametrize("seed", range(5))
def test_the_basis_is_orthogonal_to_everything_retained(seed):
    forget, clients, _ = planted(seed, noise=1e-2)  # nothing is clean here
    chosen = GsdSettings(tau=0.9)
    span = retained_span(clients, chosen)
    found = decompose(forget, clients, chosen)
    assert len(found.basis)
    assert np.abs(span.basis @ found.basis.T).max() < 1e-12
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(len(found.basis)), atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 5), st.integers(10, 40), st.floats(0, 0.95),
    st.integers(0, 2**16), st.sampled_from(["joint", "pairwise"]),
)  # fmt: skip
def test_no_direction_is_closer_to_a_client_than_tau(own, clients, d, tau, seed, rule):
    rng = np.random.default_rng(seed)
    chosen = GsdSettings(tau=tau, rule=rule)
    forget = rng.normal(size=(own, d))
    others = [rng.normal(size=(3, d)) for _ in range(clients)]
    found = decompose(forget, others, chosen)
    assert found.entangled == (len(found.basis) == 0)
    assert len(found.basis) <= own
    for updates in others:
        cosines = np.linalg.svd(energy_basis(updates, chosen.cut) @ found.basis.T, compute_uv=False)
        # The joint rule stays clear of what the stack's energy cut keeps of each client.
        assert rule == "joint" or cosines.max(initial=0.0) <= tau + 1e-9


def test_a_client_that_others_reproduce_is_fully_entangled():
    rng = np.random.default_rng(0)
    forget = rng.normal(size=(5, 50))
    found = decompose(forget, [forget + 1e-6 * rng.normal(size=(5, 50)), rng.normal(size=(5, 50))])
    assert found.entangled
    assert found.basis.shape == (0, 50)
    np.testing.assert_allclose(found.cosines, 1.0, atol=1e-6)


def test_the_pairwise_rule_keeps_what_only_the_stack_rebuilds():
    e = np.eye(8)
    forget = e[:1]
    clients = [0.25 * e[:1] + np.sqrt(1 - 0.25**2) * e[k + 1 : k + 2] for k in range(3)]
    # Together they come nearer to it than any one does.
    joint = forget_exclusive(forget, retained_span(clients, GsdSettings()), 0.42)
    assert joint.cosines[0] > 0.4
    single = pairwise_exclusive(forget, [orthonormal(c) for c in clients], 0.45)
    assert not single.entangled
    assert single.cosines[0] == pytest.approx(np.sqrt(3) * 0.25)


def test_the_cap_is_each_clients_and_not_the_stacks():
    rng = np.random.default_rng(0)
    clients = [rng.normal(size=(20, 200)) for _ in range(4)]
    assert retained_span(clients, GsdSettings(energy=1.0, cap=5)).rank == 20


def test_nobody_retained_and_settings_out_of_range():
    with pytest.raises(ConfigError, match="no retained client"):
        retained_span([], GsdSettings())
    for options in ({"tau": 1.0}, {"rule": "both"}, {"energy": 2.0}, {"cap": 0}):
        with pytest.raises(ConfigError):
            GsdSettings(**options)
