"""What the state directory's tables hold, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VersionRow:
    """One merge: ``time`` is seconds since the run's start, ``wall`` since the epoch."""

    number: int
    round: int
    time: float
    wall: float
    cause: str
    sites: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class RequestRow:
    """An erasure request as the engine stores it; ``body`` is any JSON object."""

    id: str
    site: str
    scope: str
    state: str
    count: int
    reason: str
    filed_at: float
    body: dict[str, Any]


@dataclass(frozen=True)
class Command:
    """What an operator asked of the server; ``outcome`` is None until it was dealt with."""

    id: str
    kind: str
    request_id: str
    site: str
    reason: str
    method: str
    note: str
    filed_at: float
    outcome: str | None
    done_at: float | None


@dataclass(frozen=True)
class PurgeRow:
    """A file of weights that was deleted, or is about to be (``done`` is False).

    ``purposes`` says what it was kept for, for example ``("model/12",)``.
    """

    digest: str
    file: str
    bytes: int
    purposes: tuple[str, ...]
    reason: str
    request_id: str
    wall: float
    done: bool


@dataclass(frozen=True)
class CertificateRow:
    """An issued certificate; ``file`` is the JSON document's name in ``certificates/``."""

    request_id: str
    issue: int
    file: str
    sha256: str
    wall: float


@dataclass(frozen=True)
class MetricRow:
    """One measured number; NaN where it was measured and is none."""

    round: int
    source: str
    name: str
    value: float
