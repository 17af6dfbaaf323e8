"""Reading single updates back, from compressed and raw histories."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flwr_afuic.errors import ConfigError, HistoryError, RecordError
from flwr_afuic.federation.buffer import Update
from flwr_afuic.history.codec import CodecSettings
from flwr_afuic.history.coverage import Gap
from flwr_afuic.history.disk import DiskStore
from flwr_afuic.history.memory import MemoryStore
from flwr_afuic.history.raw import RawHistory
from flwr_afuic.history.reading import client_updates
from flwr_afuic.history.recorder import Recorder, RecorderSettings
from flwr_afuic.history.sparsify import Threshold

from .federations import EXACTLY, record, some_rounds

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1.0, -1.0], np.float32)


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    with MemoryStore() as opened:
        yield opened


def test_updates_come_back_from_deviations_and_aggregates(store: MemoryStore) -> None:
    rounds = some_rounds(3)
    record(store, rounds)
    found = {(u.round, u.site): u for u in client_updates(store)}
    assert set(found) == {(r, s) for r, round_ in enumerate(rounds, 1) for s in round_}
    for (round_, site), update in found.items():
        weight, sent = rounds[round_ - 1][site]
        np.testing.assert_allclose(update.vector(), sent, atol=1e-6)
        total = sum(pair[0] for pair in rounds[round_ - 1].values())
        assert update.weight == pytest.approx(weight / total)


def test_deviations_add_up_to_nothing_in_a_window(store: MemoryStore) -> None:
    record(store, some_rounds(4), RecorderSettings(codec=EXACTLY.codec, aggregate=None))
    sums: dict[int, np.ndarray] = {}
    for update in client_updates(store, deviations=True):
        sums[update.window] = sums.get(update.window, 0) + update.weight * update.vector()
    assert max(float(np.abs(part).max()) for part in sums.values()) < 1e-6
    with pytest.raises(HistoryError, match="aggregate"):
        list(client_updates(store))


def test_a_compressed_history_gives_them_nearly(store: MemoryStore) -> None:
    rounds = some_rounds(5, size=4000)
    codec = CodecSettings(step=0.25, threshold=Threshold("none"))
    record(store, rounds, RecorderSettings(codec=codec, aggregate=codec))
    for update in client_updates(store):
        sent = rounds[update.round - 1][update.site][1]
        assert update.approximate
        assert 0 < np.linalg.norm(update.vector() - sent) / np.linalg.norm(sent) < 0.15


def test_blocks_are_chosen_by_the_names_of_the_arrays(store: MemoryStore) -> None:
    recorder = Recorder(store, EXACTLY)
    recorder.start(["image.lora", "text.lora"])
    recorder.add("x", [A, B], 1.0)
    recorder.merged(1, 1)
    recorder.close()
    (update,) = client_updates(store)
    assert update.layout == [("image.lora", (2, 3), "float32"), ("text.lora", (2,), "float32")]
    assert update.vector(["text.lora"]).tolist() == [1.0, -1.0]
    assert update.vector(lambda name: name.startswith("image")).tolist() == A.reshape(-1).tolist()
    with pytest.raises(ConfigError, match=r"no array.*image\.lora, text\.lora"):
        update.vector(["audio"])
    with pytest.raises(HistoryError, match="called"):
        store.name_arrays(["text.lora", "image.lora"])
    with pytest.raises(HistoryError, match="1 names for 2"):
        store.name_arrays(["text.lora"])


def test_only_the_sites_that_are_asked_for_and_nothing_of_those_purged(store: MemoryStore) -> None:
    rounds = some_rounds(6)
    record(store, rounds)
    assert {u.site for u in client_updates(store, sites={"a", "b"})} == {"a", "b"}
    store.delete_client("a")
    assert {u.site for u in client_updates(store, sites={"a", "b"})} == {"b"}


def test_a_raw_history_reads_the_same_way(store: MemoryStore) -> None:
    history = RawHistory(store)
    history.begin([A, B], ["one", "two"])
    history.add(Update("x", 0, 10, [A, B]), 1.0)
    history.add(Update("x", 0, 30, [2 * A, B]), 1.0)
    history.add(Update("y", 0, 60, [3 * A, B]), 0.5)
    history.merged(1, 1)
    found = list(client_updates(store))
    assert [(u.site, u.names, u.approximate) for u in found] == [
        ("x", ("one", "two"), False), ("x", ("one", "two"), False), ("y", ("one", "two"), False)
    ]  # fmt: skip
    assert [u.weight for u in found] == pytest.approx([0.1, 0.3, 0.6])
    assert np.array_equal(found[1].arrays[0], 2 * A)
    with pytest.raises(HistoryError, match="raw history"):
        list(client_updates(store, deviations=True))


def test_a_damaged_record_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    rounds = some_rounds(7)
    with DiskStore(tmp_path) as store:
        record(store, rounds)
        site = sorted(rounds[0])[0]
        path = tmp_path / "records" / store.segments.file_of(site, 1)
        data = bytearray(path.read_bytes())
        data[40] ^= 1
        path.write_bytes(data)
        with pytest.raises(RecordError, match=rf"update of {site} in round 1 "):
            list(client_updates(store))
        gaps: list[Gap] = []
        found = list(client_updates(store, told=gaps.append))
    assert [(gap.site, gap.round, gap.why) for gap in gaps] == [(site, 1, "damaged")]
    assert len(found) == sum(map(len, rounds)) - 1
