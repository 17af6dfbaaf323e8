"""Networks for pictures and volumes, what is said of their norms, and pretrained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from flwr_afuic.errors import ConfigError, DataError, LayoutError
from flwr_afuic.models import get_arrays, load_pretrained, make_model, preflight
from flwr_afuic.unlearning.inference import score
from flwr_afuic.unlearning.tasks import make_task, task_of


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("name", "size", "task", "out"),
    [
        ("vit", (28, 28), "classification", (2, 3)),
        ("vit", (16, 8, 16), "multi-label", (2, 3)),
        ("unet", (16, 24), "segmentation", (2, 3, 16, 24)),
        ("unet", (16, 8, 12), "segmentation", (2, 3, 16, 8, 12)),
        ("segresnet", (16, 24), "segmentation", (2, 3, 16, 24)),
        ("segresnet", (16, 8, 16), "segmentation", (2, 3, 16, 8, 16)),
        ("resnet10", (16, 16, 16), "classification", (2, 3)),
        ("densenet121", (16, 8, 8), "multi-label", (2, 3)),
    ],
)
def test_networks_for_pictures_and_volumes(
    name: str, size: tuple[int, ...], task: str, out: tuple[int, ...]
) -> None:
    before = torch.random.get_rng_state()
    options: dict[str, Any] = {"channels": 1, "num_classes": 3, "image_size": size, "task": task}
    model = make_model(name, **options, seed=4)
    assert torch.equal(before, torch.random.get_rng_state())
    same = make_model(name, **options, seed=4)
    assert all(
        np.array_equal(a, b) for a, b in zip(get_arrays(model), get_arrays(same), strict=True)
    )
    logits = model.eval()(torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == out
    assert bool(logits.isfinite().all())
    assert task_of(model).name == task
    for array in get_arrays(model):
        assert np.isfinite(array).all()


def test_segmenters_segment_unless_told_otherwise() -> None:
    options: dict[str, Any] = {"channels": 1, "num_classes": 2}
    assert task_of(make_model("unet", **options)).name == "segmentation"
    assert task_of(make_model("groupnorm-cnn", **options)).name == "classification"
    with pytest.raises(ConfigError, match=r"'unet' is not for classification.*groupnorm-cnn"):
        make_model("unet", **options, task="classification")
    with pytest.raises(ConfigError, match="'resnet10' is not for segmentation"):
        make_model("resnet10", **options, task="segmentation")


@pytest.mark.parametrize(
    ("name", "size"),
    [("unet", (10, 10)), ("vit", (9, 9)), ("groupnorm-cnn", (16, 8)), ("unet", (8, 8, 8, 8))],
)
def test_sizes_a_network_cannot_take(name: str, size: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError):
        make_model(name, channels=1, num_classes=2, image_size=size)


@pytest.mark.parametrize("name", ["unet", "segresnet"])
def test_a_segmenter_learns_bright_from_dark(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 1, 8, 8, 8, generator=generator)
    y = (x[:, 0] > 0.5).long()
    model = make_model(name, channels=1, num_classes=2, image_size=(8, 8, 8))
    before = score(model, x, y)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(25):
        optimizer.zero_grad()
        make_task("segmentation").training_loss(model(x), y).backward()
        optimizer.step()
    after = score(model, x, y)
    assert after.loss < before.loss
    assert after.accuracy > max(0.7, before.accuracy)


def test_preflight_says_what_becomes_of_batch_norms() -> None:
    model = make_model("resnet10", channels=1, num_classes=2)
    before = get_arrays(model)
    found = preflight(model, batch_size=1)
    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(found.batch_norms) == len(found.tracking) == len(layers)
    assert found.counters == len(layers)
    assert found.statistics == 2 * len(layers)
    assert found.trained + found.statistics + found.counters == len(before)
    assert "averaged over the sites" in found.text()
    assert "warning" in found.text()
    assert "warning" not in preflight(model, batch_size=8).text()
    assert all(np.array_equal(a, b) for a, b in zip(before, get_arrays(model), strict=True))


def test_preflight_of_group_norm_and_dropout() -> None:
    found = preflight(make_model("unet", channels=1, num_classes=2, image_size=(8, 8)))
    assert found.batch_norms == found.tracking == ()
    assert "no layer keeps statistics" in found.text()
    assert "dropout" in preflight(nn.Sequential(nn.Dropout(0.5))).text()
    assert "dropout" not in preflight(nn.Sequential(nn.Dropout(0.0))).text()


def toy(classes: int = 2, seed: int = 0) -> nn.Module:
    return make_model("groupnorm-cnn", channels=1, num_classes=classes, seed=seed)


def head() -> str:
    return list(toy().state_dict())[-1].rpartition(".")[0]


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(get_arrays(one), get_arrays(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "nested", "wrapped"])
def test_weights_from_a_file(tmp_path: Path, kind: str) -> None:
    source, target = toy(seed=1), toy(seed=2)
    state = source.state_dict()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "nested":
        torch.save({"epoch": 3, "state_dict": state}, path)
    elif kind == "wrapped":
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    loaded = load_pretrained(target, path)
    assert equal(source, target)
    assert loaded.kept == loaded.unused == ()
    assert f"{len(state)} of {len(state)}" in loaded.text()


def test_a_head_of_other_classes_may_stay_fresh(tmp_path: Path) -> None:
    source, target = toy(classes=5, seed=1), toy(seed=2)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    before = get_arrays(target)
    with pytest.raises(LayoutError, match=r"shape \(5, "):
        load_pretrained(target, tmp_path / "w.pt")
    assert all(np.array_equal(a, b) for a, b in zip(before, get_arrays(target), strict=True))
    loaded = load_pretrained(target, tmp_path / "w.pt", allow_fresh=(head(),))
    assert len(loaded.kept) == 2
    first = next(iter(target.state_dict()))
    assert torch.equal(target.state_dict()[first], source.state_dict()[first])


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "w.pt")
    with pytest.raises(LayoutError, match="0 of"):
        load_pretrained(toy(), tmp_path / "w.pt", allow_fresh=None)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("evil"),))


def test_no_code_of_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, tmp_path / "w.pt")
    with pytest.raises(DataError, match="safely"):
        load_pretrained(toy(), tmp_path / "w.pt")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"no weights"])
def test_files_that_are_no_weights(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError):
        load_pretrained(toy(), tmp_path / name)


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    state = toy().state_dict()
    next(iter(state.values()))[:] = float("nan")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(DataError, match="NaN"):
        load_pretrained(toy(), tmp_path / "w.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(DataError, match="list"):
        load_pretrained(toy(), tmp_path / "list.pt")
