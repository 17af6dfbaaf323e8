"""Unlearning from the history alone: the rule of MEDU, general in weights and forget sets.

With round ``j`` adding ``h_j = sum_u p_u h_u`` to the model [P] and ``d_u = h_u - h_j``, leaving
out the sites ``F`` would have added ``h_j + g_j``,

    g_j = - sum_{u in F} p_u d_u / (1 - P_j),    P_j = sum_{u in F} p_u,

and the unlearned model is ``w'' = w_T + D_T`` with ``D_{j+1} = kappa D_j + g_j`` [D]. For one site
and equal weights this is the paper's rule (after Fast-FedUL, arXiv 2405.18040), whose ``1 + a`` is
``kappa`` [P]. It is an approximation: the other sites' updates are taken as they were, although
they would have differed at another model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import ConfigError, HistoryError, RecordError
from flwr_afuic.history.codec import decode_record
from flwr_afuic.history.coverage import Coverage, Gap
from flwr_afuic.history.sealed import read_sealed
from flwr_afuic.history.store import AGGREGATE, Participant, UpdateStore, Window

NobodyLeft = Literal["error", "remove"]

_ALL = 1.0 - 1e-9


@dataclass(frozen=True)
class Correction:
    """What has to be added to ``w_T``, and what it was made from.

    Attributes
    ----------
    sites : tuple of str
        The forget set, sorted.
    kappa : float
        The rule's constant.
    arrays : list of ndarray of float64
        ``D_T``, one array for each trained array.
    coverage : Coverage
        Which windows of the sites were found, and which removed nothing.
    windows : int
        Windows of the history.
    through : int, optional
        Number of the last of them; None stands for the history's last.
    noise : tuple of float
        For each array, the expected squared error that its records' storage left in it; of records
        that a sealed sum stands in for it is not known, and counts as none.
    """

    sites: tuple[str, ...]
    kappa: float
    arrays: list[NDArray[np.float64]] = field(repr=False)
    coverage: Coverage
    windows: int
    through: int | None = None
    noise: tuple[float, ...] = ()

    @property
    def norm(self) -> float:
        """``||D_T||``."""
        return math.sqrt(sum(float(np.vdot(part, part)) for part in self.arrays))

    def shrunk(self) -> Correction:
        """Return the estimate of ``D_T`` that storage leaves least error in, array by array.

        The sum of stored deviations is unbiased, with a noise of known variance, near Gaussian for
        several windows. For Gaussian noise the positive-part estimator of James and Stein (1961)
        has a smaller expected squared error whatever the true sum: each array times
        ``max(0, 1 - (p - 2)/p noise/||D||**2)``, ``p`` its entries. Arrays without noise stay as
        they are, bit for bit. [ours: MEDU's text has no such step]
        """
        arrays = [
            part if not noise else part * _shrinkage(part, noise)
            for part, noise in zip(self.arrays, self.noise or [0.0] * len(self.arrays), strict=True)
        ]
        return replace(self, arrays=arrays, noise=())

    def apply(self, trained: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Return ``w'' = w_T + D_T``.

        Entries without a correction are those of ``w_T`` bit for bit, and so is everything if the
        forget set is empty.

        Parameters
        ----------
        trained : sequence of ndarray
            The trained arrays of ``w_T``, the model as trained by everybody; not one that an
            earlier correction was added to.
        """
        result = []
        for array, part in zip(trained, self.arrays, strict=True):
            if array.shape != part.shape:
                raise HistoryError(
                    f"the model has an array of shape {array.shape} where its history has "
                    f"{part.shape}; name the history of this model"
                )
            moved = (array.astype(np.float64) + part).astype(array.dtype)
            result.append(np.where(part == 0, array, moved))
        return result


def unlearn(
    store: UpdateStore,
    forget: Iterable[str],
    *,
    kappa: float = 1.0,
    nobody_left: NobodyLeft = "error",
) -> Correction:
    """Compute the correction that forgets sites, from their stored deviations.

    Reads one record at a time. For a further site, pass all sites ever forgotten and apply the
    result to the same ``w_T``: corrections are never chained. Records that were purged after an
    earlier deletion are stood in for by its sealed sum (:mod:`flwr_afuic.history.sealed`).

    Parameters
    ----------
    store : UpdateStore
        The history.
    forget : iterable of str
        The forget set ``F``.
    kappa : float
        How far a removed contribution is taken to have grown a window later; 1 is ``a = 0``.
    nobody_left : {"error", "remove"}
        What to do about a window of several sites that are all forgotten: an error, or take out the
        window's whole step, as is done for windows of one site.

    Raises
    ------
    HistoryError
        If a site never took part, or a window has nobody left.
    ConfigError
        If a setting is out of its range.
    """
    sites = tuple(sorted(set(forget)))
    if not 0 < kappa < math.inf:
        raise ConfigError(f"kappa is {kappa}; it must be positive and finite")
    if nobody_left not in get_args(NobodyLeft):
        raise ConfigError(f"nobody_left is {nobody_left!r}; use 'error' or 'remove'")
    work = _Work(store, frozenset(sites), kappa, nobody_left)
    count, through = 0, 0
    for window in store.windows():
        count, through = count + 1, window.number
        work.take(window)
    unknown = sorted(work.sites - work.coverage.sites)
    if unknown:
        raise HistoryError(
            f"the history knows nothing of {', '.join(unknown)}; name sites whose updates were "
            "recorded"
        )
    noise = tuple(work.noise.tolist())
    return Correction(sites, kappa, work.total, work.coverage, count, through, noise)


def _shrinkage(part: NDArray[np.float64], noise: float) -> float:
    energy = float(np.vdot(part, part))
    if part.size < 3 or not energy:
        return 1.0
    return max(0.0, 1.0 - (part.size - 2) / part.size * noise / energy)


class _Work:
    """The sum under way."""

    def __init__(
        self, store: UpdateStore, sites: frozenset[str], kappa: float, nobody_left: NobodyLeft
    ) -> None:
        self.store = store
        self.sites = sites
        self.kappa = kappa
        self.nobody_left = nobody_left
        self.total = [np.zeros(shape) for shape, _ in store.layout or ()]
        self.noise = np.zeros(len(self.total))
        self.coverage = Coverage()
        self.sealed = read_sealed(store, sites, kappa) if sites else None

    def take(self, window: Window) -> None:
        """Age the sum by one window and add that window's ``g_j``."""
        if self.kappa != 1.0:
            for part in self.total:
                part *= self.kappa
            self.noise *= self.kappa**2
        inside = [p for p in window.participants if p.site in self.sites]
        if inside:
            self._remove(window, inside)
        if self.sealed is not None and window.number == self.sealed.through:
            for part, array in zip(self.total, self.sealed.arrays, strict=True):
                part += self.sealed.factor * array
            self.coverage.sealed_error = self.sealed.error

    def _remove(self, window: Window, inside: list[Participant]) -> None:
        share = math.fsum(p.weight for p in inside)
        nobody = share > _ALL and not window.alone
        if nobody and self.nobody_left == "error":
            raise HistoryError(
                f"nobody is left in round {window.round} (window {window.number}): all of "
                f"{', '.join(p.site for p in inside)} are to be forgotten; pass "
                "nobody_left='remove' to take out the round's whole step"
            )
        sealed = self.sealed.note(window, 1.0 if nobody else share) if self.sealed else 0.0
        fresh = [p for p in inside if not (self.sealed and self.sealed.covers(window, p))]
        for participant in inside:
            if participant not in fresh:
                self.coverage.used[participant.site] += 1
                self.coverage.sealed[participant.site] += 1
        if nobody and fresh:
            self._remove_whole(window, fresh, sealed)
            return
        for participant in fresh:
            factor = -1.0 if window.alone else -participant.weight / (1.0 - share)
            self._forget(window, participant, factor)

    def _remove_whole(self, window: Window, fresh: list[Participant], sealed: float) -> None:
        """Take out what is left of a window's step when its last sites are forgotten."""
        whole = self._add(window, AGGREGATE, -1.0, [p.site for p in fresh])
        for participant in fresh:
            if sealed:
                # Without the sealed sites, the step was that of the others: not the aggregate.
                self._forget(window, participant, -participant.weight / (1.0 - sealed))
            elif whole:
                self.coverage.used[participant.site] += 1

    def _forget(self, window: Window, participant: Participant, factor: float) -> None:
        """Add a participant's record, times a factor; note it, or why it is not there."""
        site, status = participant.site, participant.status
        if status == "zero":
            self.coverage.used[site] += 1
        elif status != "stored":
            self.coverage.gaps.append(Gap(site, window.number, window.round, status))
        elif self._add(window, site, factor, [site]):
            self.coverage.used[site] += 1

    def _add(self, window: Window, site: str, factor: float, sites: list[str]) -> bool:
        """Add ``factor`` times a record; if it cannot be read, that is a gap of ``sites``."""
        why, text = "damaged", ""
        try:
            data = self.store.record(window.number, site)
            if data is not None:
                record = decode_record(data, key=self.store.key(window.number, site))
                if [a.shape for a in record.arrays] != [part.shape for part in self.total]:
                    raise RecordError("the record belongs to another model")
                for part, array in zip(self.total, record.arrays, strict=True):
                    part += factor * array.astype(np.float64)
                self.noise += factor**2 * np.asarray(record.noise)
                return True
            why = "missing"
        except RecordError as error:
            text = str(error)
        self.coverage.gaps += [Gap(s, window.number, window.round, why, text) for s in sites]
        return False
