import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_afuic.errors import ConfigError
from flwr_afuic.metrics import backdoor_success, resurfacing


def test_backdoor_success_by_hand():
    assert backdoor_success([2, 2, 0, 1], 2) == 0.5


def test_images_of_the_target_class_are_left_out():
    # The two images of class 2 are right, not backdoored.
    assert backdoor_success([2, 2, 2, 0], 2, labels=[2, 2, 0, 1]) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: backdoor_success([], 0), "predictions is empty"),
        (lambda: backdoor_success([0, 1], 0, labels=[0]), "differ in shape"),
        (lambda: backdoor_success([0, 1], 0, labels=[0, 0]), "all 2 images"),
        (lambda: backdoor_success([0, 1], 0.5), "target_label"),
        (lambda: resurfacing({}, {1: 0.5}), "unlearned_curve is empty"),
        (lambda: resurfacing({1: np.nan}, {1: 0.5}), "unlearned_curve holds 1 NaN"),
        (lambda: resurfacing({1: 0.5}, {2: 0.5}), "share no round"),
        (lambda: resurfacing([0.1, 0.2], [0.1, 0.2], merge_round=1), "from round 2 on"),
        (lambda: resurfacing({1: 0.5}, [0.5, 0.5]), "both as mappings"),
        (lambda: resurfacing({1.5: 0.5}, {1.5: 0.5}), "int rounds"),
    ],
)
def test_bad_input_gives_one_clear_line(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_resurfacing_by_hand_is_aligned_by_round_and_signed():
    unlearned = {12: 0.5, 10: 1.0, 11: 0.25, 13: 0.0}
    retrained = {11: 0.5, 12: 0.25, 10: 0.0, 14: 0.0}
    result = resurfacing(unlearned, retrained, merge_round=10)
    assert (result.rounds, result.values) == ((11, 12), (-0.25, 0.25))
    assert (result.mean, result.max, result.n_rounds) == (0.0, 0.25, 2)


def test_resurfacing_below_retraining_is_negative():
    result = resurfacing([0.25, 0.25], [0.5, 0.75])
    assert (result.mean, result.max) == (-0.375, -0.25)


scores = st.floats(0, 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(scores, scores), min_size=1, max_size=40), st.integers(0, 50))
def test_arrays_and_mappings_agree_and_roles_mirror(pairs, offset):
    unlearned, retrained = np.array(pairs).T
    by_index = resurfacing(unlearned, retrained)
    by_round = resurfacing(
        {offset + i: v for i, v in enumerate(unlearned)},
        {offset + i: v for i, v in reversed(list(enumerate(retrained)))},
    )
    assert by_index.values == by_round.values
    assert by_index.n_rounds == len(pairs)
    assert by_index.mean <= by_index.max + 1e-12
    mirrored = resurfacing(retrained, unlearned)
    assert mirrored.mean == pytest.approx(-by_index.mean, abs=1e-12)
