"""FedOSD's pieces against hand-derived values and linear algebra."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from flwr_afuic.errors import DataError, LayoutError
from flwr_afuic.unlearning.orthogonal import (
    mean_gradient,
    orthogonal_direction,
    unlearning_cross_entropy,
    without_return,
)

RNG = np.random.default_rng(3)


@pytest.mark.parametrize(("sites", "size"), [(1, 5), (4, 60), (19, 400)])
def test_the_direction_is_orthogonal_to_every_retained_gradient(sites, size):
    target = RNG.normal(size=size)
    retained = [RNG.normal(size=size) * 10.0**k for k in np.linspace(-4, 4, sites)]
    direction = orthogonal_direction(target, retained)
    for gradient in retained:
        scale = np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert abs(gradient @ direction) <= 1e-8 * scale
    assert direction @ target > 0


def test_the_direction_is_the_closest_of_those():
    """Against the normal equations, and against any other orthogonal direction."""
    target, rows = RNG.normal(size=30), RNG.normal(size=(4, 30))
    direction = orthogonal_direction(target, list(rows))
    expected = target - rows.T @ np.linalg.solve(rows @ rows.T, rows @ target)
    np.testing.assert_allclose(direction, expected, rtol=1e-10, atol=1e-12)


def test_retained_gradients_may_repeat_depend_on_each_other_and_vanish():
    target, one, two = RNG.normal(size=(3, 20))
    base = orthogonal_direction(target, [one, two])
    again = orthogonal_direction(target, [one, two, one - 2 * two, one, np.zeros(20)])
    np.testing.assert_allclose(again, base, atol=1e-12)


def test_nobody_retained_leaves_the_gradient():
    target = RNG.normal(size=7)
    np.testing.assert_array_equal(orthogonal_direction(target, []), target)


def test_gradients_of_another_model_are_refused():
    with pytest.raises(LayoutError):
        orthogonal_direction(np.ones(3), [np.ones(4)])


def test_the_unlearning_loss_by_hand():
    # p = .8: -log(1 - .4); p = .5: -log(.75)
    logits = torch.tensor([[math.log(4.0), 0.0], [0.0, 0.0]])
    expected = (-math.log(0.6) - math.log(0.75)) / 2
    assert float(unlearning_cross_entropy(logits, torch.tensor([0, 1]))) == pytest.approx(expected)


def test_the_unlearning_loss_is_bounded_with_its_gradient():
    logits = torch.tensor([[60.0, 0.0]], requires_grad=True)
    loss = unlearning_cross_entropy(logits, torch.tensor([0]))
    assert float(loss) == pytest.approx(math.log(2))
    loss.backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", ["cross-entropy", "unlearning-cross-entropy"])
def test_the_gradient_by_finite_differences(loss):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    x, y = torch.randn(7, 1, 2, 2, dtype=torch.float64), torch.arange(7) % 3

    def value() -> float:
        logits = model(x)
        if loss == "cross-entropy":
            return float(nn.functional.cross_entropy(logits, y))
        return float(unlearning_cross_entropy(logits, y))

    weight, bias = mean_gradient(model, x, y, loss=loss, batch_size=3)
    with torch.no_grad():
        for parameter, gradient in ((model[1].weight, weight), (model[1].bias, bias)):
            for index in np.ndindex(*parameter.shape):
                here = parameter[index].item()
                parameter[index] = here + 1e-6
                up = value()
                parameter[index] = here - 1e-6
                down = value()
                parameter[index] = here
                assert gradient[index] == pytest.approx((up - down) / 2e-6, abs=1e-8)


def test_a_gradient_leaves_model_and_statistics_as_they_are():
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, y = torch.randn(5, 1, 2, 2), torch.zeros(5, dtype=torch.int64)
    arrays = mean_gradient(model, x, y)
    for (name, tensor), array in zip(model.state_dict().items(), arrays, strict=True):
        assert torch.equal(tensor, before[name])
        assert array.shape == tuple(tensor.shape)
        if "running" in name or "tracked" in name:
            np.testing.assert_array_equal(array, tensor.numpy())
    assert model.training


def test_an_unknown_loss_is_refused():
    with pytest.raises(DataError):
        mean_gradient(nn.Linear(1, 2), torch.ones(1, 1), torch.zeros(1).long(), loss="other")


def test_what_points_back_is_stripped_and_nothing_else():
    away = RNG.normal(size=12)
    for _ in range(50):
        update = RNG.normal(size=12)
        kept = without_return(update, away)
        assert kept @ away >= -1e-12
        if update @ away >= 0:
            assert kept is update
        else:
            np.testing.assert_allclose(
                update - kept, (update @ away) / (away @ away) * away, atol=1e-12
            )


def test_nowhere_to_return_to():
    update = RNG.normal(size=3)
    assert without_return(update, np.zeros(3)) is update
