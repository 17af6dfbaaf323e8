from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flwr_afuic.data.folder import load_folder, stratified_split
from flwr_afuic.data.sources import load_dataset
from flwr_afuic.errors import ConfigError, DataError


def paint(path: Path, level: int, size: tuple[int, int] = (32, 32), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label, name in enumerate(("benign", "malignant")):
        for row in range(10):
            paint(tmp_path / "scans" / name / f"{row}.png", 51 * (label + 1))
    return tmp_path / "scans"


def test_folder_loads_by_path(folder: Path) -> None:
    data = load_dataset(str(folder))
    assert (data.name, data.class_names, data.channels) == ("scans", ("benign", "malignant"), 1)
    assert (len(data.train), len(data.val), len(data.test)) == (16, 2, 2)
    assert data.train.images.shape == (16, 1, 28, 28)
    ids = data.train.ids + data.val.ids + data.test.ids
    assert len(set(ids)) == 20
    for part in (data.train, data.val, data.test):
        assert all(
            id_.startswith(f"scans/{data.class_names[int(label)]}/")
            for id_, label in zip(part.ids, part.labels, strict=True)
        )
        levels = part.images.mean(dim=(1, 2, 3)).numpy()
        assert np.allclose(levels, 0.2 * (part.labels.numpy() + 1), atol=1e-5)


def test_split_is_deterministic_and_seeded(folder: Path) -> None:
    assert load_folder(folder, seed=1).test.ids == load_folder(folder, seed=1).test.ids
    others = {load_folder(folder, seed=seed).test.ids for seed in range(5)}
    assert len(others) > 1


def test_one_colour_image_makes_the_set_rgb_and_rows_stay_rows(folder: Path) -> None:
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:10] = (255, 0, 0)
    Image.fromarray(wide).save(folder / "benign" / "colour.png")
    data = load_folder(folder)
    assert data.channels == 3
    everything = {
        id_: image
        for part in (data.train, data.val, data.test)
        for id_, image in zip(part.ids, part.images, strict=True)
    }
    image = everything["scans/benign/colour.png"]
    assert float(image[0, :12].min()) == 1.0
    assert float(image[0, 16:].max()) == 0.0
    assert float(image[1].max()) == 0.0


def test_sizes_are_brought_to_one(folder: Path) -> None:
    paint(folder / "benign" / "small.png", 51, (16, 20))
    paint(folder / "benign" / "large.jpg", 51, (80, 60))
    assert load_folder(folder, image_size=None).image_size == 32
    assert load_folder(folder, image_size=24).image_size == 24
    with pytest.raises(ConfigError, match="image_size is 7"):
        load_folder(folder, image_size=7)


def test_broken_image_is_named(folder: Path) -> None:
    (folder / "benign" / "broken.png").write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"broken.png cannot be read") as caught:
        load_folder(folder)
    assert "\n" not in str(caught.value)


def test_sixteen_bit_image_is_refused(folder: Path) -> None:
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(folder / "benign" / "deep.png")
    with pytest.raises(DataError, match=r"deep.png cannot be read .*8-bit"):
        load_folder(folder)


def test_too_few_classes_or_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 class subfolders"):
        load_folder(tmp_path)
    for row in range(3):
        paint(tmp_path / "a" / f"{row}.png", 9)
    paint(tmp_path / "b" / "0.png", 9)
    with pytest.raises(DataError, match="has 1 images"):
        load_folder(tmp_path)


@given(counts=st.lists(st.integers(3, 60), min_size=2, max_size=5), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_split_is_disjoint_covering_and_has_every_class(counts: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    parts = stratified_split(labels, seed=seed)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    for part in parts:
        assert np.array_equal(part, np.sort(part))
        assert set(labels[part]) == set(range(len(counts)))


@pytest.mark.data
def test_real_jpegs(real_data: Path) -> None:
    data = load_dataset(str(real_data / "mednist" / "jpeg_sample"))
    assert (data.num_classes, data.channels) == (6, 1)
    assert len(data.train) + len(data.val) + len(data.test) == 60
