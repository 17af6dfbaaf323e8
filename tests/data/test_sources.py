from __future__ import annotations

import dataclasses
import hashlib
import http.client
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flwr_afuic.data import download, sources
from flwr_afuic.data.medmnist import NAMED_SETS, ZENODO_FILES
from flwr_afuic.data.sources import known_names, load_dataset, resolve_data_dir
from flwr_afuic.errors import DataError

Save = Callable[..., Path]


@pytest.fixture
def tiny(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Let a three-class file of twelve images stand for the official PneumoniaMNIST."""
    content = save("source.npz").read_bytes()
    entry = dataclasses.replace(
        NAMED_SETS["pneumoniamnist"],
        md5=hashlib.md5(content, usedforsecurity=False).hexdigest(),
        class_names=("a", "b", "c"),
    )
    monkeypatch.setitem(sources.NAMED_SETS, "pneumoniamnist", entry)
    monkeypatch.delenv("AFUIC_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return content


def answer(monkeypatch: pytest.MonkeyPatch, reply: bytes | Exception) -> list[str]:
    asked: list[str] = []

    def urlopen(request: Any, timeout: float) -> io.BytesIO:
        asked.append(request.full_url)
        assert timeout > 0
        if isinstance(reply, Exception):
            raise reply
        return io.BytesIO(reply)

    monkeypatch.setattr(download, "urlopen", urlopen)
    return asked


def test_registry_is_complete() -> None:
    official = [entry for entry in NAMED_SETS.values() if entry.url]
    assert len(official) == 12
    assert all(e.url == f"{ZENODO_FILES}/{e.name}.npz" for e in official)
    assert len({entry.md5 for entry in NAMED_SETS.values()}) == len(NAMED_SETS)
    assert all(len(entry.md5) == 32 for entry in NAMED_SETS.values())
    assert "phantoms" in known_names()


def test_data_dir_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AFUIC_DATA_DIR", "/from/variable")
    assert resolve_data_dir("/given") == Path("/given")
    assert resolve_data_dir() == Path("/from/variable")
    monkeypatch.setenv("AFUIC_DATA_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert resolve_data_dir() == Path("/xdg/flwr-afuic")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_data_dir() == tmp_path / ".cache" / "flwr-afuic"


@pytest.mark.parametrize("place", ["pneumoniamnist.npz", "pneumoniamnist/pneumoniamnist.npz"])
def test_both_places_are_found(tiny: bytes, tmp_path: Path, place: str) -> None:
    path = tmp_path / "data" / place
    path.parent.mkdir(parents=True)
    path.write_bytes(tiny)
    data = load_dataset("pneumoniamnist", tmp_path / "data")
    assert data.name == "pneumoniamnist"
    assert data.train.ids[0] == "pneumoniamnist/train/00000"
    assert data.licence == "CC BY 4.0"


def test_missing_set_is_downloaded_once(
    tiny: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answer(monkeypatch, tiny)
    load_dataset("pneumoniamnist")
    load_dataset("pneumoniamnist")
    assert asked == [f"{ZENODO_FILES}/pneumoniamnist.npz"]
    cache = tmp_path / "cache" / "flwr-afuic"
    assert [file.name for file in cache.iterdir()] == ["pneumoniamnist.npz"]


@pytest.mark.parametrize(
    "reply",
    [
        b"<html>not what was asked for</html>",
        OSError("network is unreachable"),
        TimeoutError("timed out"),
        http.client.IncompleteRead(b"x"),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_failed_download_says_what_to_put_where_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: bytes | Exception
) -> None:
    answer(monkeypatch, reply)
    with pytest.raises(DataError) as caught:
        load_dataset("pneumoniamnist")
    text = str(caught.value)
    cache = tmp_path / "cache" / "flwr-afuic"
    assert "put pneumoniamnist.npz" in text
    assert str(cache) in text
    assert "--dataset phantoms" in text
    assert "\n" not in text
    assert list(cache.iterdir()) == []


@pytest.mark.usefixtures("tiny")
def test_endless_download_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAX_BYTES", 10)
    answer(monkeypatch, b"x" * 1000)
    with pytest.raises(DataError, match="sends more than 10 bytes"):
        load_dataset("pneumoniamnist")


@pytest.mark.usefixtures("tiny")
def test_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, b"")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="could not be fetched"):
        load_dataset("pneumoniamnist", tmp_path / "file")


def test_no_download_where_not_wanted_or_not_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answer(monkeypatch, b"")
    with pytest.raises(DataError, match=r"is not in .*put bloodmnist.npz.*--dataset phantoms"):
        load_dataset("bloodmnist", tmp_path, download=False)
    with pytest.raises(DataError, match=r"no official download; put mednist64_subset.npz"):
        load_dataset("mednist", tmp_path)
    with pytest.raises(DataError, match="no official download"):
        download.fetch(NAMED_SETS["pbc28"], tmp_path)
    assert asked == []


def test_wrong_md5_of_a_local_file(save: Save, tmp_path: Path) -> None:
    save("breastmnist.npz")
    with pytest.raises(DataError, match="must have 750601b1f35ba3300ea97c75c52ff8f6"):
        load_dataset("breastmnist", tmp_path)


def test_multi_label_is_refused_before_any_download(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer(monkeypatch, b"")
    with pytest.raises(DataError, match="multi-label"):
        load_dataset("chestmnist", "/nowhere")
    assert asked == []


def test_unknown_name_lists_known_and_closest() -> None:
    with pytest.raises(DataError, match=r"did you mean 'pneumoniamnist'\?.*bloodmnist.*phantoms"):
        load_dataset("pneumonia-mnist")
    with pytest.raises(DataError, match="unknown data set 'zzz'; known:"):
        load_dataset("zzz")
    with pytest.raises(DataError, match="unknown data set ''"):
        load_dataset("")


def test_path_loads_and_an_official_file_is_recognised_by_content(
    tiny: bytes, tmp_path: Path, save: Save
) -> None:
    other = tmp_path / "renamed.npz"
    other.write_bytes(tiny)
    assert load_dataset(str(other)).name == "pneumoniamnist"
    assert load_dataset(str(save("mine.npz", val_labels=[0] * 12))).name == "mine"
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(str(tmp_path / "absent.npz"))


def test_phantoms_need_no_files() -> None:
    data = load_dataset("phantoms", "/nowhere", seed=3)
    assert data.synthetic
    assert data.image_size == 28


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "sizes", "channels", "classes"),
    [
        ("pneumoniamnist", (4708, 524, 624), 1, 2),
        ("breastmnist", (546, 78, 156), 1, 2),
        ("pbc28", (11959, 1712, 3421), 3, 8),
        ("mednist", (9600, 1200, 1200), 1, 6),
    ],
)
def test_real_sets(
    real_data: Path, name: str, sizes: tuple[int, ...], channels: int, classes: int
) -> None:
    data = load_dataset(name, real_data, download=False)
    assert (len(data.train), len(data.val), len(data.test)) == sizes
    assert (data.channels, data.num_classes, data.image_size) == (channels, classes, 28)
    assert not data.synthetic
    assert data.licence.startswith("CC BY")
    assert 0.1 < float(data.train.images.mean()) < 0.9
