"""What the tests of erasures share: three sites, and how to follow their requests."""

from __future__ import annotations

import numpy as np

from tests.erasure_helpers import (
    Site,
)

LIFE = ["received", "dispatched", "unlearned", "merged", "verifying", "completed"]


def closed(run) -> bool:
    """Stop once every request has come to its end."""
    book = run.hooks.book
    return len(book) > 0 and not any(record.open for record in book)


def three(**changes) -> list[Site]:
    return [Site(n, **changes) for n in range(3)]


def file_at(version, site, samples=(), number=1):
    return {version: lambda strategy: site.file(samples, number)}


def trained_after(outcome, site, event) -> list[float]:
    """Starts of the site's training tasks after the first event of a kind."""
    began = outcome.events(event)[0].time
    return [
        span.start
        for span in outcome.strategy.journal.spans
        if span.site == site and span.kind == "train" and span.start >= began
    ]


def margins(outcome, facts):
    direction = facts.delta / np.linalg.norm(facts.delta)
    return [
        float((outcome.models[v][0].astype(np.float64) - facts.after) @ direction)
        for v in outcome.models
        if v > facts.merge_version
    ]


def boom():
    raise RuntimeError("patient-0-1 is to blame")
