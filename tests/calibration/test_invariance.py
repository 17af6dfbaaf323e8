from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from flwr_afuic.calibration.invariance import InvarianceSettings, calibrate
from flwr_afuic.calibration.transforms import IdentityPhi, MonaiPhi
from flwr_afuic.errors import ConfigError, DataError
from flwr_afuic.unlearning.inference import predict
from flwr_afuic.unlearning.objectives import kl_divergence


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.out = nn.Linear(64, 3)

    def forward(self, x):
        return self.out(self.norm(x).flatten(1))


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network()


@pytest.fixture
def proxies():
    return torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[k], other[k]) for k in one)


def disagreement(model, x, phi):
    shown = phi(x, generator=torch.Generator().manual_seed(99))
    return float(kl_divergence(predict(model, x), predict(model, shown)))


def test_predictions_change_less_under_phi_afterwards(model, proxies):
    before = disagreement(model, proxies, MonaiPhi())
    calibrate(model, proxies, MonaiPhi(), settings=InvarianceSettings(steps=50, lr=0.3), seed=1)
    assert disagreement(model, proxies, MonaiPhi()) < 0.7 * before


def test_identity_is_a_control_that_changes_nothing(model, proxies):
    before = state(model)
    calibrate(model, proxies, IdentityPhi(), settings=InvarianceSettings(), seed=1)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=0)


def test_statistics_stay_and_the_mode_is_restored(model, proxies):
    model.train()
    before = state(model)
    calibrate(model, proxies, MonaiPhi(), settings=InvarianceSettings(), seed=1)
    after = model.state_dict()
    for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
        assert torch.equal(after[name], before[name])
    assert not torch.equal(after["out.weight"], before["out.weight"])
    assert model.training
    assert model.norm.training


def test_only_the_seed_decides(model, proxies):
    runs = []
    for noise, seed in [(1, 7), (2, 7), (3, 8)]:
        torch.manual_seed(noise)
        copied = copy.deepcopy(model)
        calibrate(copied, proxies, MonaiPhi(), seed=seed)
        runs.append(state(copied))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_settings_and_proxies_are_checked(model, proxies):
    for wrong in ({"steps": 0}, {"lr": 0.0}, {"clip": -1.0}, {"batch_size": 2.5}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            InvarianceSettings(**wrong)
    with pytest.raises(DataError, match="proxies"):
        calibrate(model, proxies[:0], MonaiPhi(), seed=0)
