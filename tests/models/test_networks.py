from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from flwr_afuic.data.images import ImageSet
from flwr_afuic.data.phantoms import make_phantoms
from flwr_afuic.data.sources import load_dataset
from flwr_afuic.errors import ConfigError
from flwr_afuic.models import MODEL_NAMES, get_arrays, make_model
from flwr_afuic.models.networks import _initialise


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(get_arrays(a), get_arrays(b), strict=True))


def train(model: nn.Module, data: ImageSet, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    # Decayed, since the last of many steps at a constant rate is a matter of luck.
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for _ in range(steps):
        batch = torch.randint(len(data), (32,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.images[batch]), data.labels[batch]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        decay.step()


def accuracy(model: nn.Module, data: ImageSet) -> float:
    with torch.no_grad():
        return float((model(data.images).argmax(1) == data.labels).float().mean())


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["groupnorm-cnn", "resnet10", "densenet121"])
def test_models_map_images_to_logits_and_leave_the_global_generator(name: str) -> None:
    before = torch.random.get_rng_state()
    model = make_model(name, channels=3, num_classes=5)
    assert torch.equal(before, torch.random.get_rng_state())
    assert model.training
    logits = model.eval()(torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 5)
    assert bool(torch.isfinite(logits).all())
    assert all(not tensor.is_meta for tensor in model.state_dict().values())


def test_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(1)
    a = make_model("groupnorm-cnn", channels=1, num_classes=2, seed=7)
    torch.manual_seed(2)
    b = make_model("groupnorm-cnn", channels=1, num_classes=2, seed=7)
    c = make_model("groupnorm-cnn", channels=1, num_classes=2, seed=8)
    assert same(a, b)
    assert not same(a, c)


def test_threads_make_the_same_weights() -> None:
    def make(seed: int) -> nn.Module:
        return make_model("groupnorm-cnn", channels=1, num_classes=2, seed=seed)

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make, list(range(8)) * 3))
    assert all(same(model, make(row % 8)) for row, model in enumerate(made))


def test_groupnorm_cnn_is_small_has_no_buffers_and_starts_even() -> None:
    model = make_model("groupnorm-cnn", channels=1, num_classes=2)
    assert sum(p.numel() for p in model.parameters()) == 25_570
    assert list(model.buffers()) == []
    assert not bool(model(torch.rand(3, 1, 28, 28)).any())


@pytest.mark.parametrize("size", [8, 28, 33, 64])
def test_groupnorm_cnn_takes_other_sizes(size: int) -> None:
    model = make_model("groupnorm-cnn", channels=1, num_classes=2, image_size=size)
    assert model(torch.rand(2, 1, size, size)).shape == (2, 2)


def test_it_learns_phantoms_but_not_perfectly() -> None:
    data = make_phantoms(0)
    model = make_model("groupnorm-cnn", channels=1, num_classes=2)
    train(model, data.train, 250)
    assert 0.82 < accuracy(model, data.test) < 0.985


@pytest.mark.data
def test_it_learns_pneumoniamnist() -> None:
    folder = os.environ.get("AFUIC_DATA_DIR")
    if not folder:
        pytest.skip("AFUIC_DATA_DIR is not set: no real data")
    data = load_dataset("pneumoniamnist", Path(folder), download=False)
    model = make_model("groupnorm-cnn", channels=1, num_classes=2)
    train(model, data.train, 300)
    assert accuracy(model, data.test) > 0.78


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "resnet5"}, r"unknown model 'resnet5' \(did you mean 'resnet50'|'resnet"),
        ({"name": "zzz"}, "unknown model 'zzz'; known: groupnorm-cnn"),
        ({"channels": 0}, "channels is 0"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"image_size": 4}, "image_size is 4"),
    ],
)
def test_bad_settings(changes: dict[str, object], message: str) -> None:
    settings = {"name": "groupnorm-cnn", "channels": 1, "num_classes": 2} | changes
    name = settings.pop("name")
    with pytest.raises(ConfigError, match=message):
        make_model(name, **settings)  # type: ignore[arg-type]


def test_layer_without_a_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match="layer '0' of type Bilinear"):
        _initialise(nn.Sequential(nn.Bilinear(2, 2, 2)), torch.Generator())


def test_names() -> None:
    assert {"groupnorm-cnn", "densenet121", "resnet18", "resnet50"} <= set(MODEL_NAMES)
