"""Records: exact bytes, honest errors, and what is refused."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flwr_afuic.errors import AfuicError, ConfigError, HistoryError, RecordError
from flwr_afuic.history.codec import CodecSettings, decode_record, encode_update
from flwr_afuic.history.dither import dither_key
from flwr_afuic.history.lattices import LATTICES
from flwr_afuic.history.record import RecordHead, TensorHead, pack_record, unpack_record
from flwr_afuic.history.scales import families
from flwr_afuic.history.sparsify import Threshold

KEY = dither_key(0, 3, "hospital-1")
WHOLE = Threshold("none")
SHAPES = [(16, 3, 3, 3), (16,), (), (300, 40), (0, 5), (300,)]
ALL = [(lattice, coder) for lattice in [*LATTICES, "none"] for coder in ("range", "zstd")]


def update(seed: int = 1, dtype: str = "float32") -> list[NDArray[np.floating]]:
    """Tensors of very different scale."""
    rng = np.random.default_rng(seed)
    return [
        np.asarray(rng.normal(size=shape) * 10.0 ** rng.uniform(-3, 1)).astype(dtype)
        for shape in SHAPES
    ]


def resealed(data: bytes) -> bytes:
    """The same bytes under a checksum that matches."""
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


# ---- round trips --------------------------------------------------------------------


@pytest.mark.parametrize(("lattice", "coder"), ALL)
@pytest.mark.parametrize("threshold", [WHOLE, Threshold("std", 1.0, whole_below=20)])
def test_what_comes_back(lattice: str, coder: str, threshold: Threshold) -> None:
    arrays = update()
    settings_ = CodecSettings(lattice, 0.1, threshold, unit="tensor", coder=coder)
    record = decode_record(encode_update(arrays, settings_, KEY), key=KEY)
    assert [a.shape for a in record.arrays] == SHAPES
    for array, back, head in zip(arrays, record.arrays, record.head.tensors, strict=True):
        if not array.size:
            continue
        std = np.sqrt((array**2).mean())
        assert head.std == pytest.approx(std, rel=1e-5)
        kept = threshold.mask(array.reshape(-1), float(std))
        kept = np.ones(array.size, dtype=bool) if kept is None else kept
        assert not back.reshape(-1)[~kept].any()
        error = (back - array).reshape(-1)[kept]
        # One step is the most that any of the lattices can be off by; a block shares it.
        assert np.abs(error).max() <= (0 if lattice == "none" else 0.1001 * std)


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), max_size=5),
    st.sampled_from(ALL),
    st.sampled_from(["float16", "float32", "float64"]),
    st.sampled_from([WHOLE, Threshold("std", 1.5, 0), Threshold("fraction", 0.1, 3)]),
    st.sampled_from([0.01, 1.0, 7.0]),
    st.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_any_update_survives(
    shapes: list[tuple[int, ...]],
    how: tuple[str, str],
    dtype: str,
    threshold: Threshold,
    step: float,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    arrays = [
        np.asarray(rng.standard_t(2, shape) * rng.choice([0.0, 1e-6, 1.0, 100.0])).astype(dtype)
        for shape in shapes
    ]
    arrays = [np.nan_to_num(a, posinf=1.0, neginf=-1.0) for a in arrays]
    codec = CodecSettings(how[0], step, threshold, how[1])
    data = encode_update(arrays, codec, KEY)
    assert encode_update(arrays, codec, KEY) == data, "the same update gives the same bytes"
    record = decode_record(data, key=KEY)
    assert [a.shape for a in record.arrays] == shapes
    assert [t.dtype for t in record.head.tensors] == [dtype] * len(shapes)
    for array, back, head in zip(arrays, record.arrays, record.head.tensors, strict=True):
        if array.size:
            stored = back != 0
            bound = step * head.std * 1.001 + 1e-6 * np.abs(array.astype(np.float64)).max()
            assert np.all(np.abs(back - array)[stored] <= bound)


def test_the_error_of_a_record_is_the_lattice_s() -> None:
    values = np.random.default_rng(1).normal(size=200_000).astype(np.float32) * 3
    for name, lattice in LATTICES.items():
        back = decode_record(encode_update([values], CodecSettings(name, 0.5, WHOLE), KEY))
        error = ((back.arrays[0] - values) ** 2).mean()
        assert error == pytest.approx((0.5 * 3) ** 2 * lattice.second_moment, rel=0.02)
        assert back.noise == (pytest.approx(values.size * error, rel=0.02),)


def test_what_is_not_stored_is_no_noise_and_neither_is_what_is_exact() -> None:
    values = np.random.default_rng(1).normal(size=100_000).astype(np.float32)
    tensors = [values, np.zeros(5, np.float32), values[:1000]]
    part = CodecSettings(
        "E8", 0.5, Threshold("std", 1.0, whole_below=2000), unit="tensor", hold=0.0
    )
    back = decode_record(encode_update(tensors, part, KEY, factor=3.0))
    stored = np.abs(values) > values.std()
    error = float(np.sum((back.arrays[0][stored] - 3 * values[stored]) ** 2))
    assert back.noise[0] == pytest.approx(error, rel=0.03)
    assert back.noise[1] == 0.0
    assert back.noise[2] == pytest.approx(
        np.sum((back.arrays[2] - 3 * values[:1000]) ** 2), rel=0.2
    )
    assert decode_record(encode_update(tensors, CodecSettings("none"), KEY)).noise == (0.0,) * 3


def test_a_factor_scales_what_is_stored() -> None:
    arrays = update()
    for lattice in ("E8", "none"):
        codec = CodecSettings(lattice, 0.5, Threshold("std", 1.0))
        once = decode_record(encode_update(arrays, codec, KEY))
        thrice = decode_record(encode_update(arrays, codec, KEY, factor=3.0))
        for a, b in zip(once.arrays, thrice.arrays, strict=True):
            np.testing.assert_allclose(b, 3 * a, rtol=1e-5)


def test_the_key_decides_the_dither() -> None:
    codec = CodecSettings("E8", 4.0, WHOLE)
    other = dither_key(0, 4, "hospital-1")
    first, second = (decode_record(encode_update(update(), codec, k)).arrays for k in (KEY, other))
    errors = [np.concatenate([(a - b).ravel() for a, b in zip(x, update(), strict=True)])
              for x in (first, second)]  # fmt: skip
    assert abs(np.corrcoef(*errors)[0, 1]) < 0.1


def test_a_small_tensor_is_stored_whole_and_a_single_entry_is_not_lost() -> None:
    arrays = [np.array([0.5], dtype=np.float32), np.arange(5, dtype=np.float32)]
    back = decode_record(encode_update(arrays, CodecSettings(step=0.1), KEY)).arrays
    assert back[0] == pytest.approx(0.5, abs=0.05)
    assert back[1] == pytest.approx(arrays[1], abs=0.1 * 2.5)


def test_zeros_stay_zeros() -> None:
    arrays = [np.zeros((40, 40), dtype=np.float32), np.zeros(3, dtype=np.float32)]
    data = encode_update(arrays, CodecSettings(), KEY)
    assert len(data) < 80
    assert not any(a.any() for a in decode_record(data).arrays)


def test_bytes_at_the_default_setting() -> None:
    """Golden, for a Gaussian tensor; later records of a site are held and rationed."""
    values = np.random.default_rng(1).normal(size=400_000).astype(np.float32)
    data = encode_update([values], CodecSettings(), KEY)
    assert 8 * len(data) / len(values) == pytest.approx(2.280, abs=0.01)
    cut = encode_update([values], CodecSettings(step=1.0, threshold=Threshold()), KEY)
    assert 8 * len(cut) / len(values) == pytest.approx(0.363, abs=0.01)


FIRST_FORMAT = bytes.fromhex(
    "41465548010301110000803e000102030405060708090a0b0c0d0e0f0502020203049f3c5f3f8201010000003f"
    "03110000000008ff000000000000df0000000200010000000d0ecaca00ca000000ff000000cacaca007db7ee69"
    "e95f9034931c182f45121134"
)


def test_a_record_of_the_first_format_is_read() -> None:
    record = decode_record(FIRST_FORMAT, key=bytes(range(16)))
    first, second = record.arrays
    expected = [[-1.5335017, -1.3194239, -0.9357021, 0], [0] * 4, [0, 0, 0.9979360, 1.2743626]]
    np.testing.assert_allclose(first, expected, atol=1e-6)
    np.testing.assert_allclose(second, [0.4772991], atol=1e-6)


def test_families_have_symbol_models_of_their_own() -> None:
    """Tensors of one unit and unlike spread take fewer bytes than under one model."""
    rng = np.random.default_rng(1)
    arrays = [(s * rng.normal(size=20_000)).astype(np.float32) for s in (1.0, 0.04, 0.04, 0.04)]
    data = encode_update(arrays, CodecSettings(), KEY)
    record = decode_record(data)
    assert [t.family for t in record.head.tensors] == [0, 5, 5, 5]
    assert len({t.std for t in record.head.tensors}) == 1
    for array, back, head in zip(arrays, record.arrays, record.head.tensors, strict=True):
        assert np.abs(back - array).max() <= 0.9001 * head.std
    mixed = [np.stack(arrays, axis=1).reshape(-1)]
    assert len(data) < 0.9 * len(encode_update(mixed, CodecSettings(), KEY))


@pytest.mark.parametrize(("ratios", "sizes", "expected"), [
    ([1.0, 1.3, 2.1, 8.0], [2000] * 4, [1, 1, 2, 4]),
    ([1.0, 2.1, 8.0], [2000, 100, 2000], [1, 1, 4]),
    ([0.01, 1e9, math.inf], [2000, 2000, 0], [0, 7, 0]),
    ([4.0, 8.0], [10, 10], [0, 0]),
    ([], [], []),
])  # fmt: skip
def test_which_family_a_tensor_belongs_to(
    ratios: list[float], sizes: list[int], expected: list[int]
) -> None:
    assert families(ratios, sizes) == expected


# ---- what is refused ----------------------------------------------------------------


@pytest.mark.parametrize("lattice", ["E8", "none"])
def test_every_flipped_byte_is_noticed(lattice: str) -> None:
    data = encode_update(update(), CodecSettings(lattice), KEY)
    for place in [*range(60), *range(60, len(data), 97), len(data) - 1]:
        harmed = bytearray(data)
        harmed[place] ^= 0x10
        with pytest.raises(RecordError):
            decode_record(bytes(harmed))


def test_every_cut_is_noticed() -> None:
    data = encode_update(update(), CodecSettings(), KEY)
    for length in [0, 3, 4, 5, 20, len(data) // 2, len(data) - 1]:
        with pytest.raises(RecordError):
            decode_record(data[:length])
    with pytest.raises(RecordError, match="checksum does not match"):
        decode_record(data + b"\x00")


def test_foreign_bytes_are_refused_by_what_they_are() -> None:
    data = encode_update(update(), CodecSettings(), KEY)
    with pytest.raises(RecordError, match="are no record of an update"):
        decode_record(b"PK\x03\x04" + data)
    with pytest.raises(RecordError, match="has format 9 and this version reads 1"):
        decode_record(data[:4] + b"\x09" + data[5:])
    with pytest.raises(RecordError, match="belongs to another client, round or history"):
        decode_record(data, key=dither_key(0, 3, "hospital-2"))


def test_a_matching_checksum_over_nonsense_is_not_enough() -> None:
    data = encode_update(update(), CodecSettings(), KEY)
    rng = np.random.default_rng(1)
    for _ in range(400):
        harmed = bytearray(data)
        for place in rng.integers(5, len(data) - 4, 3):
            harmed[place] = rng.integers(256)
        try:
            decode_record(resealed(bytes(harmed)), key=KEY)
        except AfuicError:
            continue


def test_symbols_decoded_otherwise_than_written_are_noticed() -> None:
    """As another version of the range coder could, under a checksum of bytes that matches."""
    head, payload = unpack_record(encode_update(update(), CodecSettings(), KEY))
    data = pack_record(replace(head, symbols=head.symbols ^ 1), payload)
    with pytest.raises(RecordError, match="decoded otherwise than they were written"):
        decode_record(data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lattice": 77}, "names lattice 77"),
        ({"coder": 77}, "names coder 77"),
        ({"kept": 10**9}, "the record claims 1000000000 entries"),
        ({"tensors": (TensorHead((2**41,), "float32", 1.0, False),)}, "holds a tensor"),
        ({"tensors": (TensorHead((2,), "float32", float("inf"), False),)}, "holds a tensor"),
    ],
)
def test_heads_that_claim_too_much(change: dict[str, object], words: str) -> None:
    head, payload = unpack_record(encode_update(update(), CodecSettings(), KEY))
    changed: RecordHead = replace(head, **change)  # type: ignore[arg-type]
    with pytest.raises(RecordError, match=words):
        decode_record(pack_record(changed, payload))


def test_what_is_no_update_is_refused() -> None:
    with pytest.raises(RecordError, match="dtype int64; only float16, float32, float64"):
        encode_update([np.arange(3)], CodecSettings(), KEY)
    for bad in (np.nan, np.inf):
        with pytest.raises(HistoryError, match="NaN or infinity"):
            encode_update([np.array([1.0, bad])], CodecSettings(), KEY)


def test_large_and_small_numbers() -> None:
    for scale in (1e-20, 1e-8, 1e8, 1e30):
        values = (np.random.default_rng(1).normal(size=1000) * scale).astype(np.float32)
        (back,) = decode_record(
            encode_update([values], CodecSettings("E8", 0.1, WHOLE), KEY)
        ).arrays
        assert np.abs(back - values).max() < 0.11 * scale


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CodecSettings("D4"), "unknown lattice 'D4'"),
        (lambda: CodecSettings(step=0.0), "step is 0.0"),
        (lambda: CodecSettings(step=float("inf")), "step is inf"),
        (lambda: CodecSettings(coder="lz4"), "unknown coder 'lz4'"),
    ],
)
def test_settings_out_of_range_are_refused(make: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()  # type: ignore[operator]
