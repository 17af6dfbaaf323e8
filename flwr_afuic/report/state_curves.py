"""The resurfacing curve of an erasure: loss and accuracy on the erased data over versions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from flwr_afuic.report.state_requests import RequestView, Scored
from flwr_afuic.report.svg import Frame, Svg, ticks
from flwr_afuic.report.svg_axes import grid
from flwr_afuic.unlearning.level import ForgetScore

_WIDTH = 430.0
"""Pixels: half a page, or a telephone."""


def figure_accuracy(request: RequestView, width: float = _WIDTH) -> Markup:
    """Draw the accuracy on the erased data over versions, beside the forget level."""
    level = request.level
    limit = None if level is None else level.accuracy
    values = [(entry, entry.score.accuracy) for entry in request.scores]
    around = _around(request)
    before = [] if around is None else [(around[0], around[1].accuracy, around[2].accuracy)]
    label = f"{request.score_name} on the erased data"
    return _curve(request, label, values, before, limit, width, above=False, top=1.0)


def figure_loss(request: RequestView, width: float = _WIDTH) -> Markup:
    """Draw the loss on the erased data over versions, beside the forget level."""
    level = request.level
    limit = None if level is None else level.loss
    values = [(entry, entry.score.loss) for entry in request.scores]
    around = _around(request)
    before = [] if around is None else [(around[0], around[1].loss, around[2].loss)]
    finite = [value for _, value in values if math.isfinite(value)]
    finite += [x for _, *pair in before for x in pair if math.isfinite(x)]
    top = 1.15 * max([*finite, 0.1, *([limit] if limit and math.isfinite(limit) else [])])
    label = "loss on the erased data, in nats"
    return _curve(request, label, values, before, limit, width, above=True, top=top)


def _around(request: RequestView) -> tuple[int, ForgetScore, ForgetScore] | None:
    """Return the base version of the last attempt, and the scores before and after it."""
    record = request.record
    if record is None or not record.evidence or record.base_version is None:
        return None
    evidence = record.evidence[-1]
    return record.base_version, evidence.before, evidence.after


def _curve(
    request: RequestView,
    label: str,
    values: Sequence[tuple[Scored, float]],
    before: Sequence[tuple[int, float, float]],
    limit: float | None,
    width: float,
    *,
    above: bool,
    top: float,
) -> Markup:
    site = request.standing.site
    svg = Svg(width, 200, f"Erasure at {site}: {label}, over versions")
    svg.text((0, 12), label, "axis")
    versions = [entry.version for entry, _ in values] + [version for version, *_ in before]
    merges = [step.version for step in (request.record.history if request.record else [])
              if step.state == "merged"]  # fmt: skip
    if not versions:
        svg.text((width / 2, 100), "not scored yet", "note", "middle")
        return svg.render()
    low, high = min([*versions, *merges]), max([*versions, *merges])
    room = 0.03 * (high - low)
    frame = Frame(
        (low - room, high + room), (0, top), left=40, right=width - 10, top=26, bottom=164
    )
    if limit is not None:
        edge = frame.top if above else frame.bottom
        svg.box((frame.left, frame.up(limit)), (frame.right, edge), "met")
    grid(svg, frame, ticks(0, top, 4))
    if limit is not None:
        y, words = frame.up(limit), f"level: at {'least' if above else 'most'} {limit:.2f}"
        svg.line((frame.left, y), (frame.right, y), "limit")
        svg.text((frame.right, 12), words, "limit-name", "end")
    for tick in ticks(*frame.x, 6, whole=True):
        svg.text((frame.across(tick), 180), f"{tick:g}", "tick", "middle")
    svg.text(((frame.left + frame.right) / 2, 196), "version", "axis", "middle")
    for version in merges:
        x = frame.across(version)
        svg.line((x, frame.top), (x, frame.bottom), "mark")
    for version, old, new in before:
        svg.path([frame.at(version, old), frame.at(version, new)], "thread")
        svg.dot(frame.at(version, old), "old", f"before unlearning: {old:.3f}")
        svg.dot(frame.at(version, new), "new", f"after unlearning, at the site: {new:.3f}")
    svg.path([frame.at(entry.version, _capped(value, top)) for entry, value in values], "curve")
    for entry, value in values:
        look = "point" if entry.met else "point missed" if entry.met is False else "point plain"
        met = {True: "level met", False: "level not met", None: "no level"}[entry.met]
        told = f"version {entry.version}: {value:.3f}, {met}, {entry.score.count} samples"
        svg.dot(frame.at(entry.version, _capped(value, top)), look, told)
    return svg.render()


def _capped(value: float, top: float) -> float:
    return value if math.isfinite(value) else top
