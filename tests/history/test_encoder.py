"""What a record has to do with its site's earlier ones: held units, and rationed bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flwr_afuic.history.codec import CodecSettings, decode_record
from flwr_afuic.history.disk import DiskStore
from flwr_afuic.history.encoder import SMALLEST_RATIONED, RecordEncoder
from flwr_afuic.history.lattices import LATTICES
from flwr_afuic.history.memory import MemoryStore
from flwr_afuic.history.recorder import Recorder, RecorderSettings
from flwr_afuic.history.scales import units
from flwr_afuic.history.store import UpdateStore
from flwr_afuic.history.unlearn import unlearn

from .federations import record

SIZE = 8192
FREE = CodecSettings(budget=0.0)


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    with MemoryStore() as opened:
        yield opened


def normal(seed: int, scale: float = 1.0, size: int = SIZE) -> np.ndarray:
    return (scale * np.random.default_rng(seed).normal(size=size)).astype(np.float32)


def unit_of(data: bytes) -> float:
    return decode_record(data).head.tensors[0].std


def test_one_unit_serves_every_tensor_but_small_ones() -> None:
    stds, sizes = [3.0, 0.0, 0.1, 0.5], [100, 100, 300, 8]
    whole = math.sqrt((9 * 100 + 0.01 * 300 + 0.25 * 8) / 508)
    found = units(stds, sizes, "update", alone_below=64)
    assert found == pytest.approx([whole, 0.0, whole, 0.5])
    assert units(stds, sizes, "tensor", alone_below=64) == pytest.approx(stds)
    least = [4.0, 4.0, 0.0, 1.0]
    assert units(stds, sizes, "update", alone_below=64, least=least) == pytest.approx(
        [4.0, 0.0, whole, 1.0]
    )


def test_a_record_s_error_is_the_same_in_every_tensor(store: MemoryStore) -> None:
    arrays = [normal(1, 3.0), normal(2, 0.2)]
    back = decode_record(RecordEncoder(store, FREE).encode(1, "a", arrays)).arrays
    unit = math.sqrt((9 + 0.04) / 2)
    for array, found in zip(arrays, back, strict=True):
        error = float(np.mean((found - array) ** 2))
        assert error == pytest.approx(
            (FREE.step * unit) ** 2 * LATTICES["E8"].second_moment, rel=0.06
        )


def test_the_unit_is_held_and_slowly_released(store: MemoryStore) -> None:
    encoder = RecordEncoder(store, FREE)
    found = [unit_of(encoder.encode(n, "a", [normal(n, 1.0 / n)])) for n in range(1, 6)]
    assert found == pytest.approx([found[0] * 0.98**n for n in range(5)])
    assert unit_of(encoder.encode(6, "a", [normal(6, 10.0)])) == pytest.approx(10, rel=0.05)
    assert unit_of(encoder.encode(1, "b", [normal(7, 0.1)])) == pytest.approx(0.1, rel=0.05)
    own = RecordEncoder(store, CodecSettings(hold=0.0, budget=0.0))
    units_ = [unit_of(own.encode(n, "a", [normal(n, 1.0 / n)])) for n in (1, 2)]
    assert units_[1] == pytest.approx(units_[0] / 2, rel=0.05)


def test_a_tensor_of_zeros_does_not_end_the_holding(store: MemoryStore) -> None:
    encoder = RecordEncoder(store, FREE)
    for number, values in enumerate([normal(1), np.zeros(SIZE, np.float32), normal(2, 0.01)], 1):
        data = encoder.encode(number, "a", [values, normal(9, 0.001)])
    assert unit_of(data) == pytest.approx(0.98**2 * unit_of(
        RecordEncoder(store, FREE).encode(1, "a", [normal(1), normal(9, 0.001)])))  # fmt: skip


@pytest.mark.parametrize("growth", [1.0, 1.3])
def test_a_site_keeps_its_budget_whatever_its_updates_do(store: MemoryStore, growth: float) -> None:
    codec = CodecSettings()
    encoder = RecordEncoder(store, codec)
    used, errors = 0, []
    for number in range(1, 31):
        update = normal(number, growth**number)
        data = encoder.encode(number, "a", [update])
        used += len(data)
        assert 8 * used / SIZE <= codec.budget * (number + codec.credit)
        errors.append(decode_record(data).arrays[0] - update)
    assert 8 * used / SIZE >= 0.75 * codec.budget * 30, "what may be spent is spent"
    # Coarser, but right on average.
    total = sum(errors)
    expected = sum(float(np.mean(e**2)) for e in errors)
    assert float(np.mean(total**2)) == pytest.approx(expected, rel=0.15)


def test_each_site_opens_at_the_same_rate_and_keeps_its_step(store: MemoryStore) -> None:
    codec = CodecSettings(step=0.5, opening=1.5)
    encoder = RecordEncoder(store, codec)
    sparse = normal(2)
    sparse[::20] *= 20
    steps = {}
    for site, update in (("flat", normal(1)), ("sparse", sparse)):
        data = encoder.encode(1, site, [update])
        assert 8 * len(data) / SIZE == pytest.approx(codec.opening, abs=0.02)
        steps[site] = decode_record(data).head.step
        later = decode_record(encoder.encode(2, site, [0.5 * update])).head.step
        assert later == steps[site]
    assert steps["sparse"] < 0.8 * steps["flat"], "few large entries: finer at the same rate"
    alike = RecordEncoder(store, CodecSettings(opening=0.0)).encode(1, "flat", [normal(1)])
    assert decode_record(alike).head.step == pytest.approx(CodecSettings().step)


def test_a_site_opens_with_its_first_update_that_is_not_zero(store: MemoryStore) -> None:
    codec = CodecSettings()
    encoder = RecordEncoder(store, codec)
    nothing = np.zeros(SIZE, np.float32)
    for number in (1, 2):
        assert not np.any(decode_record(encoder.encode(number, "a", [nothing])).arrays[0])
    assert 8 * len(encoder.encode(3, "a", [normal(1)])) / SIZE == pytest.approx(
        codec.opening, abs=0.02
    )


def test_what_is_too_small_or_exact_is_not_rationed(store: MemoryStore) -> None:
    few = [normal(1, size=SMALLEST_RATIONED - 1)]
    exact = CodecSettings("none")
    for codec, arrays in ((CodecSettings(credit=0.0), few), (exact, [normal(1)])):
        encoder = RecordEncoder(store, codec)
        sizes = {len(encoder.encode(n, "a", arrays)) for n in range(1, 6)}
        assert max(sizes) - min(sizes) < 40


@pytest.mark.parametrize("codec", [FREE, CodecSettings()], ids=["free", "default"])
def test_a_new_process_goes_on_where_the_last_one_was(tmp_path: Path, codec: CodecSettings) -> None:
    def write(store: UpdateStore, recorder: Recorder, version: int) -> None:
        for site, seed in (("a", version), ("b", 50 + version)):
            recorder.add(site, [normal(seed, 1.0 / version)], 1.0)
        recorder.merged(version, version)

    def sizes(folder: str, *, reopened: bool) -> list[int]:
        store = DiskStore(tmp_path / folder)
        store.set("seed", 3)
        settings = RecorderSettings(codec=codec)
        recorder = Recorder(store, settings)
        for version in range(1, 6):
            if reopened:
                store.close()
                store = DiskStore(tmp_path / folder)
                recorder = Recorder(store, settings)
            write(store, recorder, version)
        found = [len(store.record(n, "a") or b"") for n in range(1, 6)]
        standing = store.standing("a")
        assert (standing.records, standing.bytes, standing.newest) == (5, sum(found), 5)
        store.close()
        return found

    assert sizes("one", reopened=False) == sizes("other", reopened=True)


def test_a_purged_or_resumed_site_starts_anew(store: MemoryStore) -> None:
    recorder = Recorder(store, RecorderSettings(codec=FREE))

    def add(version: int, scale: float) -> float:
        recorder.add("a", [normal(version, scale)], 1.0)
        recorder.add("b", [normal(90, 1.0)], 1.0)
        window = recorder.merged(version, version)
        assert window is not None
        return unit_of(store.record(window.number, "a") or b"")

    first = add(1, 100.0)
    assert add(2, 1.0) == pytest.approx(0.98 * first)
    recorder.resume(0)
    assert add(1, 1.0) < first / 10
    add(2, 100.0)
    recorder.purge("a")
    assert add(3, 1.0) < first / 10


def test_falling_steps_are_unlearned_more_exactly_for_fewer_bytes(store: MemoryStore) -> None:
    """Why the unit is held: the sum's error is what matters, and the first windows make it."""
    drift = {site: normal(number, size=6000) for number, site in enumerate("abcd")}
    rounds = [
        {s: (1.0, (d / j**1.1 + normal(100 * j, 0.3 / j**1.1, 6000)).astype(np.float32))
         for s, d in drift.items()}
        for j in range(1, 13)
    ]  # fmt: skip
    exact = CodecSettings("none")
    found = []
    for codec in (exact, FREE, CodecSettings(step=4.0, hold=0.0, budget=0.0)):
        with MemoryStore() as each:
            each.set("seed", 1)
            record(each, rounds, RecorderSettings(codec, aggregate=None))
            found.append((each.bytes_stored(), unlearn(each, ["a"]).arrays[0]))
    (_, right), held, each_own = found
    errors = [float(np.linalg.norm(a - right) / np.linalg.norm(right)) for _, a in (held, each_own)]
    assert held[0] < 1.1 * each_own[0]
    assert errors[0] < 0.75 * errors[1]
