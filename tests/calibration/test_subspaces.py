"""Bases by energy and principal angles, against scipy and against planted directions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import cossin, subspace_angles

from flwr_afuic.calibration.subspaces import (
    EnergyCut,
    Span,
    energy_basis,
    energy_directions,
    orthonormal,
    principal_angles,
)
from flwr_afuic.errors import ConfigError, LayoutError


def planted(seed: int, d: int, angles: np.ndarray, extra: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two bases with these principal angles; the retained one is larger by ``extra``."""
    rng = np.random.default_rng(seed)
    k = len(angles)
    q = np.linalg.qr(rng.normal(size=(d, 2 * k + extra)))[0].T
    retained = np.concatenate([q[:k], q[2 * k :]])
    forget = np.cos(angles)[:, None] * q[:k] + np.sin(angles)[:, None] * q[k : 2 * k]
    turn = np.linalg.qr(rng.normal(size=(k, k)))[0]
    mix = rng.normal(size=(k + extra, k + extra)) + 3 * np.eye(k + extra)
    return turn @ forget, mix @ retained


@pytest.mark.parametrize("seed", range(20))
def test_angles_are_scipys(seed):
    rng = np.random.default_rng(seed)
    k, extra = int(rng.integers(1, 8)), int(rng.integers(0, 12))
    forget, retained = planted(seed, 60, rng.uniform(1e-3, np.pi / 2, k), extra)
    found = principal_angles(forget, Span(retained))
    theirs = np.sort(subspace_angles(orthonormal(retained).T, forget.T))
    np.testing.assert_allclose(found.radians, theirs, atol=1e-10, rtol=0)
    np.testing.assert_allclose(found.cosines**2 + found.sines**2, 1.0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_angles_are_the_planted_ones_where_rounding_hides_cosines(seed):
    angles = np.array([0.0, 1e-9, 1e-7, 1e-4, 0.3, 1.2, np.pi / 2 - 1e-8])
    found = principal_angles(*_with_span(*planted(seed, 50, angles, 3)))
    np.testing.assert_allclose(found.radians, angles, atol=1e-12, rtol=0)


def _with_span(forget, retained):
    return forget, Span(retained)


def test_the_decomposition_is_scipys_cossin():
    forget, retained = planted(3, 12, np.array([0.2, 0.9, 1.4]), 2)
    span = Span(retained)
    whole = np.concatenate([span.basis, orthonormal(span.outside(np.eye(12))[:7])])
    square = whole @ np.concatenate([forget, _complement(forget)]).T
    _, cs, _ = cossin(square, p=span.rank, q=len(forget))
    cosines = np.sort(np.linalg.svd(cs[: span.rank, : len(forget)], compute_uv=False))[::-1]
    found = principal_angles(forget, span)
    np.testing.assert_allclose(found.cosines, cosines, atol=1e-10)


def _complement(rows):
    _, _, v = np.linalg.svd(rows)
    return v[len(rows) :]


def test_the_vectors_carry_the_angles():
    forget, retained = planted(1, 40, np.array([0.1, 0.8, 1.5]), 4)
    span = Span(retained)
    found = principal_angles(forget, span)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(found.outside, axis=1), found.sines, atol=1e-12)
    inside = found.vectors - found.outside
    np.testing.assert_allclose(np.linalg.norm(inside, axis=1), found.cosines, atol=1e-12)
    assert np.abs(span.basis @ found.outside.T).max() < 1e-13


def test_more_forget_than_retained_directions_leaves_right_angles():
    forget = np.eye(6)[:4]
    found = principal_angles(forget, Span(np.eye(6)[:1] * 7.0))
    np.testing.assert_allclose(found.cosines, [1, 0, 0, 0], atol=1e-15)


def test_nothing_retained_and_nothing_to_forget():
    none = Span(np.zeros((3, 5)))
    assert none.rank == 0
    assert principal_angles(np.eye(5)[:2], none).cosines.tolist() == [0.0, 0.0]
    assert principal_angles(np.zeros((0, 5)), Span(np.eye(5))).cosines.shape == (0,)
    assert energy_basis(np.zeros((4, 5))).shape == (0, 5)


@pytest.mark.parametrize("energy", [0.9, 0.99, 1.0])
def test_the_basis_is_the_svds(energy):
    rng = np.random.default_rng(0)
    updates = rng.normal(size=(10, 200)) * (2.0 ** -np.arange(10))[:, None]
    _, values, rows = np.linalg.svd(updates, full_matrices=False)
    shares = np.cumsum(values**2) / np.sum(values**2)
    rank = int(np.searchsorted(shares, energy - 1e-12)) + 1
    basis = energy_basis(updates, EnergyCut(energy=energy))
    assert len(basis) == rank
    np.testing.assert_allclose(np.abs(np.sum(basis * rows[:rank], axis=1)), 1.0, atol=1e-10)
    lengths = np.linalg.norm(energy_directions(updates, EnergyCut(energy=energy)), axis=1)
    np.testing.assert_allclose(lengths, values[:rank], rtol=1e-10)


def test_the_cap_bounds_the_rank_and_repeats_add_none():
    rng = np.random.default_rng(0)
    assert len(energy_basis(rng.normal(size=(30, 100)), EnergyCut(cap=16))) == 16
    once = rng.normal(size=(3, 100))
    assert len(energy_basis(np.concatenate([once] * 5), EnergyCut(energy=1.0))) == 3
    assert Span(np.concatenate([once] * 5)).rank == 3


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 40), st.floats(0.5, 1.0), st.integers(0, 2**16),
    st.floats(-6, 6),
)  # fmt: skip
def test_a_basis_is_orthonormal_and_holds_its_energy(rows, d, energy, seed, log_scale):
    updates = np.random.default_rng(seed).normal(size=(rows, d)) * 10.0**log_scale
    basis = energy_basis(updates, EnergyCut(energy=energy, cap=None))
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-10)
    held = np.sum((updates @ basis.T) ** 2) / np.sum(updates**2)
    assert held >= energy - 1e-9


@pytest.mark.parametrize("options", [{"energy": 0.0}, {"energy": 1.1}, {"cap": 0}, {"cap": 1.5}])
def test_settings_out_of_range(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        EnergyCut(**options)


@pytest.mark.parametrize("bad", [np.zeros(4), np.full((2, 3), np.nan)])
def test_updates_that_are_none(bad):
    with pytest.raises(LayoutError):
        energy_basis(bad)
