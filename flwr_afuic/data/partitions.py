"""Partitions: which hospital holds which samples."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from flwr_afuic.errors import ConfigError
from flwr_afuic.seeds import derive_seed

Scheme = Literal["iid", "dirichlet", "by-label"]
Indices = npt.NDArray[np.int64]
MAX_DRAWS = 5000


def partition(
    labels: npt.NDArray[np.integer[Any]],
    n_clients: int,
    *,
    scheme: Scheme,
    alpha: float = 1.0,
    seed: int,
    min_size: int = 10,
    target_share: tuple[float, float] | None = None,
    target: int = 0,
) -> list[Indices]:
    """Split samples among clients.

    Parameters
    ----------
    labels : numpy.ndarray
        Class indices. # shape: (n,)
    n_clients : int
        Number of clients, at least 1.
    scheme : {"iid", "dirichlet", "by-label"}
        ``iid``: at random, equal sizes. ``dirichlet``: each class is shared out in
        proportions drawn from Dir(alpha) (Hsu et al., arXiv 1909.06335), redrawn until the
        conditions below hold. ``by-label``: class ``k`` goes to client ``k % n_clients``; with
        more clients than classes, those of one class share it evenly.
    alpha : float
        Concentration for ``dirichlet``, above 0: small means unlike clients.
    seed : int
        Root seed; the same seed gives the same partition.
    min_size : int
        Fewest samples a client may hold.
    target_share : tuple of float, optional
        ``(low, high)``, the share of all samples that client ``target`` must hold, bounds
        included.
    target : int
        Client that ``target_share`` is about.

    Returns
    -------
    list of numpy.ndarray
        One sorted int64 index array a client; disjoint, and together all samples.

    Raises
    ------
    ConfigError
        If a setting is out of range, or no partition of this scheme meets the conditions.
    """
    labels = np.asarray(labels)
    _validate(labels, n_clients, scheme, alpha, min_size, target_share, target)
    if scheme == "dirichlet":
        return _dirichlet(labels, n_clients, alpha, seed, min_size, target_share, target)
    parts = _iid(labels, n_clients, seed) if scheme == "iid" else _by_label(labels, n_clients, seed)
    sizes = np.array([len(part) for part in parts])
    if not _acceptable(sizes, min_size, target_share, target):
        raise ConfigError(
            f"scheme {scheme!r} gives {n_clients} clients {sizes.tolist()} samples, which breaks "
            f"{_conditions(min_size, target_share, target)}; relax it, change the number of "
            "clients, or use scheme 'dirichlet'"
        )
    return parts


def _iid(labels: npt.NDArray[Any], n_clients: int, seed: int) -> list[Indices]:
    rng = np.random.default_rng(derive_seed(seed, "partition", "iid"))
    order = rng.permutation(len(labels)).astype(np.int64)
    return [np.sort(part) for part in np.array_split(order, n_clients)]


def _by_label(labels: npt.NDArray[Any], n_clients: int, seed: int) -> list[Indices]:
    rng = np.random.default_rng(derive_seed(seed, "partition", "by-label"))
    classes = np.unique(labels)
    parts: list[list[Indices]] = [[] for _ in range(n_clients)]
    for rank, label in enumerate(classes):
        order = rng.permutation(np.flatnonzero(labels == label)).astype(np.int64)
        owners = list(range(rank, n_clients, len(classes))) or [rank % n_clients]
        for owner, piece in zip(owners, np.array_split(order, len(owners)), strict=True):
            parts[owner].append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]


def _dirichlet(
    labels: npt.NDArray[Any],
    n_clients: int,
    alpha: float,
    seed: int,
    min_size: int,
    target_share: tuple[float, float] | None,
    target: int,
) -> list[Indices]:
    rng = np.random.default_rng(derive_seed(seed, "partition", "dirichlet"))
    classes, counts = np.unique(labels, return_counts=True)
    for _ in range(MAX_DRAWS):
        shares = rng.dirichlet(np.full(n_clients, alpha), size=len(classes))
        cuts = np.floor(np.cumsum(shares, axis=1)[:, :-1] * counts[:, None]).astype(np.int64)
        # A running sum can exceed 1 by rounding, and the last share must not turn negative.
        cuts = np.minimum(cuts, counts[:, None])
        edges = np.concatenate(
            [np.zeros((len(classes), 1), np.int64), cuts, counts[:, None]], axis=1
        )
        if _acceptable(np.diff(edges, axis=1).sum(axis=0), min_size, target_share, target):
            break
    else:
        raise ConfigError(
            f"no Dirichlet({alpha}) partition of {len(labels)} samples among {n_clients} clients "
            f"in {MAX_DRAWS} draws meets {_conditions(min_size, target_share, target)}; raise "
            "alpha, widen the share, or lower min_size or the number of clients"
        )
    parts: list[list[Indices]] = [[] for _ in range(n_clients)]
    for label, cut in zip(classes, cuts, strict=True):
        order = rng.permutation(np.flatnonzero(labels == label)).astype(np.int64)
        for client, piece in enumerate(np.split(order, cut)):
            parts[client].append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]


def _acceptable(
    sizes: npt.NDArray[np.int64],
    min_size: int,
    target_share: tuple[float, float] | None,
    target: int,
) -> bool:
    if sizes.min() < min_size:
        return False
    if target_share is None:
        return True
    low, high = target_share
    return bool(low <= sizes[target] / sizes.sum() <= high)


def _conditions(min_size: int, target_share: tuple[float, float] | None, target: int) -> str:
    text = f"at least {min_size} samples a client"
    if target_share is not None:
        text += f" and a share of {target_share[0]}..{target_share[1]} for client {target}"
    return text


def _validate(
    labels: npt.NDArray[Any],
    n_clients: int,
    scheme: str,
    alpha: float,
    min_size: int,
    target_share: tuple[float, float] | None,
    target: int,
) -> None:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}; give integers (n,)"
        )
    if scheme not in get_args(Scheme):
        raise ConfigError(
            f"unknown partition scheme {scheme!r}; choose {', '.join(get_args(Scheme))}"
        )
    if n_clients < 1:
        raise ConfigError(f"n_clients is {n_clients}; a federation needs at least 1")
    if not (np.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"alpha is {alpha}; it must be a finite number above 0")
    if min_size < 1:
        raise ConfigError(f"min_size is {min_size}; it must be at least 1")
    if n_clients * min_size > len(labels):
        raise ConfigError(
            f"{len(labels)} samples cannot give {n_clients} clients {min_size} each; lower "
            "n_clients or min_size"
        )
    if target_share is None:
        return
    low, high = target_share
    if not 0 <= low <= high <= 1:
        raise ConfigError(f"target_share is {target_share}; it must be 0 <= low <= high <= 1")
    if not 0 <= target < n_clients:
        raise ConfigError(f"target is client {target}; choose one of 0..{n_clients - 1}")
    others = (n_clients - 1) * min_size
    if low * len(labels) > len(labels) - others or high * len(labels) < min_size:
        raise ConfigError(
            f"client {target} cannot hold {low}..{high} of {len(labels)} samples while each of "
            f"{n_clients} clients holds {min_size}; lower min_size or widen target_share"
        )
