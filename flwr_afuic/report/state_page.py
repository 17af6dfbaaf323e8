"""The operator's view as one HTML file: no network, no script, no other file."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from flwr_afuic.errors import ConfigError
from flwr_afuic.report.figures import prepare_folder
from flwr_afuic.report.look import printable, shorten
from flwr_afuic.report.state_attention import headline, notices, waited
from flwr_afuic.report.state_curves import figure_accuracy, figure_loss
from flwr_afuic.report.state_figures import (
    figure_arrivals,
    figure_scores,
    figure_staleness,
    figure_versions,
    score_curves,
)
from flwr_afuic.report.state_requests import STATES, RequestView
from flwr_afuic.report.state_sites import FATES
from flwr_afuic.report.state_view import StateReport
from flwr_afuic.report.times import minute, moment, moment_of, size

PAGE = "federation.html"
_MOST = 50
"""Rows shown of a list that only grows."""
_UNFOLDED = 4
_CHARTED = 60

_LIMITS = (
    "Scores on erased data come from the sites themselves: verification rests on their word.",
    "A met forget level is empirical evidence, no guarantee: another test might find a trace.",
    "Models are not read here, only their files counted. To check every byte of them: flwr-afuic "
    "ledger verify --state DIR.",
    "A ledger that was rewritten by somebody who holds the server's key is consistent in itself. "
    "The heads that sites keep show it: flwr-afuic ledger verify --head FILE.",
    "What is outside this directory: copies at sites, released models, backups, and Flower's own "
    "database.",
    "This page is a moment: a running server has gone on since.",
)


def write_state_page(report: StateReport, out_dir: str | Path) -> Path:
    """Write ``federation.html`` and return its path.

    Parameters
    ----------
    report : StateReport
        The federation.
    out_dir : str or Path
        A folder outside the state directory; made if missing.

    Raises
    ------
    ConfigError
        If the folder is inside the state directory, or cannot be made or written to.
    """
    folder = Path(out_dir)
    if folder.resolve().is_relative_to(report.view.directory.resolve()):
        raise ConfigError(
            f"{folder} is inside the state directory, which a report leaves as it is; name "
            "another folder with --out"
        )
    page = prepare_folder(folder) / PAGE
    try:
        page.write_text(render_state(report), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write the report to {page}: {error.strerror}; name a folder with room and "
            "the right to write"
        ) from error
    return page


def render_state(report: StateReport) -> str:
    """Return the page as text."""
    source = resources.files("flwr_afuic.report").joinpath("state.html")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters.update(
        named=_named, minute=minute, moment=moment, moment_of=moment_of, size=size
    )
    return environment.from_string(source.read_text(encoding="utf-8")).render(**_context(report))


def _shown(value: object) -> object:
    """Take control characters out of every text, wherever it comes from."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else printable(value)


def _named(name: object) -> str:
    return shorten(str(name), 30)


def _context(report: StateReport) -> dict[str, Any]:
    return {
        "report": report,
        "view": report.view,
        "head": headline(report),
        "notices": notices(report),
        "tiles": _tiles(report),
        "short": report.short,
        "ordered": report.ordered,
        "erasures": [row for row in reversed(report.view.versions) if row.cause == "erasure"],
        "unfolded": _unfolded(report),
        "charted": _charted(report),
        "refused": _refused(report),
        "purged": _purged(report),
        "fates": FATES,
        "most": _MOST,
        "limits": _LIMITS,
        "waited": waited,
        "merged": _merged,
        "certificate": _certificate,
        "broken": _broken,
        "state_name": lambda state: STATES.get(str(state), ("", str(state), ""))[1],
        "figure_versions": figure_versions,
        "figure_staleness": figure_staleness,
        "figure_arrivals": figure_arrivals,
        "figure_scores": figure_scores,
        "scores": score_curves(report),
        "figure_accuracy": figure_accuracy,
        "figure_loss": figure_loss,
    }


def _tiles(report: StateReport) -> list[tuple[object, str]]:
    moving = len(report.open_requests)
    closed = len(report.requests) - moving
    merged = sum(row.cause == "erasure" for row in report.view.versions)
    accepted = sum(site.fates["accepted"] for site in report.sites)
    return [
        ("–" if report.version is None else report.version, "newest version"),
        ("–" if report.round is None else report.round, "round"),
        (len(report.sites), "sites"),
        (moving, f"open requests, {closed} closed"),
        (merged, "erasures merged"),
        (accepted, "updates accepted"),
    ]


def _unfolded(report: StateReport) -> list[RequestView]:
    """Return the requests to show unfolded: those that ask for somebody, a few at most."""
    wanted = [r for r in report.requests if r.state in ("held", "failed") or r.damage]
    wanted += [r for r in report.open_requests if r not in wanted]
    if len(report.requests) <= _UNFOLDED:
        return list(report.requests)
    return wanted[:_UNFOLDED]


def _charted(report: StateReport) -> list[RequestView]:
    """Return the requests whose curves are drawn: all, or the open and the newest ones."""
    drawable = [
        r for r in report.requests if r.scores or (r.record is not None and r.record.evidence)
    ]
    older = len(drawable) - _CHARTED
    return [r for index, r in enumerate(drawable) if r.open or index >= older]


def _merged(request: RequestView) -> str:
    standing = request.standing
    if standing.base_version is None:
        return "–"
    if standing.merge_version is None:
        return f"from {standing.base_version}"
    return f"{standing.base_version} → {standing.merge_version}"


def _certificate(request: RequestView) -> str:
    if not request.certificates:
        return "–"
    newest = request.certificates[-1]
    return f"{'✗' if newest.problems else '✓'} issue {newest.row.issue}"


def _broken(request: RequestView) -> bool:
    return any(issued.problems for issued in request.certificates)


def _refused(report: StateReport) -> list[tuple[float, str, str, str]]:
    """Return refused requests from the ledger, the newest first: time, site, id, why."""
    return [
        (row.time, *(str(row.body.get(name, "")) for name in ("site", "request", "why")))  # type: ignore[misc]
        for row in reversed(report.view.ledger)
        if row.kind == "refused"
    ]


@dataclass
class _Group:
    """The files deleted for one request."""

    request_id: str
    wall: float = 0.0
    files: int = 0
    bytes: int = 0
    waiting: int = 0
    records: int = 0
    purposes: list[str] = field(default_factory=list)

    @property
    def what(self) -> str:
        """What the files held: models of which versions, and what else."""
        versions = sorted(
            int(number)
            for kind, _, number in (purpose.partition("/") for purpose in self.purposes)
            if kind == "version" and number.isdecimal()
        )
        words = []
        if versions:
            some = ", ".join(str(number) for number in versions[:12])
            more = f" and {len(versions) - 12} more" if len(versions) > 12 else ""
            words.append(f"model{'s' if len(versions) > 1 else ''} of version {some}{more}")
        if self.records:
            words.append(f"{self.records} stored updates of the site")
        kinds = {purpose.partition("/")[0] for purpose in self.purposes} - {"version"}
        return "; ".join([*words, *(_HELD.get(kind, kind) for kind in sorted(kinds))])


_HELD = {
    "snapshot": "the model a site was to unlearn from",
    "delta": "a site's change",
    "lock": "a direction of the lock",
}


def _purged(report: StateReport) -> list[_Group]:
    """Return the files deleted because of erasures, by request, the newest first."""
    groups: dict[str, _Group] = {}
    for row in report.erased:
        group = groups.setdefault(row.request_id, _Group(row.request_id))
        group.files += 1
        group.bytes += row.bytes
        group.wall = max(group.wall, row.wall)
        group.waiting += not row.done
        group.purposes += row.purposes
    for entry in report.view.ledger:
        if entry.kind == "purge-history":
            request_id = str(entry.body.get("request", ""))
            group = groups.setdefault(request_id, _Group(request_id))
            group.wall = max(group.wall, entry.time)
            group.records += _count(entry.body.get("records"))
            group.bytes += _count(entry.body.get("bytes"))
    return list(reversed(groups.values()))


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0
