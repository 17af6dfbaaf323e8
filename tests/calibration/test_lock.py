from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from flwr_afuic.calibration.lock import RelearningLock
from flwr_afuic.errors import ConfigError, LayoutError


def lock_of(directions, origins, order=None):
    lock = RelearningLock()
    for i in order if order is not None else range(len(directions)):
        lock.add(f"k{i}", directions[i], origins[i])
    return lock


def test_one_lock_by_hand():
    # d^ = (.6, .8); origin (1, 1) has offset 1.4. w = (0, 0) is 1.4 outside: moves 1.4 d^.
    lock = lock_of([np.array([3.0, 4.0])], [np.array([1.0, 1.0])])
    np.testing.assert_allclose(lock.project(np.zeros(2)), [0.84, 1.12], atol=1e-12)
    assert lock.margins(np.zeros(2))["k0"] == pytest.approx(-1.4)


def test_two_slanted_locks_by_hand():
    # x >= 0 and (x + y)/sqrt 2 >= 0: onto the slanted edge, onto the upright one, and from
    # (-2, -1) to the corner, where one projection after the other would end at (.5, -.5).
    lock = lock_of([np.array([1.0, 0.0]), np.array([1.0, 1.0])], [np.zeros(2), np.zeros(2)])
    np.testing.assert_allclose(lock.project(np.array([0.5, -2.0])), [1.25, -1.25], atol=1e-12)
    np.testing.assert_allclose(lock.project(np.array([-1.0, 0.5])), [0.0, 0.5], atol=1e-12)
    np.testing.assert_allclose(lock.project(np.array([-2.0, 0.5])), [0.0, 0.5], atol=1e-12)
    np.testing.assert_allclose(lock.project(np.array([-2.0, -1.0])), [0.0, 0.0], atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_allowed_model_is_returned_untouched(dtype):
    lock = lock_of([np.array([1.0, 0.0])], [np.zeros(2)])
    w = np.array([0.1, 1 / 3], dtype=dtype)
    assert lock.project(w) is w
    on_the_edge = np.array([0.0, 7.0], dtype=dtype)
    assert lock.project(on_the_edge) is on_the_edge


def test_the_result_keeps_the_dtype():
    lock = lock_of([np.ones(3)], [np.ones(3)])
    assert lock.project(np.zeros(3, dtype=np.float32)).dtype == np.float32


def test_the_direction_counts_not_its_length():
    w = np.array([-1.0, 2.0])
    for length in (1e-200, 1.0, 1e200):
        lock = lock_of([np.array([length, length])], [np.zeros(2)])
        expected = w if w.sum() >= 0 else w - w.mean()
        np.testing.assert_allclose(lock.project(w), expected, atol=1e-12)


def test_the_same_direction_twice_is_one_lock():
    d = np.array([1.0, 2.0, 2.0])
    w = np.array([-3.0, 0.0, 1.0])
    once = lock_of([d], [np.zeros(3)]).project(w)
    twice = lock_of([d, 2 * d], [np.zeros(3), np.zeros(3)]).project(w)
    np.testing.assert_allclose(twice, once, atol=1e-12)


def test_contradicting_locks_are_reported():
    # x >= 1 and -x >= 1.
    lock = lock_of([np.array([1.0]), np.array([-1.0])], [np.array([1.0]), np.array([-1.0])])
    with pytest.raises(ConfigError, match="contradict"):
        lock.project(np.array([0.0]))


def test_a_corner_on_all_sides_is_the_only_point_left():
    # Three directions 120 degrees apart through one origin allow that origin and nothing else.
    angles = np.array([0.0, 2.0, 4.0]) * np.pi / 3
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    origin = np.array([0.1, 0.7])
    lock = lock_of(directions, [origin] * 3)
    np.testing.assert_allclose(lock.project(np.array([5.0, -3.0])), origin, atol=1e-6)


cases = st.tuples(st.integers(1, 6), st.integers(0, 4), st.integers(0, 2**31 - 1))


def problem(case):
    m, more, seed = case
    p = m + more  # as in use, where a model has far more weights than there are erasures
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(m, p)) * 10.0 ** rng.integers(-3, 3, size=(m, 1))
    # One common origin keeps the intersection non-empty whatever the directions.
    origins = np.repeat(rng.normal(size=(1, p)), m, axis=0)
    return directions, origins, rng.normal(size=p) * 3


@settings(deadline=None, max_examples=150)
@given(cases)
def test_projection_is_feasible_and_nearest(case):
    directions, origins, w = problem(case)
    lock = lock_of(directions, origins)
    result = lock.project(w)
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    slack = unit @ result - np.einsum("mp,mp->m", unit, origins)
    assert np.all(slack >= -1e-8)
    # Nearest point of a convex set: no allowed point lies further along w - result.
    step = w - result
    rng = np.random.default_rng(0)
    for _ in range(20):
        z = rng.normal(size=w.size) * 5
        allowed = lock.project(z)
        assert step @ (allowed - result) <= 1e-6
    # KKT: the step is minus a non-negative mix of the active directions.
    active = unit[slack < 1e-7]
    if np.linalg.norm(step) > 1e-6:
        mix, rest = nnls(-active.T, step)
        assert rest < 1e-6
        assert np.all(mix >= 0)


@settings(deadline=None, max_examples=80)
@given(cases)
def test_projection_is_idempotent_and_blind_to_order(case):
    directions, origins, w = problem(case)
    result = lock_of(directions, origins).project(w)
    again = lock_of(directions, origins).project(result)
    np.testing.assert_allclose(again, result, atol=1e-8)
    backwards = lock_of(directions, origins, order=range(len(directions))[::-1]).project(w)
    np.testing.assert_array_equal(backwards, result)


def test_state_survives_bit_for_bit():
    rng = np.random.default_rng(1)
    lock = lock_of(rng.normal(size=(3, 9)), rng.normal(size=(3, 9)))
    state = lock.state_dict()
    assert all(array.dtype != object for array in state.values())
    w = rng.normal(size=9) * 4
    np.testing.assert_array_equal(RelearningLock.from_state(state).project(w), lock.project(w))
    assert len(RelearningLock.from_state(RelearningLock().state_dict())) == 0


def test_removed_locks_no_longer_hold():
    lock = lock_of([np.array([1.0, 0.0])], [np.zeros(2)])
    w = np.array([-1.0, 0.0])
    assert lock.project(w)[0] == pytest.approx(0.0, abs=1e-12)
    lock.remove("k0")
    assert lock.project(w) is w
    assert lock.keys == ()
    with pytest.raises(ConfigError, match="no lock"):
        lock.remove("k0")


def test_what_does_not_fit_is_refused():
    lock = lock_of([np.array([1.0, 0.0])], [np.zeros(2)])
    with pytest.raises(ConfigError, match="already"):
        lock.add("k0", np.ones(2), np.ones(2))
    with pytest.raises(LayoutError, match="shape"):
        lock.add("b", np.ones(3), np.ones(3))
    with pytest.raises(LayoutError, match="zero"):
        lock.add("b", np.zeros(2), np.ones(2))
    with pytest.raises(LayoutError, match="finite"):
        lock.project(np.array([np.nan, 0.0]))
    with pytest.raises(LayoutError, match="lacks"):
        RelearningLock.from_state({})
    state = lock.state_dict()
    with pytest.raises(LayoutError, match="fit"):
        RelearningLock.from_state({**state, "offsets": np.zeros(2)})
    with pytest.raises(LayoutError, match="finite"):
        RelearningLock.from_state({**state, "offsets": np.array([np.inf])})


def test_the_nearest_point_is_written_where_it_is_wanted_also_over_the_point_itself():
    rng = np.random.default_rng(5)
    lock = RelearningLock()
    lock.add("a", rng.normal(size=6), np.zeros(6))
    lock.add("b", rng.normal(size=6), np.ones(6))
    outside = -10.0 * (lock.held("a")[0] + lock.held("b")[0])
    expected, place = lock.project(outside), np.zeros(6)
    assert lock.project(outside, into=place) is place
    np.testing.assert_array_equal(place, expected)
    view = outside[:]
    assert lock.project(outside, into=view) is view
    np.testing.assert_array_equal(outside, expected)
    inside = expected + lock.held("a")[0] + lock.held("b")[0]
    assert lock.project(inside, into=place) is inside, "nothing is violated"
    np.testing.assert_array_equal(place, expected)


def test_locks_that_contradict_each_other_write_nothing():
    lock = RelearningLock()
    lock.add("a", np.array([1.0, 0.0]), np.array([1.0, 0.0]))
    lock.add("b", np.array([-1.0, 0.0]), np.array([-1.0, 0.0]))
    point = np.array([0.0, 3.0])
    with pytest.raises(ConfigError, match="contradict"):
        lock.project(point, into=point)
    assert point.tolist() == [0.0, 3.0]
