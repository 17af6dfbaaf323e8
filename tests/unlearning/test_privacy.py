"""Clipping and noise on a delta: norms, secrecy of the noise, and what it guarantees."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from flwr_afuic.errors import ConfigError, LayoutError, WireError
from flwr_afuic.unlearning.accounting import gaussian_epsilon
from flwr_afuic.unlearning.privacy import (
    NO_PRIVACY,
    DeltaPrivacy,
    orthonormal,
    protect,
    protect_basis,
    secret_normal,
)

KEY = b"k" * 32
P = 20_000


def direction(size=P, seed=0):
    vector = np.random.default_rng(seed).normal(size=size)
    return vector / np.linalg.norm(vector)


def run(delta, settings, count=100, scale=10.0, key=KEY):
    return protect(delta, settings, count=count, scale=scale, key=key)


# ---- clipping ------------------------------------------------------------------------


def test_without_a_rule_nothing_happens():
    delta = 3 * direction()
    vector, applied = run(delta, DeltaPrivacy())
    assert np.array_equal(vector, delta)
    assert applied == {}
    assert run(delta, NO_PRIVACY, count=1)[1] == {}


@pytest.mark.parametrize(("norm", "after"), [(0.5, 0.5), (2.0, 2.0), (2.1, 2.0), (1e6, 2.0)])
def test_the_norm_is_bounded_and_the_direction_stays(norm, after):
    vector, applied = run(norm * direction(), DeltaPrivacy(clip=2.0))
    np.testing.assert_allclose(vector, after * direction(), rtol=1e-12)
    assert applied == {"clip": 2.0, "noise": 0.0, "std": 0.0, "small": 0}


def test_a_shorter_vector_is_the_very_same():
    delta = 0.7 * direction()
    assert np.array_equal(run(delta, DeltaPrivacy(clip=2.0))[0], delta)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=8),
    st.floats(1e-6, 1e6),
    st.integers(0, 20),
)
def test_no_vector_leaves_longer_than_its_clip(values, clip, count):
    chosen = DeltaPrivacy(clip=clip, small_noise=0.0)
    vector, applied = run(values, chosen, count=count)
    assert np.linalg.norm(vector) <= applied["clip"] * (1 + 1e-9)
    assert applied["clip"] <= clip


@pytest.mark.parametrize("delta", [[], [[1.0]], [math.nan], [math.inf, 1.0]])
def test_what_is_no_vector_is_refused(delta):
    with pytest.raises(LayoutError, match="finite vector"):
        run(delta, DeltaPrivacy(clip=1.0))


# ---- noise ---------------------------------------------------------------------------


def test_the_noise_has_the_norm_asked_for():
    vector, applied = run(np.zeros(P), DeltaPrivacy(clip=2.0, noise=1.5))
    assert applied["std"] == pytest.approx(1.5 * 2.0 / math.sqrt(P))
    assert np.linalg.norm(vector) == pytest.approx(3.0, rel=0.03)
    assert vector.std() == pytest.approx(applied["std"], rel=0.03)
    assert abs(vector.mean()) < 4 * applied["std"] / math.sqrt(P)


def test_the_noise_does_not_depend_on_the_length_of_the_delta():
    chosen = DeltaPrivacy(clip=2.0, noise=1.0)
    near, far = (run(norm * direction(), chosen)[0] for norm in (1e-3, 1e3))
    noise = near - 1e-3 * direction()
    np.testing.assert_allclose(far - 2.0 * direction(), noise, atol=1e-9)


def test_noise_is_its_keys_alone():
    zero, chosen = np.zeros(P), DeltaPrivacy(clip=1.0, noise=1.0)
    one, same, other = (run(zero, chosen, key=key)[0] for key in (KEY, KEY, b"K" * 32))
    assert np.array_equal(one, same)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7])
def test_any_number_of_normals(size):
    assert len(secret_normal(KEY, size)) == size


def test_normals_are_normal_and_independent_across_chunks(monkeypatch):
    monkeypatch.setattr("flwr_afuic.unlearning.privacy._CHUNK", 1000)
    drawn = secret_normal(KEY, 50_001)
    assert len(drawn) == 50_001
    assert stats.kstest(drawn, "norm").pvalue > 0.01
    assert len(np.unique(drawn)) == len(drawn)
    assert abs(np.corrcoef(drawn[:-1000], drawn[1000:])[0, 1]) < 0.03
    assert abs(np.corrcoef(drawn[:-500] ** 2, drawn[500:] ** 2)[0, 1]) < 0.03


def test_normals_are_the_box_muller_transform_of_shake_256():
    stream = hashlib.shake_256(bytes(8) + KEY).digest(32)
    numbers = [int.from_bytes(stream[8 * i : 8 * i + 8], "big") >> 11 for i in range(4)]
    u = [(n + 0.5) / 2**53 for n in numbers]
    expected = [
        math.sqrt(-2 * math.log(u[i])) * turn(2 * math.pi * u[2 + i])
        for turn in (math.cos, math.sin)
        for i in (0, 1)
    ]
    np.testing.assert_allclose(secret_normal(KEY, 4), expected, rtol=1e-12)


# ---- which rule holds ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "count", "rule"),
    [
        (DeltaPrivacy(), 8, None),
        (DeltaPrivacy(), 7, (0.2, 2.5, True)),
        (DeltaPrivacy(), 1, (0.2, 2.5, True)),
        (DeltaPrivacy(clip=0.1), 1, (0.1, 2.5, True)),
        (DeltaPrivacy(clip=5.0), 1, (0.2, 2.5, True)),
        (DeltaPrivacy(clip=5.0), 8, (5.0, 0.0, False)),
        (DeltaPrivacy(clip=5.0, noise=4.0), 1, (0.2, 4.0, True)),
        (DeltaPrivacy(clip=5.0, noise=1.0), 1, (0.2, 2.5, True)),
        (DeltaPrivacy(clip=3.0, noise=1.0), 9, (3.0, 1.0, False)),
        (DeltaPrivacy(small=0), 1, None),
        (DeltaPrivacy(small=2, small_clip=0.5, small_noise=0.0), 1, (5.0, 0.0, True)),
    ],
)
def test_small_requests_are_protected_whatever_holds_for_the_rest(chosen, count, rule):
    found = chosen.rule(count, 10.0)
    assert rule == (found and (found.clip, found.noise, found.small))


def test_a_model_of_zeros_still_has_a_bound():
    assert DeltaPrivacy().rule(1, 0.0).clip == 0.02


@pytest.mark.parametrize(
    ("one", "two", "both"),
    [
        (DeltaPrivacy(), DeltaPrivacy(), DeltaPrivacy()),
        (DeltaPrivacy(clip=2.0), DeltaPrivacy(), DeltaPrivacy(clip=2.0)),
        (DeltaPrivacy(clip=2.0), DeltaPrivacy(clip=1.0), DeltaPrivacy(clip=1.0)),
        (
            DeltaPrivacy(clip=1.0, noise=2.0),
            DeltaPrivacy(clip=3.0, noise=1.0),
            DeltaPrivacy(clip=1.0, noise=2.0),
        ),
        (DeltaPrivacy(clip=3.0, noise=1.0), DeltaPrivacy(), DeltaPrivacy(clip=3.0, noise=1.0)),
        (NO_PRIVACY, DeltaPrivacy(), DeltaPrivacy()),
        (NO_PRIVACY, NO_PRIVACY, NO_PRIVACY),
        (DeltaPrivacy(small=3), DeltaPrivacy(small=9), DeltaPrivacy(small=9)),
        (
            DeltaPrivacy(small_clip=0.5, small_noise=9.0),
            DeltaPrivacy(small_clip=0.4, small_noise=1.0),
            DeltaPrivacy(small_clip=0.4, small_noise=9.0),
        ),
        # A side that protects no small requests has no say in how.
        (
            DeltaPrivacy(small=0, small_clip=1e-9, small_noise=1e9),
            DeltaPrivacy(),
            DeltaPrivacy(),
        ),
    ],
)
def test_of_two_sides_the_stricter_holds(one, two, both):
    assert one.stricter(two) == two.stricter(one) == both


small = {
    "small": st.integers(0, 10),
    "small_clip": st.floats(0.01, 1),
    "small_noise": st.floats(0, 10),
}
clipped = {"clip": st.floats(0.01, 10), "noise": st.floats(0, 10)}
wishes = st.builds(DeltaPrivacy, **small) | st.builds(DeltaPrivacy, **small, **clipped)


@settings(max_examples=150, deadline=None)
@given(wishes, wishes, st.integers(1, 12), st.floats(0.1, 100))
def test_neither_side_gets_less_than_it_wants(one, two, count, scale):
    both = one.stricter(two).rule(count, scale)
    for side in (one, two):
        wanted = side.rule(count, scale)
        if wanted is not None:
            assert both.clip <= wanted.clip
            assert both.noise >= wanted.noise


@pytest.mark.parametrize(
    "values",
    [
        {"clip": 0.0}, {"clip": -1.0}, {"clip": math.nan}, {"clip": math.inf}, {"noise": 1.0},
        {"clip": 1.0, "noise": -1.0}, {"clip": 1.0, "noise": math.nan}, {"small": -1},
        {"small": True}, {"small": 1.5}, {"small_clip": 0.0}, {"small_noise": -1.0},
    ],
)  # fmt: skip
def test_ranges(values):
    with pytest.raises(ConfigError):
        DeltaPrivacy(**values)


# ---- on the wire ---------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(wishes)
def test_settings_come_back_as_they_went(chosen):
    assert DeltaPrivacy.from_json(chosen.to_json()) == chosen


def test_an_older_server_may_name_fewer_settings():
    assert DeltaPrivacy.from_json('{"clip": 2, "small": 0}') == DeltaPrivacy(clip=2.0, small=0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(json.loads(DeltaPrivacy().to_json()))) | st.text(), json_values)
def test_any_settings_are_read_or_refused(name, value):
    try:
        found = DeltaPrivacy.from_json(json.dumps({name: value}))
    except (WireError, ConfigError) as error:
        assert str(error)  # noqa: PT017
    else:
        assert DeltaPrivacy.from_json(found.to_json()) == found


@pytest.mark.parametrize("text", [None, 3, b"{}x", "[", "[]", "3", "[" * 100_000])
def test_what_is_no_object_is_a_wire_error(text):
    with pytest.raises(WireError):
        DeltaPrivacy.from_json(text)


# ---- what it guarantees --------------------------------------------------------------


def exceeded(epsilon, s):
    """By integration over the privacy loss, not by the formula under test."""

    def density(x):
        return max(
            0.0,
            stats.norm.pdf(x, 1 / s) - math.exp(epsilon) * stats.norm.pdf(x, 0),
        )

    edge = epsilon * s + 1 / (2 * s)  # where the two densities are e^epsilon apart
    return integrate.quad(density, edge, edge + 12, epsabs=1e-14, limit=200)[0]


@pytest.mark.parametrize("s", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("delta", [1e-6, 1e-5, 1e-2])
def test_epsilon_is_the_least_that_holds(s, delta):
    epsilon = gaussian_epsilon(s, delta)
    assert exceeded(epsilon, s) <= delta * (1 + 1e-6)
    if epsilon > 0:
        assert exceeded(epsilon * (1 - 1e-4), s) > delta


def test_known_values():
    # sigma = 1, delta = 1e-5: 4.377 (the classical bound, valid for epsilon < 1, says 4.84).
    assert gaussian_epsilon(1.0, 1e-5) == pytest.approx(4.3772, abs=1e-4)
    assert gaussian_epsilon(0.0, 1e-5) == math.inf
    assert gaussian_epsilon(1e9, 1e-5) == 0.0


def test_less_noise_guarantees_less_down_to_hardly_any():
    levels = [gaussian_epsilon(s, 1e-5) for s in (10, 1, 0.1, 1e-2, 1e-3, 1e-6)]
    assert levels == sorted(levels)
    # For little noise epsilon is 1 / (2 s^2) + z / s, z the normal quantile of 1 - delta.
    z = stats.norm.isf(1e-5)
    assert levels[4] == pytest.approx(0.5e6 + z * 1e3, rel=1e-4)


@pytest.mark.parametrize(("s", "delta"), [(-1, 0.1), (math.nan, 0.1), (1, 0), (1, 1), (1, 2)])
def test_ranges_of_the_guarantee(s, delta):
    with pytest.raises(ConfigError):
        gaussian_epsilon(s, delta)


def test_a_protected_delta_says_its_honest_epsilon():
    _, applied = run(direction(), DeltaPrivacy(), count=1)
    assert applied["epsilon"] == gaussian_epsilon(applied["std"] / (2 * applied["clip"]), 1e-5)
    assert applied["epsilon"] > 1000  # no guarantee, and it says so
    assert applied["delta"] == 1e-5
    _, applied = run([1.0, 0.0], DeltaPrivacy(clip=1.0, noise=20.0))
    assert applied["epsilon"] < 1


# ---- the basis -----------------------------------------------------------------------


def rows(r=3, p=5000, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(p, r)))[0].T


def test_a_noised_basis_is_orthonormal_and_turned_by_the_noise():
    basis = rows()
    noised = protect_basis(basis, noise=1.0, key=KEY)
    assert noised.dtype == np.float32
    np.testing.assert_allclose(noised @ noised.T, np.eye(3), atol=1e-5)
    cosines = np.abs(np.sum(noised * basis, axis=1))
    np.testing.assert_allclose(cosines, 1 / math.sqrt(2), atol=0.05)
    assert np.array_equal(noised, protect_basis(basis, noise=1.0, key=KEY))
    assert not np.array_equal(noised, protect_basis(basis, noise=1.0, key=b"other"))


def test_orthonormal_rows_stay_as_they_are_signs_included():
    basis = rows()
    np.testing.assert_allclose(orthonormal(basis), basis, atol=1e-12)
    np.testing.assert_allclose(orthonormal(3 * basis), basis, atol=1e-12)
