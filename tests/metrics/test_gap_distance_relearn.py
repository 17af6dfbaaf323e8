import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from flwr_afuic.errors import ConfigError
from flwr_afuic.metrics import (
    Scores,
    average_gap,
    gaps,
    jensen_shannon_divergence,
    jensen_shannon_per_sample,
    parameter_distance_ratio,
    relearn_ratio,
    relearn_rounds,
)

share = st.floats(0, 1)
all_scores = st.builds(Scores, share, share, share, share)


def test_average_gap_by_hand_with_and_without_a_trigger():
    assert average_gap(Scores(0.8, 0.7, 0.5), Scores(0.9, 0.5, 0.5)) == pytest.approx(0.1)
    with_trigger = Scores(0.8, 0.7, 0.5, 0.3), Scores(0.9, 0.5, 0.5, 0.2)
    assert average_gap(*with_trigger) == pytest.approx(0.1)
    assert gaps(*with_trigger)["backdoor_success"] == pytest.approx(0.1)
    assert average_gap(Scores(0.8, 0.7, 0.5, 0.0), Scores(0.8, 0.7, 0.5, 1.0)) == 0.25


@settings(max_examples=50, deadline=None)
@given(all_scores, all_scores)
def test_average_gap_is_symmetric_bounded_and_zero_for_equals(one, other):
    assert average_gap(one, one) == 0
    assert 0 <= average_gap(one, other) == average_gap(other, one) <= 1


def weights(seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=5).astype(np.float32)]


def test_distance_ratio_equals_numpys_norms_over_all_arrays():
    u, r, o = weights(0), weights(1), weights(2)

    def flat(model):
        return np.concatenate([a.ravel() for a in model]).astype(np.float64)

    expected = np.linalg.norm(flat(u) - flat(r)) / np.linalg.norm(flat(o) - flat(r))
    assert parameter_distance_ratio(u, r, o) == pytest.approx(expected)
    assert parameter_distance_ratio(r, r, o) == 0
    assert parameter_distance_ratio(o, r, o) == 1


def test_divergence_equals_scipys():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(4), 30), rng.dirichlet(np.ones(4), 30)
    p[0] = [1, 0, 0, 0]
    expected = jensenshannon(p, q, axis=1, base=2) ** 2
    np.testing.assert_allclose(jensen_shannon_per_sample(p, q), expected, rtol=1e-9)
    assert jensen_shannon_divergence(p, q) == pytest.approx(expected.mean())
    # float32 softmax rows sum to one only nearly; equal predictions are at distance zero.
    assert jensen_shannon_divergence(p.astype(np.float32), p.astype(np.float32)) == 0


def test_rows_that_sum_to_one_only_nearly_are_brought_there():
    assert jensen_shannon_divergence([[0.5004, 0.5004]], [[0.5, 0.5]]) == pytest.approx(
        0, abs=1e-15
    )


def test_relearn_rounds_by_hand():
    assert relearn_rounds([0.9, 0.5], level=0.9) == 0
    assert relearn_rounds([0.1, 0.5, 0.1 + 0.2, 0.9], level=0.6) == 3
    assert relearn_rounds([0.1, 0.5], level=0.6) is None
    assert relearn_rounds([0.1, 0.1 + 0.2 + 0.3 - 2e-16], level=0.6) == 1


@pytest.mark.parametrize(
    ("unlearned", "retrained", "ratio", "censored"),
    [
        ([0, 0, 0, 0, 1], [0, 0, 1, 1, 1], 2.0, False),
        ([1, 1, 1, 1, 1], [0, 0, 1, 1, 1], 0.0, False),
        ([0, 0, 0, 0, 0], [0, 0, 1, 1, 1], 2.0, True),
        ([0, 1, 1, 1, 1], [0, 0, 0, 0, 0], 0.25, True),
        ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0], None, False),
        ([0, 1, 1, 1, 1], [1, 1, 1, 1, 1], None, False),  # retraining knew it anyway
    ],
)
def test_relearn_ratio_by_hand(unlearned, retrained, ratio, censored):
    result = relearn_ratio(unlearned, retrained, level=0.8)
    assert (result.ratio, result.censored) == (ratio, censored)


ONE = [np.ones(2)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Scores(1.2, 0.5, 0.5), "test is 1.2"),
        (lambda: Scores(0.5, 0.5, 0.5, float("nan")), "backdoor_success"),
        (lambda: average_gap(Scores(1, 1, 1, 1), Scores(1, 1, 1)), "only one"),
        (lambda: parameter_distance_ratio(ONE, ONE, ONE), "are equal"),
        (lambda: parameter_distance_ratio(ONE * 2, ONE, [np.zeros(2)]), "2 and 1 arrays"),
        (lambda: parameter_distance_ratio(ONE, ONE, [np.zeros((2, 1))]), "differ in layout"),
        (lambda: parameter_distance_ratio([np.full(2, np.nan)], ONE, ONE), r"unlearned\[0\]"),
        (lambda: parameter_distance_ratio([], ONE, ONE), "list of arrays"),
        (lambda: parameter_distance_ratio("weights", ONE, ONE), "list of arrays"),
        (lambda: jensen_shannon_divergence([[1.0, 1.0]], [[0.5, 0.5]]), "apply softmax"),
        (lambda: jensen_shannon_divergence([[0.5, 0.5]], [[0.5, 0.5]] * 2), "differ in shape"),
        (lambda: relearn_rounds([], 0.5), "curve is empty"),
        (lambda: relearn_ratio([0.1, 0.2], [0.1], 0.5), "2 and 1 values"),
        (lambda: relearn_ratio([0.1], [0.1], 0.5), "at least one"),
        (lambda: relearn_ratio([0.1, 0.2], [0.1, 0.2], np.nan), "level"),
    ],
)
def test_bad_input_gives_one_clear_line(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
