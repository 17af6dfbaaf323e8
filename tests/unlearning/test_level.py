from __future__ import annotations

import math

import pytest

from flwr_afuic.errors import ConfigError
from flwr_afuic.unlearning.level import ForgetScore, forget_level_met

REFERENCE = ForgetScore(loss=1.0, accuracy=0.5, count=100)


@pytest.mark.parametrize(
    ("loss", "accuracy", "met"),
    [
        (0.8, 0.55, True),  # both on their bounds
        (0.79, 0.50, False),  # loss too low
        (1.0, 0.56, False),  # accuracy too high
        (0.1, 0.95, False),
        (1.0, 0.5, True),
        (1.2, 0.30, True),
    ],
)
def test_both_bounds_of_the_level(loss, accuracy, met):
    verdict = forget_level_met(ForgetScore(loss, accuracy, 100), REFERENCE)
    assert verdict.met is met
    assert not verdict.over_forgetting
    assert f"{loss:.3f}" in verdict.text
    assert ("not met" in verdict.text) is not met


@pytest.mark.parametrize(
    ("loss", "accuracy", "over"),
    [(1.5, 0.25, False), (1.5, 0.24, True), (3.0, 0.5, False), (3.1, 0.5, True)],
)
def test_far_below_the_reference_is_over_forgetting_yet_met(loss, accuracy, over):
    verdict = forget_level_met(ForgetScore(loss, accuracy, 100), REFERENCE)
    assert verdict.met
    assert verdict.over_forgetting is over
    assert ("over-forgetting" in verdict.text) is over


def test_a_tiny_reference_loss_does_not_make_every_model_over_forget():
    reference = ForgetScore(loss=0.01, accuracy=0.99, count=100)
    assert not forget_level_met(ForgetScore(0.5, 0.9, 100), reference).over_forgetting


def test_the_silent_failure_of_the_design_note_is_seen():
    # Forget loss .34 against the reference's 2.9.
    verdict = forget_level_met(ForgetScore(0.34, 0.9, 500), ForgetScore(2.9, 0.3, 500))
    assert not verdict.met


def test_scores_out_of_range_are_refused():
    for loss, accuracy, count in [
        (math.nan, 0.5, 1),
        (-0.1, 0.5, 1),
        (1.0, 1.1, 1),
        (1.0, math.nan, 1),
        (1.0, 0.5, 0),
    ]:
        with pytest.raises(ConfigError):
            ForgetScore(loss, accuracy, count)
    assert ForgetScore(math.inf, 0.0, 1).loss == math.inf


def test_a_score_has_a_name_and_the_verdict_uses_it() -> None:
    dice = ForgetScore(0.05, 0.83, 14, "mean Dice")
    verdict = forget_level_met(ForgetScore(0.05, 0.84, 14), dice)
    assert "mean Dice 0.840 (needs <= 0.880)" in verdict.text
    assert "accuracy" not in verdict.text
    for name in ("", "x" * 41, "mean\nDice"):
        with pytest.raises(ConfigError, match="name"):
            ForgetScore(0.05, 0.83, 14, name)
