"""Updates as they were merged, bit for bit, behind the same store as the coded history.

Methods that replay a federation (FedEraser) need each update itself, not its deviation from a
window's mean. A window here is one merge; a site's record holds every update it had in it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import HistoryError, RecordError
from flwr_afuic.federation.buffer import Update
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.history.store import Deletion, Participant, UpdateStore, Window

_FACTS = "facts"
_LAYOUT = "layout"
_MAGIC = b"PK"  # of the archive that np.savez writes
_INITIAL = "initial"


@dataclass(frozen=True)
class MergedUpdate:
    """An update and the staleness weight it entered its merge with."""

    update: Update
    weight: float


class RawHistory:
    """What was merged when, whole.

    Parameters
    ----------
    store : UpdateStore
        Where it is kept. Updates of the merge under way wait in memory.
    """

    def __init__(self, store: UpdateStore) -> None:
        self.store = store
        self._waiting: list[MergedUpdate] = []

    # ---- writing --------------------------------------------------------------------

    def begin(self, initial: Arrays, names: Sequence[str] | None = None) -> None:
        """Keep the model that everything was added to, and its arrays' names, unless known."""
        if self.store.arrays(_INITIAL) is None:
            self.store.put_arrays(_INITIAL, initial)
        if names is not None:
            self.store.name_arrays(names)

    def add(self, update: Update, weight: float) -> None:
        """Take an update that the next merge will contain."""
        self.store.check_layout(update.arrays)
        self._waiting.append(MergedUpdate(update, weight))

    def drop(self, site: str | None = None) -> None:
        """Drop the updates of a site, or everybody's, that were not merged."""
        self._waiting = [m for m in self._waiting if site is not None and m.update.site != site]

    def merged(self, version: int, round_: int) -> None:
        """Write the window of a merge that made ``version``."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        self.store.truncate(version - 1)  # what a run wrote that fell before its commit
        total = sum(m.update.examples for m in waiting)
        with self.store.begin() as writer:
            participants = []
            for site in sorted({m.update.site for m in waiting}):
                mine = [m for m in waiting if m.update.site == site]
                share = sum(m.update.examples for m in mine) / total
                writer.write(site, _pack(mine))
                participants.append(Participant(site, share, _norm(mine), "stored"))
            window = Window(writer.number, version, round_, 0.0, tuple(participants))
            writer.commit(window)

    def truncate(self, version: int) -> None:
        """Forget merges after ``version``."""
        self._waiting = []
        self.store.truncate(version)

    def delete(self, site: str) -> list[Deletion]:
        """Delete every update of a site."""
        self.drop(site)
        return self.store.delete_client(site)

    # ---- reading --------------------------------------------------------------------

    @property
    def initial(self) -> Arrays:
        """The model that everything was added to; HistoryError if there is none."""
        arrays = self.store.arrays(_INITIAL)
        if arrays is None:
            raise HistoryError("the history lacks the initial model; it cannot be replayed")
        return arrays

    def merges(self, without: Iterable[str] = ()) -> Iterator[tuple[Window, list[MergedUpdate]]]:
        """Yield each window with its updates, those of some sites left out, oldest first."""
        left = set(without)
        for window in self.store.windows():
            updates: list[MergedUpdate] = []
            for participant in window.participants:
                if participant.site in left:
                    continue
                data = self.store.record(window.number, participant.site)
                if data is None:
                    raise RecordError(
                        f"the update of {participant.site} in window {window.number} is "
                        f"{participant.status}; the history cannot be replayed"
                    )
                updates += unpack_updates(participant.site, data)
            yield window, updates


def _norm(merged: list[MergedUpdate]) -> float:
    squares = [
        float(np.vdot(a.astype(np.float64), a.astype(np.float64)))
        for m in merged
        for a in m.update.arrays
        if a.dtype.kind == "f"
    ]
    return float(np.sqrt(sum(squares)))


def _pack(merged: list[MergedUpdate]) -> bytes:
    """Write updates as one flat array each and dtype: adapters are hundreds of small arrays."""
    facts = [[m.update.base_version, m.update.examples, m.weight] for m in merged]
    layout = [[list(a.shape), a.dtype.str] for a in merged[0].update.arrays]
    named: dict[str, NDArray[Any]] = {
        _FACTS: np.array(facts, np.float64),
        _LAYOUT: np.frombuffer(json.dumps(layout).encode(), np.uint8),
    }
    for number, m in enumerate(merged):
        for dtype, parts in _by_dtype(m.update.arrays).items():
            named[f"{number}/{dtype}"] = np.concatenate([part.ravel() for part in parts])
    target = io.BytesIO()
    np.savez(target, allow_pickle=False, **named)
    return target.getvalue()


def _by_dtype(arrays: Arrays) -> dict[str, Arrays]:
    found: dict[str, Arrays] = {}
    for array in arrays:
        found.setdefault(array.dtype.str, []).append(array)
    return found


def _arrays(stored: Any, number: int, layout: list[tuple[tuple[int, ...], str]]) -> Arrays:
    """Cut the flat arrays of an update up again."""
    flat = {dtype: stored[f"{number}/{dtype}"] for dtype in {dtype for _, dtype in layout}}
    start = dict.fromkeys(flat, 0)
    arrays: Arrays = []
    for shape, dtype in layout:
        size = int(np.prod(shape, dtype=np.int64))
        arrays.append(flat[dtype][start[dtype] : start[dtype] + size].reshape(shape))
        start[dtype] += size
    if any(start[dtype] != len(array) for dtype, array in flat.items()):
        raise ValueError("more entries than its layout names")
    return arrays


def is_raw(record: bytes) -> bool:
    """Whether a record is one of this module's, and not a codec's."""
    return record[: len(_MAGIC)] == _MAGIC


def unpack_updates(site: str, data: bytes) -> list[MergedUpdate]:
    """Take the updates of a site out of a record; RecordError if it is damaged."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            facts = stored[_FACTS]
            layout = [(tuple(s), str(d)) for s, d in json.loads(stored[_LAYOUT].tobytes())]
            return [
                MergedUpdate(
                    Update(site, int(base), int(examples), _arrays(stored, number, layout)),
                    float(weight),
                )
                for number, (base, examples, weight) in enumerate(facts)
            ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"a stored update of {site} is damaged: {error}") from error
