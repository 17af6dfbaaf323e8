"""Encoding the updates of a federation: what a record has to do with its site's earlier ones.

Three things carry over from record to record, all of the writer alone; a record by itself says all
that its reader needs.

- The step is the site's own: its first record takes as many bits an entry as any other site's, so
  that each site's part is about equally exact, however its entries are distributed [O].
- The unit is *held*: as steps of training fall, later records are stored no finer than the first
  ones, whose error the sum has anyway (:mod:`flwr_afuic.history.scales`) [D].
- Bytes are *rationed*: where steps do not fall, or a site's updates grow, the step is made coarser
  until the site's records keep their budget. The error of each is larger then, and averages out
  over as many windows [O].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.errors import RecordError
from flwr_afuic.history.codec import EXACT, CodecSettings, encode_update
from flwr_afuic.history.record import unpack_record
from flwr_afuic.history.scales import deviation, units
from flwr_afuic.history.store import UpdateStore

SMALLEST_RATIONED = 4096
"""Updates of fewer entries are not rationed: heads and models are most of their records."""

_MOST_TRIES = 8
_STEEPNESS = 1.6  # a bit less takes at least a step twice as large, and more where bits are few
_LEAST_BITS = 0.05
_RELEASE = 0.93
_SAVED = 0.1  # bits an entry
_OPENING_TRIES = 5
_NEAR = 0.01  # bits an entry
_FARTHEST = 2.0  # octaves of the step


@dataclass
class _Site:
    """What the next record depends on.

    The site's step, held units, how much coarser the last one had to be, and records and bytes so
    far.
    """

    step: float
    units: list[float] = field(default_factory=list)
    coarser: float = 1.0
    records: int = 0
    bytes: int = 0


class RecordEncoder:
    """Encodes one kind of records of a store, deviations or aggregates.

    Parameters
    ----------
    store : UpdateStore
        Where records are; looked up once for each site, when its first is encoded.
    settings : CodecSettings
        How they are encoded.
    """

    def __init__(self, store: UpdateStore, settings: CodecSettings) -> None:
        self._store, self._settings = store, settings
        self._sites: dict[str, _Site] = {}

    def encode(
        self, window: int, site: str, arrays: Sequence[NDArray[Any]], *, factor: float = 1.0
    ) -> bytes:
        """Encode an update as the site's record of a window; see :func:`encode_update`.

        Call it once for each record that will be written, in the order of windows.
        """
        settings, key = self._settings, self._store.key(window, site)
        if settings.lattice == EXACT or not (settings.hold or settings.budget):
            return encode_update(arrays, settings, key, factor=factor)
        known = self._known(site)
        opened = any(known.units)
        held = [settings.hold * unit for unit in known.units]
        flat = [np.asarray(array, np.float32).reshape(-1) for array in arrays]
        known.units = units(
            [deviation(values) * factor for values in flat], [len(values) for values in flat],
            settings.unit, alone_below=settings.threshold.whole_below, least=held or None,
        )  # fmt: skip

        entries = sum(len(values) for values in flat)
        rationed = bool(settings.budget) and entries >= SMALLEST_RATIONED

        def encoded(coarser: float) -> bytes:
            least = [coarser * unit for unit in known.units]
            own = replace(settings, step=known.step)
            return encode_update(arrays, own, key, factor=factor, least=least)

        if rationed and settings.opening and not opened and any(known.units):
            self._open(known, encoded, entries)
        record = self._rationed(known, encoded, entries) if rationed else encoded(1.0)
        # A tensor of zeros has no unit and keeps that of before.
        known.units = [u or h for u, h in zip(known.units, held or known.units, strict=True)]
        known.records += 1
        known.bytes += len(record)
        return record

    def _open(self, known: _Site, encoded: Callable[[float], bytes], entries: int) -> None:
        """Choose the site's step, by secants: bits fall by about one where the step doubles."""
        settings = self._settings
        octaves, slope, last = 0.0, -1.0, (0.0, 0.0)
        for attempt in range(_OPENING_TRIES):
            known.step = float(np.float32(settings.step * 2.0**octaves))
            excess = 8 * len(encoded(1.0)) / entries - settings.opening
            if abs(excess) < _NEAR:
                break
            if attempt and octaves != last[0]:
                slope = min(-0.1, (excess - last[1]) / (octaves - last[0]))
            last = octaves, excess
            octaves = min(_FARTHEST, max(-_FARTHEST, octaves - excess / slope))

    def _rationed(self, known: _Site, encoded: Callable[[float], bytes], entries: int) -> bytes:
        """Encode as finely as the site's budget allows."""
        settings = self._settings
        allowed = settings.budget / 8 * entries * (known.records + 1 + settings.credit)
        # Finer again only once something was saved: trying costs an encoding.
        if allowed - known.bytes > entries / 8 * (settings.budget + _SAVED):
            known.coarser = max(1.0, _RELEASE * known.coarser)
        for _ in range(_MOST_TRIES):
            record = encoded(known.coarser)
            excess = 8 * (known.bytes + len(record) - allowed) / entries
            if excess <= 0:
                break
            known.coarser *= 2 ** max(_LEAST_BITS, _STEEPNESS * excess)
        return record

    def forget(self, site: str | None = None) -> None:
        """Drop what is known of a site, or of all: their records are gone, or others."""
        if site is None:
            self._sites.clear()
        else:
            self._sites.pop(site, None)

    def _known(self, site: str) -> _Site:
        if site not in self._sites:
            standing = self._store.standing(site)
            found = _Site(self._settings.step, records=standing.records, bytes=standing.bytes)
            try:
                data = self._store.record(standing.newest, site) if standing.newest else None
                if data is not None:
                    head = unpack_record(data)[0]
                    found.units = [tensor.std for tensor in head.tensors]
                    found.step = head.step
            except RecordError:
                pass  # damaged: the next record has a unit of its own
            self._sites[site] = found
        return self._sites[site]
