"""Retrieval between images and captions: ranks, recall at k, and their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flwr_afuic.errors import ConfigError
from flwr_afuic.metrics._checks import FloatArray, IntArray, class_labels, finite_array

KS = (1, 5, 10)


def retrieval_ranks(
    similarity: ArrayLike, query_groups: ArrayLike, gallery_groups: ArrayLike
) -> IntArray:
    """Rank of the first hit of each query.

    A gallery item is a hit if it belongs to the query's group: the image's caption, or one that
    reads the same. Items that tie with the best hit count as before it, so that a model that
    embeds all alike is given nothing.

    Parameters
    ----------
    similarity : array, shape (q, n)
        Of each query to each item of the gallery.
    query_groups : array of int, shape (q,)
        Group of each query; each must have an item in the gallery.
    gallery_groups : array of int, shape (n,)

    Returns
    -------
    ndarray, shape (q,), int64
        From 1; only items that are no hits are counted before it.

    Raises
    ------
    ConfigError
        If shapes do not fit, values are not finite, or a query has no hit in the gallery.

    Examples
    --------
    >>> similarity = [[0.9, 0.1, 0.5], [0.8, 0.7, 0.6]]
    >>> retrieval_ranks(similarity, [0, 2], [0, 1, 2]).tolist()
    [1, 3]
    >>> retrieval_ranks(similarity, [0, 2], [0, 2, 2]).tolist()  # two captions read the same
    [1, 2]
    """
    matrix = finite_array(similarity, "similarity", ndim=2)
    queries = class_labels(query_groups, "query_groups")
    gallery = class_labels(gallery_groups, "gallery_groups")
    if matrix.shape != (len(queries), len(gallery)):
        raise ConfigError(
            f"similarity has shape {matrix.shape} for {len(queries)} queries and a gallery of "
            f"{len(gallery)}; pass one row a query and one column an item"
        )
    hits = queries[:, None] == gallery[None, :]
    lost = int((~hits.any(axis=1)).sum())
    if lost:
        raise ConfigError(
            f"{lost} of {len(queries)} queries have no hit in the gallery; add their own items"
        )
    best = np.where(hits, matrix, -np.inf).max(axis=1)
    before = (~hits & (matrix >= best[:, None])).sum(axis=1)
    return np.asarray(before + 1, dtype=np.int64)


@dataclass(frozen=True)
class Recall:
    """Ranks of retrieval in both directions.

    Attributes
    ----------
    image_to_text, text_to_image : ndarray, shape (q,), int64
        Rank of the first hit of each query pair's image, and of its caption.
    """

    image_to_text: IntArray
    text_to_image: IntArray

    def at(self, k: int) -> float:
        """Mean of both directions' recall at k, in [0, 1]."""
        return float(self.hits(k).mean())

    def hits(self, k: int) -> FloatArray:
        """Hits of each pair, mean of both directions: 0, .5 or 1. # shape: (q,)."""
        if k < 1:
            raise ConfigError(f"k is {k}; recall counts the first 1 or more items")
        both = (self.image_to_text <= k).astype(np.float64) + (self.text_to_image <= k)
        return np.asarray(both / 2, dtype=np.float64)

    def table(self, ks: Sequence[int] = KS) -> dict[str, float]:
        """Recalls at some k as ``image_to_text/r1``, ``text_to_image/r1``, ``mean/r1``."""
        found: dict[str, float] = {}
        for k in ks:
            found[f"image_to_text/r{k}"] = float((self.image_to_text <= k).mean())
            found[f"text_to_image/r{k}"] = float((self.text_to_image <= k).mean())
            found[f"mean/r{k}"] = self.at(k)
        return found


def recall(
    images: ArrayLike, texts: ArrayLike, groups: ArrayLike, queries: ArrayLike | None = None
) -> Recall:
    """Retrieve among pairs in both directions.

    Parameters
    ----------
    images, texts : array, shape (n, e)
        Embeddings of each pair, unit rows; the gallery is all of them.
    groups : array of int, shape (n,)
        Equal where captions are identical: these count as hits of each other.
    queries : array of int, shape (q,), optional
        Positions of the pairs to ask for, for example the forgotten ones; all by default.

    Raises
    ------
    ConfigError
        If shapes do not fit or positions leave the pairs.

    Examples
    --------
    >>> found = recall([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.8, 0.6]], [0, 1])
    >>> found.at(1), found.table((1,))["text_to_image/r1"]
    (0.75, 0.5)
    """
    v, t = finite_array(images, "images", ndim=2), finite_array(texts, "texts", ndim=2)
    numbers = class_labels(groups, "groups")
    if v.shape != t.shape or len(numbers) != len(v):
        raise ConfigError(
            f"images {v.shape}, texts {t.shape} and {len(numbers)} groups do not fit; pass one row "
            "of each for every pair"
        )
    rows = np.arange(len(v)) if queries is None else class_labels(queries, "queries")
    if int(rows.min()) < 0 or int(rows.max()) >= len(v):
        raise ConfigError(f"queries leave the {len(v)} pairs; pass positions from 0")
    return Recall(
        image_to_text=retrieval_ranks(v[rows] @ t.T, numbers[rows], numbers),
        text_to_image=retrieval_ranks(t[rows] @ v.T, numbers[rows], numbers),
    )


def bootstrap_interval(
    values: ArrayLike,
    clusters: Sequence[object] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean; whole clusters are drawn.

    Pass hits for the interval of a recall, or one model's hits minus another's for that of
    their gap. Images of one patient are not independent: name the patients as clusters.

    Parameters
    ----------
    values : array, shape (n,)
    clusters : sequence, length n, optional
        Whose each value is; by default each is its own.
    level : float
        In (0, 1).
    resamples : int
    seed : int

    Returns
    -------
    tuple of float
        Lower and upper end; both equal the value where there is one cluster.

    Raises
    ------
    ConfigError
        If lengths differ or a setting is out of its range.

    Examples
    --------
    >>> bootstrap_interval([1.0, 1.0, 1.0])
    (1.0, 1.0)
    >>> low, high = bootstrap_interval([0.0, 1.0] * 50)
    >>> 0.38 < low < 0.43 < 0.57 < high < 0.62
    True
    """
    array = finite_array(values, "values", ndim=1)
    if not 0 < level < 1 or resamples < 1:
        raise ConfigError(f"level is {level}, resamples {resamples}; use (0, 1) and 1 or more")
    owners = list(range(len(array))) if clusters is None else list(clusters)
    if len(owners) != len(array):
        raise ConfigError(f"{len(owners)} clusters for {len(array)} values; name one for each")
    numbers: dict[object, int] = {}
    index = np.array([numbers.setdefault(owner, len(numbers)) for owner in owners])
    sums = np.bincount(index, weights=array)
    sizes = np.bincount(index).astype(np.float64)
    rng = np.random.default_rng(seed)
    draws: NDArray[np.int64] = rng.integers(len(sums), size=(resamples, len(sums)))
    means = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
