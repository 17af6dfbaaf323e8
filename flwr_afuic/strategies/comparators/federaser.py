"""FedEraser: stored updates replayed, each recalibrated by a little retained training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flwr_afuic import wire
from flwr_afuic.erasure.record import ErasureRecord
from flwr_afuic.errors import ConfigError
from flwr_afuic.federation.buffer import Update, UpdateBuffer
from flwr_afuic.federation.journal import VersionEntry
from flwr_afuic.federation.layout import Arrays, Layout
from flwr_afuic.history.disk import DiskStore
from flwr_afuic.history.memory import MemoryStore
from flwr_afuic.history.raw import MergedUpdate, RawHistory
from flwr_afuic.history.store import UpdateStore
from flwr_afuic.strategies.comparators.base import Comparator
from flwr_afuic.strategies.procedure import Answers, Ask, Method, Procedure
from flwr_afuic.strategies.run import FederationRun
from flwr_afuic.unlearning.checks import check_range


class FedEraser(Comparator):
    """Replay of the stored updates without the erased site's (IWQoS 2021).

    G. Liu et al., "FedEraser: Enabling Efficient Client-Level Data Removal from Federated Learning
    Models". From the initial model on, each stored round is repeated: the retained sites train
    a little from the rebuilt model, and each stored update is replaced by one of its own length in
    the direction of that training, ``|U| * U' / ||U'||``; the first round's updates are taken as
    they are [P]. Lengths are those of all trained arrays together, statistics come from the new
    training, and a site that does not answer keeps its stored update [O].

    A round is here a merge with its staleness weights and the engine's own arithmetic, so that a
    replay of everybody without recalibration is the trained model, bit for bit [O]. After
    several erasures each replay leaves out all sites erased so far [O]. It needs nothing of the
    erasing site.

    Parameters
    ----------
    effort : float
        The paper's calibration ratio: share of the usual local training, in [0, 1]; 0 replays
        without recalibrating.
    interval : int
        Every so many merges are stored; the others are lost to a replay [P].
    history : UpdateStore or path, optional
        Where updates are stored. By default in ``state_dir/history``, or else in memory.
    **erasing : Any
        Settings of :class:`Comparator`.
    """

    methods = ("federaser",)

    def __init__(
        self,
        *,
        effort: float = 0.5,
        interval: int = 1,
        history: UpdateStore | str | Path | None = None,
        **erasing: Any,
    ) -> None:
        super().__init__(**erasing)
        check_range("effort", effort, high=1.0)
        if not isinstance(interval, int) or interval < 1:
            raise ConfigError(f"interval is {interval!r}; it must be an integer of at least 1")
        self.effort = effort
        self.interval = interval
        self.history = history

    def make_method(self) -> Method:
        """See :class:`Comparator`."""
        place = self.history
        if place is None and self.state_dir is not None:
            place = Path(self.state_dir) / "history"
        owned = not isinstance(place, UpdateStore)
        store: UpdateStore
        if isinstance(place, UpdateStore):
            store = place
        else:
            store = MemoryStore() if place is None else DiskStore(place)
        return Replay(RawHistory(store), self, owned=owned)

    def describe(self) -> tuple[str, dict[str, Any]]:
        """See :class:`ErasureStrategy`."""
        return "FedEraser", {"effort": self.effort, "interval": self.interval}


class Replay(Method):
    """The history of a run, and its repetition without some sites."""

    def __init__(self, history: RawHistory, settings: FedEraser, *, owned: bool) -> None:
        self._history = history
        self._settings = settings
        self._owned = owned
        self._merges = 0
        self._erased: list[str] = []

    def bind(self, run: FederationRun) -> None:
        """See :class:`Method`."""
        super().bind(run)
        self._history.begin(run.arrays, run.layout.names)

    def take_update(self, update: Update, weight: float) -> Update:
        """See :class:`Method`."""
        self._history.add(update, weight)
        return update

    def after_version(self, entry: VersionEntry) -> None:
        """Store a merge's updates, every so many merges."""
        if entry.cause != "merge":
            return
        self._merges += 1
        if (self._merges - 1) % self._settings.interval:
            self._history.drop()
        else:
            self._history.merged(entry.version, entry.round)

    def withdrawn(self, site: str) -> None:
        """See :class:`Method`."""
        self._history.drop(site)

    def discarded(self) -> None:
        """See :class:`Method`."""
        self._history.drop()

    def erase(self, record: ErasureRecord) -> Procedure:
        """Repeat every stored merge without the erased sites."""
        layout, effort = self.run.layout, self._settings.effort
        model, first = self._history.initial, True
        for _, merged in self._history.merges(without=[*self._erased, record.site]):
            if not merged:
                continue
            if effort > 0 and not first:
                here = set(self.retained(record))
                sites = sorted({m.update.site for m in merged} & here)
                answers: Answers = yield [
                    Ask(site, wire.TASK_TRAIN, model, effort=effort) for site in sites
                ]
                merged = [self._recalibrated(m, answers) for m in merged]
            model, first = replayed(layout, model, merged, self._settings.server_lr), False
        return model

    def _recalibrated(self, merged: MergedUpdate, answers: Answers) -> MergedUpdate:
        update = merged.update
        answer = answers.get(update.site)
        if answer is None:
            return merged
        arrays = recalibrate(self.run.layout, update.arrays, answer.arrays)
        return MergedUpdate(dataclasses.replace(update, arrays=arrays), merged.weight)

    def erased(self, record: ErasureRecord) -> None:
        """Delete every update of the site."""
        self._erased.append(record.site)
        self._history.delete(record.site)

    def state(self) -> dict[str, Any]:
        """See :class:`Method`."""
        return {"merges": self._merges, "erased": list(self._erased)}

    def restore(self, state: dict[str, Any], read: Callable[[str], Arrays]) -> None:
        """See :class:`Method`."""
        self._merges = int(state.get("merges", 0))
        self._erased = [str(site) for site in state.get("erased", [])]
        self._history.truncate(self.run.version)

    def close(self) -> None:
        """See :class:`Method`."""
        if self._owned:
            self._history.store.close()


def recalibrate(layout: Layout, stored: Arrays, trained: Arrays) -> Arrays:
    """Give a new update the length of the stored one: ``|U| * U' / ||U'||`` over trained arrays.

    A new update of length 0 has no direction; the stored one is then kept [O].
    """
    new = layout.flatten(trained)
    length = float(np.linalg.norm(new))
    if length == 0:
        return stored
    wanted = float(np.linalg.norm(layout.flatten(stored)))
    return layout.with_trained(new * (wanted / length), trained)


def replayed(layout: Layout, model: Arrays, merged: list[MergedUpdate], lr: float) -> Arrays:
    """Merge updates into a model exactly as the engine does."""
    buffer = UpdateBuffer(layout)
    for one in merged:
        buffer.add(one.update, one.weight)
    return buffer.merge(model, server_lr=lr)
