from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_afuic.data.probes import (
    Trigger,
    apply_trigger,
    backdoor,
    backdoor_test_images,
    mislabel,
)
from flwr_afuic.errors import ConfigError
from tests.data.conftest import image_set


def test_trigger_sits_in_the_lower_right_with_a_margin() -> None:
    images = torch.zeros(2, 1, 28, 28)
    stamped = apply_trigger(images, Trigger())
    assert torch.equal(stamped[:, :, 23:27, 23:27], torch.ones(2, 1, 4, 4))
    assert float(stamped.sum()) == 2 * 16
    assert float(images.sum()) == 0


def test_colour_trigger_stamps_each_channel() -> None:
    stamped = apply_trigger(torch.full((1, 3, 28, 28), 0.5), Trigger.for_channels(3))
    assert stamped[0, :, 25, 25].tolist() == [0.0, 1.0, 0.0]
    assert stamped[0, :, 27, 27].tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Trigger(size=0), "is no patch"),
        (lambda: Trigger(margin=-1), "is no patch"),
        (lambda: Trigger((1.5,)), "out of range"),
        (lambda: Trigger(()), "out of range"),
        (lambda: Trigger.for_channels(2), "no default trigger for 2"),
        (lambda: apply_trigger(torch.zeros(1, 3, 28, 28), Trigger()), "1 channel values"),
        (lambda: apply_trigger(torch.zeros(1, 1, 4, 4), Trigger()), "does not fit"),
    ],
)
def test_bad_triggers(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


@given(n=st.integers(1, 60), fraction=st.floats(0, 1), seed=st.integers(0, 99), other=st.booleans())
@settings(max_examples=40, deadline=None)
def test_backdoor_touches_the_poisoned_and_nothing_else(
    n: int, fraction: float, seed: int, other: bool
) -> None:
    site = image_set(n)
    images, labels = site.images.clone(), site.labels.clone()
    trigger = Trigger()
    poisoned, info = backdoor(
        site, fraction=fraction, trigger=trigger, seed=seed, only_other_classes=other
    )
    pool = int((labels != 0).sum()) if other else n
    assert len(info.poisoned) == round(fraction * pool)
    clean = np.setdiff1d(np.arange(n), info.poisoned)
    assert poisoned.ids == site.ids
    assert torch.equal(poisoned.images[clean], images[clean])
    assert torch.equal(poisoned.labels[clean], labels[clean])
    assert torch.equal(
        poisoned.images[info.poisoned], apply_trigger(images[info.poisoned], trigger)
    )
    assert bool((poisoned.labels[info.poisoned] == 0).all())
    changed = np.flatnonzero(poisoned.labels.numpy() != labels.numpy())
    assert np.array_equal(changed, info.relabelled)
    assert torch.equal(site.images, images)
    assert torch.equal(site.labels, labels)


def test_backdoor_is_seeded() -> None:
    site = image_set(60)
    chosen = [backdoor(site, trigger=Trigger(), seed=seed)[1].poisoned for seed in (0, 0, 1)]
    assert np.array_equal(chosen[0], chosen[1])
    assert not np.array_equal(chosen[0], chosen[2])


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"must lie in 0\.\.1"):
        backdoor(image_set(4), fraction=fraction, trigger=Trigger(), seed=0)
    with pytest.raises(ConfigError, match=r"must lie in 0\.\.1"):
        mislabel(image_set(4), fraction, 2, 0)


def test_negative_target_label() -> None:
    with pytest.raises(ConfigError, match="target_label is -1"):
        backdoor(image_set(4), target_label=-1, trigger=Trigger(), seed=0)


@given(n=st.integers(1, 50), fraction=st.floats(0, 1), classes=st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_mislabelled_are_wrong_in_range_and_others_kept(
    n: int, fraction: float, classes: int
) -> None:
    site = image_set(n, classes=classes)
    wrong, changed = mislabel(site, fraction, classes, 5)
    different = np.flatnonzero(wrong.labels.numpy() != site.labels.numpy())
    assert np.array_equal(different, changed)
    assert len(changed) == round(fraction * n)
    assert int(wrong.labels.min()) >= 0
    assert int(wrong.labels.max()) < classes


def test_mislabel_needs_another_class() -> None:
    with pytest.raises(ConfigError, match="num_classes is 1"):
        mislabel(image_set(4), 0.5, 1, 0)


def test_backdoor_test_images_leave_the_target_class_out() -> None:
    test = image_set(9, classes=3)
    images = backdoor_test_images(test, Trigger(), 1)
    assert torch.equal(images, apply_trigger(test.images[test.labels != 1], Trigger()))
    assert len(images) == 6
    with pytest.raises(ConfigError, match="all 5 test images"):
        backdoor_test_images(image_set(5, classes=1), Trigger(), 0)
