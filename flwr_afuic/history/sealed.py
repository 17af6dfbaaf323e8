"""Deleting a site's records after they were used, and still forgetting further sites rightly.

A later deletion must be computed over the whole forget set, but the records of earlier ones are
gone by then. What stays is their sum: the correction itself, one array a trained array and no
longer attributable to a round. Under a larger forget set each of its windows weighs
``(1 - P_j) / (1 - P'_j)`` times as much; the sum is scaled by the mean of these factors [D]. Where
sites weigh the same in every window, as in synchronous rounds, that is exact; elsewhere the result
says how far it is off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import HistoryError
from flwr_afuic.history.store import Deletion, Participant, UpdateStore, Window

if TYPE_CHECKING:
    from flwr_afuic.history.unlearn import Correction

_SEALED = "sealed"


@dataclass
class Sealed:
    """The sum that stands in for purged records, while a correction is computed.

    Attributes
    ----------
    sites : frozenset of str
        Whose records it stands in for.
    through : int
        The last window that it covers.
    kappa : float
        The rule's constant when it was made.
    arrays : list of ndarray of float64
        The sum.
    """

    sites: frozenset[str]
    through: int
    kappa: float
    arrays: list[NDArray[np.float64]] = field(repr=False)
    _sizes: list[float] = field(default_factory=list)
    _factors: list[float] = field(default_factory=list)

    def covers(self, window: Window, participant: Participant) -> bool:
        """Whether the sum stands in for a participant's record."""
        return participant.site in self.sites and window.number <= self.through

    def note(self, window: Window, share: float) -> float:
        """See a window before it is summed; return the share of it that was sealed, ``P_j``.

        Parameters
        ----------
        window : Window
            The window.
        share : float
            Share ``P'_j`` of the whole forget set; below 1, or the window keeps its sealed weight.
        """
        inside = [p for p in window.participants if self.covers(window, p)]
        sealed = math.fsum(p.weight for p in inside)
        if inside:
            rest = 1.0 if window.alone else 1.0 - sealed
            self._sizes.append(math.fsum(p.weight * p.norm for p in inside) / rest)
            self._factors.append(rest / (1.0 - share) if share < 1 and not window.alone else 1.0)
        return sealed

    @property
    def factor(self) -> float:
        """By what the sum is scaled: the mean over its windows, weighted by what each removed."""
        if not sum(self._sizes):
            return 1.0
        return float(np.average(self._factors, weights=self._sizes))

    @property
    def error(self) -> float:
        """Largest relative error of a window's weight."""
        return max((abs(self.factor / own - 1.0) for own in self._factors), default=0.0)


def seal(store: UpdateStore, correction: Correction) -> list[Deletion]:
    """Keep the sum of a correction that was applied for good, and delete its sites' records.

    Windows that followed the correction must be without its sites, as they are when the sites are
    refused training from the request on.

    Returns
    -------
    list of Deletion
        What was deleted.
    """
    through = correction.through
    if through is None:
        through = max((window.number for window in store.windows()), default=0)
    store.put_arrays(_SEALED, correction.arrays)
    about = {"sites": correction.sites, "through": through, "kappa": correction.kappa}
    store.set(_SEALED, about)
    return [gone for site in correction.sites for gone in store.delete_client(site)]


def read_sealed(store: UpdateStore, forget: frozenset[str], kappa: float) -> Sealed | None:
    """Return what earlier deletions left, None if there were none.

    Raises
    ------
    HistoryError
        If the forget set leaves an earlier deletion out, or ``kappa`` is another one.
    """
    about = store.get(_SEALED)
    arrays = store.arrays(_SEALED)
    if about is None or arrays is None:
        return None
    sealed = Sealed(frozenset(about["sites"]), about["through"], about["kappa"], arrays)
    left_out = sorted(sealed.sites - forget)
    if left_out:
        raise HistoryError(
            f"{', '.join(left_out)} were forgotten earlier; a further deletion is computed over "
            "all forgotten sites: name them as well"
        )
    if sealed.kappa != kappa:
        raise HistoryError(
            f"the earlier deletion used kappa {sealed.kappa}, not {kappa}; use the same"
        )
    return sealed
