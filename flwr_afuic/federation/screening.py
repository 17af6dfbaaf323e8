"""Screening of sites' updates: what is malformed is quarantined with its reason."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Sequence

from flwr_afuic.errors import ConfigError
from flwr_afuic.federation.chunks import squared_norm
from flwr_afuic.federation.layout import Arrays, Layout

_WINDOW = 32
_ENOUGH = 5


class UpdateScreen:
    """Decide whether an update may enter the model.

    Parameters
    ----------
    layout : Layout
        The federation's model.
    norm_factor : float
        An update whose norm over trained arrays exceeds this multiple of the typical norm
        is refused: of the median over sites of each site's recently accepted norms, so that no
        site moves it by sending much. Judged only once five have been accepted; a norm of
        zero is always allowed, and teaches nothing.
    """

    def __init__(self, layout: Layout, *, norm_factor: float = 20.0) -> None:
        if not norm_factor > 1:
            raise ConfigError(f"norm_factor must exceed 1, got {norm_factor}")
        self._layout = layout
        self._factor = norm_factor
        self._norms: dict[str, deque[float]] = {}
        # Kept up to date, so that an update costs the same with ten sites and with ten thousand.
        self._medians: dict[str, float] = {}
        self._sorted_medians: list[float] = []

    @property
    def typical_norm(self) -> float | None:
        """Median over sites of their median recent norm, or None before there are enough."""
        few = len(self._norms) < _ENOUGH
        if few and sum(map(len, self._norms.values())) < _ENOUGH:
            return None
        return _middle(self._sorted_medians)

    @property
    def norms(self) -> list[tuple[str, float]]:
        """Site and norm of recently accepted updates, of each site the oldest first."""
        return [(site, norm) for site, norms in self._norms.items() for norm in norms]

    def remember(self, norms: Iterable[tuple[str, float]]) -> None:
        """Take up the norms an earlier run accepted."""
        for site, norm in norms:
            recent = self._norms.setdefault(site, deque(maxlen=_WINDOW))
            recent.append(norm)
            if site in self._medians:
                place = bisect_left(self._sorted_medians, self._medians[site])
                del self._sorted_medians[place]
            self._medians[site] = _middle(sorted(recent))
            insort(self._sorted_medians, self._medians[site])

    def refuse(
        self,
        update: Arrays,
        examples: int,
        site: str = "",
        squares: Sequence[float] | None = None,
    ) -> str | None:
        """Return why the update is refused, or None if it is sound.

        Parameters
        ----------
        update : list of ndarray
            As :meth:`Layout.update_between` gives it; shapes, dtypes and finiteness must
            have been checked on the reply itself.
        examples : int
            The site's number of training examples.
        site : str
            Who sends it.
        squares : sequence of float, optional
            Sum of squares of each array of the update, where :meth:`Layout.check` gave them.
        """
        if examples <= 0:
            return f"num_examples is {examples}; a site that trained on nothing cannot be weighed"
        if squares is None:
            norm = math.sqrt(sum(squared_norm(array) for array in self._layout.trained(update)))
        else:
            pairs = zip(self._layout.specs, squares, strict=True)
            norm = math.sqrt(sum(square for spec, square in pairs if spec.kind == "trained"))
        if not math.isfinite(norm):
            return "the update's norm is not finite"
        typical = self.typical_norm
        if typical is not None and norm > self._factor * typical:
            return (
                f"the update's norm {norm:.3g} is over {self._factor:g} times the median "
                f"{typical:.3g} of recent updates"
            )
        if norm > 0:
            self.remember([(site, norm)])
        return None


def _middle(ordered: Sequence[float]) -> float:
    """Median of ordered numbers."""
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
