"""One contract, two stores; then what the one on disk must bear: kills, damage, other hands."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from flwr_afuic.errors import HistoryError, RecordError
from flwr_afuic.history.disk import DiskStore
from flwr_afuic.history.memory import MemoryStore
from flwr_afuic.history.schema import APPLICATION, MIGRATIONS, STATUSES
from flwr_afuic.history.segments import WINDOWS_PER_FILE
from flwr_afuic.history.store import AGGREGATE, Participant, Standing, UpdateStore, Window

ODD = "../Ünïcode hospital: 'x'; DROP TABLE record; --/\\?*"


def put(
    store: UpdateStore,
    sites: dict[str, bytes | None],
    *,
    version: int | None = None,
    aggregate: bytes | None = b"aggregate",
) -> Window:
    """Write one window; None stands for a site that was not drawn."""
    with store.begin() as writer:
        for site, data in sites.items():
            if data is not None:
                writer.write(site, data)
        if aggregate is not None:
            writer.write(AGGREGATE, aggregate)
        window = Window(
            writer.number,
            writer.number if version is None else version,
            writer.number * 10,
            1.5,
            tuple(
                Participant(site, 1 / len(sites), 2.0, "not-drawn" if data is None else "stored")
                for site, data in sorted(sites.items())
            ),
        )
        writer.commit(window)
    return window


class StoreContract:
    """What every store does; subclasses give ``store``."""

    def test_a_new_history_is_empty(self, store: UpdateStore) -> None:
        assert list(store.windows()) == []
        assert store.record(1, "a") is None
        assert store.delete_client("a") == []
        assert store.layout is None
        assert store.arrays("x") is None
        assert list(store.spool.iterdir()) == []

    def test_windows_and_records_come_back(self, store: UpdateStore) -> None:
        first = put(store, {"b": b"one", "a": None})
        second = put(store, {"a": b"", ODD: b"\x00" * 5000}, aggregate=None)
        assert (first.number, second.number) == (1, 2)
        assert list(store.windows()) == [first, second]
        assert store.record(1, "b") == b"one"
        assert store.record(1, "a") is None
        assert store.record(2, "a") == b""
        assert store.record(2, ODD) == b"\x00" * 5000
        assert store.aggregate(1) == b"aggregate"
        assert store.aggregate(2) is None
        assert store.bytes_stored() >= 5000 + 3 + 9

    def test_what_is_stored_of_a_site(self, store: UpdateStore) -> None:
        assert store.standing("a") == Standing(0, 0, None) == store.standing(AGGREGATE)
        put(store, {"a": b"first", "b": b"x"}, aggregate=b"mean")
        put(store, {"a": b"second", "b": b"x"}, aggregate=None)
        put(store, {"b": b"x", "c": b"y"}, aggregate=None)
        assert store.standing("a") == Standing(2, 11, 2)
        assert store.standing(AGGREGATE) == Standing(1, 4, 1)
        store.delete_client("a")
        assert store.standing("a") == Standing(0, 0, None)

    def test_a_window_that_is_not_committed_is_none(self, store: UpdateStore) -> None:
        with store.begin() as writer:
            writer.write("a", b"lost")
        assert list(store.windows()) == []
        assert store.record(1, "a") is None

        def fail() -> None:
            with store.begin() as writer:
                writer.write("a", b"lost")
                raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            fail()
        window = put(store, {"a": b"kept", "b": b"x"})
        assert (window.number, store.record(1, "a")) == (1, b"kept")

    @pytest.mark.parametrize(
        ("participants", "records", "words"),
        [
            ((), {}, "names itself"),
            ((Participant("a", 1.0, 1.0, "stored"),), {}, "its index says"),
            ((Participant("a", 1.0, 1.0, "zero"),), {"a": b""}, "its index says"),
            ((Participant("a", 0.5, 1.0, "zero"),), {}, "add up to 0.5"),
            ((Participant("a", 0.5, 1.0, "zero"),) * 2, {}, "names itself"),
            ((Participant("", 1.0, 1.0, "zero"),), {}, "names itself"),
            (
                (Participant("a", 1.5, 1.0, "zero"), Participant("b", -0.5, 1.0, "zero")),
                {},
                "the weights",
            ),
        ],
    )
    def test_a_window_that_contradicts_itself_is_refused(
        self,
        store: UpdateStore,
        participants: tuple[Participant, ...],
        records: dict[str, bytes],
        words: str,
    ) -> None:
        with store.begin() as writer:
            for site, data in records.items():
                writer.write(site, data)
            with pytest.raises(HistoryError, match=words):
                writer.commit(Window(1, 1, 1, 1.0, participants))
        assert list(store.windows()) == []

    def test_deleting_a_client_leaves_nothing_of_it_but_its_weight(
        self, store: UpdateStore
    ) -> None:
        put(store, {"a": b"a1", "b": b"b1"})
        put(store, {"b": b"b2", "a": None})
        put(store, {"a": b"a3"})
        put(store, {"b": b"b4"})
        gone = store.delete_client("a")
        assert [(g.window, g.round, g.site, g.bytes) for g in gone] == [
            (1, 10, "a", 2), (3, 30, "", 9), (3, 30, "a", 2),
        ]  # fmt: skip
        assert [store.record(n, "a") for n in (1, 2, 3)] == [None, None, None]
        assert [store.aggregate(n) for n in (1, 2, 3, 4)] == [b"aggregate"] * 2 + [None] + [
            b"aggregate"
        ]
        assert [store.record(n, "b") for n in (1, 2, 4)] == [b"b1", b"b2", b"b4"]
        statuses = [{p.site: (p.status, p.weight) for p in w.participants} for w in store.windows()]
        assert statuses == [
            {"a": ("purged", 0.5), "b": ("stored", 0.5)},
            {"a": ("purged", 0.5), "b": ("stored", 0.5)},
            {"a": ("purged", 1.0)},
            {"b": ("stored", 1.0)},
        ]
        assert store.delete_client("a") == []
        assert put(store, {"a": b"back", "b": b"b5"}).number == 5
        assert store.record(5, "a") == b"back"

    def test_the_aggregate_of_a_window_goes_with_its_last_site(self, store: UpdateStore) -> None:
        put(store, {"a": b"a1", "b": b"b1"})
        put(store, {"a": b"a2", "c": b"c2"})
        store.delete_client("a")
        assert store.aggregate(1) is not None
        assert {(g.window, g.site) for g in store.delete_client("b")} == {(1, ""), (1, "b")}
        assert store.aggregate(1) is None
        assert store.aggregate(2) is not None

    def test_old_records_go_and_their_windows_say_so(self, store: UpdateStore) -> None:
        for index in range(5):
            put(store, {"a": bytes([index]), "b": b"x" if index else None})
        store.delete_client("b")
        gone = store.retain(2)
        assert [(g.window, g.site) for g in gone] == [
            (number, site) for number in (1, 2, 3) for site in ("", "a")
        ]
        assert [store.record(n, "a") for n in range(1, 6)] == [None, None, None, b"\x03", b"\x04"]
        statuses = [[p.status for p in w.participants] for w in store.windows()]
        assert statuses == [["retired", "purged"]] * 3 + [["stored", "purged"]] * 2
        assert store.retain(2) == []
        with pytest.raises(HistoryError, match="keep at least 1"):
            store.retain(0)

    def test_a_history_can_go_back_to_an_older_version(self, store: UpdateStore) -> None:
        for version in (3, 5, 8):
            put(store, {"a": b"%d" % version, "b": b"y"}, version=version)
        assert store.truncate(8) == 0
        assert store.truncate(7) == 1
        assert [w.version for w in store.windows()] == [3, 5]
        assert store.record(3, "a") is None
        put(store, {"a": b"new", "b": b"y"}, version=6)
        assert [store.record(n, "a") for n in (1, 2, 3)] == [b"3", b"5", b"new"]

    def test_settings_and_arrays(self, store: UpdateStore) -> None:
        assert store.get("k", 7) == 7
        store.set("k", {"a": [1, (2, 3)], "b": None})
        assert store.get("k") == {"a": [1, [2, 3]], "b": None}
        store.set("k", 0)
        assert store.get("k", 7) == 0
        arrays = [np.arange(6.0).reshape(2, 3), np.float32(2.5).reshape(()), np.zeros(0)]
        store.put_arrays("w", arrays)
        store.put_arrays("other", [np.ones(2)])
        found = store.arrays("w")
        assert found is not None
        for array, back in zip(arrays, found, strict=True):
            np.testing.assert_array_equal(back, array)
            assert (back.dtype, back.shape) == (array.dtype, array.shape)
        arrays[0][:] = 9
        assert store.arrays("w")[0][0, 1] == 1  # type: ignore[index]
        store.put_arrays("w", None)
        assert store.arrays("w") is None
        assert store.arrays("other") is not None

    def test_the_seed_is_made_once_and_keys_are_all_different(self, store: UpdateStore) -> None:
        assert store.seed == store.seed
        keys = {store.key(n, s) for n in (1, 2, 11) for s in ("", "a", "b", "1a")}
        assert len(keys) == 12

    def test_a_history_belongs_to_one_model(self, store: UpdateStore) -> None:
        arrays = [np.zeros((2, 3), dtype=np.float32), np.zeros((), dtype=np.float64)]
        store.check_layout(arrays)
        store.check_layout(arrays)
        assert store.layout == [((2, 3), "float32"), ((), "float64")]
        for other in (arrays[:1], [arrays[0].T, arrays[1]], [arrays[0], np.float32(0).reshape(())]):
            with pytest.raises(HistoryError, match="use a new history for another model"):
                store.check_layout(other)

    def test_an_unnamed_client_is_not_everybody(self, store: UpdateStore) -> None:
        put(store, {"a": b"a"})
        with pytest.raises(HistoryError, match="without a name"):
            store.delete_client(AGGREGATE)

    def test_windows_are_read_while_one_is_written(self, store: UpdateStore) -> None:
        put(store, {"a": b"1", "b": b"2"})
        put(store, {"a": b"3", "b": b"4"})
        seen = []
        with store.begin() as writer:
            writer.write("new", b"5")
            for window in store.windows():
                seen.append(store.record(window.number, "a"))
            store.delete_client("b")
            writer.write("b", b"6")
            parts = (Participant("b", 0.5, 1.0, "stored"), Participant("new", 0.5, 1.0, "stored"))
            writer.commit(Window(3, 3, 3, 0.0, parts))
        assert seen == [b"1", b"3"]
        assert [store.record(n, "b") for n in (1, 2, 3)] == [None, None, b"6"]
        assert store.record(3, "new") == b"5"


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> Iterator[UpdateStore]:
        with MemoryStore() as store:
            yield store


class TestDiskStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[UpdateStore]:
        with DiskStore(tmp_path / "history") as store:
            yield store


class TestDiskStoreReopened(StoreContract):
    """The same, every read done by another object that knows nothing but the folder."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[UpdateStore]:
        folder = tmp_path / "history"

        class Reopening(DiskStore):
            def windows(self) -> Iterator[Window]:
                with DiskStore(folder, exclusive=False) as other:
                    yield from other.windows()

            def record(self, number: int, site: str) -> bytes | None:
                with DiskStore(folder, exclusive=False) as other:
                    return other.record(number, site)

        with Reopening(folder) as store:
            yield store


# ---- only on disk -------------------------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
from flwr_afuic.history.disk import DiskStore
from flwr_afuic.history.store import Participant, Window
store = DiskStore(sys.argv[1])
while True:
    with store.begin() as writer:
        sites = [f"site-{i}" for i in range(4)]
        for site in sites:
            writer.write(site, f"{writer.number} {site} ".encode() * 5000)
            print(writer.number, flush=True)
        writer.commit(Window(writer.number, writer.number, writer.number, 1.0,
                             tuple(Participant(s, 0.25, 1.0, "stored") for s in sites)))
"""


@pytest.mark.parametrize("delay", [0.0, 0.013, 0.057])
def test_a_killed_writer_leaves_a_readable_history(tmp_path: Path, delay: float) -> None:
    folder = tmp_path / "history"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 3:
                break
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    with DiskStore(folder) as store:
        windows = list(store.windows())
        assert len(windows) >= 2
        assert [w.number for w in windows] == list(range(1, len(windows) + 1))
        for window in windows:
            for participant in window.participants:
                expected = f"{window.number} {participant.site} ".encode() * 5000
                assert store.record(window.number, participant.site) == expected
        after = put(store, {"site-0": b"next", "b": b"x"})
        assert after.number == len(windows) + 1
        assert store.record(after.number, "site-0") == b"next"
        assert store.record(len(windows), "site-0") is not None


def test_bytes_behind_the_index_are_overwritten(tmp_path: Path) -> None:
    with DiskStore(tmp_path) as store:
        put(store, {"a": b"first", "b": b"x"})
        with store.begin() as writer:
            writer.write("a", b"never committed, and much longer than what follows")
        put(store, {"a": b"second", "b": b"x"})
        assert (store.record(1, "a"), store.record(2, "a")) == (b"first", b"second")
        (file,) = (tmp_path / "records").glob(f"{store.segments.file_of('a', 1)}")
        assert file.stat().st_size == len(b"firstsecond")


def test_deleting_a_client_deletes_its_files(tmp_path: Path) -> None:
    with DiskStore(tmp_path) as store:
        for _ in range(WINDOWS_PER_FILE + 2):
            put(store, {"a": b"secret of a", "b": b"of b"})
        files = {p.name: p for p in (tmp_path / "records").iterdir()}
        assert len(files) == 3
        gone = store.delete_client("a")
        assert len({g.file for g in gone}) == 2
        assert not any((tmp_path / g.file).exists() for g in gone)
        assert len(list((tmp_path / "records").iterdir())) == 2
        everything = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
        assert b"secret of a" not in everything


def test_a_file_that_a_crash_left_undeleted_goes_when_the_history_is_opened(tmp_path: Path) -> None:
    with DiskStore(tmp_path) as store:
        put(store, {"a": b"secret", "b": b"x"})
        file = tmp_path / "records" / store.segments.file_of("a", 1)
        data = file.read_bytes()
        store.delete_client("a")
    file.parent.mkdir()
    file.write_bytes(data)
    with DiskStore(tmp_path, exclusive=False):
        assert file.exists(), "a reader deletes nothing"
    with DiskStore(tmp_path):
        assert not file.exists()
        assert not file.parent.exists()


@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_a_missing_or_cut_file_is_told(tmp_path: Path, harm: str) -> None:
    with DiskStore(tmp_path) as store:
        put(store, {"a": b"12345", "b": b"x"})
        put(store, {"a": b"67890", "b": b"y"})
        file = tmp_path / "records" / store.segments.file_of("a", 1)
        if harm == "missing":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:7])
        with pytest.raises(RecordError, match=r"cannot be read|ends 3 bytes before"):
            store.record(2, "a")
        assert store.record(2, "b") == b"y"
        put(store, {"a": b"new", "b": b"z"})
        assert store.record(3, "a") == b"new"


def test_one_process_writes(tmp_path: Path) -> None:
    with DiskStore(tmp_path) as store:
        put(store, {"a": b"1", "b": b"x"})
        with pytest.raises(HistoryError, match="is in use by the server with process id"):
            DiskStore(tmp_path)
        with DiskStore(tmp_path, exclusive=False) as reader:
            assert reader.record(1, "a") == b"1"
            writes: list[Callable[[], object]] = [
                reader.begin,
                lambda: reader.set("k", 1),
                lambda: reader.delete_client("a"),
                lambda: reader.retain(1),
                lambda: reader.truncate(0),
                lambda: reader.put_arrays("x", None),
            ]
            for write in writes:
                with pytest.raises(HistoryError, match="opened for reading"):
                    write()
    with DiskStore(tmp_path) as store:
        assert store.record(1, "a") == b"1"


def test_what_is_no_history_is_told(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="holds no history; name the folder of one"):
        DiskStore(tmp_path / "nothing", exclusive=False)
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "history.sqlite").write_text("not a database, but long enough to be read as one" * 9)
    with pytest.raises(HistoryError, match="not a usable database"):
        DiskStore(folder)
    folder = tmp_path / "other"
    folder.mkdir()
    with sqlite3.connect(folder / "history.sqlite") as other:
        other.execute("PRAGMA application_id = 99")
    with pytest.raises(HistoryError, match="another kind of file"):
        DiskStore(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(HistoryError, match="cannot be opened"):
        DiskStore(tmp_path / "file")


def test_a_history_of_a_newer_program_is_left_alone(tmp_path: Path) -> None:
    DiskStore(tmp_path).close()
    with sqlite3.connect(tmp_path / "history.sqlite") as base:
        base.execute("PRAGMA user_version = 99")
    with pytest.raises(HistoryError, match="update flwr-afuic"):
        DiskStore(tmp_path)


def test_only_the_owner_can_read(tmp_path: Path) -> None:
    with DiskStore(tmp_path / "h") as store:
        put(store, {"a": b"1", "b": b"x"})
        store.put_arrays("w", [np.ones(3)])
        for path in [tmp_path / "h", *(tmp_path / "h").rglob("*")]:
            assert path.stat().st_mode & 0o077 == 0, path


def test_the_index_is_small(tmp_path: Path) -> None:
    """At models of some thousand parameters the index would else outweigh the records."""
    sites = {f"hospital-{number}": b"." * 3000 for number in range(6)}
    with DiskStore(tmp_path) as store:
        store.check_layout([np.zeros((64, 32, 3, 3), np.float32)] * 14)
        for _ in range(12):
            put(store, sites, aggregate=b"." * 3000)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    records = sum(path.stat().st_size for path in files if path.suffix == ".records")
    assert records == 12 * 7 * 3000
    assert sum(path.stat().st_size for path in files) - records < 12 * 6 * 120


FIRST_SCHEMA = """
INSERT INTO setting VALUES ('seed', '7'), ('layout', '[[[2], "float32"]]');
INSERT INTO window VALUES (1, 1, 1, 2.5), (2, 2, 1, 1.5), (16, 3, 2, 0.5);
INSERT INTO participant VALUES (1, 'a', 0.25, 1.0, 'stored'), (1, 'b', 0.75, 2.0, 'not-drawn'),
    (2, 'a', 0.5, 1.0, 'stored'), (2, 'c', 0.5, 0.0, 'zero'),
    (16, 'b', 0.5, 1.0, 'stored'), (16, 'c', 0.5, 1.0, 'purged');
INSERT INTO record VALUES (1, 'a', '{a}', 0, 3), (1, '', '{all}', 0, 3), (2, 'a', '{a}', 3, 4),
    (16, 'b', '{b}', 0, 2);
"""


def test_a_history_of_the_first_schema_is_taken_over(tmp_path: Path) -> None:
    file_of = DiskStore(tmp_path / "any").segments.file_of
    names = {"a": file_of("a", 1), "all": file_of("", 1), "b": file_of("b", 16)}
    for key, data in {"a": b"one" + b"four", "all": b"all", "b": b"16"}.items():
        path = tmp_path / "old" / "records" / names[key]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with sqlite3.connect(tmp_path / "old" / "history.sqlite") as base:
        base.executescript(MIGRATIONS[0] + FIRST_SCHEMA.format(**names))
        base.execute(f"PRAGMA application_id = {APPLICATION}")
        base.execute("PRAGMA user_version = 1")
    with DiskStore(tmp_path / "old") as store:
        assert store.get("seed") == 7
        found = {w.number: w for w in store.windows()}
        assert (found[1].round, found[16].round, found[16].step) == (1, 2, 0.5)
        assert [(p.site, p.weight, p.status) for p in found[1].participants] == [
            ("a", 0.25, "stored"), ("b", 0.75, "not-drawn")
        ]  # fmt: skip
        assert [p.status for p in found[2].participants] == ["stored", "zero"]
        assert [p.status for p in found[16].participants] == ["stored", "purged"]
        assert [store.record(n, "a") for n in (1, 2, 16)] == [b"one", b"four", None]
        assert (store.aggregate(1), store.aggregate(2)) == (b"all", None)
        assert store.standing("a") == Standing(2, 7, 2)
        put(store, {"a": b"new", "d": b"x"})
        assert (store.record(16, "b"), store.record(17, "a")) == (b"16", b"new")
        assert {d.window for d in store.delete_client("a")} == {1, 2, 17}


def test_statuses_keep_their_numbers() -> None:
    assert STATUSES == ("stored", "not-drawn", "zero", "lost", "purged", "retired")


def test_pages_that_deletions_left_empty_are_given_back(tmp_path: Path) -> None:
    index = tmp_path / "history.sqlite"
    with DiskStore(tmp_path) as store:
        for _ in range(60):
            put(store, {f"site-{number}": b"x" for number in range(8)})
    before = index.stat().st_size
    with DiskStore(tmp_path) as store:
        store.truncate(5)
    with DiskStore(tmp_path) as store:
        assert len(list(store.windows())) == 5
    assert index.stat().st_size < before / 2
