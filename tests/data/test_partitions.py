from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_afuic.data.partitions import Scheme, partition
from flwr_afuic.errors import ConfigError

LABELS = np.random.default_rng(0).choice(2, size=4708, p=[0.26, 0.74])


@given(
    counts=st.lists(st.integers(1, 80), min_size=1, max_size=5),
    n_clients=st.integers(1, 7),
    scheme=st.sampled_from(["iid", "dirichlet", "by-label"]),
    alpha=st.floats(0.05, 100),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=120, deadline=None)
def test_parts_are_sorted_disjoint_covering_and_repeatable(
    counts: list[int], n_clients: int, scheme: Scheme, alpha: float, seed: int
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    try:
        parts = partition(labels, n_clients, scheme=scheme, alpha=alpha, seed=seed, min_size=1)
    except ConfigError:
        # By label some classes may be too small; a draw among few samples may never fit.
        assert scheme != "iid" or n_clients > len(labels)
        return
    assert len(parts) == n_clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    assert all(np.array_equal(part, np.sort(part)) and len(part) >= 1 for part in parts)
    again = partition(labels, n_clients, scheme=scheme, alpha=alpha, seed=seed, min_size=1)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("seed", range(8))
def test_dirichlet_meets_target_share_and_least_size(seed: int) -> None:
    parts = partition(
        LABELS, 6, scheme="dirichlet", seed=seed, min_size=40, target_share=(0.12, 0.35), target=2
    )
    assert 0.12 <= len(parts[2]) / len(LABELS) <= 0.35
    assert min(map(len, parts)) >= 40


def test_small_alpha_makes_unlike_clients() -> None:
    def spread(alpha: float) -> float:
        parts = partition(LABELS, 6, scheme="dirichlet", alpha=alpha, seed=0)
        return float(np.std([LABELS[part].mean() for part in parts]))

    assert spread(0.1) > 3 * spread(100)


def test_seed_matters() -> None:
    for scheme in ("iid", "dirichlet"):
        a = partition(LABELS, 6, scheme=scheme, seed=0)
        b = partition(LABELS, 6, scheme=scheme, seed=1)
        assert not np.array_equal(a[0], b[0])


def test_iid_sizes_are_equal() -> None:
    sizes = [len(part) for part in partition(LABELS, 6, scheme="iid", seed=0)]
    assert max(sizes) - min(sizes) <= 1


def test_by_label_gives_exclusive_classes() -> None:
    labels = np.repeat(np.arange(8), 20)
    parts = partition(labels, 6, scheme="by-label", seed=0)
    assert [sorted(set(labels[part])) for part in parts] == [[0, 6], [1, 7], [2], [3], [4], [5]]
    parts = partition(LABELS, 6, scheme="by-label", seed=0)
    assert [set(LABELS[part]) for part in parts] == [{0}, {1}] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_clients": 0}, "n_clients is 0"),
        ({"n_clients": 500}, "cannot give 500 clients 10 each"),
        ({"alpha": 0.0}, "alpha is 0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"min_size": 0}, "min_size is 0"),
        ({"scheme": "random"}, "unknown partition scheme 'random'"),
        ({"target_share": (0.5, 0.2)}, "low <= high"),
        ({"target_share": (0.1, 0.2), "target": 6}, "target is client 6"),
        ({"target_share": (0.99, 1.0)}, "cannot hold"),
        ({"target_share": (0.0, 0.001)}, "cannot hold"),
        ({"target_share": (0.9, 0.98), "alpha": 1000.0}, "draws meets"),
        ({"scheme": "iid", "target_share": (0.3, 0.4)}, "breaks at least 10 .* client 0"),
        ({"scheme": "by-label", "target_share": (0.5, 0.6)}, "use scheme 'dirichlet'"),
    ],
)
def test_impossible_settings_say_so(changes: dict[str, object], message: str) -> None:
    settings = {"n_clients": 6, "scheme": "dirichlet", "seed": 0} | changes
    n_clients = settings.pop("n_clients")
    with pytest.raises(ConfigError, match=message):
        partition(LABELS, n_clients, **settings)  # type: ignore[arg-type]


def test_labels_must_be_flat_integers() -> None:
    with pytest.raises(ConfigError, match=r"shape \(5, 1\)"):
        partition(np.zeros((5, 1), int), 1, scheme="iid", seed=0)
    with pytest.raises(ConfigError, match="float64"):
        partition(np.zeros(50), 1, scheme="iid", seed=0)
