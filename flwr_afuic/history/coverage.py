"""Which rounds of a forgotten site a correction removed, and which it could not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

GAP_WORDS = {
    "not-drawn": "not drawn by user sparsification",
    "lost": "lost before it was encoded",
    "purged": "deleted earlier",
    "retired": "older than the history is kept",
    "damaged": "damaged",
    "missing": "missing",
}
"""Why a round of a site removed nothing."""


@dataclass(frozen=True)
class Gap:
    """A round of a site that removed nothing.

    Attributes
    ----------
    site : str
        Whose.
    window, round : int
        Which.
    why : str
        A key of :data:`GAP_WORDS`.
    text : str
        More of it, where there is more to say.
    """

    site: str
    window: int
    round: int
    why: str
    text: str = ""


@dataclass
class Coverage:
    """What a correction was made from.

    Attributes
    ----------
    used : Counter of str
        Windows of each forgotten site that were removed, those of an earlier, sealed deletion and
        those without any deviation included.
    sealed : Counter of str
        How many of them an earlier deletion's sum stands in for.
    gaps : list of Gap
        The others. With the user rule ``sampled``, rounds that were not drawn are made up for, on
        average, by those that were.
    sealed_error : float
        Largest relative error of a sealed window's weight; 0 if the sealed sum is exact.
    """

    used: Counter[str] = field(default_factory=Counter)
    sealed: Counter[str] = field(default_factory=Counter)
    gaps: list[Gap] = field(default_factory=list)
    sealed_error: float = 0.0

    @property
    def sites(self) -> set[str]:
        """Sites that took part in some window."""
        return set(self.used) | {gap.site for gap in self.gaps}

    @property
    def share(self) -> float:
        """Share of the forgotten sites' windows that were removed; 1 if there were none."""
        total = self.used.total() + len(self.gaps)
        return self.used.total() / total if total else 1.0

    @property
    def damaged(self) -> list[Gap]:
        """Records that could not be read, with client and round."""
        return [gap for gap in self.gaps if gap.why in ("damaged", "missing", "lost")]

    def summary(self) -> list[str]:
        """Return one line a site: rounds removed, and why the others were not."""
        lines = []
        for site in sorted(self.sites):
            gaps = [gap for gap in self.gaps if gap.site == site]
            line = f"{site}: {self.used[site]} of {self.used[site] + len(gaps)} rounds removed"
            for why, words in GAP_WORDS.items():
                rounds = [str(gap.round) for gap in gaps if gap.why == why]
                if rounds:
                    line += f"; {words}: {', '.join(rounds)}"
            if self.sealed[site]:
                line += f"; {self.sealed[site]} of them by an earlier deletion's sum"
            lines.append(line)
        return lines
