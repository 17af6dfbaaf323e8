import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from flwr_afuic.errors import ConfigError
from flwr_afuic.metrics import label_from_gradient, peak_signal_to_noise, structural_similarity


def test_decibels_by_hand():
    assert peak_signal_to_noise(np.zeros((2, 2)), np.full((2, 2), 0.5)) == pytest.approx(6.0206)
    assert peak_signal_to_noise([0.3], [0.3]) == math.inf


def similarity_by_scipy(x, y):
    """Structural similarity written with scipy's Gaussian filter, cut to whole windows."""

    def blur(image):
        return ndimage.gaussian_filter(image, 1.5, radius=5)[5:-5, 5:-5]

    mx, my = blur(x), blur(y)
    vx, vy, c = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    luminance = (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
    return (luminance * (2 * c + 9e-4) / (vx + vy + 9e-4)).mean()


def test_structural_similarity_equals_one_written_with_scipy():
    rng = np.random.default_rng(0)
    for shape in ((11, 11), (28, 17)):
        x = rng.random(shape)
        y = np.clip(x + rng.normal(0, 0.2, shape), 0, 1)
        assert structural_similarity(x, y) == pytest.approx(similarity_by_scipy(x, y))
    pair = rng.random((2, 3, 16, 16))
    channels = [similarity_by_scipy(a, b) for a, b in zip(*pair, strict=True)]
    assert structural_similarity(*pair) == pytest.approx(np.mean(channels))


def test_structure_and_not_error_alone_counts():
    # The same squared error: moved in brightness, or with noise.
    x = np.tile(np.linspace(0.2, 0.8, 28), (28, 1))
    noise = np.random.default_rng(1).choice([-0.1, 0.1], x.shape)
    assert peak_signal_to_noise(x, x + 0.1) == pytest.approx(peak_signal_to_noise(x, x + noise))
    assert structural_similarity(x, x + 0.1) > structural_similarity(x, x + noise) + 0.2


@pytest.mark.parametrize("label", range(3))
def test_the_label_is_read_from_torchs_gradient(label):
    torch.manual_seed(label)
    layer = torch.nn.Linear(4, 3)
    torch.nn.functional.cross_entropy(layer(torch.randn(1, 4)), torch.tensor([label])).backward()
    assert label_from_gradient(layer.bias.grad.numpy()) == label


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: peak_signal_to_noise([0.1], [0.1, 0.2]), "differ in shape"),
        (lambda: structural_similarity(np.ones((10, 28)), np.ones((10, 28))), "at least 11"),
        (lambda: label_from_gradient([1.0]), "two classes"),
    ],
)
def test_bad_input_gives_one_clear_line(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
