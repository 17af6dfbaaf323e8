"""The operator's view of a federation: everything a page or a terminal shows of it."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr_afuic.erasure.signatures import key_id
from flwr_afuic.report.state_requests import Issued, RequestView, check_certificates, request_views
from flwr_afuic.report.state_sites import (
    Refusal,
    SiteView,
    quarantined,
    site_views,
    staleness_counts,
)
from flwr_afuic.state.reading import StateView
from flwr_afuic.state.rows import PurgeRow
from flwr_afuic.state.survey import Survey, survey

_RUN_ROWS = {
    "run-started": "a new federation began",
    "run-resumed": "a server went on",
    "restored": "restored from a backup",
    "key-rotated": "the signing key was changed",
    "lock-dropped": "a relearning lock was dropped",
    "ledger-alarm": "a site has seen another ledger",
}


@dataclass(frozen=True)
class Use:
    """What a part of the state directory takes on disk."""

    what: str
    files: int
    bytes: int


@dataclass(frozen=True)
class Occasion:
    """Something that happened to the server itself: a start, a restored backup, a new key."""

    wall: float
    what: str
    details: str
    kind: str


@dataclass(frozen=True)
class Alarm:
    """A site whose copy of the ledger's head contradicts the ledger."""

    wall: float
    site: str
    problem: str


@dataclass(frozen=True)
class StateReport:
    """A federation at one moment.

    Attributes
    ----------
    at : float
        When it was looked at, in seconds since the epoch.
    survey : Survey
        What was read, and what could not be.
    accepted, dropped : Counter
        Updates by staleness in versions: those accepted, and those dropped for it.
    free : int or None
        Free bytes on the disk.
    """

    at: float
    survey: Survey
    requests: list[RequestView]
    sites: list[SiteView]
    quarantined: list[Refusal]
    accepted: Counter[int]
    dropped: Counter[int]
    certificates: list[Issued]
    occasions: list[Occasion]
    alarms: list[Alarm]
    disk: list[Use]
    free: int | None

    @property
    def view(self) -> StateView:
        """What lies in the directory."""
        return self.survey.view

    @property
    def version(self) -> int | None:
        """The newest version, None before there is one."""
        return self.view.versions[-1].number if self.view.versions else None

    @property
    def round(self) -> int | None:
        """The newest version's round."""
        return self.view.versions[-1].round if self.view.versions else None

    @property
    def open_requests(self) -> list[RequestView]:
        """Requests that still move."""
        return [request for request in self.requests if request.open]

    @property
    def ordered(self) -> list[RequestView]:
        """The open requests as they came in, then the closed ones, the newest first."""
        closed = [request for request in self.requests if not request.open]
        return [*self.open_requests, *reversed(closed)]

    @property
    def short(self) -> dict[str, str]:
        """The requests' ids, cut to as many of their first characters as tell them apart."""
        ids = {request.standing.id for request in self.requests}
        length = next((n for n in (8, 13, 18) if len({i[:n] for i in ids}) == len(ids)), 36)
        return {name: name[:length] for name in ids}

    @property
    def key(self) -> str:
        """Id of the server's key in use; empty where there is none."""
        keys = self.view.public_keys
        return key_id(keys[-1]) if keys else ""

    @property
    def erased(self) -> list[PurgeRow]:
        """Files that were deleted because of an erasure."""
        return [row for row in self.view.purges if row.request_id]

    @property
    def outdated(self) -> list[PurgeRow]:
        """Files that were deleted because newer ones had replaced them."""
        return [row for row in self.view.purges if not row.request_id]


def read_report(directory: str | Path, *, now: float | None = None) -> StateReport:
    """Look at a state directory, whether a server runs on it or not; nothing is written.

    Parameters
    ----------
    directory : path
        The state directory.
    now : float, optional
        Seconds since the epoch; the present by default.

    Raises
    ------
    StateError
        If there is no state directory, or it is of another version of this program.
    """
    return make_report(survey(directory), time.time() if now is None else now)


def make_report(found: Survey, now: float) -> StateReport:
    """Put together what a survey found."""
    view = found.view
    requests = request_views(view)
    accepted, dropped = staleness_counts(view.updates)
    return StateReport(
        at=now,
        survey=found,
        requests=requests,
        sites=site_views(view, _standings(requests)),
        quarantined=quarantined(view),
        accepted=accepted,
        dropped=dropped,
        certificates=check_certificates(view),
        occasions=_occasions(view),
        alarms=_alarms(view),
        disk=_disk(view),
        free=_free(view.directory),
    )


_OUT = {
    "completed": "left: its data was erased",
    "completed-unverified": "left: its data was erased",
    "failed": "out: its erasure failed",
    "held": "out: its erasure is held",
}


def _standings(requests: Iterable[RequestView]) -> dict[str, str]:
    """Say of each site that does not train why: the rule of the engine, for reading."""
    found: dict[str, str] = {}
    for request in requests:
        site = request.standing.site
        if request.state in ("waiting", "cancelled", "refused"):
            continue
        if request.standing.scope == "client":
            found[site] = _OUT.get(request.state, "out: its erasure is under way")
        elif request.state in ("received", "dispatched"):
            found.setdefault(site, "pauses until it has unlearned")
    return found


def _occasions(view: StateView) -> list[Occasion]:
    found = []
    for row in view.ledger:
        if row.kind in _RUN_ROWS and row.kind != "ledger-alarm":
            found.append(Occasion(row.time, _RUN_ROWS[row.kind], _details(row.body), row.kind))
    return found


def _details(body: dict[str, Any]) -> str:
    if "version" in body:
        return f"from version {body['version']}, round {body.get('round', 0)}"
    if isinstance(body.get("new"), str) and isinstance(body.get("old"), str):
        return f"{body['old'][:8]}... gave way to {body['new'][:8]}..."
    return ""


def _alarms(view: StateView) -> list[Alarm]:
    return [
        Alarm(row.time, str(row.body.get("site", "")), str(row.body.get("problem", "")))
        for row in view.ledger
        if row.kind == "ledger-alarm"
    ]


def _disk(view: StateView) -> list[Use]:
    folder = view.directory
    database = [
        path
        for suffix in ("", "-wal", "-shm")
        if (path := folder / f"state.sqlite{suffix}").exists()
    ]
    uses = [
        Use("database", len(database), sum(_size(path) for path in database)),
        Use("models and deltas", len(view.weights), sum(view.weights.values())),
    ]
    for name in ("certificates", "keys"):
        files = [path for path in sorted((folder / name).rglob("*")) if path.is_file()]
        uses.append(Use(name, len(files), sum(_size(path) for path in files)))
    return uses


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # a running server was faster


def _free(directory: Path) -> int | None:
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return None
