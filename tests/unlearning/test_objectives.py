from __future__ import annotations

import math

import pytest
import torch

from flwr_afuic.errors import ConfigError
from flwr_afuic.unlearning.level import ForgetScore
from flwr_afuic.unlearning.objectives import (
    OBJECTIVE_NAMES,
    ForgetBatch,
    UnlearningObjective,
    kl_divergence,
    make_objective,
)


def logits(*probabilities):
    return torch.log(torch.tensor(probabilities))


def batch(own, reference=None, snapshot=None, level=None):
    own = logits(*own).requires_grad_(True)
    return ForgetBatch(
        logits=own,
        labels=torch.zeros(len(own), dtype=torch.long),
        snapshot=own.detach() if snapshot is None else logits(*snapshot),
        reference=None if reference is None else logits(*reference),
        level=level,
    )


def test_reference_bounded_by_hand():
    # Label 0. First sample: own p .8, reference .2, gap ln 4. Second: own .1, reference .4,
    # already past the reference: counts nothing and gets no gradient.
    b = batch([(0.8, 0.2), (0.1, 0.9)], reference=[(0.2, 0.8), (0.4, 0.6)])
    loss = make_objective("reference-bounded").loss(b)
    assert loss.item() == pytest.approx(math.log(4) / 2, abs=1e-6)
    loss.backward()
    # d/d logit_0 of -CE is 1 - p = .2, the mean halves it, descent lowers the logit.
    assert b.logits.grad[0, 0].item() == pytest.approx(0.1, abs=1e-6)
    assert torch.equal(b.logits.grad[1], torch.zeros(2))


def test_saturated_samples_still_move():
    # Log-odds 40: cross-entropy and its slope round to 0. The push is a tenth of 40 - ln 9.
    own = torch.tensor([[40.0, 0.0]], requires_grad=True)
    b = ForgetBatch(own, torch.tensor([0]), own.detach(), reference=logits((0.5, 0.5)))
    loss = make_objective("reference-bounded").loss(b)
    assert loss.item() == pytest.approx(math.log(2) + 0.1 * (40 - math.log(9)), abs=1e-5)
    loss.backward()
    torch.testing.assert_close(own.grad, torch.tensor([[0.1, -0.1]]))
    # A reference that is as sure leaves the sample alone.
    sure = ForgetBatch(own, torch.tensor([0]), own.detach(), reference=own.detach())
    assert make_objective("reference-bounded").loss(sure).item() == 0


def test_what_the_reference_knows_is_held_back():
    # Both are a factor beyond the reference; it gets only the first right (.6 > .5).
    b = batch([(0.3, 0.7), (0.1, 0.9)], reference=[(0.6, 0.4), (0.4, 0.6)])
    expected = 0.3 * math.log(2) / 2
    assert make_objective("reference-bounded").loss(b).item() == pytest.approx(expected, abs=1e-6)
    assert make_objective("reference-bounded", keep=0.0).loss(b).item() == 0


def test_a_margin_raises_the_bound():
    b = batch([(0.5, 0.5)], reference=[(0.5, 0.5)])
    assert make_objective("reference-bounded").loss(b).item() == 0
    assert make_objective("reference-bounded", margin=0.3).loss(b).item() == pytest.approx(0.3)


def test_without_a_reference_the_holdout_loss_is_the_level():
    b = batch([(0.8, 0.2), (0.1, 0.9)], level=math.log(2))
    expected = (math.log(2) + math.log(0.8)) / 2
    assert make_objective("reference-bounded").loss(b).item() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ConfigError, match="held-out"):
        make_objective("reference-bounded").loss(batch([(0.5, 0.5)]))


def test_ascent_by_hand():
    ascent = make_objective("ascent", bound=1.5)
    assert ascent.loss(batch([(0.25, 0.75)])).item() == pytest.approx(-math.log(4), abs=1e-6)
    assert not ascent.reached(ForgetScore(1.49, 0.5, 1))
    assert ascent.reached(ForgetScore(1.5, 0.5, 1))


def test_npo_by_hand():
    # Unmoved: 2/beta ln 2. Moved from p .8 to .2: 2 ln(1 + 1/4) at beta 1.
    npo = make_objective("anchored-npo")
    assert npo.loss(batch([(0.8, 0.2)])).item() == pytest.approx(2 * math.log(2), abs=1e-6)
    moved = batch([(0.2, 0.8)], snapshot=[(0.8, 0.2)])
    assert npo.loss(moved).item() == pytest.approx(2 * math.log(1.25), abs=1e-6)
    half = make_objective("anchored-npo", beta=0.5).loss(moved).item()
    assert half == pytest.approx(4 * math.log(1.5), abs=1e-6)


def test_kl_by_hand():
    # KL((.5, .5) || (.25, .75)) = .5 ln 2 + .5 ln(2/3).
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    value = kl_divergence(logits((0.5, 0.5)), logits((0.25, 0.75)))
    assert value.item() == pytest.approx(expected, abs=1e-6)
    b = batch([(0.25, 0.75)], reference=[(0.5, 0.5)])
    objective = make_objective("kl-to-reference")
    assert objective.loss(b).item() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ConfigError, match="reference"):
        objective.loss(batch([(0.5, 0.5)]))


def test_only_ascent_stops_early():
    for name in OBJECTIVE_NAMES:
        objective = make_objective(name)
        assert isinstance(objective, UnlearningObjective)
        assert objective.name == name
        assert objective.reached(ForgetScore(1e9, 0.0, 1)) is (name == "ascent")


def test_unknown_names_and_options_are_refused_with_the_known():
    with pytest.raises(ConfigError) as error:
        make_objective("amnesia")
    assert all(name in str(error.value) for name in OBJECTIVE_NAMES)
    with pytest.raises(ConfigError, match="margin"):
        make_objective("reference-bounded", beta=1.0)
    for name, options in [
        ("ascent", {"bound": 0.0}),
        ("anchored-npo", {"beta": math.inf}),
        ("reference-bounded", {"margin": -1.0}),
        ("kl-to-reference", {"beta": 1.0}),
    ]:
        with pytest.raises(ConfigError):
            make_objective(name, **options)
