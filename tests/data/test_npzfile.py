from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flwr_afuic.data.medmnist import NAMED_SETS
from flwr_afuic.data.npzfile import file_md5, load_npz
from flwr_afuic.errors import DataError
from tests.data.conftest import arrays

Save = Callable[..., Path]


def test_grey_file_loads_scaled_with_ids(save: Save) -> None:
    path = save()
    data = load_npz(path)
    with np.load(path) as archive:
        raw = archive["val_images"]
    assert data.val.images.shape == (12, 1, 28, 28)
    assert np.allclose(data.val.images[:, 0].numpy(), raw / 255.0)
    assert data.val.labels.tolist() == [0, 1, 2] * 4
    assert data.val.ids[11] == "tiny/val/00011"
    assert (data.num_classes, data.channels, data.synthetic) == (3, 1, False)
    assert data.licence == "unknown"


def test_rgb_file_keeps_pixels_with_their_channel(save: Save) -> None:
    path = save(**arrays(channels=3))
    with np.load(path) as archive:
        raw = archive["train_images"]
    data = load_npz(path)
    assert data.channels == 3
    assert np.allclose(data.train.images.numpy(), raw.transpose(0, 3, 1, 2) / 255.0)


def test_larger_images_are_pooled_or_kept(save: Save) -> None:
    path = save(**arrays(size=56))
    with np.load(path) as archive:
        raw = archive["train_images"].astype(float) / 255
    expected = raw.reshape(12, 28, 2, 28, 2).mean(axis=(2, 4))
    assert np.allclose(load_npz(path).train.images[:, 0].numpy(), expected, atol=1e-6)
    assert load_npz(path, image_size=None).image_size == 56


def test_flat_labels_are_accepted(save: Save) -> None:
    path = save(val_labels=np.zeros(12, np.int64))
    assert load_npz(path).val.labels.tolist() == [0] * 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_labels": None}, "lacks val_labels"),
        ({"train_images": np.zeros((12, 784), np.uint8)}, r"shape \(12, 784\)"),
        ({"train_images": np.zeros((12, 28, 28, 2), np.uint8)}, r"shape \(12, 28, 28, 2\)"),
        ({"train_images": np.zeros((12, 28, 28), np.float32)}, "dtype float32"),
        ({"train_images": np.zeros((11, 28, 28), np.uint8)}, "for 11 images"),
        ({"test_images": np.zeros((12, 30, 28), np.uint8)}, "different shapes"),
        ({"test_images": np.zeros((12, 28, 28, 3), np.uint8)}, "different shapes"),
        ({"train_labels": np.zeros((12, 14), np.uint8)}, "multi-label"),
        ({"train_labels": np.zeros((12, 1), np.float32)}, "dtype float32"),
        ({"train_labels": np.full((12, 1), -1)}, "label -1 .* out of range"),
        ({"train_labels": np.full((12, 1), 70_000)}, "label 70000 .* out of range"),
        ({"train_images": np.array([object()] * 12, dtype=object)}, "object arrays"),
        (
            {"val_images": np.zeros((0, 28, 28), np.uint8), "val_labels": np.zeros((0, 1), int)},
            "val_images of .* is empty",
        ),
    ],
)
def test_bad_content_is_one_clear_line(
    save: Save, changes: dict[str, object], message: str
) -> None:
    path = save(**changes)
    with pytest.raises(DataError, match=message) as caught:
        load_npz(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("keep", [0, 10, 200, 5000, -30])
def test_truncated_file(save: Save, keep: int) -> None:
    path = save()
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"not a readable \.npz file") as caught:
        load_npz(path)
    assert "\n" not in str(caught.value)


def test_flipped_byte_inside_an_array(save: Save) -> None:
    path = save()
    content = bytearray(path.read_bytes())
    content[3000] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"not a readable \.npz file"):
        load_npz(path)


def test_single_array_text_and_missing_files(tmp_path: Path) -> None:
    single = tmp_path / "a.npz"
    with single.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="not a readable"):
        load_npz(single)
    text = tmp_path / "b.npz"
    text.write_text("<html>404 not found</html>")
    with pytest.raises(DataError, match="not a readable"):
        load_npz(text)
    with pytest.raises(DataError, match="does not exist"):
        load_npz(tmp_path / "c.npz")
    with pytest.raises(DataError, match="cannot be read"):
        file_md5(tmp_path / "c.npz")


def test_known_file_is_checked_by_md5_channels_and_labels(save: Save) -> None:
    path = save()
    official = NAMED_SETS["pneumoniamnist"]
    with pytest.raises(DataError, match=f"must have {official.md5}"):
        load_npz(path, known=official)
    here = dataclasses.replace(official, md5=file_md5(path))
    with pytest.raises(DataError, match=r"label 2 .* out of range for 2 classes"):
        load_npz(path, known=here)
    three = dataclasses.replace(here, class_names=("a", "b", "c"))
    assert load_npz(path, known=three).class_names == ("a", "b", "c")
    with pytest.raises(DataError, match="1-channel"):
        load_npz(path, known=dataclasses.replace(three, channels=3))


def test_another_file_does_not_pass_under_an_official_name(save: Save) -> None:
    assert load_npz(save("breastmnist.npz")).name == "breastmnist-local"


def test_multi_label_set_is_refused(save: Save) -> None:
    with pytest.raises(DataError, match="multi-label"):
        load_npz(save(), known=NAMED_SETS["chestmnist"])
