from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flwr_afuic.errors import LayoutError
from flwr_afuic.models.arrays import array_kinds, get_arrays, set_arrays


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def test_kinds_follow_the_state_dict() -> None:
    assert array_kinds(network()) == [
        ("0.weight", "trained"),
        ("0.bias", "trained"),
        ("1.weight", "trained"),
        ("1.bias", "trained"),
        ("1.running_mean", "statistic"),
        ("1.running_var", "statistic"),
        ("1.num_batches_tracked", "counter"),
    ]


def test_a_shared_parameter_is_trained_under_both_names() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    assert {kind for _, kind in array_kinds(model)} == {"trained"}


def test_arrays_are_copies_both_ways() -> None:
    model = network()
    arrays = get_arrays(model)
    kept = [array.copy() for array in arrays]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, kept, strict=True))
    set_arrays(model, arrays)
    arrays[0] += 1
    assert np.array_equal(get_arrays(model)[0], kept[0])


@given(values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=2))
@settings(max_examples=20, deadline=None)
def test_round_trip_is_exact_and_keeps_dtypes(values: list[float]) -> None:
    model = network()
    arrays = get_arrays(model)
    arrays[1] = np.array(values, np.float64)
    arrays[6] = np.array(5)
    set_arrays(model, arrays)
    back = get_arrays(model)
    assert back[1].tolist() == values
    assert back[1].dtype == np.float32
    assert back[6].dtype == np.int64
    assert int(back[6]) == 5


def test_read_only_arrays_and_averaged_counters_load() -> None:
    model = network()
    arrays = get_arrays(model)
    arrays[6] = np.array(2.6)
    for array in arrays:
        array.flags.writeable = False
    set_arrays(model, arrays)
    assert int(get_arrays(model)[6]) == 3


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, np.zeros((2, 1, 3, 2), np.float32), r"'0.weight' has shape \(2, 1, 3, 2\)"),
        (4, np.zeros((2, 1), np.float32), "'1.running_mean' has shape"),
        (1, np.array(["a", "b"]), "'0.bias' has dtype <U1"),
        (1, np.array([None, None]), "'0.bias' has dtype object"),
        (1, np.zeros(2, np.complex64), "'0.bias' has dtype complex64"),
        (6, np.array(np.nan), "'1.num_batches_tracked' holds NaN"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(
    position: int, value: np.ndarray, message: str
) -> None:
    model = network()
    before = get_arrays(model)
    arrays: list[np.ndarray] = [array + 1 for array in before]
    arrays[position] = value
    with pytest.raises(LayoutError, match=message):
        set_arrays(model, arrays)
    assert all(np.array_equal(a, b) for a, b in zip(before, get_arrays(model), strict=True))


def test_wrong_count() -> None:
    with pytest.raises(LayoutError, match="got 6 arrays for a model of 7"):
        set_arrays(network(), get_arrays(network())[:-1])
