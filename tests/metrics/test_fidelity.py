import numpy as np
import pytest

from flwr_afuic.errors import ConfigError
from flwr_afuic.metrics import client_spread, dip_rounds, merge_dip, score_gap

RETRAINED = dict.fromkeys(range(4, 10), 0.9)


def test_dip_and_gap_have_the_documented_signs():
    assert merge_dip(0.875, 0.75) == 0.125
    assert merge_dip(0.75, 0.875) == -0.125
    assert score_gap(0.75, 0.875) == -0.125


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ({4: 0.1, 5: 0.90, 6: 0.90}, 0),  # what came before the merge does not matter
        ({5: 0.89, 6: 0.1}, 0),  # exactly .01 below counts as back
        ({5: 0.88, 6: 0.889, 7: 0.895}, 2),
        ({5: 0.80, 6: 0.99}, 1),  # better is no dip
        ({5: 0.80, 8: 0.90}, 3),
        ({5: 0.80, 6: 0.80}, None),
    ],
)
def test_rounds_until_the_score_is_back(curve, expected):
    assert dip_rounds(curve, RETRAINED, merge_round=5) == expected


def test_the_larger_of_tolerance_and_floor_counts():
    curve = {5: 0.84, 6: 0.88, 7: 0.9}
    assert dip_rounds(curve, RETRAINED, 5, floor=0.03) == 1
    assert dip_rounds(curve, RETRAINED, 5, tolerance=0.07, floor=0.03) == 0


def test_retrainings_own_curve_is_the_measure():
    assert dip_rounds([0.5, 0.6, 0.7], [0.8, 0.7, 0.7], merge_round=0) == 2


def test_client_spread_by_hand_and_against_numpy():
    scores = {"c": 0.5, "a": 0.5, "b": 0.9}
    result = client_spread(scores)
    assert (result.worst_site, result.worst) == ("a", 0.5)
    assert result.spread == pytest.approx(0.4)
    assert result.mean == pytest.approx(np.mean(list(scores.values())))
    assert result.std == pytest.approx(np.std(list(scores.values())))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: merge_dip(np.nan, 0.5), "score_before"),
        (lambda: merge_dip(0.5, np.inf), "score_at_merge"),
        (lambda: score_gap(0.5, np.nan), "reference_score"),
        (lambda: dip_rounds({5: 0.5}, RETRAINED, 5, tolerance=-0.1), "tolerance is -0.1"),
        (lambda: dip_rounds({5: 0.5}, RETRAINED, 5, floor=np.nan), "floor"),
        (lambda: dip_rounds({4: 0.5}, RETRAINED, 5), "from round 5 on"),
        (lambda: client_spread({}), "names no site"),
        (lambda: client_spread({"a": np.nan}), "scores holds 1 NaN"),
    ],
)
def test_bad_input_gives_one_clear_line(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
