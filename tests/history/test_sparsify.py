"""What is left out of the history, and that ``sampled`` is right on average."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_afuic.errors import ConfigError, RecordError
from flwr_afuic.history.entropy import WRITERS, reader_for
from flwr_afuic.history.masks import read_mask, write_mask
from flwr_afuic.history.sparsify import Threshold, UserSparsification, inclusion_probabilities

NORMS = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 10.0}


def test_probabilities_are_proportional_to_the_norms_and_capped() -> None:
    chances = inclusion_probabilities(np.array([1.0, 2.0, 3.0, 10.0]), 2)
    # d takes one of the two places for certain; the other is shared 1 : 2 : 3.
    np.testing.assert_allclose(chances, [1 / 6, 2 / 6, 3 / 6, 1.0])


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), st.data())
@settings(max_examples=100, deadline=None)
def test_probabilities_add_up(sizes: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(sizes)))
    chances = inclusion_probabilities(np.array(sizes), count)
    assert chances.sum() == pytest.approx(count)
    assert np.all((chances > 0) & (chances <= 1))
    below = chances < 1
    ratios = chances[below] / np.array(sizes)[below]
    if len(ratios):
        np.testing.assert_allclose(ratios, ratios[0])
    drawn = UserSparsification(keep=count / len(sizes)).choose(
        {str(i): size for i, size in enumerate(sizes)}, seed=1, window=2
    )
    assert len(drawn) == count


def test_sampled_is_unbiased_and_of_fixed_size() -> None:
    rule = UserSparsification("sampled", keep=0.5)
    totals = dict.fromkeys(NORMS, 0.0)
    draws = 4000
    for window in range(draws):
        chosen = rule.choose(NORMS, seed=7, window=window)
        assert len(chosen) == 2
        for site, factor in chosen.items():
            totals[site] += factor
    assert totals["d"] == draws
    for site, chance in {"a": 1 / 6, "b": 2 / 6, "c": 3 / 6}.items():
        deviation = np.sqrt((1 / chance - 1) / draws)
        assert totals[site] / draws == pytest.approx(1.0, abs=4 * deviation)


def test_every_pair_of_equal_sites_is_drawn_equally_often() -> None:
    rule = UserSparsification("sampled", keep=0.5)
    equal = dict.fromkeys("abcd", 1.0)
    pairs = [tuple(rule.choose(equal, seed=1, window=w)) for w in range(1200)]
    for pair in itertools.combinations("abcd", 2):
        assert pairs.count(pair) == pytest.approx(200, abs=60)


def test_the_draw_repeats_and_follows_seed_and_window() -> None:
    rule = UserSparsification("sampled", keep=0.5)
    equal = {str(i): 1.0 for i in range(20)}
    first = rule.choose(equal, seed=1, window=1)
    assert rule.choose(dict(reversed(equal.items())), seed=1, window=1) == first
    assert rule.choose(equal, seed=1, window=2) != first
    assert rule.choose(equal, seed=2, window=1) != first


def test_topk_keeps_the_largest_as_they_are() -> None:
    rule = UserSparsification("topk", keep=0.5)
    assert rule.choose(NORMS, seed=0, window=0) == {"c": 1.0, "d": 1.0}
    assert UserSparsification("topk", keep=0.01).choose(NORMS, seed=0, window=0) == {"d": 1.0}


def test_everybody_is_kept_by_default_but_who_deviates_by_nothing() -> None:
    chosen = UserSparsification().choose({**NORMS, "zero": 0.0}, seed=0, window=0)
    assert chosen == dict.fromkeys("abcd", 1.0)
    half = UserSparsification(keep=0.5).choose({"a": 1.0, "z": 0.0}, seed=0, window=0)
    assert half == {"a": 1.0}


def test_thresholds_by_hand() -> None:
    values = np.array([3.0, -1.0, 0.5, -4.0], dtype=np.float32)
    std = float(np.sqrt((values**2).mean()))
    assert std == pytest.approx(2.5617, abs=1e-4)
    kept = {
        ("std", 1.0): [True, False, False, True],
        ("std", 1.5): [False, False, False, True],
        ("absolute", 0.9): [True, True, False, True],
        ("absolute", 4.0): [False, False, False, False],
        ("fraction", 0.5): [True, False, False, True],
        ("fraction", 0.0): [False, False, False, False],
    }
    for (rule, value), expected in kept.items():
        mask = Threshold(rule, value, whole_below=0).mask(values, std)  # type: ignore[arg-type]
        assert mask is not None
        assert mask.tolist() == expected
    assert Threshold("none").mask(values, std) is None
    assert Threshold("fraction", 1.0, whole_below=0).mask(values, std) is None
    assert Threshold("std", 9.0, whole_below=4).mask(values, std) is None
    assert Threshold("std", 9.0, whole_below=3).mask(values, std) is not None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: UserSparsification("best"), "user rule is 'best'"),  # type: ignore[arg-type]
        (lambda: UserSparsification(keep=0.0), "keep is 0.0"),
        (lambda: UserSparsification(keep=1.5), "keep is 1.5"),
        (lambda: UserSparsification(keep=float("nan")), "keep is nan"),
        (lambda: Threshold("best"), "threshold rule is 'best'"),  # type: ignore[arg-type]
        (lambda: Threshold("std", -1.0), "threshold value is -1.0"),
        (lambda: Threshold("fraction", 1.1), "threshold value is 1.1"),
        (lambda: Threshold(whole_below=-1), "whole_below is -1"),
    ],
)
def test_settings_out_of_range_are_refused(make: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()  # type: ignore[operator]


# ---- masks --------------------------------------------------------------------------


@pytest.mark.parametrize("coder", list(WRITERS))
@given(st.integers(1, 3000), st.floats(0, 1), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_masks_come_back(coder: str, entries: int, density: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random(entries) < density
    writer = WRITERS[coder]()
    kind = write_mask(np.flatnonzero(mask), entries, writer)
    reader = reader_for(writer.code, writer.finish())
    found = read_mask(kind, int(mask.sum()), entries, reader)
    np.testing.assert_array_equal(found, np.flatnonzero(mask))


@pytest.mark.parametrize("density", [0.003, 0.046, 0.3, 0.5, 0.9])
def test_a_mask_takes_about_its_entropy(density: float) -> None:
    mask = np.random.default_rng(1).random(200_000) < density
    writer = WRITERS["range"]()
    write_mask(np.flatnonzero(mask), len(mask), writer)
    share = mask.mean()
    own = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    assert 8 * len(writer.finish()) / len(mask) < own * 1.03 + 0.002


def test_the_shorter_of_bitmap_and_gaps_is_written() -> None:
    rng = np.random.default_rng(1)
    rows = np.repeat(rng.random(4000) < 0.5, 8)  # whole rows, in whole bytes
    scattered = rng.random(32_000) < 0.01
    kinds = [write_mask(np.flatnonzero(m), 32_000, WRITERS["range"]()) for m in (rows, scattered)]
    assert len(set(kinds)) == 2


def test_a_mask_that_does_not_fit_is_refused() -> None:
    writer = WRITERS["range"]()
    kind = write_mask(np.array([2, 90]), 100, writer)
    data = writer.finish()
    with pytest.raises(RecordError, match="does not mark 2 of 50 entries"):
        read_mask(kind, 2, 50, reader_for(writer.code, data))
    writer = WRITERS["range"]()
    half = np.flatnonzero(np.repeat(np.random.default_rng(1).random(4000) < 0.5, 8))
    bitmap = write_mask(half, 32_000, writer)
    assert bitmap != kind
    with pytest.raises(RecordError, match="does not mark 5 of 32000 entries"):
        read_mask(bitmap, 5, 32_000, reader_for(writer.code, writer.finish()))
    with pytest.raises(RecordError, match="mask has kind 3"):
        read_mask(3, 2, 100, reader_for(writer.code, data))
