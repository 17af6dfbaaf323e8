"""Sums of large models: exact to 37 bits, the same bits however made, in borrowed memory."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flwr_afuic.federation import buffer as buffers
from flwr_afuic.federation import chunks, large_sums
from flwr_afuic.federation.buffer import Update, UpdateBuffer
from flwr_afuic.federation.kernels import IN_NUMPY, Passes, compiled, passes
from flwr_afuic.federation.large_sums import LargeSum
from flwr_afuic.federation.layout import Arrays, Layout
from flwr_afuic.federation.packing import file_of, made

SHAPES = [(50, 3), (), (7,)]


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "HELD_BYTES", 0)


def drawn(seed: int, scale: float = 1.0) -> Arrays:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(scale=scale, size=s), np.float32) for s in SHAPES]


def arrived(arrays: Arrays) -> Arrays:
    """Return the same arrays, in bytes as a message brings them."""
    return [made("float32", a.shape, lambda new, a=a: np.copyto(new, a)) for a in arrays]


def layout() -> Layout:
    return Layout.of(["w", "b", "v"], drawn(0))


def merged(
    updates: int, settled: bool = False, own_bytes: bool = False, rate: float = 0.7
) -> list[bytes]:
    one = LargeSum(layout().specs)
    for number in range(updates):
        update = drawn(1 + number)
        one.add(arrived(update) if own_bytes else update, 0.3 + number)
        if settled:
            one.settle()
    return [array.tobytes() for array in one.finish(drawn(0), rate)]


@pytest.mark.parametrize("updates", [1, 2, 3, 4, 7])
def test_how_it_is_summed_changes_no_bit(updates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = merged(updates)
    assert merged(updates, settled=True) == found
    assert merged(updates, own_bytes=True) == found
    monkeypatch.setattr(large_sums, "passes", lambda: IN_NUMPY)
    assert merged(updates) == found
    monkeypatch.setattr(chunks, "CHUNK", 8)
    monkeypatch.setattr(chunks, "SHARED_FROM", 20)
    monkeypatch.setattr(chunks, "cores", lambda: 3)
    assert merged(updates, settled=True) == found


def test_a_sum_is_exact_to_37_bits_after_every_update() -> None:
    one, exact = LargeSum(layout().specs), [np.zeros(s, object) for s in SHAPES]
    bound = [np.zeros(s) for s in SHAPES]
    for number in range(40):
        update, factor = drawn(number), float(np.sqrt(2 + number))
        one.add(update, factor)
        for total, error, array in zip(exact, bound, update, strict=True):
            total += np.vectorize(lambda x, f=factor: Fraction(float(x)) * Fraction(f), [object])(
                array
            )
            error += np.abs(total.astype(float)) * 2.0**-37
    # Against an old model of zeros, and rounded to float32 in the end.
    found = one.finish([np.zeros(s, np.float32) for s in SHAPES], 1.0)
    for array, total, error in zip(found, exact, bound, strict=True):
        true = total.astype(float)
        assert np.all(np.abs(array - true) <= 1.01 * error + np.abs(true) * 2.0**-24)


@pytest.fixture(params=["numpy", "compiled"])
def use(request: pytest.FixtureRequest) -> Passes:
    if request.param == "compiled" and compiled() is None:
        pytest.skip("numba is not installed")
    return IN_NUMPY if request.param == "numpy" else passes()


def test_ties_go_away_from_zero_and_no_sum_is_a_negative_zero(use: Passes) -> None:
    high, low = np.zeros(4, np.float32), np.zeros(4, np.uint16)
    half, ones = 2.0**-37, np.ones(4, np.float32)  # of the last bit that is held, of one
    high[:] = [1, 1, -1, -0.0]
    use.weigh(high, low, 1.0)
    use.fold(high, low, np.array([half, half * 0.99, -half, 0], np.float32), 1.0)
    use.fold(high, low, np.array([-1, -1, 1, 0], np.float32), 1.0)
    use.step(high, low, 0 * ones, 1.0)
    assert high.tolist() == [2 * half, 0, -2 * half, 0]
    assert not np.signbit(high[3])


def test_a_sum_that_overflows_is_infinite(use: Passes) -> None:
    high, low = np.full(2, 3e38, np.float32), np.zeros(2, np.uint16)
    with np.errstate(over="ignore"):
        use.pair(high, low, 1e300, np.array([3e38, -3e38], np.float32), 1e300)
        use.step(high, low, np.zeros(2, np.float32), 1.0)
    assert np.isinf(high[0])
    assert np.isnan(high[1])  # never a number that looks sound


def test_the_first_update_becomes_the_model_unless_somebody_else_holds_it() -> None:
    one = LargeSum(layout().specs)
    update, copy = arrived(drawn(1)), drawn(1)
    kept = update[0]
    address = [array.ctypes.data for array in update]
    one.add(update, 0.5)
    del update
    one.add(drawn(2), 0.5)
    found = one.finish(drawn(0), 1.0)
    assert [array.ctypes.data for array in found] == [found[0].ctypes.data, *address[1:]]
    assert found[0].ctypes.data != address[0]
    assert kept.tobytes() == copy[0].tobytes(), "an array that somebody holds is left alone"
    for array in found:
        assert file_of(array) is not None
        assert not array.flags.writeable
    before = [array.tobytes() for array in found]
    one.add(drawn(3), 1.0)
    one.finish(found, 1.0)
    assert [array.tobytes() for array in found] == before, "what comes next has its own memory"


def test_nothing_was_added() -> None:
    with pytest.raises(RuntimeError, match="nothing was added"):
        LargeSum(layout().specs).finish(drawn(0), 1.0)


def buffered(sites: list[tuple[str, int]], *, leaver: str = "") -> list[bytes]:
    rng = np.random.default_rng(0)
    start = [rng.normal(size=(9, 4)).astype(np.float32), np.ones(5, np.float32),
             np.array(3, np.int64), rng.normal(size=6)]  # fmt: skip
    names = ["w", "running_mean", "num_batches_tracked", "d"]
    kinds = {"running_mean": "statistic"}
    made_for = Layout.of(names, start, kinds)  # type: ignore[arg-type]
    own = UpdateBuffer(made_for, withdrawable=True)
    for site, seed in sites:
        draw = np.random.default_rng(seed)
        arrays = [draw.normal(size=(9, 4)).astype(np.float32), draw.random(5, np.float32),
                  np.array(seed, np.int64), draw.normal(size=6)]  # fmt: skip
        own.add(Update(site, 0, 1 + seed, arrays), 1 / (1 + seed))
    own.withdraw(leaver)
    return [array.tobytes() for array in own.merge(start, server_lr=0.5)]


sites = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), min_size=1, max_size=6)


@pytest.mark.usefixtures("all_large")
@given(drawn=sites)
def test_a_large_update_is_withdrawn_without_a_trace(drawn: list[tuple[str, int]]) -> None:
    staying = [row for row in drawn if row[0] != "a"]
    if staying:
        assert buffered(drawn, leaver="a") == buffered(staying)


def test_what_is_no_large_float32_array_is_summed_as_in_a_small_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [("a", 1), ("b", 2), ("c", 5)]
    small = buffered(rows)
    monkeypatch.setattr(buffers, "HELD_BYTES", 0)
    large = buffered(rows)
    assert large[1:] == small[1:]
    np.testing.assert_allclose(
        np.frombuffer(large[0], np.float32), np.frombuffer(small[0], np.float32), rtol=3e-7
    )
