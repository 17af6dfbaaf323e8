"""Recall against a reference that sorts, and against what can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from flwr_afuic.errors import ConfigError
from flwr_afuic.metrics import Recall, bootstrap_interval, recall, retrieval_ranks


def by_sorting(similarity, query_groups, gallery_groups):
    """Walk down the sorted gallery, others before hits where they tie, counting the others."""
    ranks = []
    for row, group in zip(similarity, query_groups, strict=True):
        hit = gallery_groups == group
        order = sorted(range(len(row)), key=lambda j: (-row[j], hit[j]))
        others = 0
        for j in order:
            if hit[j]:
                break
            others += 1
        ranks.append(others + 1)
    return ranks


def unit(array):
    return array / np.linalg.norm(array, axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(5))
def test_ranks_equal_those_of_a_sorted_gallery(seed):
    rng = np.random.default_rng(seed)
    similarity = rng.integers(0, 6, size=(30, 30)) / 5  # with ties
    groups = rng.integers(0, 12, size=30)
    assert retrieval_ranks(similarity, groups, groups).tolist() == by_sorting(
        similarity, groups, groups
    )


def test_without_repeated_captions_recall_is_top_k_accuracy():
    rng = np.random.default_rng(0)
    v = unit(rng.normal(size=(40, 8)))
    t = unit(0.5 * v + 0.35 * rng.normal(size=(40, 8)))
    found = recall(v, t, np.arange(40)).table((1, 5, 10))
    for k in (1, 5, 10):
        forward = top_k_accuracy_score(np.arange(40), v @ t.T, k=k)
        back = top_k_accuracy_score(np.arange(40), t @ v.T, k=k)
        assert found[f"image_to_text/r{k}"] == pytest.approx(forward)
        assert found[f"text_to_image/r{k}"] == pytest.approx(back)
        assert found[f"mean/r{k}"] == pytest.approx((forward + back) / 2)


def test_an_identical_caption_is_a_hit():
    v = np.eye(3)
    t = np.eye(3)[[1, 0, 2]]  # the first two captions are swapped
    assert recall(v, t, [0, 1, 2]).at(1) == pytest.approx(1 / 3)
    assert recall(v, t, [0, 0, 2]).at(1) == 1.0


def test_a_model_that_embeds_all_alike_gets_nothing():
    same = np.ones((6, 2))
    assert recall(same, same, np.arange(6)).at(5) == 0.0


def test_queries_are_asked_among_all_pairs():
    rng = np.random.default_rng(1)
    v, t = unit(rng.normal(size=(20, 4))), unit(rng.normal(size=(20, 4)))
    everything = recall(v, t, np.arange(20))
    some = recall(v, t, np.arange(20), queries=[3, 17])
    assert some.image_to_text.tolist() == everything.image_to_text[[3, 17]].tolist()
    assert some.text_to_image.tolist() == everything.text_to_image[[3, 17]].tolist()


def test_hits_of_both_directions_are_averaged():
    found = Recall(np.array([1, 7, 2]), np.array([3, 1, 11]))
    assert found.hits(1).tolist() == [0.5, 0.5, 0.0]
    assert found.hits(10).tolist() == [1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: retrieval_ranks([[0.5, 0.1]], [7], [0, 1]), "no hit in the gallery"),
        (lambda: retrieval_ranks([[0.5]], [0, 1], [0]), "one row a query"),
        (lambda: retrieval_ranks([[np.nan]], [0], [0]), "NaN"),
        (lambda: recall([[1.0]], [[1.0]], [0], queries=[1]), "leave the 1 pairs"),
        (lambda: recall([[1.0]], [[1.0, 0.0]], [0]), "do not fit"),
        (lambda: Recall(np.array([1]), np.array([1])).at(0), "k is 0"),
        (lambda: bootstrap_interval([1.0], ["a", "b"]), "2 clusters"),
        (lambda: bootstrap_interval([1.0], level=1.0), "level"),
    ],
)
def test_what_does_not_fit_is_refused(call, text):
    with pytest.raises(ConfigError, match=text):
        call()


def test_the_interval_of_independent_values_is_the_normal_one():
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(values, resamples=4000)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)


def test_clusters_are_drawn_whole_and_widen_the_interval():
    values = np.repeat(np.random.default_rng(0).normal(size=20), 10)
    apart = bootstrap_interval(values)
    together = bootstrap_interval(values, np.repeat(np.arange(20), 10).tolist())
    assert (together[1] - together[0]) > 2.5 * (apart[1] - apart[0])
    assert bootstrap_interval([0.2, 0.4], ["a", "a"]) == pytest.approx((0.3, 0.3))
