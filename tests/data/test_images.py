from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_afuic.data.images import Dataset, ImageSet, check_labels, concat, shrink
from flwr_afuic.errors import ConfigError, DataError
from tests.data.conftest import image_set


def dataset(n_val: int = 9, **changes: object) -> Dataset:
    settings = {
        "name": "t",
        "train": image_set(10),
        "val": image_set(n_val),
        "test": image_set(6),
        "num_classes": 2,
        "channels": 1,
        "class_names": ("a", "b"),
        "synthetic": True,
        "licence": "unknown",
        "source": "test",
    }
    return Dataset(**(settings | changes))  # type: ignore[arg-type]


def test_subset_keeps_images_labels_and_ids_together_in_the_order_given() -> None:
    whole = image_set(10, classes=10)
    part = whole.subset([7, 2, 2])
    assert part.ids == ("t/7", "t/2", "t/2")
    assert part.labels.tolist() == [7, 2, 2]
    assert torch.equal(part.images[0], whole.images[7])


def test_subset_is_a_copy() -> None:
    whole = image_set(4)
    before = whole.images.clone()
    whole.subset([0, 1]).images.zero_()
    assert torch.equal(whole.images, before)


def test_empty_subset_has_the_image_shape() -> None:
    assert image_set(4).subset([]).images.shape == (0, 1, 28, 28)


@pytest.mark.parametrize("indices", [[4], [-1], np.array([0, 99])])
def test_subset_refuses_positions_outside(indices: list[int]) -> None:
    with pytest.raises(DataError, match=r"set of 4 images"):
        image_set(4).subset(indices)


def test_concat_joins_in_order() -> None:
    a, b = image_set(3), image_set(5)
    joined = concat([a, b])
    assert len(joined) == 8
    assert joined.ids == a.ids + b.ids
    assert torch.equal(joined.images[3:], b.images)


def test_concat_refuses_nothing_and_mixed_shapes() -> None:
    with pytest.raises(DataError, match="empty"):
        concat([])
    with pytest.raises(DataError, match="different shapes"):
        concat([image_set(3), image_set(3, size=16)])


@pytest.mark.parametrize(
    ("images", "labels", "ids", "message"),
    [
        (torch.zeros(2, 28, 28), torch.zeros(2, dtype=torch.int64), 2, "float32 of shape"),
        (torch.zeros(2, 1, 4, 4).double(), torch.zeros(2, dtype=torch.int64), 2, "float64"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2), 2, "int64"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(3, dtype=torch.int64), 2, "3 labels"),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), 1, "1 ids"),
    ],
)
def test_image_set_refuses_what_does_not_fit(
    images: torch.Tensor, labels: torch.Tensor, ids: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ImageSet(images, labels, tuple("x" * ids))


@given(n_val=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_validation_halves_are_disjoint_and_cover(n_val: int, seed: int) -> None:
    data = dataset(n_val)
    proxies, tuning = data.split_validation(seed)
    assert sorted(proxies.ids + tuning.ids) == sorted(data.val.ids)
    assert len(proxies) - len(tuning) == n_val % 2
    assert data.split_validation(seed)[0].ids == proxies.ids


def test_validation_halves_depend_on_the_seed() -> None:
    data = dataset(40)
    assert data.split_validation(0)[0].ids != data.split_validation(1)[0].ids


def test_dataset_refuses_contradictions() -> None:
    with pytest.raises(DataError, match="class names"):
        dataset(class_names=("a",))
    with pytest.raises(DataError, match="1 channels, not 3"):
        dataset(channels=3)
    with pytest.raises(DataError, match=r"label 2 at position 2 of t \(val\)"):
        dataset(val=image_set(9, classes=3))


def test_label_range_names_the_first_offender() -> None:
    with pytest.raises(DataError, match=r"label -1 at position 1 .*\(2 such labels\)"):
        check_labels(np.array([0, -1, 5]), 3, "x")
    check_labels(np.array([0, 1, 2]), 3, "x")


def test_shrink_averages_areas() -> None:
    images = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(8, 8)[None, None]
    assert torch.allclose(shrink(images, 8), torch.full((1, 1, 8, 8), 0.5))


def test_shrink_leaves_smaller_images_and_none_alone() -> None:
    images = image_set(2, size=16).images
    assert shrink(images, 28) is images
    assert shrink(images, None) is images
    with pytest.raises(ConfigError, match="image_size is 4"):
        shrink(images, 4)
