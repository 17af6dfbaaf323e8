"""What is not stored: participants of a window, and small entries of a deviation.

User sparsification and differential thresholding are the first two stages of MEDU
(arXiv 2505.03388) [P]. What exactly they keep could not be had from the text: the rules below are
our reading [O].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import ConfigError
from flwr_afuic.seeds import derive_seed

UserRule = Literal["sampled", "topk"]
ThresholdRule = Literal["std", "absolute", "fraction", "none"]


@dataclass(frozen=True)
class UserSparsification:
    """How many participants of a window are stored, and which [O].

    Parameters
    ----------
    rule : {"sampled", "topk"}
        ``sampled`` draws them with a probability proportional to the norm of their deviation and
        stores ``d / probability``, which is right on average for everybody; ``topk`` stores the
        largest deviations, and ordinary sites never.
    keep : float
        Share of a window's participants that is stored, in (0, 1]; at least one is.

    Raises
    ------
    ConfigError
        If the rule is unknown or the share out of its range.
    """

    rule: UserRule = "sampled"
    keep: float = 1.0

    def __post_init__(self) -> None:
        if self.rule not in get_args(UserRule):
            raise ConfigError(f"user rule is {self.rule!r}; use 'sampled' or 'topk'")
        if not 0 < self.keep <= 1:
            raise ConfigError(f"keep is {self.keep}; it must be in (0, 1]")

    def choose(self, norms: Mapping[str, float], *, seed: int, window: int) -> dict[str, float]:
        """Choose whom to store.

        Parameters
        ----------
        norms : mapping of str to float
            Norm of each participant's deviation, not negative.
        seed, window : int
            What the draw depends on, besides the norms.

        Returns
        -------
        dict of str to float
            Factor by which the deviation of each chosen site is stored: 1, or one over its
            probability. A site whose deviation is zero is never chosen; nothing is lost with it.
        """
        sites = sorted(site for site, norm in norms.items() if norm > 0)
        count = max(1, round(self.keep * len(norms)))
        if count >= len(sites):
            return dict.fromkeys(sites, 1.0)
        sizes = np.array([norms[site] for site in sites])
        if self.rule == "topk":
            order = np.argsort(-sizes, kind="stable")[:count]
            return {sites[index]: 1.0 for index in sorted(order)}
        chances = inclusion_probabilities(sizes, count)
        drawn = _systematic(chances, derive_seed(seed, "history-users", window))
        return {sites[index]: 1.0 / float(chances[index]) for index in drawn}


def inclusion_probabilities(sizes: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return probabilities proportional to ``sizes``, capped at 1, that add up to ``count``.

    Parameters
    ----------
    sizes : ndarray of float64, shape (n,)
        Positive sizes.
    count : int
        How many are drawn, from 1 to n.
    """
    chances = np.ones(len(sizes))
    free = np.arange(len(sizes))
    while len(free):
        left = count - (len(sizes) - len(free))
        share = sizes[free] * (left / sizes[free].sum())
        capped = share >= 1.0
        if not capped.any():
            chances[free] = share
            break
        free = free[~capped]
    return chances


def _systematic(chances: NDArray[np.float64], seed: int) -> list[int]:
    """Draw a sample of fixed size with these inclusion probabilities (Madow 1949)."""
    raw = np.random.Philox(key=seed).random_raw(len(chances) + 1)
    start = float(raw[0] >> np.uint64(11)) * 2.0**-53
    order = np.argsort(raw[1:], kind="stable")
    certain, order = order[chances[order] >= 1.0], order[chances[order] < 1.0]
    edges = np.concatenate([[0.0], np.cumsum(chances[order])])
    edges[-1] = round(float(edges[-1]))  # the sum is a whole number, but for rounding
    hits = np.floor(edges[1:] - start) - np.floor(edges[:-1] - start)
    return sorted([*certain.tolist(), *order[hits > 0].tolist()])


@dataclass(frozen=True)
class Threshold:
    """Which entries of a tensor are stored [O].

    Parameters
    ----------
    rule : {"std", "absolute", "fraction", "none"}
        ``std`` keeps ``|d| > value * std`` with the tensor's standard deviation about zero,
        ``absolute`` keeps ``|d| > value``, ``fraction`` the largest share ``value``.
    value : float
        That constant.
    whole_below : int
        Tensors of at most so many entries are stored whole: their bytes do not matter, and the
        bias of a last layer does.

    Raises
    ------
    ConfigError
        If the rule is unknown or a constant out of its range.
    """

    rule: ThresholdRule = "std"
    value: float = 2.0
    whole_below: int = 64

    def __post_init__(self) -> None:
        if self.rule not in get_args(ThresholdRule):
            raise ConfigError(
                f"threshold rule is {self.rule!r}; use one of {', '.join(get_args(ThresholdRule))}"
            )
        top = 1.0 if self.rule == "fraction" else float("inf")
        if self.rule != "none" and not 0 <= self.value <= top:
            raise ConfigError(f"threshold value is {self.value}; it must be in [0, {top:g}]")
        if self.whole_below < 0:
            raise ConfigError(f"whole_below is {self.whole_below}; it must not be negative")

    def mask(self, values: NDArray[np.float32], std: float) -> NDArray[Any] | None:
        """Return which entries of a flat tensor are kept, or None if all are.

        Parameters
        ----------
        values : ndarray of float32, shape (n,)
            The tensor's deviation.
        std : float
            Its standard deviation about zero.
        """
        if self.rule == "none" or len(values) <= self.whole_below:
            return None
        if self.rule == "fraction":
            return self._largest(values)
        cut = np.float32(self.value * std if self.rule == "std" else self.value)
        return np.abs(values) > cut

    def _largest(self, values: NDArray[np.float32]) -> NDArray[Any] | None:
        count = round(self.value * len(values))
        if count >= len(values):
            return None
        kept = np.zeros(len(values), dtype=np.bool_)
        if count:
            kept[np.argpartition(np.abs(values), -count)[-count:]] = True
        return kept
