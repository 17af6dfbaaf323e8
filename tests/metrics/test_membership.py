import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from flwr_afuic.errors import ConfigError
from flwr_afuic.metrics import (
    attack_auc,
    likelihood_ratio_scores,
    membership_auc,
    modified_entropy,
    tpr_at_fpr,
)

small = st.lists(st.integers(0, 6).map(lambda v: v / 2), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(small, small)
def test_membership_auc_equals_scikit_learn_on_negated_losses(members, others):
    labels = [1] * len(members) + [0] * len(others)
    expected = sk.roc_auc_score(labels, -np.array(members + others))
    assert membership_auc(members, others) == pytest.approx(expected)
    assert membership_auc(members, others) + membership_auc(others, members) == pytest.approx(1)
    assert attack_auc(-np.array(members), -np.array(others)) == membership_auc(members, others)


def test_lower_losses_of_members_give_one():
    assert membership_auc([0.1, 0.2], [0.5, 0.6]) == 1.0


@settings(max_examples=60, deadline=None)
@given(small, small, st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.5, 1.0]))
def test_tpr_at_fpr_equals_the_best_point_of_scikit_learns_curve(members, others, bound):
    labels = [1] * len(members) + [0] * len(others)
    fpr, tpr, _ = sk.roc_curve(labels, members + others, drop_intermediate=False)
    assert tpr_at_fpr(members, others, bound) == pytest.approx(tpr[fpr <= bound + 1e-12].max())


def test_false_positive_rate_survives_binary_fractions():
    # .29 * 100 is 28.999999999999996: 29 of 100 may be accused all the same.
    assert tpr_at_fpr([70.5], np.arange(100), fpr=0.29) == 1.0
    assert tpr_at_fpr([69.5], np.arange(100), fpr=0.29) == 0.0


def test_modified_entropy_by_hand():
    p = np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.0, 1.0, 0.0]])
    right = -0.3 * np.log(0.7) - 0.2 * np.log(0.8) - 0.1 * np.log(0.9)
    wrong = -0.9 * np.log(0.1) - 0.7 * np.log(0.3) - 0.2 * np.log(0.8)
    found = modified_entropy(p, [0, 2, 0])
    assert found[:2] == pytest.approx([right, wrong])
    # Sure and wrong: the most there is, where log p instead of log(1 - p) would give 0.
    assert found[2] == pytest.approx(2 * -np.log(1e-12))


def test_modified_entropy_of_two_classes_is_twice_the_wrong_ones_share_of_the_loss():
    p = np.random.default_rng(0).dirichlet([1, 1], 50)
    expected = -2 * p[:, 1] * np.log(p[:, 0])
    np.testing.assert_allclose(modified_entropy(p, np.zeros(50, int)), expected)


def log_odds(loss):
    p = np.exp(-loss)
    return np.log(p / (1 - p))


def reference_case(seed=0, m=8, n=5):
    rng = np.random.default_rng(seed)
    members = np.stack([rng.permutation(np.arange(m) < m // 2) for _ in range(n)], axis=1)
    losses = rng.gamma(2.0, np.where(members, 0.3, 0.6))
    return rng.gamma(2.0, 0.4, size=n), losses, members


def test_scores_with_own_variances_equal_scipys_densities():
    target, losses, members = reference_case()
    scores = likelihood_ratio_scores(target, losses, members, pooled_variance=False)
    for i in range(len(target)):
        c = log_odds(losses[:, i])
        inside, outside = c[members[:, i]], c[~members[:, i]]
        expected = stats.norm.logpdf(
            log_odds(target[i]), inside.mean(), inside.std(ddof=1)
        ) - stats.norm.logpdf(log_odds(target[i]), outside.mean(), outside.std(ddof=1))
        assert scores[i] == pytest.approx(expected)


def test_scores_with_pooled_variance_equal_scipys_densities():
    target, losses, members = reference_case(seed=1)
    scores = likelihood_ratio_scores(target, losses, members)
    confidences = log_odds(losses)
    density = {}
    for side in (True, False):
        groups = [confidences[members[:, i] == side, i] for i in range(len(target))]
        variance = np.mean([g.var(ddof=1) for g in groups])  # groups of one size
        means = np.array([g.mean() for g in groups])
        density[side] = stats.norm.logpdf(log_odds(target), means, np.sqrt(variance))
    np.testing.assert_allclose(scores, density[True] - density[False])


def test_attack_finds_members_that_the_loss_alone_does_not():
    # Hard members have higher losses than easy non-members; per example they are told apart.
    rng = np.random.default_rng(2)
    n, m = 200, 16
    difficulty = rng.uniform(0.1, 3.0, n)
    trained = rng.random((m, n)) < 0.5
    trained[:2], trained[2:4] = True, False
    in_target = rng.random(n) < 0.5

    def losses(mask):
        return difficulty * np.where(mask, 0.6, 1.0) * np.exp(rng.normal(0, 0.1, mask.shape))

    target = losses(in_target)
    scores = likelihood_ratio_scores(target, losses(trained), trained)
    assert attack_auc(scores[in_target], scores[~in_target]) > 0.95
    assert membership_auc(target[in_target], target[~in_target]) < 0.8


def test_losses_of_zero_and_huge_losses_stay_finite():
    target, losses, members = reference_case()
    target[:2] = 0.0, 900.0
    losses[0] = 0.0
    assert np.isfinite(likelihood_ratio_scores(target, losses, members)).all()


def test_reference_models_that_agree_exactly_give_a_finite_score():
    references, members = [[0.1], [0.1], [0.5], [0.5]], [[True], [True], [False], [False]]
    for pooled in (True, False):
        score = likelihood_ratio_scores([0.1], references, members, pooled_variance=pooled)
        assert np.isfinite(score[0])
        assert score[0] > 0


FLAGS = [[True], [False]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: membership_auc([], [1.0]), "member_losses is empty"),
        (lambda: membership_auc([1.0], [np.nan]), "nonmember_losses holds 1 NaN"),
        (lambda: attack_auc([[1.0]], [1.0]), "1 axes"),
        (lambda: tpr_at_fpr([1.0], [1.0], 1.5), "fpr is 1.5"),
        (lambda: modified_entropy([[0.5, 0.5]], [0, 1]), "1 predictions and 2 labels"),
        (lambda: modified_entropy([[0.5, 0.5]], [2]), "2"),
        (lambda: likelihood_ratio_scores([0.1], [[0.1], [-0.1]], FLAGS), "never negative"),
        (lambda: likelihood_ratio_scores([0.1], [[0.1], [0.1]], [[1], [0]]), "pass booleans"),
        (lambda: likelihood_ratio_scores([0.1, 0.2], [[0.1], [0.1]], FLAGS), "differ in shape"),
        (lambda: likelihood_ratio_scores([0.1], [[0.1]], FLAGS), "differ in shape"),
        (lambda: likelihood_ratio_scores([0.1], [[0.1], [0.1]], [[True]] * 2), "at least 1 with"),
        (lambda: likelihood_ratio_scores([0.1], [[0.1], [0.1]], FLAGS), "no variance"),
        (
            lambda: likelihood_ratio_scores([0.1], [[0.1], [0.1]], FLAGS, pooled_variance=False),
            "at least 2 with",
        ),
    ],
)
def test_bad_input_gives_one_clear_line(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
