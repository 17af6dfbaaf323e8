"""Lattices against brute force, and what dithered quantisation promises about its error."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest

from flwr_afuic.errors import ConfigError, HistoryError
from flwr_afuic.history.dither import dequantize, dither_key, generator, quantize
from flwr_afuic.history.lattices import LATTICES, Lattice, lattice_named

KEY = dither_key(0, 3, "hospital-1")
# The table of the design: normalised second moments per dimension.
SECOND_MOMENTS = {"Z": 0.08333, "A2": 0.08019, "E8": 0.07168}

lattices = pytest.mark.parametrize("lattice", list(LATTICES.values()), ids=list(LATTICES))


def generated(lattice: Lattice, around: np.ndarray) -> np.ndarray:
    """Every lattice point near ``around``, shape (L,), from a generator matrix."""
    if lattice.name == "Z":
        basis = np.eye(1)
    elif lattice.name == "A2":
        basis = math.sqrt(2 / math.sqrt(3)) * np.array([[1, 0], [0.5, math.sqrt(3) / 2]])
    else:
        basis = np.zeros((8, 8))
        basis[0, 0] = 2
        for i in range(1, 7):
            basis[i, i - 1], basis[i, i] = -1, 1
        basis[7] = 0.5
    assert abs(np.linalg.det(basis)) == pytest.approx(1)
    start = np.rint(around @ np.linalg.inv(basis))
    reach = 2 if lattice.dimension < 8 else 1
    steps = np.array(list(itertools.product(range(-reach, reach + 1), repeat=lattice.dimension)))
    return (start + steps) @ basis


@lattices
def test_the_nearest_point_is_a_lattice_point_and_no_other_is_nearer(lattice: Lattice) -> None:
    rng = np.random.default_rng(1)
    points = rng.normal(0, 3, (lattice.dimension, 60)).astype(np.float32)
    found = lattice.coordinates(lattice.nearest(points))
    for point, near in zip(points.T, found.T, strict=True):
        candidates = generated(lattice, near.astype(np.float64))
        assert np.abs(candidates - near).max(axis=1).min() < 1e-5, "no point of the lattice"
        # Every relevant vector of the cell is among the steps around the point found.
        distances = ((candidates - point) ** 2).sum(axis=1)
        assert ((near - point) ** 2).sum() <= distances.min() + 1e-5


def test_e8_agrees_with_the_two_cosets_of_d8_spelled_out() -> None:
    def nearest_d8(x: np.ndarray) -> np.ndarray:
        rounded = np.rint(x)
        if rounded.sum() % 2:
            k = np.abs(x - rounded).argmax()
            rounded[k] += 1 if x[k] >= rounded[k] else -1
        return rounded

    rng = np.random.default_rng(2)
    points = (rng.normal(size=(8, 3000)) * rng.choice([0.1, 1, 30], 3000)).astype(np.float32)
    lattice = lattice_named("E8")
    found = lattice.coordinates(lattice.nearest(points)).astype(np.float64)
    for x, near in zip(points.T.astype(np.float64), found.T, strict=True):
        either = [nearest_d8(x), nearest_d8(x - 0.5) + 0.5]
        best = min(((c - x) ** 2).sum() for c in either)
        assert ((near - x) ** 2).sum() == pytest.approx(best, abs=1e-5)
        assert near.sum() % 2 == 0


@lattices
def test_lattice_points_are_their_own_nearest_points(lattice: Lattice) -> None:
    rng = np.random.default_rng(3)
    near = lattice.nearest(rng.normal(0, 9, (lattice.dimension, 500)).astype(np.float32))
    again = lattice.nearest(lattice.coordinates(near))
    np.testing.assert_array_equal(again.floors, near.floors)
    np.testing.assert_array_equal(again.cosets, near.cosets)


@lattices
def test_the_dither_is_uniform_on_the_cell(lattice: Lattice) -> None:
    rng = np.random.default_rng(4)
    uniform = rng.random((lattice.dimension, 200_000 // lattice.dimension), dtype=np.float32)
    dither = lattice.dither(uniform)
    assert np.abs(lattice.coordinates(lattice.nearest(dither))).max() == 0, "outside of the cell"
    assert (dither**2).mean() == pytest.approx(SECOND_MOMENTS[lattice.name], rel=0.01)
    assert np.abs(dither.mean(axis=1)).max() < 0.01


@lattices
@pytest.mark.parametrize("scale", [0.05, 0.7, 5.0, 50.0])
def test_the_error_does_not_depend_on_the_input(lattice: Lattice, scale: float) -> None:
    values = (np.random.default_rng(5).normal(size=300_000) * scale).astype(np.float32)
    points = quantize(values, 1.0, lattice, KEY, 0)
    error = dequantize(points, len(values), 1.0, lattice, KEY, 0).astype(np.float64) - values
    # Four standard errors of 300 000 draws.
    assert (error**2).mean() == pytest.approx(SECOND_MOMENTS[lattice.name], abs=0.0006)
    assert lattice.second_moment == pytest.approx(SECOND_MOMENTS[lattice.name], abs=5e-6)
    assert abs(np.corrcoef(error, values)[0, 1]) < 0.01
    assert abs(error.mean()) < 0.002


@lattices
def test_the_error_of_one_value_is_nought_on_average(lattice: Lattice) -> None:
    values = np.full(80_000, 0.31, dtype=np.float32)
    points = quantize(values, 2.0, lattice, KEY, 0)
    back = dequantize(points, len(values), 2.0, lattice, KEY, 0)
    assert back.mean() == pytest.approx(0.31, abs=4 * 2 * 0.29 / math.sqrt(80_000))
    assert back.std() > 0.5, "without dither, every error would be the same"


@lattices
@pytest.mark.parametrize("entries", [1, 7, 8, 9, 16383, 16384, 16385, 40_001])
def test_any_number_of_entries_comes_back(lattice: Lattice, entries: int) -> None:
    values = np.random.default_rng(6).normal(size=entries).astype(np.float32)
    points = quantize(values, 0.01, lattice, KEY, 2)
    assert len(points.cosets) == -(-entries // lattice.dimension)
    back = dequantize(points, entries, 0.01, lattice, KEY, 2)
    # The covering radius of each lattice, at cell volume 1, is at most 1.
    assert np.abs(back - values).max() <= 0.0101


def test_the_dither_is_the_key_s_and_the_tensor_s() -> None:
    values = np.zeros(64, dtype=np.float32)
    lattice = lattice_named("E8")
    floors = [
        quantize(values, 1.0, lattice, key, tensor).floors.tobytes()
        for key, tensor in [(KEY, 0), (KEY, 1), (dither_key(1, 3, "hospital-1"), 0),
                            (dither_key(0, 4, "hospital-1"), 0), (dither_key(0, 3, "b"), 0)]
    ]  # fmt: skip
    drawn = [generator(KEY, t).random_raw(4).tobytes() for t in range(3)]
    assert len(set(drawn)) == 3
    assert floors[0] == quantize(values, 1.0, lattice, KEY, 0).floors.tobytes()
    errors = {
        dequantize(quantize(values, 1.0, lattice, key, 0), 64, 1.0, lattice, key, 0).tobytes()
        for key in (KEY, dither_key(1, 3, "hospital-1"), dither_key(0, 4, "hospital-1"))
    }
    assert len(errors) == 3


def test_a_wrong_key_gives_other_values() -> None:
    values = np.ones(800, dtype=np.float32)
    lattice = lattice_named("E8")
    points = quantize(values, 4.0, lattice, KEY, 0)
    back = dequantize(points, 800, 4.0, lattice, dither_key(9, 3, "hospital-1"), 0)
    assert np.abs(back - values).max() > 1


def philox4x64(counter: list[int], key: list[int]) -> list[int]:
    """Ten rounds of Philox 4x64 (Salmon et al., 2011), spelled out."""
    low = 2**64 - 1
    x, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
        x = [(second >> 64) ^ x[1] ^ k[0], second & low, (first >> 64) ^ x[3] ^ k[1], first & low]
        k = [(k[0] + 0x9E3779B97F4A7C15) & low, (k[1] + 0xBB67AE8584CAA73B) & low]
    return x


def test_the_dither_is_the_same_for_ever() -> None:
    """Records name only the key: another draw from it would garble every stored history."""
    key = bytes(range(16))
    halves = [int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")]
    words = generator(key, 5).random_raw(8)
    expected = philox4x64([1, 0, 0, 5], halves) + philox4x64([2, 0, 0, 5], halves)
    assert [int(word) for word in words] == expected
    digest = hashlib.sha256(b"dither\x1f7\x1f12\x1fclinic").digest()
    assert dither_key(7, 12, "clinic") == digest[:16]


def test_values_out_of_reach_are_refused() -> None:
    for bad in (np.nan, np.inf, -np.inf, 1e30):
        values = np.array([0.0, bad], dtype=np.float32)
        with pytest.raises(HistoryError, match="cannot be quantised"):
            quantize(values, 1.0, lattice_named("E8"), KEY, 0)


def test_an_unknown_lattice_is_named() -> None:
    with pytest.raises(ConfigError, match="'D4'; use one of Z, A2, E8"):
        lattice_named("D4")
