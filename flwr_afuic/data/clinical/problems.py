"""What is wrong with a clinical table: every bad row at once, in one report."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong with one row.

    Parameters
    ----------
    line : int
        Line of the table, the header being line 1.
    sample_id : str
        The row's sample; stays at the site.
    kind : str
        A stable word: ``missing``, ``unreadable``, ``shape``, ``affine``, ``label``,
        ``duplicate``, ``outside``, ``value``, ``empty``.
    text : str
        What was wrong, with which value, and what to do.
    """

    line: int
    sample_id: str
    kind: str
    text: str


@dataclass(frozen=True)
class Report:
    """The result of one validation.

    Parameters
    ----------
    rows : int
        Rows of the table.
    usable : int
        Rows that load.
    problems : tuple of Problem
        In the order of the table; a row may have several.
    """

    rows: int
    usable: int
    problems: tuple[Problem, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many problems there are of each kind; says nothing of any patient."""
        return dict(sorted(Counter(problem.kind for problem in self.problems).items()))

    def text(self) -> str:
        """Say it all, one line a problem."""
        head = f"{self.usable} of {self.rows} rows can be used"
        if not self.problems:
            return f"{head}; no problem was found"
        lines = [f"{head}; {len(self.problems)} problem(s):"]
        lines += [f"  line {p.line} ({p.sample_id}): {p.kind}: {p.text}" for p in self.problems]
        return "\n".join(lines)
