"""Gradient Subspace Decomposition over a history: forget-exclusive bases from stored updates.

EASE (arXiv 2605.00733) decomposes each client's updates [P]; here they come from the server's own
history, raw or compressed, one at a time. Block by block they wait in a temporary file, so that
memory is that of the largest block's updates, whatever the model's size and the number of clients.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from flwr_afuic.calibration.blocks import BlockBasis, Blocks
from flwr_afuic.calibration.exclusive import Exclusive, GsdSettings, decompose
from flwr_afuic.errors import HistoryError, LayoutError
from flwr_afuic.history.codec import CodecSettings
from flwr_afuic.history.coverage import Gap
from flwr_afuic.history.reading import client_updates
from flwr_afuic.history.recorder import RecorderSettings
from flwr_afuic.history.store import UpdateStore

_IN_MEMORY = 4 * 2**20  # bytes of each block that wait in memory before they go to a file


@dataclass(frozen=True)
class Entanglement:
    """How much of a block is the forgotten client's alone.

    Attributes
    ----------
    cosines : tuple of float
        Principal cosines with the retained updates, largest first.
    exclusive : int
        Directions of the forget-exclusive basis.
    retained : int
        Dimension of the retained subspace.
    """

    cosines: tuple[float, ...]
    exclusive: int
    retained: int


@dataclass(frozen=True)
class Decomposition:
    """The outcome over all blocks.

    Attributes
    ----------
    basis : BlockBasis
        ``B``; without any direction where everything is entangled.
    blocks : dict of str to Entanglement
        By block, those without updates left out.
    sites : tuple of str
        The retained clients it was made against.
    updates : int
        Updates read.
    gaps : tuple of Gap
        Records that could not be read.
    """

    basis: BlockBasis
    blocks: dict[str, Entanglement]
    sites: tuple[str, ...]
    updates: int
    gaps: tuple[Gap, ...] = field(default=())

    @property
    def entangled(self) -> bool:
        """Whether no block has a forget-exclusive direction: no removal may then be claimed."""
        return not self.basis.rank

    def summary(self) -> dict[str, Any]:
        """Return plain values for a record or a certificate."""
        return {
            "rank": self.basis.rank,
            "entangled": self.entangled,
            "retained_sites": list(self.sites),
            "updates": self.updates,
            "unreadable": len(self.gaps),
            "blocks": {
                name: {
                    "cosines": [round(c, 6) for c in part.cosines],
                    "exclusive": part.exclusive,
                    "retained": part.retained,
                }
                for name, part in self.blocks.items()
            },
        }


def decompose_history(
    store: UpdateStore,
    forget: str,
    blocks: Blocks,
    *,
    settings: GsdSettings | None = None,
    without: Collection[str] = (),
    directions: NDArray[np.floating] | None = None,
) -> Decomposition:
    """Find the forget-exclusive basis of a site from the history of updates.

    Parameters
    ----------
    store : UpdateStore
        A compressed history with aggregates, or a raw one.
    forget : str
        The site.
    blocks : Blocks
        Of the recorded arrays.
    settings : GsdSettings, optional
    without : collection of str
        Sites to leave out of the retained ones: those erased before.
    directions : ndarray, shape (r, p), optional
        Stand in for the site's updates: where part of its data is erased, the directions in which
        that part would move the model.

    Returns
    -------
    Decomposition

    Raises
    ------
    HistoryError
        If the history has no update of the site, or none of anybody else, or is of another model.
    """
    settings = settings or GsdSettings()
    gaps: list[Gap] = []
    with ExitStack() as stack:
        waiting = _Waiting(blocks, stack)
        for update in client_updates(store, told=gaps.append):
            mine = update.site == forget
            if update.site not in without and not (mine and directions is not None):
                waiting.add(update.site, update.arrays)
        sites = sorted(set(waiting.sites) - {forget})
        if directions is None and forget not in waiting.sites:
            raise HistoryError(
                f"the history has no update of {forget} to read its directions from; its records "
                "are gone, or it never took part"
            )
        if not sites:
            raise HistoryError("the history has no update of any site that stays")
        bases: dict[str, NDArray[np.float64]] = {}
        found: dict[str, Entanglement] = {}
        for block in blocks:
            rows = waiting.read(block)
            own = rows.pop(forget, None)
            if directions is not None:
                own = blocks.take(np.asarray(directions, dtype=np.float64), block)
            if own is None or not np.any(own):
                continue
            part = decompose(own, [rows[site] for site in sites], settings)
            found[block] = _entanglement(part)
            if not part.entangled:
                bases[block] = part.basis
    count = len(waiting.sites)
    return Decomposition(BlockBasis(blocks, bases), found, tuple(sites), count, tuple(gaps))


def _entanglement(part: Exclusive) -> Entanglement:
    return Entanglement(tuple(float(c) for c in part.cosines), len(part.basis), part.retained_rank)


class _Waiting:
    """Updates on their way from the history, which has them by round, to blocks by site."""

    def __init__(self, blocks: Blocks, stack: ExitStack) -> None:
        self.sites: list[str] = []
        self._blocks = blocks
        self._files: dict[str, IO[bytes]] = {
            block: stack.enter_context(tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY))  # noqa: SIM115
            for block in blocks
        }

    def add(self, site: str, arrays: list[NDArray[Any]]) -> None:
        vector = np.concatenate([np.asarray(a, dtype=np.float32).ravel() for a in arrays])
        if vector.size != self._blocks.size:
            raise HistoryError(
                f"the history's updates have {vector.size} entries, the model "
                f"{self._blocks.size}; name the history of this model"
            )
        if not bool(np.isfinite(vector).all()):
            raise LayoutError(f"an update of {site} in the history holds NaN or infinity")
        self.sites.append(site)
        for block, file in self._files.items():
            file.write(np.ascontiguousarray(self._blocks.take(vector, block)).tobytes())

    def read(self, block: str) -> dict[str, NDArray[np.float32]]:
        """Return a block's updates by site, and delete them."""
        file = self._files[block]
        file.seek(0)
        rows = np.frombuffer(file.read(), dtype=np.float32).reshape(len(self.sites), -1)
        file.close()
        return {site: rows[index] for site, index in self._rows()}

    def _rows(self) -> Iterator[tuple[str, list[int]]]:
        for site in sorted(set(self.sites)):
            yield site, [row for row, other in enumerate(self.sites) if other == site]


def recording_for_subspaces(**changes: Any) -> RecorderSettings:
    """Return how a history is recorded that subspaces are to be read from.

    E8 at a quarter of each tensor's standard deviation: the quantiser's error is then
    ``step**2 * 0.0717 = 0.45 %`` of an update's energy, below the ``1 - energy`` that the cut
    leaves out anyway. MEDU's own default is coarser, for a budget of bits: its error averages out
    over many rounds, which is what its rule needs, but not in the directions of single updates.

    Parameters
    ----------
    **changes : Any
        Other settings of :class:`~flwr_afuic.history.recorder.RecorderSettings`.
    """
    codec = CodecSettings(step=0.25, unit="tensor", hold=0.0, budget=0.0)
    return RecorderSettings(**{"codec": codec, "aggregate": codec, **changes})
