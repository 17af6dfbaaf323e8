"""The buffer: golden merges, independence of order, withdrawal without a trace."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_afuic.federation.buffer import Update, UpdateBuffer
from flwr_afuic.federation.layout import Layout

NAMES = ["w", "running_mean", "num_batches_tracked"]


def model(dtype: type = np.float32) -> list[np.ndarray]:
    return [np.array([1.0, 2.0], dtype), np.array([0.5], dtype), np.asarray(10, np.int64)]


def layout(dtype: type = np.float32) -> Layout:
    return Layout.of(NAMES, model(dtype))


def update(
    site: str, examples: int, w: list[float], mean: float, count: int, dtype: type = np.float32
) -> Update:
    arrays = [np.array(w, dtype), np.array([mean], dtype), np.asarray(count, np.int64)]
    return Update(site, 0, examples, arrays)


def folder_of(buffer: UpdateBuffer) -> Path:
    return Path(buffer._folder.name)  # type: ignore[union-attr]


def same(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return all(
        a.tobytes() == b.tobytes() and a.dtype == b.dtype for a, b in zip(left, right, strict=True)
    )


# ---- golden merges ----------------------------------------------------------------------


def test_fresh_updates_are_fedavg() -> None:
    buffer = UpdateBuffer(layout())
    buffer.add(update("a", 10, [1, 0], 1.0, 12), 1.0)
    buffer.add(update("b", 30, [0, 4], 3.0, 20), 1.0)
    assert len(buffer) == 2
    assert buffer.sites == ["a", "b"]
    w, mean, count = buffer.merge(model())
    # Steps (10 * 1 + 30 * 0) / 40 = .25 and (30 * 4) / 40 = 3; statistics are averaged.
    np.testing.assert_array_equal(w, np.float32([1.25, 5.0]))
    np.testing.assert_array_equal(mean, np.float32([2.5]))
    assert count == 18
    assert count.dtype == np.int64
    assert count.shape == ()
    assert len(buffer) == 0


def test_one_update_is_fedasync() -> None:
    buffer = UpdateBuffer(layout())
    buffer.add(update("a", 10, [1, -1], 1.5, 20), 0.5)
    w, mean, count = buffer.merge(model())
    # Half of the step; statistics half of the way: .5 + .5 * (1.5 - .5), 10 + .5 * 10.
    np.testing.assert_array_equal(w, np.float32([1.5, 1.5]))
    np.testing.assert_array_equal(mean, np.float32([1.0]))
    assert count == 15


def test_staleness_weighs_the_step_and_not_the_denominator() -> None:
    buffer = UpdateBuffer(layout())
    buffer.add(update("a", 10, [4, 4], 1.0, 14), 1.0)
    buffer.add(update("b", 10, [4, 4], 2.0, 14), 0.25)
    w, mean, count = buffer.merge(model())
    # (10 * 4 + 2.5 * 4) / 20 = 2.5; weights sum to 12.5 of 20, so statistics go .625 of the
    # way to (10 * 1 + 2.5 * 2) / 12.5 = 1.2.
    np.testing.assert_array_equal(w, np.float32([3.5, 4.5]))
    np.testing.assert_allclose(mean, [0.375 * 0.5 + 0.625 * 1.2], rtol=1e-7)
    assert count == round(0.375 * 10 + 0.625 * 14)


def test_server_lr_scales_the_step_and_statistics_never_overshoot() -> None:
    def merged(server_lr: float) -> list[np.ndarray]:
        buffer = UpdateBuffer(layout())
        buffer.add(update("a", 10, [1, 1], 1.5, 20), 1.0)
        return buffer.merge(model(), server_lr=server_lr)

    np.testing.assert_array_equal(merged(2.0)[0], np.float32([3, 4]))
    np.testing.assert_array_equal(merged(2.0)[1], np.float32([1.5]))
    np.testing.assert_array_equal(merged(0.5)[1], np.float32([1.0]))
    assert merged(2.0)[2] == 20


def test_statistics_are_averaged_and_never_added() -> None:
    # Two sites that both shrank the variance: adding their changes would make it negative.
    own = Layout.of(["w", "running_var"], [np.zeros(1), np.ones(1)])
    buffer = UpdateBuffer(own)
    for site in "ab":
        buffer.add(Update(site, 0, 5, [np.zeros(1), np.array([0.2])]), 1.0)
    assert buffer.merge([np.zeros(1), np.ones(1)])[1] == pytest.approx(0.2)


def test_counters_are_rounded_and_keep_their_dtype() -> None:
    for dtype in (np.int64, np.int32, np.uint8):
        own = Layout.of(["w", "n"], [np.zeros(1), np.zeros(2, dtype)])
        buffer = UpdateBuffer(own)
        buffer.add(Update("a", 0, 1, [np.zeros(1), np.array([1, 4], dtype)]), 1.0)
        buffer.add(Update("b", 0, 2, [np.zeros(1), np.array([2, 3], dtype)]), 1.0)
        counter = buffer.merge([np.zeros(1), np.zeros(2, dtype)])[1]
        np.testing.assert_array_equal(counter, [2, 3])  # 5/3 and 10/3
        assert counter.dtype == dtype


def test_trained_arrays_of_no_dimension_and_half_precision() -> None:
    arrays = [np.asarray(2.0, np.float16)]
    buffer = UpdateBuffer(Layout.of(["scale"], arrays))
    buffer.add(Update("a", 0, 3, [np.asarray(0.5, np.float16)]), 1.0)
    (merged,) = buffer.merge(arrays)
    assert merged == 2.5
    assert merged.dtype == np.float16
    assert merged.shape == ()


def test_the_current_model_is_left_alone() -> None:
    current = model()
    buffer = UpdateBuffer(layout())
    buffer.add(update("a", 10, [1, 1], 1.5, 20), 1.0)
    buffer.merge(current)
    assert same(current, model())


def test_nothing_to_merge() -> None:
    with pytest.raises(ValueError, match="empty"):
        UpdateBuffer(layout()).merge(model())


# ---- properties -------------------------------------------------------------------------

number = st.one_of(
    st.just(0.0),
    st.floats(2.0**-20, 2.0**10, width=32),
    st.floats(-(2.0**10), -(2.0**-20), width=32),
)
one_update = st.tuples(
    st.sampled_from("abcd"),
    st.integers(1, 100_000),
    st.tuples(number, number),
    number,
    st.integers(0, 2**40),
    st.integers(0, 20).map(lambda staleness: (1.0 + staleness) ** -0.5),
)


def fill(buffer: UpdateBuffer, drawn: list[tuple], dtype: type) -> UpdateBuffer:
    for site, examples, w, mean, count, factor in drawn:
        buffer.add(update(site, examples, list(w), mean, count, dtype), factor)
    return buffer


@settings(deadline=None, max_examples=150)
@given(data=st.data(), drawn=st.lists(one_update, min_size=1, max_size=9))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_order_of_arrival_does_not_matter(dtype: type, data: st.DataObject, drawn: list) -> None:
    shuffled = data.draw(st.permutations(drawn))
    first = fill(UpdateBuffer(layout(dtype)), drawn, dtype).merge(model(dtype))
    second = fill(UpdateBuffer(layout(dtype)), shuffled, dtype).merge(model(dtype))
    assert same(first, second)


any_number = st.floats(-(2.0**100), 2.0**100, width=32)
any_update = st.tuples(
    st.sampled_from("abcd"),
    st.integers(1, 10**9),
    st.tuples(any_number, any_number),
    any_number,
    st.integers(0, 2**62),
    st.floats(1e-3, 1.0),
)


@settings(deadline=None, max_examples=60)
@given(drawn=st.lists(any_update, min_size=1, max_size=6), leaver=st.sampled_from("abcd"))
def test_withdrawn_updates_leave_no_trace(drawn: list, leaver: str) -> None:
    staying = [entry for entry in drawn if entry[0] != leaver]
    buffer = fill(UpdateBuffer(layout(), withdrawable=True), drawn, np.float32)
    assert buffer.withdraw(leaver) == len(drawn) - len(staying)
    assert buffer.sites == [entry[0] for entry in staying]
    assert len(list(folder_of(buffer).iterdir())) == len(staying)
    if staying:
        never = fill(UpdateBuffer(layout()), staying, np.float32)
        assert same(buffer.merge(model()), never.merge(model()))


# ---- withdrawal and disk ----------------------------------------------------------------


def test_an_outsized_update_can_be_withdrawn() -> None:
    buffer = UpdateBuffer(layout(np.float64), withdrawable=True)
    buffer.add(update("good", 10, [0.1, 0.2], 0.3, 11, np.float64), 1.0)
    buffer.add(update("bad", 10, [1e30, -1e30], 1e30, 2**62, np.float64), 1.0)
    buffer.add(update("good", 30, [0.3, 0.4], 0.5, 13, np.float64), 0.5)
    buffer.withdraw("bad")
    never = UpdateBuffer(layout(np.float64))
    never.add(update("good", 10, [0.1, 0.2], 0.3, 11, np.float64), 1.0)
    never.add(update("good", 30, [0.3, 0.4], 0.5, 13, np.float64), 0.5)
    assert same(buffer.merge(model(np.float64)), never.merge(model(np.float64)))


def test_withdraw_of_a_stranger_changes_nothing() -> None:
    buffer = UpdateBuffer(layout(), withdrawable=True)
    buffer.add(update("a", 10, [1, 1], 1.5, 20), 1.0)
    assert buffer.withdraw("z") == 0
    assert len(buffer) == 1


def test_withdraw_can_be_followed_by_adds_and_another_withdraw() -> None:
    buffer = UpdateBuffer(layout(), withdrawable=True)
    buffer.add(update("a", 10, [8, 8], 9, 99), 1.0)
    buffer.add(update("b", 10, [1, 1], 1, 1), 1.0)
    buffer.withdraw("a")
    buffer.add(update("c", 10, [3, 3], 3, 3), 1.0)
    buffer.withdraw("b")
    w, mean, count = buffer.merge(model())
    np.testing.assert_array_equal(w, [4, 5])
    assert (mean, count) == (3, 3)


def test_the_folder_is_emptied_by_merge_and_clear_and_goes_with_the_buffer() -> None:
    buffer = UpdateBuffer(layout(), withdrawable=True)
    folder = folder_of(buffer)
    assert folder.stat().st_mode & 0o077 == 0, "only the server's user may read updates"
    for merge in (True, False):
        buffer.add(update("a", 10, [1, 1], 1.5, 20), 1.0)
        assert len(list(folder.iterdir())) == 1
        if merge:
            buffer.merge(model())
        else:
            buffer.clear()
        assert list(folder.iterdir()) == []
        assert len(buffer) == 0
    del buffer
    gc.collect()
    assert not folder.exists()


def test_a_buffer_that_keeps_nothing_says_so() -> None:
    buffer = UpdateBuffer(layout())
    buffer.add(update("a", 10, [1, 1], 1.5, 20), 1.0)
    with pytest.raises(RuntimeError, match="does not keep"):
        buffer.withdraw("a")


def test_memory_does_not_grow_with_the_number_of_updates() -> None:
    # What is held per update is its name and two numbers: no arrays.
    for withdrawable in (False, True):
        buffer = UpdateBuffer(layout(), withdrawable=withdrawable)
        for n in range(20):
            buffer.add(update(f"s{n}", 10, [1, 1], 1.5, 20), 1.0)
        for entry in buffer._entries:
            assert not any(isinstance(value, np.ndarray | list) for value in vars(entry).values())
        assert buffer._sum.bytes_kept < 20 * 20 * 8
