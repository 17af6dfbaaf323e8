"""From a federation's merges to windows: weights, spool, crashes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flwr_afuic.errors import ConfigError, HistoryError
from flwr_afuic.history.codec import decode_record
from flwr_afuic.history.disk import DiskStore
from flwr_afuic.history.memory import MemoryStore
from flwr_afuic.history.recorder import Recorder, RecorderSettings
from flwr_afuic.history.sparsify import UserSparsification
from flwr_afuic.history.store import UpdateStore, Window
from flwr_afuic.history.unlearn import unlearn

from .federations import EXACT, EXACTLY


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    with MemoryStore() as store:
        yield store


def constant(value: float) -> list[np.ndarray]:
    return [np.full((2, 3), value, dtype=np.float32), np.full((), -value, dtype=np.float32)]


def value_of(store: UpdateStore, number: int, site: str) -> float | None:
    data = store.record(number, site)
    if data is None:
        return None
    first, second = decode_record(data, key=store.key(number, site)).arrays
    assert np.all(first == first[0, 0])
    assert float(second) == -float(first[0, 0])
    return float(first[0, 0])


def by_site(window: Window | None) -> dict[str, tuple[float, str]]:
    assert window is not None
    return {p.site: (round(p.weight, 9), p.status) for p in window.participants}


def spooled(store: UpdateStore) -> int:
    return len(list(store.spool.iterdir()))


def test_a_synchronous_round_by_hand(store: MemoryStore) -> None:
    recorder = Recorder(store, EXACTLY)
    for site, weight, value in [("a", 30, 1.0), ("b", 10, 5.0), ("c", 40, -2.0)]:
        recorder.add(site, constant(value), weight)
    assert spooled(store) == 3
    window = recorder.merged(7, 3)
    # h = (30 - 80 + 50) / 80 = 0: the deviations are the updates.
    assert by_site(window) == {
        "a": (0.375, "stored"), "b": (0.125, "stored"), "c": (0.5, "stored"),
    }  # fmt: skip
    assert window is not None
    assert (window.number, window.version, window.round, window.step) == (1, 7, 3, 0.0)
    assert [value_of(store, 1, s) for s in "abc"] == [1.0, 5.0, -2.0]
    norms = {p.site: p.norm for p in window.participants}
    assert norms["b"] == pytest.approx(5 * np.sqrt(7))
    assert value_of(store, 1, "") == 0.0
    assert spooled(store) == 0
    assert store.layout == [((2, 3), "float32"), ((), "float32")]


def test_the_server_s_factor_and_several_merges_make_one_step(store: MemoryStore) -> None:
    """FedAsync: one update a merge; the window's step is what was added to the model."""
    recorder = Recorder(store, EXACTLY)
    recorder.add("a", constant(4.0), 10)
    assert recorder.merged(1, 0, factor=0.5) is None
    recorder.add("a", constant(8.0), 10)
    assert recorder.merged(2, 0, factor=0.25) is None
    assert recorder.open_sites == ["a"]
    recorder.add("b", constant(-6.0), 99)
    window = recorder.merged(3, 1, factor=0.5)
    assert by_site(window) == {"a": (round(2 / 3, 9), "stored"), "b": (round(1 / 3, 9), "stored")}
    # The model moved by 2 + 2 - 3 = 1; h_a = 4 / (2/3) = 6 and h_b = -3 / (1/3) = -9.
    assert value_of(store, 1, "") == pytest.approx(1.0)
    assert value_of(store, 1, "a") == pytest.approx(6.0 - 1.0)
    assert value_of(store, 1, "b") == pytest.approx(-9.0 - 1.0)
    # Without b, the window would have added a's step alone at the same pace: 6.
    assert unlearn(store, ["b"]).arrays[0][0, 0] == pytest.approx(6.0 - 1.0)


def test_a_site_that_sends_twice_into_one_merge_is_one_participant(store: MemoryStore) -> None:
    recorder = Recorder(store, EXACTLY)
    for site, weight, value in [("a", 1, 1.0), ("b", 2, 0.0), ("a", 3, 5.0)]:
        recorder.add(site, constant(value), weight)
    window = recorder.merged(1, 1)
    assert by_site(window) == {"a": (round(4 / 6, 9), "stored"), "b": (round(2 / 6, 9), "stored")}
    assert value_of(store, 1, "a") == pytest.approx(4.0 - 16 / 6)


def test_windows_end_with_enough_sites_or_enough_merges(store: MemoryStore) -> None:
    recorder = Recorder(store, RecorderSettings(EXACT, EXACT, min_sites=3, max_merges=2))
    sites = []
    for version, site in enumerate("ababab", start=1):
        recorder.add(site, constant(version), 1.0)
        window = recorder.merged(version, 0)
        sites.append(None if window is None else sorted(by_site(window)))
    assert sites == [None, ["a", "b"]] * 3
    assert recorder.merged(9, 9) is None, "nothing was added"
    assert recorder.close() is None
    for site in "abc":
        recorder.add(site, constant(1.0), 1.0)
    assert recorder.merged(10, 1) is not None


def test_a_lone_site_is_stored_against_zero(store: MemoryStore) -> None:
    recorder = Recorder(store, EXACTLY)
    recorder.add("a", constant(3.0), 5)
    recorder.merged(1, 1, factor=0.5)
    assert by_site(recorder.close()) == {"a": (1.0, "stored")}
    assert value_of(store, 1, "a") == 1.5
    assert unlearn(store, ["a"]).arrays[0][0, 0] == -1.5


def test_what_was_withdrawn_is_not_recorded(store: MemoryStore) -> None:
    recorder = Recorder(store, EXACTLY)
    for site in "abab":
        recorder.add(site, constant(1.0), 1.0)
    assert recorder.withdraw("a") == 2
    assert recorder.withdraw("a") == 0
    assert spooled(store) == 2
    recorder.merged(1, 1)
    for site in "abb":
        recorder.add(site, constant(1.0), 1.0)
    assert recorder.discard() == 3
    assert recorder.discard() == 0
    assert by_site(recorder.close()) == {"b": (1.0, "stored")}


def test_users_are_drawn_and_their_records_scaled(store: MemoryStore) -> None:
    settings = RecorderSettings(EXACT, None, UserSparsification("sampled", keep=0.5))
    recorder = Recorder(store, settings)
    for site, value in zip("abcd", [1.0, -1.0, 1.0, -1.0], strict=True):
        recorder.add(site, constant(value), 1.0)
    window = recorder.merged(1, 1)
    statuses = [status for _, status in by_site(window).values()]
    assert sorted(statuses) == ["not-drawn"] * 2 + ["stored"] * 2
    values = {s: value_of(store, 1, s) for s in "abcd"}
    assert sorted(abs(v) for v in values.values() if v is not None) == [2.0, 2.0]
    assert store.aggregate(1) is None
    assert window is not None
    assert all(p.norm == pytest.approx(np.sqrt(7)) for p in window.participants)


def test_old_windows_go(store: MemoryStore) -> None:
    recorder = Recorder(store, RecorderSettings(EXACT, EXACT, retain=2))
    for version in range(1, 5):
        for site in "ab":
            recorder.add(site, constant(version), 1.0 + (site == "b"))
        recorder.merged(version, version)
    assert [store.aggregate(n) is None for n in range(1, 5)] == [True, True, False, False]


# ---- erasing a site -----------------------------------------------------------------


def test_purging_a_site_reaches_its_raw_updates_too(tmp_path: Path) -> None:
    with DiskStore(tmp_path) as store:
        recorder = Recorder(store, RecorderSettings(EXACT, EXACT, min_sites=3))
        for version in (1, 2):
            for site, value in [("a", 1111.0), ("b", 2.0), ("c", 3.0)]:
                recorder.add(site, constant(value * version), 1.0)
            recorder.merged(version, version)
        for site, value in [("a", 1111.0), ("b", 2.0)]:
            recorder.add(site, constant(value), 1.0)
        recorder.merged(3, 3)
        recorder.add("a", constant(1111.0), 1.0)
        gone = recorder.purge("a")
        assert [(g.window, g.site) for g in gone] == [(1, "a"), (2, "a")]
        last = list(store.windows())[-1]
        assert by_site(last) == {"a": (0.5, "purged"), "b": (0.5, "stored")}
        assert spooled(store) == 0
        raw = np.float32(1111.0).tobytes() * 6
        assert not any(raw in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
        assert recorder.open_sites == []


def test_purging_a_lone_site_takes_its_window_s_aggregate(store: MemoryStore) -> None:
    recorder = Recorder(store, EXACTLY)
    recorder.add("a", constant(3.0), 5)
    recorder.merged(1, 1)
    recorder.purge("a")
    (window,) = store.windows()
    assert by_site(window) == {"a": (1.0, "purged")}
    assert store.aggregate(1) is None
    assert spooled(store) == 0


# ---- crashes ------------------------------------------------------------------------

SERVER = """
import os, signal, sys
import numpy as np
from flwr_afuic.history.disk import DiskStore
from flwr_afuic.history.recorder import Recorder
from tests.history.federations import EXACTLY
recorder = Recorder(DiskStore(sys.argv[1]), EXACTLY)
update = [np.full((2, 3), 4.0, dtype=np.float32), np.full((), -4.0, dtype=np.float32)]
recorder.add("a", update, 1.0)
recorder.merged(1, 1)
recorder.add("b", update, 1.0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_server_s_open_window_is_taken_up(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    process = subprocess.run(
        [sys.executable, "-c", SERVER, str(tmp_path)], cwd=root, check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL
    with DiskStore(tmp_path) as store:
        assert spooled(store) == 2
        recorder = Recorder(store, EXACTLY)
        assert recorder.resume(1) == 0
        assert spooled(store) == 1, "what only waited is dropped: the merge did not happen"
        assert recorder.open_sites == ["a"]
        recorder.add("c", constant(0.0), 1.0)
        window = recorder.merged(2, 1)
        assert by_site(window) == {"a": (0.5, "stored"), "c": (0.5, "stored")}
        # One step of 4 in two merges: a's own pace is 8, the window's 4.
        assert value_of(store, 1, "a") == 4.0


def test_resuming_an_older_version_drops_what_came_later(store: MemoryStore) -> None:
    recorder = Recorder(store, EXACTLY)
    for version in (1, 2):
        for site in "ab":
            recorder.add(site, constant(version), 1.0 + (site == "b"))
        recorder.merged(version, version)
    for version in (3, 4):
        recorder.add("a", constant(version), 1.0)
        recorder.merged(version, 3)
    recorder.add("a", constant(9.0), 1.0)
    assert recorder.resume(3) == 0
    assert (spooled(store), recorder.open_sites) == (1, ["a"])
    assert recorder.resume(1) == 1
    assert (spooled(store), recorder.open_sites) == (0, [])
    assert [w.version for w in store.windows()] == [1]


@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_a_raw_update_that_was_damaged_is_lost_and_said_so(store: MemoryStore, harm: str) -> None:
    recorder = Recorder(store, RecorderSettings(EXACT, EXACT, min_sites=4))
    for site, value in [("a", 1.0), ("b", 2.0), ("c", 6.0)]:
        recorder.add(site, constant(value), 1.0)
    recorder.merged(1, 1)
    files = sorted(store.spool.iterdir(), key=lambda p: int(p.stem.split("-")[1]))
    if harm == "missing":
        files[1].unlink()
    else:
        files[1].write_bytes(files[1].read_bytes()[:-1])
    window = recorder.close()
    third = round(1 / 3, 9)
    assert by_site(window) == {"a": (third, "stored"), "b": (third, "lost"), "c": (third, "stored")}
    assert value_of(store, 1, "") == pytest.approx(3.5)
    assert value_of(store, 1, "a") == pytest.approx(-2.5)
    (gap,) = unlearn(store, ["b"]).coverage.damaged
    assert (gap.site, gap.why) == ("b", "lost")


def test_if_every_raw_update_is_lost_the_window_says_so(store: MemoryStore) -> None:
    recorder = Recorder(store, RecorderSettings(EXACT, EXACT, min_sites=4))
    for site in "ab":
        recorder.add(site, constant(1.0), 1.0)
    recorder.merged(1, 1)
    for file in store.spool.iterdir():
        file.unlink()
    assert by_site(recorder.close()) == {"a": (0.5, "lost"), "b": (0.5, "lost")}
    assert store.aggregate(1) is None


def test_a_new_model_needs_a_new_history(store: MemoryStore) -> None:
    recorder = Recorder(store, EXACTLY)
    recorder.start()
    recorder.add("a", constant(1.0), 1.0)
    recorder.merged(1, 1)
    for windows in (0, 1):
        with pytest.raises(HistoryError, match=f"holds {windows} windows of an earlier run"):
            Recorder(store, EXACTLY).start()
        recorder.close()
    recorder.resume(0)
    recorder.start()


# ---- what is refused ----------------------------------------------------------------


def test_what_cannot_be_recorded(store: MemoryStore) -> None:
    recorder = Recorder(store)
    for site, weight in [("", 1.0), ("a", 0.0), ("a", -1.0), ("a", float("nan"))]:
        with pytest.raises(HistoryError, match="cannot be recorded"):
            recorder.add(site, constant(1.0), weight)
    recorder.add("a", constant(1.0), 1.0)
    with pytest.raises(HistoryError, match="use a new history for another model"):
        recorder.add("b", constant(1.0)[:1], 1.0)
    assert spooled(store) == 1


@pytest.mark.parametrize("name", ["min_sites", "max_merges", "retain"])
@pytest.mark.parametrize("value", [-1, 1.5, True])
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value}"):
        RecorderSettings(**{name: value})  # type: ignore[arg-type]
