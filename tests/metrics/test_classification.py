import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from flwr_afuic.errors import ConfigError
from flwr_afuic.metrics import accuracy, auroc, balanced_accuracy, cross_entropy


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_accuracies_equal_scikit_learn(rng):
    labels = rng.choice(4, size=200, p=[0.7, 0.1, 0.1, 0.1])
    predictions = np.where(rng.random(200) < 0.5, labels, rng.integers(0, 4, 200))
    assert accuracy(labels, predictions) == pytest.approx(sk.accuracy_score(labels, predictions))
    assert balanced_accuracy(labels, predictions) == pytest.approx(
        sk.balanced_accuracy_score(labels, predictions)
    )


def test_balanced_accuracy_skips_classes_that_are_only_predicted():
    assert balanced_accuracy([0, 0, 1, 1], [0, 2, 1, 1]) == 0.75


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=40))
def test_binary_auroc_with_many_ties_equals_scikit_learn(pairs):
    labels, scores = np.array(pairs).T
    if len(set(labels)) < 2:
        with pytest.raises(ConfigError, match="at least two classes"):
            auroc(labels, scores)
        return
    assert auroc(labels, scores) == pytest.approx(sk.roc_auc_score(labels, scores))


def test_two_columns_are_the_binary_case(rng):
    labels = rng.integers(0, 2, 50)
    positive = rng.random(50)
    assert auroc(labels, np.stack([1 - positive, positive], axis=1)) == auroc(labels, positive)


def test_macro_auroc_equals_scikit_learn(rng):
    labels = rng.choice(5, size=300, p=[0.6, 0.1, 0.1, 0.1, 0.1])
    # Rounded logits, so that ties occur.
    z = np.round(rng.normal(size=(300, 5)) + np.eye(5)[labels], 0)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    expected = sk.roc_auc_score(labels, p, multi_class="ovr", average="macro")
    assert auroc(labels, p) == pytest.approx(expected)


def test_macro_auroc_averages_over_the_classes_present():
    p = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.7, 0.2, 0.1]])
    # By hand: class 0 has 1 of 2 pairs in order, class 1 (its sample second highest) likewise.
    assert auroc([0, 0, 1], p) == pytest.approx((0.0 + 0.0) / 2)
    assert auroc([0, 1, 0], p) == pytest.approx((1.0 + 1.0) / 2)


def test_cross_entropy_equals_torch_and_survives_large_logits(rng):
    logits, labels = rng.normal(scale=5, size=(40, 6)), rng.integers(0, 6, 40)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), reduction="none"
    )
    np.testing.assert_allclose(cross_entropy(logits, labels), expected.numpy(), rtol=1e-12)
    assert cross_entropy([[1e4, 0.0], [1e4, 0.0]], [0, 1]).tolist() == [0.0, 1e4]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy([], []), "labels is empty"),
        (lambda: accuracy([0, 1], [0]), r"differ in shape: \(2,\) and \(1,\)"),
        (lambda: accuracy([0, 1], [0, 0.5]), "no whole numbers"),
        (lambda: accuracy([[0]], [0]), "1 axes"),
        (lambda: accuracy(["a"], [0]), "not an array of numbers"),
        (lambda: balanced_accuracy([0, np.nan], [0, 1]), "1 NaN"),
        (lambda: auroc([0, 1], [0.1, np.inf]), "scores holds 1 NaN"),
        (lambda: auroc([0, 2], [0.1, 0.2]), "from 0 to 1"),
        (lambda: auroc([0, 1], [[2.0, -1.0], [0.0, 1.0]]), "apply softmax"),
        (lambda: auroc([0, 1], [[2.0, 3.0], [0.0, 1.0]]), "apply softmax"),
        (lambda: auroc([0, 1, 1], [0.1, 0.2]), "labels and scores differ"),
        (lambda: cross_entropy([[0.0, 1.0]], [2]), "from 0 to 1"),
        (lambda: cross_entropy([[0.0, 1.0]], [-1]), "from 0 to 1"),
        (lambda: cross_entropy([[0.0, 1.0]], [0, 1]), "labels and logits differ"),
    ],
)
def test_bad_input_gives_one_clear_line(call, message):
    with pytest.raises(ConfigError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
