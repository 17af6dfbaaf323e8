"""Dice and Hausdorff distance, against their definitions in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flwr_afuic.errors import ConfigError
from flwr_afuic.metrics.segmentation import dice_scores, hausdorff_distances


def by_definition(predicted: np.ndarray, truth: np.ndarray, classes: int) -> float:
    found = []
    for label in range(1, classes):
        a, b = predicted == label, truth == label
        total = a.sum() + b.sum()
        found.append(1.0 if total == 0 else 2 * (a & b).sum() / total)
    return float(np.mean(found))


def test_dice_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    predicted, truth = rng.integers(0, 3, (2, 5, 6, 7, 4))
    found = dice_scores(torch.from_numpy(predicted), torch.from_numpy(truth), 3)
    expected = [by_definition(p, t, 3) for p, t in zip(predicted, truth, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_classes_nobody_holds_count_in_full() -> None:
    empty = torch.zeros(1, 4, 4, dtype=torch.int64)
    some = empty.clone()
    some[0, 0, 0] = 1
    assert dice_scores(empty, empty, 3).tolist() == [1.0]
    assert dice_scores(some, empty, 3).tolist() == [0.5]
    assert dice_scores(empty, some, 2).tolist() == [0.0]


def test_hausdorff_of_two_points_is_their_distance() -> None:
    one, other = torch.zeros(2, 9, 9, dtype=torch.int64), torch.zeros(2, 9, 9, dtype=torch.int64)
    one[:, 1, 1] = 1
    other[0, 4, 5] = 1  # 3 and 4 away
    other[1, 1, 1] = 1
    found = hausdorff_distances(one, other, 2, percentile=100)
    assert found.tolist() == pytest.approx([5.0, 0.0])


def test_without_a_class_in_both_there_is_no_distance() -> None:
    one = torch.zeros(1, 4, 4, dtype=torch.int64)
    other = one.clone()
    other[0, 1, 1] = 1
    assert bool(hausdorff_distances(one, other, 2).isnan().all())


def test_ranges() -> None:
    flat = torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(ConfigError, match="shape"):
        dice_scores(flat, flat[:, :2], 2)
    with pytest.raises(ConfigError, match="classes"):
        dice_scores(flat, flat, 1)
    with pytest.raises(ConfigError, match="percentile"):
        hausdorff_distances(flat, flat, 2, percentile=0)
