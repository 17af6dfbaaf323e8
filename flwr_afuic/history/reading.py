"""Every client's updates out of a history, one after the other, whatever form they are stored in.

What a subspace method (EASE's GSD) or a replay needs is the update ``h_u`` itself. A compressed
history holds deviations ``d_u = h_u - h`` and the window's aggregate ``h`` [D]: they are added up
again here. A raw history (:mod:`flwr_afuic.history.raw`) holds the updates as they came.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import ConfigError, HistoryError, RecordError
from flwr_afuic.history.codec import decode_record
from flwr_afuic.history.coverage import Gap
from flwr_afuic.history.raw import is_raw, unpack_updates
from flwr_afuic.history.store import AGGREGATE, Participant, UpdateStore, Window

Told = Callable[[Gap], None]
Choice = Callable[[str], bool] | Collection[str]


@dataclass(frozen=True)
class ClientUpdate:
    """One update of one client.

    Attributes
    ----------
    site : str
        The client.
    window, round, version : int
        Window it belongs to, and round and version that this window ended with.
    weight : float
        Its share of the window; what was yielded of a whole window adds up to 1.
    names : tuple of str
        Names of the arrays; ``"0"``, ``"1"``, ... where the history was not told any.
    arrays : list of ndarray
        The update, an array each; float32 from a compressed history.
    approximate : bool
        Whether it went through a codec.
    """

    site: str
    window: int
    round: int
    version: int
    weight: float
    names: tuple[str, ...]
    arrays: list[NDArray[Any]] = field(repr=False)
    approximate: bool = True

    @property
    def layout(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Name, shape and dtype of every array, in order."""
        return [
            (name, tuple(int(n) for n in array.shape), str(array.dtype))
            for name, array in zip(self.names, self.arrays, strict=True)
        ]

    def vector(self, block: Choice | None = None) -> NDArray[np.float64]:
        """Return the update, or a block of it, as one vector.

        Parameters
        ----------
        block : callable or collection of str, optional
            Which arrays belong to the block, by name.

        Returns
        -------
        ndarray of float64, shape (d,)
            The block's entries in the order of the arrays.

        Raises
        ------
        ConfigError
            If no array belongs to it.
        """
        inside = (lambda name: True) if block is None else block
        chosen = inside if callable(inside) else inside.__contains__
        parts = [
            np.asarray(array, dtype=np.float64).reshape(-1)
            for name, array in zip(self.names, self.arrays, strict=True)
            if chosen(name)
        ]
        if not parts:
            raise ConfigError(
                f"no array belongs to the block {block!r}; the arrays are {', '.join(self.names)}"
            )
        return np.concatenate(parts)


def client_updates(
    store: UpdateStore,
    *,
    sites: Collection[str] | None = None,
    deviations: bool = False,
    told: Told | None = None,
) -> Iterator[ClientUpdate]:
    """Yield the stored updates of every window, oldest first, sites by name.

    One update and one aggregate are in memory at a time. A participant without a record (not
    drawn, purged, retired) is skipped. With the user rule ``sampled`` at less than all users, a
    record holds ``d / probability``: sums over rounds are then right on average, single
    updates are not.

    Parameters
    ----------
    store : UpdateStore
        A compressed history or a raw one.
    sites : collection of str, optional
        Whose updates; everybody's without it.
    deviations : bool
        Yield what is stored, the deviation from the window's aggregate; no aggregate is needed
        then. Not for a raw history.
    told : callable, optional
        Gets a :class:`~flwr_afuic.history.coverage.Gap` for each record that cannot be read,
        which is then skipped.

    Raises
    ------
    RecordError
        If a record cannot be read and ``told`` is not given; the text names client and round.
    HistoryError
        If the history was recorded without aggregates, which single updates need.

    Examples
    --------
    >>> from flwr_afuic.history.memory import MemoryStore
    >>> [update.vector() for update in client_updates(MemoryStore())]
    []
    """
    reading = _Reading(store, deviations, told)
    for window in store.windows():
        wanted = [p for p in window.participants if sites is None or p.site in sites]
        yield from reading.window(window, [p for p in wanted if p.status in ("stored", "zero")])


class _Reading:
    def __init__(self, store: UpdateStore, deviations: bool, told: Told | None) -> None:
        self._store, self._deviations, self._told = store, deviations, told

    def window(self, window: Window, inside: list[Participant]) -> Iterator[ClientUpdate]:
        mean: list[NDArray[np.float32]] | None = None
        for participant in inside:
            try:
                data = self._data(window, participant)
                if data is not None and is_raw(data):
                    yield from self._raw(window, participant, data)
                    continue
                if mean is None and not (self._deviations or window.alone):
                    mean = self._aggregate(window)
                arrays = self._decoded(window, participant, data)
            except RecordError as error:
                self._tell(window, participant, error)
                continue
            if mean is not None:
                arrays = [part + whole for part, whole in zip(arrays, mean, strict=True)]
            yield self._update(window, participant.site, participant.weight, arrays)

    def _data(self, window: Window, participant: Participant) -> bytes | None:
        data = self._store.record(window.number, participant.site)
        if data is None and participant.status == "stored":
            raise RecordError("the record is missing")
        return data

    def _decoded(
        self, window: Window, participant: Participant, data: bytes | None
    ) -> list[NDArray[np.float32]]:
        if data is None:  # it deviated by nothing
            return [np.zeros(shape, np.float32) for shape, _ in self._store.layout or ()]
        key = self._store.key(window.number, participant.site)
        return decode_record(data, key=key).arrays

    def _aggregate(self, window: Window) -> list[NDArray[np.float32]]:
        data = self._store.record(window.number, AGGREGATE)
        if data is None:
            raise HistoryError(
                f"the history has no aggregate of round {window.round} (window {window.number}), "
                "without which a deviation is no update; record with RecorderSettings(aggregate=..."
                ") or read deviations=True"
            )
        return decode_record(data, key=self._store.key(window.number, AGGREGATE)).arrays

    def _raw(self, window: Window, participant: Participant, data: bytes) -> Iterator[ClientUpdate]:
        if self._deviations:
            raise HistoryError("a raw history holds updates, not deviations; read it without")
        merged = unpack_updates(participant.site, data)
        sizes = [m.update.examples * m.weight for m in merged]
        for part, size in zip(merged, sizes, strict=True):
            weight = participant.weight * size / sum(sizes)
            yield self._update(window, participant.site, weight, part.update.arrays, False)

    def _update(
        self,
        window: Window,
        site: str,
        weight: float,
        arrays: Sequence[NDArray[Any]],
        approximate: bool = True,
    ) -> ClientUpdate:
        names = self._store.names or tuple(map(str, range(len(arrays))))
        return ClientUpdate(
            site, window.number, window.round, window.version, weight, names, list(arrays),
            approximate,
        )  # fmt: skip

    def _tell(self, window: Window, participant: Participant, error: RecordError) -> None:
        if self._told is None:
            raise RecordError(
                f"update of {participant.site} in round {window.round} (window {window.number}): "
                f"{error}"
            ) from error
        gap = Gap(participant.site, window.number, window.round, "damaged", str(error))
        self._told(gap)
