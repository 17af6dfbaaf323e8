from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from flwr_afuic.calibration.transforms import (
    PHI_NAMES,
    IdentityPhi,
    MonaiPhi,
    Phi,
    SignaturePhi,
    make_phi,
)
from flwr_afuic.errors import ConfigError, DataError


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=8, c=1, size=28, seed=0):
    return torch.rand(n, c, size, size, generator=gen(seed))


def still(**changes):
    options = dict.fromkeys(["rotate", "scale", "shift", "contrast", "brightness", "noise"], 0.0)
    return MonaiPhi(**{**options, **changes})


def test_identity_changes_nothing():
    x = images()
    assert IdentityPhi()(x, generator=gen()) is x


def test_a_still_phi_changes_nothing():
    x = images()
    torch.testing.assert_close(still()(x, generator=gen()), x)


@pytest.mark.parametrize("c", [1, 3])
def test_monai_phi_keeps_shape_and_treats_each_image_on_its_own(c):
    x = images(1, c).repeat(6, 1, 1, 1)
    out = MonaiPhi()(x, generator=gen())
    assert out.shape == x.shape
    assert torch.isfinite(out).all()
    for i in range(1, 6):
        assert not torch.allclose(out[0], out[i], atol=1e-3)


def test_the_generator_alone_decides():
    x = images()
    torch.manual_seed(1)
    one = MonaiPhi()(x, generator=gen(3))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two = MonaiPhi()(x, generator=gen(3))
    assert torch.equal(one, two)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(one, MonaiPhi()(x, generator=gen(4)))


def test_shift_moves_a_point_by_at_most_its_share():
    x = torch.zeros(32, 1, 20, 20)
    x[:, :, 10, 10] = 1.0
    out = still(shift=0.1)(x, generator=gen())
    mass = out.sum(dim=(1, 2, 3))
    rows = (out.sum(dim=(1, 3)) * torch.arange(20)).sum(1) / mass
    columns = (out.sum(dim=(1, 2)) * torch.arange(20)).sum(1) / mass
    moved = torch.stack([rows, columns]) - 10
    assert moved.abs().max() <= 2.0 + 1e-4  # .1 of 20 pixels
    assert moved.abs().max() > 1.0
    assert moved.std(dim=1).min() > 0.5  # both axes move


def test_rotation_keeps_the_centre_and_turns_the_rest():
    x = torch.zeros(16, 1, 21, 21)
    x[:, :, 10, 18] = 1.0  # 8 pixels right of the centre
    out = still(rotate=0.2)(x, generator=gen())
    rows = (out.sum(dim=(1, 3)) * torch.arange(21)).sum(1) / out.sum(dim=(1, 2, 3)) - 10
    assert 0.8 < rows.abs().max() <= 8 * 0.2 + 0.1


def test_intensity_changes_scale_with_the_image():
    x = images(16)
    one = still(contrast=0.2, brightness=0.2, noise=0.1)(x, generator=gen())
    ten = still(contrast=0.2, brightness=0.2, noise=0.1)(10 * x, generator=gen())
    torch.testing.assert_close(ten, 10 * one, rtol=1e-4, atol=1e-4)
    shift = (one - x).mean(dim=(1, 2, 3)).abs() / x.std(dim=(1, 2, 3))
    assert 0.05 < shift.max() <= 0.2 + 0.02


def test_monai_phi_is_quick():
    phi, x, g = MonaiPhi(), images(64), gen()
    phi(x, generator=g)
    spent = []
    for _ in range(10):
        start = time.perf_counter()
        phi(x, generator=g)
        spent.append(time.perf_counter() - start)
    assert min(spent) < 0.01  # about .002 s on an idle core


class Corner(nn.Module):
    """Class 1 as the top left pixel is bright, with a given weight."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x):
        corner = self.weight * x[:, 0, 0, 0]
        return torch.stack([torch.zeros_like(corner), corner], dim=1)


def test_the_signature_finds_the_pixel_on_which_two_models_disagree():
    phi = SignaturePhi.learn(Corner(6.0), Corner(0.0), images(32), seed=0, steps=30, bound=0.5)
    pattern = phi.perturbation.abs()
    assert pattern.max() <= 0.5
    assert pattern[0, 0, 0] == pytest.approx(0.5, abs=1e-5)
    assert pattern.flatten()[1:].max() < 0.1  # the other pixels keep their small start
    x = images(4)
    torch.testing.assert_close(phi(x, generator=gen()) - x, phi.perturbation.expand_as(x))
    with pytest.raises(DataError, match="signature"):
        phi(images(4, c=3), generator=gen())


def test_make_phi_knows_its_names_and_refuses_others():
    assert isinstance(make_phi("identity"), IdentityPhi)
    assert make_phi("monai", rotate=0.5).rotate == 0.5
    assert isinstance(make_phi("signature", perturbation=torch.zeros(1, 2, 2)), SignaturePhi)
    assert all(isinstance(p, Phi) for p in (IdentityPhi(), MonaiPhi()))
    with pytest.raises(ConfigError) as error:
        make_phi("fourier")
    assert all(name in str(error.value) for name in PHI_NAMES)
    for name, options in [
        ("monai", {"tilt": 1}),
        ("signature", {}),
        ("monai", {"noise": -1.0}),
        ("monai", {"rotate": 4.0}),
    ]:
        with pytest.raises(ConfigError):
            make_phi(name, **options)
