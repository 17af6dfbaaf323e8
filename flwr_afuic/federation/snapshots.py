"""Past versions of the global model, kept only while somebody still needs them."""

from __future__ import annotations

from dataclasses import dataclass

from flwr_afuic.federation.layout import Arrays


@dataclass
class _Held:
    arrays: Arrays
    references: int


class SnapshotStore:
    """Reference-counted snapshots of base versions.

    A client that returns weights needs the version it started from on the server, to turn
    weights into a delta. Each message in flight to such a client holds one reference; the
    snapshot goes when the last one is released. The number of distinct versions held is
    what costs memory, so the engine bounds it.
    """

    def __init__(self) -> None:
        self._held: dict[int, _Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, version: int) -> bool:
        return version in self._held

    @property
    def newest(self) -> int | None:
        """Newest version held, or None."""
        return max(self._held, default=None)

    def acquire(self, version: int, arrays: Arrays) -> None:
        """Hold one more reference to ``version``; ``arrays`` are kept on the first."""
        held = self._held.setdefault(version, _Held(arrays, 0))
        held.references += 1

    def get(self, version: int) -> Arrays:
        """Return the arrays of a held version; KeyError if nobody holds it."""
        return self._held[version].arrays

    def release(self, version: int) -> None:
        """Give one reference back; the last one frees the snapshot."""
        held = self._held[version]
        held.references -= 1
        if held.references == 0:
            del self._held[version]
