import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from flwr_afuic.calibration.fidelity import FidelitySettings, confine, keep_fidelity
from flwr_afuic.calibration.transforms import IdentityPhi, MonaiPhi
from flwr_afuic.errors import ConfigError, DataError
from flwr_afuic.unlearning.inference import predict
from flwr_afuic.unlearning.objectives import kl_divergence

vectors = arrays(np.float64, 6, elements=st.floats(-10, 10).map(lambda x: round(x, 3)))


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def proxies() -> torch.Tensor:
    return torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def perturbed(model: nn.Module) -> nn.Module:
    other = network(0)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
            parameter += 0.3 * noise
    return other


def distance(teacher: nn.Module, model: nn.Module, images: torch.Tensor) -> float:
    return float(kl_divergence(predict(teacher, images), predict(model, images)))


def test_predictions_come_back_and_the_teacher_stays(proxies):
    teacher = network(0)
    model, before = perturbed(teacher), [p.clone() for p in teacher.parameters()]
    far = distance(teacher, model, proxies)
    keep_fidelity(
        model, teacher, proxies, MonaiPhi(), settings=FidelitySettings(lr=0.1, steps=60), seed=0
    )
    assert distance(teacher, model, proxies) < 0.5 * far
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


def test_a_model_that_already_agrees_does_not_move(proxies):
    teacher = network(0)
    model = network(0)
    keep_fidelity(model, teacher, proxies, IdentityPhi(), seed=0)
    for own, theirs in zip(model.parameters(), teacher.parameters(), strict=True):
        torch.testing.assert_close(own, theirs, atol=1e-6, rtol=0)


def test_the_same_seed_gives_the_same_weights(proxies):
    teacher, runs = network(0), []
    for seed in (5, 5, 6):
        model = perturbed(teacher)
        keep_fidelity(model, teacher, proxies, MonaiPhi(), seed=seed)
        runs.append(torch.cat([p.detach().ravel() for p in model.parameters()]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_no_proxies_and_settings_out_of_range_are_refused():
    with pytest.raises(DataError, match="no proxies"):
        keep_fidelity(network(0), network(1), torch.zeros(0, 1, 4, 4), IdentityPhi(), seed=0)
    for wrong in ({"steps": 0}, {"lr": 0.0}, {"clip": -1.0}, {"momentum": 1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            FidelitySettings(**wrong)


def test_confine_takes_out_the_way_back_and_nothing_else():
    step = np.array([-1.0, 2.0, 3.0])
    delta, progress = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    assert confine(step, delta=delta, progress=progress).tolist() == [0.0, 0.0, 3.0]
    assert confine(-step, delta=delta, progress=progress).tolist() == [1.0, 0.0, -3.0]
    assert confine(step, delta=delta, progress=np.zeros(3)).tolist() == [0.0, 2.0, 3.0]


@given(step=vectors, delta=vectors, progress=vectors)
def test_confined_steps_lose_no_progress_and_stay_in_the_lock(step, delta, progress):
    confined = confine(step, delta=delta, progress=progress)
    size = np.linalg.norm(step)
    assert abs(confined @ progress) <= 1e-9 * (1 + size * np.linalg.norm(progress))
    assert confined @ delta >= -1e-9 * (1 + size * np.linalg.norm(delta))
    assert np.linalg.norm(confined) <= size * (1 + 1e-9)
