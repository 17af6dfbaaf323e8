"""A direction cut into layers."""

import numpy as np
import pytest

from flwr_afuic.calibration.layers import by_layer
from flwr_afuic.errors import LayoutError
from flwr_afuic.federation.layout import Layout

ARRAYS = {
    "first.weight": np.zeros((2, 1), np.float32),
    "first.bias": np.zeros(1, np.float32),
    "norm.running_mean": np.zeros(3, np.float32),
    "scale": np.zeros(2, np.float32),
    "last.weight": np.zeros(1, np.float32),
}


def layout() -> Layout:
    return Layout.of(list(ARRAYS), list(ARRAYS.values()))


def test_weight_and_bias_are_one_layer_and_statistics_none() -> None:
    vector = np.array([1.0, 2.0, 3.0, 4.0, 0.0, 5.0])
    parts = by_layer(layout(), vector)
    assert {name: part.tolist() for name, part in parts.items()} == {
        "first": [1, 2, 3, 0, 0, 0],
        "scale": [0, 0, 0, 4, 0, 0],
        "last": [0, 0, 0, 0, 0, 5],
    }
    assert sum(parts.values()).tolist() == vector.tolist()


def test_layers_that_did_not_change_are_left_out() -> None:
    assert list(by_layer(layout(), np.array([0.0, 0.0, 0.0, 1.0, 1.0, 0.0]))) == ["scale"]


def test_another_length_is_refused() -> None:
    with pytest.raises(LayoutError, match=r"must be \(6,\)"):
        by_layer(layout(), np.zeros(9))
