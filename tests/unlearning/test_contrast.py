"""FCU's losses and its memory against hand-derived values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from flwr_afuic.errors import ConfigError
from flwr_afuic.unlearning.contrast import (
    FcuSettings,
    contrast_loss,
    features_of,
    keep_low_frequencies,
    unlearn_by_contrast,
)

RNG = np.random.default_rng(5)


def test_the_contrast_by_hand():
    z = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    downgraded = torch.tensor([[6.0, 8.0], [0.0, 2.0]])  # cosines 1 and 0
    original = torch.tensor([[4.0, -3.0], [5.0, 0.0]])  # cosines 0 and 1
    tau = 0.25
    rows = [
        -math.log(math.exp(1 / tau) / (math.exp(1 / tau) + math.exp(0))),
        -math.log(math.exp(0) / (math.exp(0) + math.exp(1 / tau))),
    ]
    loss = contrast_loss(z, downgraded, original, temperature=tau)
    assert float(loss) == pytest.approx(sum(rows) / 2, rel=1e-6)


def test_the_contrast_falls_towards_the_downgraded_model():
    z = torch.randn(4, 6, requires_grad=True)
    downgraded, original = torch.randn(4, 6), torch.randn(4, 6)
    before = contrast_loss(z, downgraded, original, temperature=0.5)
    before.backward()
    after = contrast_loss(z - 0.1 * z.grad, downgraded, original, temperature=0.5)
    assert float(after) < float(before)


def test_a_constant_change_is_all_low_frequency():
    original = RNG.normal(size=(6, 8))
    kept = keep_low_frequencies(original + 0.7, original, low_pass=0.05)
    np.testing.assert_allclose(kept, original, atol=1e-12)


def test_an_alternating_change_is_all_high_frequency():
    original = RNG.normal(size=(6, 8))
    signs = (-1.0) ** np.add.outer(np.arange(6), np.arange(8))
    kept = keep_low_frequencies(original + signs, original, low_pass=0.9)
    np.testing.assert_allclose(kept, original + signs, atol=1e-12)


def test_one_wave_is_kept_or_dropped_by_its_frequency():
    original = np.zeros((4, 8))
    wave = np.tile(np.cos(2 * np.pi * np.arange(8) / 8), (4, 1))  # 1/8 cycle an entry
    np.testing.assert_allclose(keep_low_frequencies(wave, original, 0.24), wave, atol=1e-12)
    np.testing.assert_allclose(keep_low_frequencies(wave, original, 0.25), 0, atol=1e-12)


def test_all_or_nothing_and_vectors():
    original, after = RNG.normal(size=(2, 3, 2, 2))
    assert keep_low_frequencies(after, original, 0.0) is after
    np.testing.assert_allclose(keep_low_frequencies(after, original, 1.0), original, atol=1e-12)
    vector = np.ones(4, np.float32)
    assert keep_low_frequencies(vector, np.zeros(4, np.float32), 1.0) is vector


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))


def test_features_are_what_the_last_linear_layer_is_given():
    torch.manual_seed(0)
    model, x = network(), torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(features_of(model, x), model[:3](x))
    assert not model[3]._forward_pre_hooks


def test_a_model_without_a_linear_layer_has_no_known_features():
    with pytest.raises(ConfigError):
        features_of(nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2))


def test_features_move_from_the_original_to_the_downgraded():
    torch.manual_seed(1)
    model, downgraded = network(), network()
    original = features_of(model, x := torch.randn(64, 1, 4, 4)).detach()
    fixed = features_of(downgraded, x).detach()
    settings = FcuSettings(epochs=20, lr=0.1, low_pass=0.0, batch_size=16)
    head = model[3].weight.detach().clone()
    outcome = unlearn_by_contrast(
        model, downgraded, forget_x=x, forget_y=torch.zeros(64).long(), settings=settings, seed=0
    )
    cosine = nn.functional.cosine_similarity
    after = features_of(model, x)
    assert outcome.steps == 80
    assert cosine(after, fixed).mean() > cosine(original, fixed).mean() + 0.1
    assert cosine(after, original).mean() < 0.9
    torch.testing.assert_close(model[3].weight, head)  # the contrast says nothing of the head


def test_keeping_everything_undoes_the_weights():
    torch.manual_seed(1)
    model, downgraded = network(), network()
    weight = model[1].weight.detach().clone()
    x = torch.randn(32, 1, 4, 4)
    settings = FcuSettings(epochs=2, lr=0.1, low_pass=1.0)
    unlearn_by_contrast(
        model, downgraded, forget_x=x, forget_y=torch.zeros(32).long(), settings=settings, seed=0
    )
    torch.testing.assert_close(model[1].weight, weight)
