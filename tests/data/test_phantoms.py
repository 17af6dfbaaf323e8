from __future__ import annotations

import time

import pytest
import torch

from flwr_afuic.data.phantoms import make_phantoms
from flwr_afuic.errors import ConfigError


def test_phantoms_are_marked_and_well_formed() -> None:
    data = make_phantoms(0, 120, 40, 60)
    assert data.synthetic
    assert "synthetic" in data.source
    assert data.train.images.shape == (120, 1, 28, 28)
    assert 0 <= float(data.train.images.min()) < float(data.train.images.max()) <= 1
    assert len(set(data.train.ids + data.val.ids + data.test.ids)) == 220
    # Class 0 is the rarer one, as in PneumoniaMNIST.
    assert 0.5 < float(make_phantoms(0).train.labels.float().mean()) < 0.8


def test_same_seed_same_pixels_other_seed_others() -> None:
    a, b, c = (make_phantoms(seed, 50, 10, 10) for seed in (4, 4, 5))
    assert torch.equal(a.train.images, b.train.images)
    assert not torch.equal(a.train.images, c.train.images)


def test_splits_have_streams_of_their_own() -> None:
    a, b = make_phantoms(4, 50, 10, 10), make_phantoms(4, 80, 10, 10)
    assert torch.equal(a.test.images, b.test.images)
    assert not torch.equal(a.val.images, a.test.images)


def test_brightness_alone_does_not_tell_the_classes_apart() -> None:
    data = make_phantoms(0, 2000, 10, 10).train
    mean = data.images.mean(dim=(1, 2, 3))
    best = max(
        float(((mean > cut) == (data.labels == 1)).float().mean())
        for cut in mean.quantile(torch.linspace(0, 1, 51))
    )
    assert best < 0.72


def test_opacities_lie_in_the_lungs_of_class_one_and_beside_them_in_class_zero() -> None:
    data = make_phantoms(0, 2000, 10, 10).train
    clear, opacity = (data.images[data.labels == label].mean(dim=0)[0] for label in (0, 1))
    difference = opacity - clear
    assert float(difference[8:20, 6:10].mean()) > 0.03
    assert float(difference[8:20, 18:22].mean()) > 0.03
    assert float(difference[4:24, 13:15].mean()) < -0.03


def test_full_set_is_fast() -> None:
    start = time.process_time()
    make_phantoms(0)
    assert time.process_time() - start < 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"size": 8}, "size of 16 or more"), ({"n_val": 1}, "n_val is 1")],
)
def test_bad_settings(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_phantoms(0, **arguments)
