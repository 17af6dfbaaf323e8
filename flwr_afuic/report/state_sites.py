"""The sites of a federation as the operator's view shows them, and how stale their updates were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr_afuic.state.reading import StateView

FATES = ("accepted", "stale", "refused", "quarantined")
_SPOKE = frozenset(
    {"unlearned", "verified", "quarantined", "stale", "update-refused", "refused-request"}
)
"""Events that begin with a message of the site's."""


@dataclass
class SiteView:
    """One site.

    Attributes
    ----------
    standing : str
        Whether it trains, in words.
    heard : float
        When it last said something, in seconds since the epoch; 0 if never.
    fates : Counter
        Its updates by what became of them.
    examples : int
        Training examples of its accepted updates, as the site says.
    staleness : list of int
        Of its accepted and of its stale updates, in versions.
    row_of_bad : int
        How many of its newest updates, one after the other, were quarantined.
    why_bad : str
        The reason of the newest of them.
    """

    name: str
    standing: str = "trains"
    heard: float = 0.0
    fates: Counter[str] = field(default_factory=Counter)
    examples: int = 0
    share: float | None = None
    staleness: list[int] = field(default_factory=list)
    row_of_bad: int = 0
    why_bad: str = ""

    @property
    def mean_staleness(self) -> float | None:
        """Mean staleness in versions, or None without updates."""
        return sum(self.staleness) / len(self.staleness) if self.staleness else None


@dataclass(frozen=True)
class Refusal:
    """A message of a site that was kept out: when, at which version, and why."""

    wall: float
    version: int
    site: str
    reason: str


def site_views(view: StateView, standing: Mapping[str, str]) -> list[SiteView]:
    """Return every site on record, by name; ``standing`` says which ones do not train."""
    found: dict[str, SiteView] = {}

    def site(name: object) -> SiteView:
        return found.setdefault(str(name), SiteView(str(name)))

    for version in view.versions:
        for name in version.sites:
            site(name)
    for row in view.requests:
        site(row.site)
    for update in view.updates:
        _count(site(update["site"]), update)
    for event in view.events:
        if event["site"] and event["kind"] in _SPOKE:
            one = site(event["site"])
            one.heard = max(one.heard, float(event["wall"]))
    total = sum(one.examples for one in found.values())
    for one in found.values():
        one.share = one.examples / total if total else None
        one.standing = standing.get(one.name, "trains" if one.fates else "has sent no update")
    return [found[name] for name in sorted(found) if name]


def _count(site: SiteView, update: Mapping[str, Any]) -> None:
    fate = str(update["fate"])
    site.fates[fate] += 1
    site.heard = max(site.heard, float(update["wall"]))
    if fate == "accepted":
        site.examples += max(0, int(update["examples"]))
    if fate in ("accepted", "stale"):
        site.staleness.append(int(update["staleness"]))
    if fate == "quarantined":
        site.row_of_bad += 1
        site.why_bad = str(update["reason"])
    else:
        site.row_of_bad = 0


def staleness_counts(updates: Iterable[Mapping[str, Any]]) -> tuple[Counter[int], Counter[int]]:
    """Return how many updates came how stale: those accepted, and those dropped for it."""
    accepted: Counter[int] = Counter()
    dropped: Counter[int] = Counter()
    for update in updates:
        counts = {"accepted": accepted, "stale": dropped}.get(str(update["fate"]))
        if counts is not None:
            counts[max(0, int(update["staleness"]))] += 1
    return accepted, dropped


def quarantined(view: StateView) -> list[Refusal]:
    """Return every message that was quarantined, updates and others, oldest first."""
    return [
        Refusal(
            float(event["wall"]), int(event["version"]), str(event["site"]), _reason(event["text"])
        )
        for event in view.events
        if event["kind"] == "quarantined"
    ]


def _reason(text: object) -> str:
    """Return what was wrong, without what the engine does next about it."""
    return str(text).rsplit("; quarantined, ", 1)[0]
