"""Leakage: how much an image made from a model update is like the image behind it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from flwr_afuic.errors import ConfigError
from flwr_afuic.metrics._checks import FloatArray, finite_array, same_shape

_WINDOW = 11
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03


def peak_signal_to_noise(image: ArrayLike, other: ArrayLike) -> float:
    """Likeness of two images of the range [0, 1]: ``-10 log10`` of the mean squared error.

    Parameters
    ----------
    image, other : array of one shape

    Returns
    -------
    float
        In dB, infinite for equal images.

    Raises
    ------
    ConfigError
        If shapes differ, or an array is empty or not finite.

    Examples
    --------
    >>> peak_signal_to_noise([0.0, 0.0], [0.1, 0.1]).__round__(6)
    20.0
    """
    first, second = finite_array(image, "image"), finite_array(other, "other")
    same_shape(first, second, "image and other")
    error = float(np.mean((first - second) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def structural_similarity(image: ArrayLike, other: ArrayLike) -> float:
    """Mean structural similarity of two images of the range [0, 1] (Wang et al. 2004, Eq. 13).

    Weighted by the paper's Gaussian window of 11 x 11 pixels and a standard deviation of 1.5,
    where it lies within the image whole; channels are averaged (our reading: the paper has one).

    Parameters
    ----------
    image, other : array, shape (height, width) or (channels, height, width)
        At least 11 pixels a side.

    Returns
    -------
    float
        In [-1, 1]; 1 for equal images.

    Raises
    ------
    ConfigError
        If shapes differ, a side is shorter than the window, or a value is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> ramp = np.tile(np.linspace(0, 1, 12), (12, 1))
    >>> structural_similarity(ramp, ramp), structural_similarity(ramp, 1 - ramp) < 0
    (1.0, True)
    """
    first, second = finite_array(image, "image"), finite_array(other, "other")
    same_shape(first, second, "image and other")
    if first.ndim not in (2, 3) or min(first.shape[-2:]) < _WINDOW:
        raise ConfigError(
            f"image has shape {first.shape}; pass (height, width) or (channels, height, width) "
            f"with at least {_WINDOW} pixels a side"
        )
    mean_x, mean_y = _blurred(first), _blurred(second)
    var_x = _blurred(first * first) - mean_x**2
    var_y = _blurred(second * second) - mean_y**2
    cov = _blurred(first * second) - mean_x * mean_y
    c1, c2 = _K1**2, _K2**2
    likeness = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    most = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float(np.mean(likeness / most))


def label_from_gradient(bias_gradient: ArrayLike) -> int:
    """Class of the one image behind a gradient (Zhao et al. 2020, "iDLG").

    With cross-entropy the gradient of the last layer's bias is ``p - onehot(y)``: its only
    negative entry is the label's. Of an update pass its negative divided by the learning rate;
    an update that raises the loss, as an erasure's does, points the other way.

    Parameters
    ----------
    bias_gradient : array, shape (C,)
        At least two classes.

    Returns
    -------
    int
        The class of the smallest entry.

    Raises
    ------
    ConfigError
        If there are fewer than two classes or a value is not finite.

    Examples
    --------
    >>> label_from_gradient([0.2, -0.7, 0.5])
    1
    """
    gradient = finite_array(bias_gradient, "bias_gradient", ndim=1)
    if len(gradient) < 2:
        raise ConfigError(f"bias_gradient has {len(gradient)} entry; a label needs two classes")
    return int(gradient.argmin())


def _blurred(images: FloatArray) -> FloatArray:
    """Weigh every whole window of the last two axes."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    window = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    window /= window.sum()
    for axis in (-2, -1):
        parts = np.lib.stride_tricks.sliding_window_view(images, _WINDOW, axis=axis)
        images = np.asarray(parts @ window, dtype=np.float64)
    return images
