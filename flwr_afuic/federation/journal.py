"""What happened when: versions, tasks and events of one run, for reports and metrics."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class VersionEntry:
    """One merge: the version it made, its round, time (seconds), cause and sites."""

    version: int
    round: int
    time: float
    cause: str
    sites: tuple[str, ...] = ()


@dataclass(frozen=True)
class Event:
    """One thing worth reporting. ``kind`` is stable, ``text`` is for people."""

    time: float
    round: int
    version: int
    kind: str
    site: str = ""
    text: str = ""


@dataclass(frozen=True)
class UpdateEntry:
    """What became of one training reply.

    Attributes
    ----------
    version, base_version : int
        Version of the global model when it came, and the one it was trained from.
    examples : int
        Training examples it stands for; 0 where the reply could not be read.
    fate : str
        ``accepted``, ``stale``, ``refused`` or ``quarantined``.
    """

    time: float
    round: int
    version: int
    site: str
    base_version: int
    examples: int
    fate: str
    reason: str = ""

    @property
    def staleness(self) -> int:
        """Versions between the two."""
        return self.version - self.base_version


@dataclass(frozen=True)
class Span:
    """A time in which a site, or the server, worked on one task (seconds)."""

    site: str
    kind: str
    start: float
    end: float


@dataclass
class Counters:
    """Numbers of updates by fate."""

    accepted: int = 0
    stale: int = 0
    refused: int = 0
    quarantined: int = 0
    failed: int = 0
    expired: int = 0


@dataclass
class Journal:
    """Append-only record of a run. Times are seconds since ``start()``."""

    versions: list[VersionEntry] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    server_spans: list[Span] = field(default_factory=list)
    accepted: list[tuple[float, str]] = field(default_factory=list)
    updates: list[UpdateEntry] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[Event]:
        """Events of one kind, in order."""
        return [event for event in self.events if event.kind == kind]

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and dictionaries, ready for JSON."""
        return asdict(self)
