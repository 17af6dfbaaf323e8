"""Screening of sites' updates: what is malformed is quarantined with its reason."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

from flwr_afuic.errors import ConfigError
from flwr_afuic.federation.layout import Arrays, Layout

_WINDOW = 32
_ENOUGH = 5
_TINY = 1e-30


class UpdateScreen:
    """Decide whether an update may enter the model.

    Parameters
    ----------
    layout : Layout
        The federation's model.
    norm_factor : float
        An update whose norm over trained arrays exceeds this multiple of the median of
        recently accepted norms is refused. Judged only once five have been accepted; a
        norm of zero is always allowed.
    """

    def __init__(self, layout: Layout, *, norm_factor: float = 20.0) -> None:
        if not norm_factor > 1:
            raise ConfigError(f"norm_factor must exceed 1, got {norm_factor}")
        self._layout = layout
        self._factor = norm_factor
        self._norms: deque[float] = deque(maxlen=_WINDOW)

    @property
    def typical_norm(self) -> float | None:
        """Median norm of recently accepted updates, or None before there are enough."""
        return float(np.median(self._norms)) if len(self._norms) >= _ENOUGH else None

    @property
    def norms(self) -> list[float]:
        """Norms of recently accepted updates, oldest first."""
        return list(self._norms)

    def remember(self, norms: Iterable[float]) -> None:
        """Take up the norms an earlier run accepted."""
        self._norms.extend(norms)

    def refuse(self, update: Arrays, examples: int) -> str | None:
        """Return why the update is refused, or None if it is sound.

        Parameters
        ----------
        update : list of ndarray
            As :meth:`Layout.update_between` gives it; shapes, dtypes and finiteness must
            have been checked on the reply itself.
        examples : int
            The site's number of training examples.
        """
        if examples <= 0:
            return f"num_examples is {examples}; a site that trained on nothing cannot be weighed"
        norm = float(np.linalg.norm(self._layout.flatten(update)))
        if not np.isfinite(norm):
            return "the update's norm is not finite"
        typical = self.typical_norm
        if typical is not None and norm > self._factor * max(typical, _TINY):
            return (
                f"the update's norm {norm:.3g} is over {self._factor:g} times the median "
                f"{typical:.3g} of recent updates"
            )
        self._norms.append(norm)
        return None
