"""Projected gradient ascent: its reference, its ball, its stop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from flwr_afuic.errors import ConfigError, WireError
from flwr_afuic.unlearning.ascent import (
    STOP_EARLY,
    PgaSettings,
    ascend,
    ball_radius,
    project,
    reference_weights,
    start_from_reference,
)
from flwr_afuic.unlearning.contrast import FcuSettings
from flwr_afuic.unlearning.procedures import read_settings, write_settings
from flwr_afuic.unlearning.settings import UnlearningSettings


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))


def learned() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model = network()
    x = torch.randn(64, 1, 4, 4)
    y = (x[:, 0, :, 0].mean(1) > 0).long()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y


def test_the_reference_is_the_mean_of_the_others():
    models = np.random.default_rng(0).normal(size=(5, 9))
    reference = reference_weights(models.mean(axis=0), models[2], 5)
    np.testing.assert_allclose(reference, np.delete(models, 2, axis=0).mean(axis=0), atol=1e-12)
    with pytest.raises(ConfigError):
        reference_weights(models[0], models[1], 1)


def test_a_model_becomes_its_reference():
    model, own = network(0), network(1)
    before = [p.detach().clone() for p in model.parameters()]
    start_from_reference(model, own, 3)
    for old, mine, new in zip(before, own.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(new, (3 * old - mine) / 2)


def test_the_radius_is_a_third_of_the_mean_distance_to_random_models():
    model = network()
    settings = PgaSettings(random_models=4)
    once, again = (ball_radius(model, settings=settings, seed=1) for _ in range(2))
    double = ball_radius(model, settings=PgaSettings(random_models=4, radius_share=2 / 3), seed=1)
    assert once == again
    assert double == pytest.approx(2 * once)
    # Two independent models of uniform entries in +-b differ by 2 b^2 / 3 an entry.
    sizes = {16: 16 * 8 + 8, 8: 8 * 2 + 2}
    expected = math.sqrt(sum(n * 2 / (3 * fan) for fan, n in sizes.items())) / 3
    assert once == pytest.approx(expected, rel=0.15)


def test_projection_leaves_the_inside_and_shortens_the_outside():
    model = network()
    centre = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        model[1].bias += 3.0
    project(model, centre, 100.0)
    assert torch.equal(model[1].bias, centre[1] + 3.0)
    project(model, centre, 1.5)
    torch.testing.assert_close(model[1].bias - centre[1], torch.full((8,), 1.5 / math.sqrt(8)))


def test_ascent_raises_the_loss_within_the_ball_and_repeats():
    results = []
    for _ in range(2):
        model, x, y = learned()
        centre = [p.detach().clone() for p in model.parameters()]
        settings = PgaSettings(epochs=30, lr=0.1, batch_size=16, radius_share=0.2)
        outcome = ascend(model, forget_x=x, forget_y=y, settings=settings, seed=4)
        radius = ball_radius_of(centre, settings)
        assert outcome.delta_norm <= radius * (1 + 1e-5)
        assert outcome.after.loss > outcome.before.loss + 0.3
        results.append(outcome)
    assert results[0] == results[1]


def ball_radius_of(centre, settings) -> float:
    model = network()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), centre, strict=True):
            parameter.copy_(value)
    return ball_radius(model, settings=settings, seed=4)


def test_it_stops_once_a_batch_is_wrong_enough():
    model, x, y = learned()
    settings = PgaSettings(epochs=50, lr=0.1, batch_size=16, radius_share=5.0, stop_accuracy=0.5)
    outcome = ascend(model, forget_x=x, forget_y=y, settings=settings, seed=4)
    assert outcome.stop_reason == STOP_EARLY
    assert 0 < outcome.steps < 200
    assert outcome.after.accuracy < 0.8


@pytest.mark.parametrize("settings", [PgaSettings(epochs=2, sites=7), FcuSettings(low_pass=0.3)])
def test_settings_cross_the_wire(settings):
    assert read_settings(write_settings(settings)) == settings


def test_other_settings_are_those_of_the_default():
    assert read_settings(UnlearningSettings(steps=3).to_json()) == UnlearningSettings(steps=3)
    for text in ("[]", "no", '{"objective": "pga", "speed": 1}', '{"objective": "fcu", "lr": "x"}'):
        with pytest.raises(WireError):
            read_settings(text)
    with pytest.raises(ConfigError):
        read_settings('{"objective": "pga", "epochs": 0}')
