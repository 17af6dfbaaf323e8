import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_afuic.errors import ConfigError
from flwr_afuic.metrics import lost_progress


def model(rng):
    return [rng.normal(size=(4, 3)), rng.normal(size=3)]


def add(one, other, factor=1.0):
    return [a + factor * b for a, b in zip(one, other, strict=True)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_the_share_that_is_overwritten_is_the_share_that_is_lost(seed, kept):
    rng = np.random.default_rng(seed)
    snapshot, progress, delta = model(rng), model(rng), model(rng)
    merged = add(add(snapshot, delta), progress, kept)
    lost = lost_progress(snapshot, add(snapshot, progress), merged, delta)
    assert lost == pytest.approx(1 - kept, abs=1e-9)


def test_what_the_delta_itself_undoes_is_not_lost():
    # The erasure points against the progress; adding it still loses nothing.
    assert lost_progress([[0.0]], [[1.0]], [[-1.0]], [[-2.0]]) == 0.0


def test_without_progress_nothing_can_be_lost():
    assert lost_progress([[1.0]], [[1.0]], [[7.0]], [[0.0]]) == 0.0


def test_takes_float32_and_torch_arrays():
    ones = [torch.ones(2)]
    assert lost_progress([torch.zeros(2)], ones, [torch.full((2,), 3.0)], [2 * ones[0]]) == 0.0


@pytest.mark.parametrize(
    ("current", "message"),
    [
        ([np.ones(3)], "snapshot and current differ in layout"),
        ([np.ones(2), np.ones(2)], "1 and 2 arrays"),
        ([np.array([1.0, np.inf])], r"current\[0\] holds 1 NaN"),
        (None, "list of arrays"),
    ],
)
def test_bad_input_gives_one_clear_line(current, message):
    base = [np.zeros(2)]
    with pytest.raises(ConfigError, match=message):
        lost_progress(base, current, base, base)
