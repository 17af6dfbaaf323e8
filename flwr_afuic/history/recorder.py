"""Recording a federation's updates: raw on disk until the window ends, then encoded.

A deviation needs the window's aggregate, which is known at its end only. Until then raw updates
wait in the store's spool, one file each, so that memory does not grow with the number of sites.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import ConfigError, HistoryError
from flwr_afuic.history.codec import CodecSettings
from flwr_afuic.history.encoder import RecordEncoder
from flwr_afuic.history.sparsify import UserSparsification
from flwr_afuic.history.spool import Spool, Sum, UnreadableError
from flwr_afuic.history.store import (
    AGGREGATE,
    Deletion,
    Participant,
    Status,
    UpdateStore,
    Window,
    WindowWriter,
)


@dataclass(frozen=True)
class RecorderSettings:
    """What is recorded, and how.

    Parameters
    ----------
    codec : CodecSettings
        Of deviations.
    aggregate : CodecSettings or None
        Of the window's aggregate, which methods that replay a history need; None stores none.
    users : UserSparsification
        Which participants of a window are stored.
    min_sites : int
        A window ends with the merge that makes it so many sites, at least 1.
    max_merges : int
        It ends after so many merges in any case.
    retain : int
        Windows whose records are kept; 0 keeps all.

    Raises
    ------
    ConfigError
        If a number is out of its range.
    """

    codec: CodecSettings = field(default_factory=CodecSettings)
    aggregate: CodecSettings | None = field(default_factory=CodecSettings)
    users: UserSparsification = field(default_factory=UserSparsification)
    min_sites: int = 2
    max_merges: int = 100
    retain: int = 0

    def __post_init__(self) -> None:
        for name, least in (("min_sites", 1), ("max_merges", 1), ("retain", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} is {value!r}; it must be an integer of at least {least}")


class Recorder:
    """Writes a history while a federation trains.

    Each merge adds ``factor * sum(w_i d_i) / sum(w_i)`` to the model. A window collects merges
    until enough sites took part; a site's update of the window is then
    ``h_u = sum(factor * share * d) / p_u`` with its mean share ``p_u``, so that the window's step
    is ``sum(p_u h_u)`` as MEDU has it, whether sites come once a round or at their own pace [D].

    Parameters
    ----------
    store : UpdateStore
        Where to. The window that an earlier process left open is taken up.
    settings : RecorderSettings, optional
        How.
    """

    def __init__(self, store: UpdateStore, settings: RecorderSettings | None = None) -> None:
        self.store = store
        self.settings = settings or RecorderSettings()
        self._spool = Spool(store)
        aggregate = self.settings.aggregate
        self._encoder = RecordEncoder(store, self.settings.codec)
        self._of_aggregates = RecordEncoder(store, aggregate) if aggregate else None

    @property
    def open_sites(self) -> list[str]:
        """Sites whose merged updates wait for their window's end."""
        return self._spool.sites

    def add(self, site: str, arrays: Sequence[NDArray[Any]], weight: float) -> None:
        """Take an update that the next merge will contain.

        Parameters
        ----------
        site : str
            Whose.
        arrays : sequence of ndarray
            Differences of the trained arrays.
        weight : float
            Weight in the merge, positive: examples times staleness weight.
        """
        if not site or not weight > 0:
            raise HistoryError(f"an update of {site!r} with weight {weight} cannot be recorded")
        self.store.check_layout(arrays)
        self._spool.put(site, arrays, float(weight))

    def withdraw(self, site: str) -> int:
        """Drop the updates of a site that were not merged; return how many."""
        return self._spool.withdraw(site)

    def discard(self) -> int:
        """Drop every update that was not merged, as after a round without a result."""
        return sum(self.withdraw(site) for site in {part.site for part in self._spool.waiting})

    def merged(self, version: int, round_: int, *, factor: float = 1.0) -> Window | None:
        """Say that everything added was merged into the model, now ``version``.

        Parameters
        ----------
        version, round_ : int
            The model's version and round after the merge.
        factor : float
            What the weighted mean of the updates was multiplied by.

        Returns
        -------
        Window or None
            The window, if this merge ended one.
        """
        if not self._spool.waiting:
            return None
        self._spool.merge(version, round_, factor)
        full = len(self.open_sites) >= self.settings.min_sites
        return self.close() if full or len(self._spool.merges) >= self.settings.max_merges else None

    def start(self, names: Sequence[str] | None = None) -> None:
        """Make sure that the history is empty, for a model that nobody has trained yet.

        Parameters
        ----------
        names : sequence of str, optional
            Names of the trained arrays, for those who read the history by blocks.

        Raises
        ------
        HistoryError
            If it holds updates of an earlier run: they are no part of this model, and unlearning
            them would take out what was never put in.
        """
        windows = sum(1 for _ in self.store.windows())
        if windows or self._spool.merges:
            raise HistoryError(
                f"the history holds {windows} windows of an earlier run; resume that run with its "
                "state_dir, or name a new history"
            )
        if names is not None:
            self.store.name_arrays(names)

    def resume(self, version: int) -> int:
        """Go back to the history as of ``version``; return how many windows were dropped.

        Updates that wait, and those whose merge made a later version, are dropped as well.
        """
        self._spool.merges = [m for m in self._spool.merges if m.version <= version]
        self._spool.waiting = []
        self._spool.settle()
        self._encoder.forget()
        if self._of_aggregates is not None:
            self._of_aggregates.forget()
        return self.store.truncate(version)

    def purge(self, site: str) -> list[Deletion]:
        """Delete everything of a site: records, raw updates, and its part in the open window."""
        self.withdraw(site)
        if site in self.open_sites:
            self.close(purge=site)
        self._encoder.forget(site)
        return self.store.delete_client(site)

    def close(self, *, purge: str = "") -> Window | None:
        """End the window under way and encode it; None if nothing was merged since the last.

        Parameters
        ----------
        purge : str
            A site that is being erased: it counts as a participant, and leaves no record.
        """
        if not self._spool.merges:
            return None
        sites = self.open_sites
        aggregate, lost = self._aggregate(sites)
        alone = len(sites) == 1

        def deviation(site: str) -> Sum:
            update = self._spool.total([site])
            weight = self._spool.weight(site)
            for part, mean in zip(update, aggregate, strict=True):
                part /= weight
                if not alone:
                    part -= mean
            return update

        statuses: dict[str, Status] = dict.fromkeys(lost, "lost")
        if purge:
            statuses[purge] = "purged"
        with self.store.begin() as writer:
            left = [site for site in sites if site not in statuses]
            norms = self._write(writer, left, deviation, statuses)
            if self._of_aggregates and len(lost) < len(sites) and not (alone and purge):
                self._encode(writer, AGGREGATE, aggregate, self._of_aggregates)
            participants = tuple(
                Participant(site, self._spool.weight(site), norms.get(site, 0.0), statuses[site])
                for site in sites
            )
            last = self._spool.merges[-1]
            window = Window(writer.number, last.version, last.round, _norm(aggregate), participants)
            writer.commit(window)
        self._spool.merges = []
        self._spool.settle()
        if self.settings.retain:
            self.store.retain(self.settings.retain)
        return window

    def _aggregate(self, sites: list[str]) -> tuple[Sum, set[str]]:
        """Return the window's step and the sites whose updates were lost.

        Without the lost ones it is the step that the others would have made.
        """
        lost: set[str] = set()
        while True:
            left = [site for site in sites if site not in lost]
            try:
                total = self._spool.total(left)
                break
            except UnreadableError as error:
                lost.add(error.site)
        if lost and left:
            share = sum(self._spool.weight(site) for site in left)
            total = [part / share for part in total]
        return total, lost

    def _write(
        self,
        writer: WindowWriter,
        sites: list[str],
        deviation: Callable[[str], Sum],
        statuses: dict[str, Status],
    ) -> dict[str, float]:
        """Encode who is chosen; fill in everybody's status and return their norms."""
        users, norms = self.settings.users, {}
        factors = dict.fromkeys(sites, 1.0)
        if users.keep < 1:
            norms = {site: _norm(deviation(site)) for site in sites}
            factors = users.choose(norms, seed=self.store.seed, window=writer.number)
        for site in sites:
            if site in factors:
                update = deviation(site)
                norms[site] = _norm(update)
                if norms[site]:
                    self._encode(writer, site, update, self._encoder, factors[site])
            drawn: Status = "stored" if site in factors else "not-drawn"
            statuses[site] = drawn if norms[site] else "zero"
        return norms

    def _encode(
        self,
        writer: WindowWriter,
        site: str,
        update: Sum,
        encoder: RecordEncoder,
        factor: float = 1.0,
    ) -> None:
        dtypes = [dtype for _, dtype in self.store.layout or ()]
        arrays = [part.astype(dtype) for part, dtype in zip(update, dtypes, strict=True)]
        writer.write(site, encoder.encode(writer.number, site, arrays, factor=factor))


def _norm(arrays: Sum) -> float:
    return float(np.sqrt(sum(float(np.vdot(part, part)) for part in arrays)))
