"""The entropy coder: exact round trips, and how close to the entropy it comes."""

from __future__ import annotations

import hashlib
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flwr_afuic.errors import ConfigError, RecordError
from flwr_afuic.history.coders import SymbolWriter
from flwr_afuic.history.dither import dequantize, dither_key, quantize
from flwr_afuic.history.entropy import reader_for, writer_named
from flwr_afuic.history.lattices import LATTICES, lattice_named
from flwr_afuic.history.models import fit_model, ideal_bits, read_model
from flwr_afuic.history.packing import Reader, pack_number, pack_signed
from flwr_afuic.history.range_coder import RangeWriter
from flwr_afuic.history.symbols import read_points, write_points
from flwr_afuic.history.zstd_coder import ZstdWriter

WRITERS: list[type[SymbolWriter]] = [RangeWriter, ZstdWriter]
writers = pytest.mark.parametrize("writer_class", WRITERS)
KEY = dither_key(0, 0, "a")
# Bits per entry of a unit Gaussian at distortion D: design, "What must hold".
RATES = {
    0.5: {"R": 0.500, "Z": 1.250, "A2": 1.225, "E8": 1.157},
    0.1: {"R": 1.661, "Z": 2.047, "A2": 2.017, "E8": 1.937},
    0.01: {"R": 3.322, "Z": 3.592, "A2": 3.562, "E8": 3.480},
}


def entropy_of(symbols: NDArray[np.int32]) -> float:
    """Empirical entropy in bits per symbol."""
    counts = np.unique(symbols, return_counts=True)[1] / len(symbols)
    return float(-(counts * np.log2(counts)).sum())


def roundtrip(writer_class: type[SymbolWriter], arrays: list[NDArray[np.int32]]) -> bytes:
    """Write arrays in groups 0, 1, 2, 0, ... and check that they come back."""
    writer = writer_class()
    for index, array in enumerate(arrays):
        writer.write(index % 3, array, center=0.5 * (index % 2 and index % 3 == 1))
    data = writer.finish()
    reader = reader_for(writer.code, data)
    for index, array in enumerate(arrays):
        np.testing.assert_array_equal(reader.read(index % 3, len(array)), array)
    assert reader.checksum == writer.checksum
    return data


# ---- rates --------------------------------------------------------------------------


@pytest.mark.parametrize("distortion", list(RATES))
def test_gaussian_rate_distortion(distortion: float) -> None:
    values = np.random.default_rng(1).normal(size=400_000).astype(np.float32)
    found = {}
    for name, lattice in LATTICES.items():
        step = math.sqrt(distortion / lattice.second_moment)
        points = quantize(values, step, lattice, KEY, 0)
        writer = RangeWriter()
        write_points(points, lattice, writer)
        data = writer.finish()
        found[name] = 8 * len(data) / len(values)
        reader = reader_for(writer.code, data)
        back = dequantize(read_points(len(points.cosets), lattice, reader), len(values), step,
                          lattice, KEY, 0)  # fmt: skip
        assert ((back - values) ** 2).mean() == pytest.approx(distortion, rel=0.01)
        assert found[name] == pytest.approx(RATES[distortion][name], abs=0.01)
        assert found[name] > RATES[distortion]["R"]
        if name == "Z":
            assert entropy_of(points.floors[0]) <= found[name] + 1e-3
            assert found[name] < entropy_of(points.floors[0]) + 0.01
    assert found["E8"] < found["A2"] < found["Z"]


def test_a_reduced_basis_would_not_do() -> None:
    """Why E8 is coded in ambient coordinates: its floors in a basis are far from independent."""
    lattice = lattice_named("E8")
    values = np.random.default_rng(1).normal(size=200_000).astype(np.float32)
    points = quantize(values, math.sqrt(0.1 / lattice.second_moment), lattice, KEY, 0)
    basis = np.zeros((8, 8))
    basis[0, 0] = 2
    for i in range(1, 7):
        basis[i, i - 1], basis[i, i] = -1, 1
    basis[7] = 0.5
    coefficients = np.rint(lattice.coordinates(points).T @ np.linalg.inv(basis)).astype(np.int32)
    per_entry = np.mean([entropy_of(column) for column in coefficients.T])
    assert per_entry > RATES[0.1]["E8"] + 0.5


def test_zstandard_costs_some_per_cent_more() -> None:
    lattice = lattice_named("Z")
    values = np.random.default_rng(1).normal(size=200_000).astype(np.float32)
    for distortion in RATES:
        points = quantize(values, math.sqrt(distortion / lattice.second_moment), lattice, KEY, 0)
        sizes = {}
        for writer_class in WRITERS:
            writer = writer_class()
            write_points(points, lattice, writer)
            sizes[writer.name] = len(writer.finish())
        assert 1.0 < sizes["zstd"] / sizes["range"] < 1.17


@pytest.mark.parametrize("count", [0, 1, 5, 60, 1000])
def test_few_symbols_take_few_bytes(count: int) -> None:
    """A short record must not carry a long table: then two numbers of a curve describe it."""
    symbols = np.rint(np.random.default_rng(count).normal(0, 20, count)).astype(np.int32)
    writer = RangeWriter()
    writer.write(0, symbols)
    # A normal of deviation 20 takes 6.4 bits, the model a dozen bytes at most.
    assert len(writer.finish()) <= 24 + count * 6.6 / 8


def test_the_curve_has_two_humps_where_a_threshold_cut_the_middle() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=3000)
    values = values[np.abs(values) > 2][:60].astype(np.float32)
    symbols = quantize(values, 0.5, lattice_named("Z"), KEY, 0).floors[0]
    first = int(symbols.min())
    model = fit_model(first, np.bincount(symbols - first), 0.0)
    assert model.data[0] == 1, "a table of so many symbols is longer than the curve"
    assert model.weights[-first] < 0.2 * model.weights.max()
    np.testing.assert_array_equal(read_model(Reader(model.data), 0.0).weights, model.weights)


# ---- round trips --------------------------------------------------------------------


@writers
@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.sampled_from([0.3, 3.0, 200.0, 1e5, 4e8]), st.integers()),
        max_size=6,
    )
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_written_is_read(
    writer_class: type[SymbolWriter], shapes: list[tuple[int, float, int]]
) -> None:
    arrays = [
        np.clip(
            np.rint(np.random.default_rng(abs(seed)).standard_t(1.5, size) * scale),
            -(2**31), 2**31 - 1,
        ).astype(np.int32)
        for size, scale, seed in shapes
    ]  # fmt: skip
    roundtrip(writer_class, arrays)


@writers
@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=30))
@settings(max_examples=60, deadline=None)
def test_any_integers_come_back(writer_class: type[SymbolWriter], values: list[int]) -> None:
    roundtrip(writer_class, [np.array(values, dtype=np.int32)])


@writers
def test_one_far_outlier_costs_little(writer_class: type[SymbolWriter]) -> None:
    symbols = np.rint(np.random.default_rng(1).normal(0, 1, 50_000)).astype(np.int32)
    plain = len(roundtrip(writer_class, [symbols]))
    symbols[77] = 2**30
    with_outlier = len(roundtrip(writer_class, [symbols]))
    if writer_class is RangeWriter:
        assert with_outlier < plain + 100


@writers
@given(st.integers(0, 10_000), st.integers(1, 90), st.sampled_from([0.2, 2.0, 900.0]))
@settings(max_examples=40, deadline=None)
def test_congruences_come_back(
    writer_class: type[SymbolWriter], seed: int, count: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    values = np.rint(rng.normal(0, scale, (2, count))).astype(np.int32)
    parities = [row[(row & 1) == parity] for row in values for parity in (0, 1)]
    writer = writer_class()
    writer.write(0, values[0])
    for parity, part in enumerate(parities):
        writer.write(0, part, modulus=2, residue=parity % 2)
    reader = reader_for(writer.code, writer.finish())
    np.testing.assert_array_equal(reader.read(0, count), values[0])
    for parity, part in enumerate(parities):
        found = reader.read(0, len(part), modulus=2, residue=parity % 2)
        np.testing.assert_array_equal(found, part)


def test_a_known_congruence_saves_a_bit_a_symbol() -> None:
    symbols = 2 * np.rint(np.random.default_rng(1).normal(0, 8, 20_000)).astype(np.int32)
    every = np.arange(-60, 61, dtype=np.int32)
    sizes = []
    for modulus in (1, 2):
        writer = RangeWriter()
        writer.write(0, every)
        writer.write(0, symbols, modulus=modulus)
        writer.write(0, symbols + 1, modulus=modulus, residue=modulus - 1)
        sizes.append(len(writer.finish()))
    assert 8 * (sizes[0] - sizes[1]) == pytest.approx(40_000, rel=0.02)


@pytest.mark.parametrize("name", list(LATTICES))
@writers
@pytest.mark.parametrize("blocks", [0, 1, 3, 500])
def test_points_come_back(writer_class: type[SymbolWriter], name: str, blocks: int) -> None:
    lattice = lattice_named(name)
    values = np.random.default_rng(blocks).normal(0, 40, blocks * lattice.dimension)
    points = quantize(values.astype(np.float32), 1.0, lattice, KEY, 0)
    writer = writer_class()
    write_points(points, lattice, writer)
    found = read_points(blocks, lattice, reader_for(writer.code, writer.finish()))
    np.testing.assert_array_equal(found.floors, points.floors)
    np.testing.assert_array_equal(found.cosets, points.cosets)


# ---- models and small pieces --------------------------------------------------------


@given(st.integers(-5000, 5000), st.lists(st.integers(0, 10**6), min_size=2, max_size=60))
@settings(max_examples=80, deadline=None)
def test_a_model_is_read_as_it_was_fitted(first: int, counts: list[int]) -> None:
    counted = np.array([max(1, counts[0]), *counts[1:-1], max(1, counts[-1])])
    for center in (0.0, 0.5):
        model = fit_model(first, counted, center)
        reader = Reader(model.data)
        again = read_model(reader, center)
        assert reader.left == 0
        assert again.first == model.first
        np.testing.assert_array_equal(again.weights, model.weights)
        own = ideal_bits(counted, counted.astype(np.float64))
        assert ideal_bits(counted, model.weights) <= own * 1.02 + 8 * 120


def test_a_table_is_within_a_hundredth_of_a_bit() -> None:
    counts = np.random.default_rng(1).integers(1, 100_000, 40)
    own = ideal_bits(counts, counts.astype(np.float64))
    table = fit_model(-7, counts, 0.0)
    assert table.data[0] == 0
    assert (ideal_bits(counts, table.weights) - own) / counts.sum() < 0.002


def test_model_frequencies_are_the_same_on_every_machine() -> None:
    """Products and powers of two only; a golden digest shows a change of the format."""
    counts = np.array([3, 50, 700, 9000, 700, 50, 3, 1])
    table = fit_model(-3, counts * 1000, 0.0)
    assert table.data[0] == 0
    found = read_model(Reader(table.data), 0.0).weights
    codes = np.frombuffer(table.data[-8:], dtype=np.uint8)
    np.testing.assert_allclose(found, np.exp2(codes / 16), rtol=1e-15)
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == "a74be3b864f438f5"
    linear_and_square = b"\x01\x05\x08" + np.array([0.5, 0.75], dtype="<f4").tobytes()
    weights = read_model(Reader(linear_and_square), 0.0).weights
    # Symbols -3 ... 4, at twice their distance t from zero: 0.5**t * 0.75**(t * t).
    expected = [0.5**t * 0.75 ** (t * t) for t in (6, 4, 2, 0, 2, 4, 6, 8)]
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


@given(st.integers(0, 2**63), st.integers(-(2**62), 2**62))
def test_numbers_come_back(value: int, signed: int) -> None:
    reader = Reader(pack_number(value) + pack_signed(signed))
    assert (reader.number(), reader.signed(), reader.left) == (value, signed, 0)


def test_a_reader_never_overruns() -> None:
    with pytest.raises(RecordError, match="ends early: 5 bytes are due and 3 are left"):
        Reader(b"abc").take(5)
    with pytest.raises(RecordError, match="has no end"):
        Reader(b"\xff" * 12).number()


@writers
def test_damaged_symbols_are_refused_or_at_least_end(writer_class: type[SymbolWriter]) -> None:
    """Records have a checksum; still, no bytes may do worse than RecordError or other numbers."""
    writer = writer_class()
    symbols = np.rint(np.random.default_rng(1).normal(0, 30, 400)).astype(np.int32)
    symbols[3] = 10**6
    writer.write(0, symbols)
    data = bytearray(writer.finish())
    rng = np.random.default_rng(2)
    for _ in range(300):
        harmed = data.copy()
        for place in rng.integers(0, len(data), 2):
            harmed[place] = rng.integers(256)
        try:
            reader_for(writer.code, bytes(harmed)).read(0, 400)
        except RecordError:
            continue


def test_what_cannot_be_read_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RangeWriter()
    writer.write(0, np.array([1, 2, 3]))
    data = writer.finish()
    with pytest.raises(RecordError, match="coder 9, which this version does not know"):
        reader_for(9, data)
    with pytest.raises(RecordError, match="lacks the symbols of group 4"):
        reader_for(RangeWriter.code, data).read(4, 2)
    with pytest.raises(ConfigError, match="unknown coder 'lz4'"):
        writer_named("lz4")
    assert writer_named("auto").name == "range"
    monkeypatch.setitem(sys.modules, "constriction", None)
    assert writer_named("auto").name == "zstd"
    with pytest.raises(ConfigError, match="needs constriction"):
        writer_named("range")
    with pytest.raises(RecordError, match="install constriction"):
        reader_for(RangeWriter.code, data).read(0, 3)
