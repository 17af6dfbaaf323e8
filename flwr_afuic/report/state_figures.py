"""The figures of the operator's view, as inline SVG: versions, scores, updates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from flwr_afuic.report.look import shorten
from flwr_afuic.report.state_view import StateReport
from flwr_afuic.report.svg import Frame, Point, Svg, ticks
from flwr_afuic.report.svg_axes import LETTER, grid, legend, time_axis
from flwr_afuic.report.times import known, moment_of
from flwr_afuic.state.rows import VersionRow

WIDE, NARROW = 860.0, 430.0
"""Pixels: the width of the page, and of a telephone or half the page."""
_MOST_POINTS = 900
_MOST_BARS = 26
_MOST_NAMES = 12


def figure_versions(report: StateReport, width: float = WIDE) -> Markup:
    """Draw the version over time, with every merged erasure and every start of a server."""
    versions = [row for row in report.view.versions if known(row.wall)]
    svg = Svg(width, 250, "Model versions over time")
    if len(versions) < 2:
        svg.text((width / 2, 125), "Too few versions with a known time.", "note", "middle")
        return svg.render()
    times = [row.wall for row in versions]
    frame = Frame(
        (min(times), max(times)), (versions[0].number, versions[-1].number),
        left=46, right=width - 12, top=44, bottom=212,
    )  # fmt: skip
    grid(svg, frame, ticks(*frame.y, 5, whole=True))
    time_axis(svg, frame)
    for occasion in report.occasions:
        inside = frame.x[0] <= occasion.wall <= frame.x[1]
        if inside and occasion.kind in ("run-resumed", "restored"):
            x = frame.across(occasion.wall)
            svg.line((x, frame.top - 6), (x, frame.bottom), "mark")
    svg.path(_stairs(frame, _thinned(versions)), "curve")
    _erasures(svg, frame, [row for row in versions if row.cause == "erasure"])
    svg.text((0, 12), "version", "axis")
    legend(svg, [("curve", "merges"), ("spot", "an erasure merged"), ("mark", "a server went on")])
    return svg.render()


def _erasures(svg: Svg, frame: Frame, rows: Sequence[VersionRow]) -> None:
    """Mark merged erasures; name the sites of those whose names have room above them."""
    free = frame.left
    for row in rows if len(rows) <= _MOST_NAMES else ():
        x = frame.across(row.wall)
        name = shorten(", ".join(row.sites), 18)
        half = len(name) * LETTER / 2
        at = min(max(x, frame.left + half), frame.right - half)
        if at - half >= free:
            svg.line((x, frame.up(row.number)), (x, frame.top - 9), "thread")
            svg.text((at, frame.top - 14), name, "name", "middle")
            free = at + half + 8
    for row in rows:
        told = f"version {row.number}: erasure of {', '.join(row.sites)}, {moment_of(row.wall)}"
        svg.dot(frame.at(row.wall, row.number), "spot", told, 4.4)


def _stairs(frame: Frame, versions: Sequence[VersionRow]) -> list[Point]:
    """Return the line of a number that stays until it rises."""
    points: list[Point] = []
    for row in versions:
        if points:
            points.append((frame.across(row.wall), points[-1][1]))
        points.append(frame.at(row.wall, row.number))
    return points


def _thinned(versions: Sequence[VersionRow]) -> list[VersionRow]:
    """Return versions evenly left out where there are more than a line can show."""
    step = math.ceil(len(versions) / _MOST_POINTS)
    return [*versions[::step], versions[-1]] if step > 1 else list(versions)


def figure_staleness(report: StateReport, width: float = NARROW) -> Markup:
    """Draw how many updates came how stale, those dropped for it in another colour."""
    accepted, dropped = report.accepted, report.dropped
    svg = Svg(width, 230, "Updates by staleness")
    if not accepted and not dropped:
        svg.text((width / 2, 115), "No update has come yet.", "note", "middle")
        return svg.render()
    most = max([*accepted, *dropped])
    size = math.ceil((most + 1) / _MOST_BARS)
    bars = list(_bars(accepted, dropped, most, size))
    frame = _draw_bars(svg, bars, "dropped")
    labelled = math.ceil(len(bars) * 22 * len(bars[-1][0]) / 3 / (frame.right - frame.left))
    for index in range(0, len(bars), labelled):
        svg.text((frame.across(index + 0.5), 203), bars[index][0], "tick", "middle")
    svg.text(((frame.left + frame.right) / 2, 223), "staleness, in versions", "axis", "middle")
    return svg.render()


def figure_arrivals(report: StateReport, width: float = NARROW) -> Markup:
    """Draw how many updates came when, those that were not accepted in another colour."""
    svg = Svg(width, 230, "Updates over time")
    updates = [u for u in report.view.updates if known(u["wall"])]
    if len(updates) < 2:
        svg.text((width / 2, 115), "Too few updates have come yet.", "note", "middle")
        return svg.render()
    low, high = min(u["wall"] for u in updates), max(u["wall"] for u in updates)
    size = max((high - low) / _MOST_BARS, 1e-9)
    counts: list[Counter[bool]] = [Counter() for _ in range(_MOST_BARS)]
    for update in updates:
        place = min(int((update["wall"] - low) / size), _MOST_BARS - 1)
        counts[place][update["fate"] == "accepted"] += 1
    bars = [
        (f"from {moment_of(low + size * index)}", count[True], count[False])
        for index, count in enumerate(counts)
    ]
    frame = _draw_bars(svg, bars, "not accepted")
    time_axis(svg, Frame((low, high), (0, 1), left=frame.left, right=frame.right,
                          top=frame.top, bottom=frame.bottom))  # fmt: skip
    return svg.render()


def _draw_bars(svg: Svg, bars: Sequence[tuple[str, int, int]], lost_word: str) -> Frame:
    """Draw counts: of each bar its name, what was accepted, and what was not."""
    tallest = max(kept + lost for _, kept, lost in bars)
    frame = Frame((0, len(bars)), (0, tallest), left=46, right=svg.width - 6, top=38, bottom=186)
    grid(svg, frame, ticks(0, tallest, 4, whole=True))
    for index, (name, kept, lost) in enumerate(bars):
        told = f"{name}: {kept} accepted, {lost} {lost_word}"
        left, right = index + 0.12, index + 0.88
        if kept:
            svg.box(frame.at(left, 0), frame.at(right, kept), "bar", told)
        if lost:
            svg.box(frame.at(left, kept), frame.at(right, kept + lost), "bar lost", told)
    svg.text((0, 12), "updates", "axis")
    if any(lost for _, _, lost in bars):
        legend(svg, [("bar", "accepted"), ("bar lost", lost_word)])
    return frame


def _bars(
    accepted: Counter[int], dropped: Counter[int], most: int, size: int
) -> Iterator[tuple[str, int, int]]:
    kept: Counter[int] = Counter()
    lost: Counter[int] = Counter()
    for counts, sums in ((accepted, kept), (dropped, lost)):
        for staleness, count in counts.items():
            sums[staleness // size] += count
    for index in range(most // size + 1):
        low = index * size
        name = str(low) if size == 1 else f"{low}-{low + size - 1}"
        yield name, kept[index], lost[index]


def figure_scores(report: StateReport, width: float = WIDE) -> Markup:
    """Draw the accuracy measured at the server and at the sites over rounds, erasures marked."""
    svg = Svg(width, 230, "Accuracy over rounds")
    curves = score_curves(report)
    rounds = [round_ for points in curves.values() for round_, _ in points]
    values = [value for points in curves.values() for _, value in points]
    low, high = min(values), max(values)
    room = max(0.08 * (high - low), 0.02)
    frame = Frame((min(rounds), max(rounds)), (max(0.0, low - room), min(1.0, high + room)),
                  left=46, right=width - 12, top=38, bottom=186)  # fmt: skip
    grid(svg, frame, ticks(*frame.y, 4))
    for tick in ticks(*frame.x, 8, whole=True):
        svg.text((frame.across(tick), 203), f"{tick:g}", "tick", "middle")
    svg.text(((frame.left + frame.right) / 2, 223), "round", "axis", "middle")
    svg.text((0, 12), "accuracy", "axis")
    for row in report.view.versions:
        if row.cause == "erasure" and frame.x[0] <= row.round <= frame.x[1]:
            x = frame.across(row.round)
            svg.line((x, frame.top), (x, frame.bottom), "mark")
    looks = {"server-evaluate": "curve", "clients-evaluate": "curve other"}
    for source, points in curves.items():
        svg.path([frame.at(x, y) for x, y in points], looks[source])
    words = {"server-evaluate": "at the server", "clients-evaluate": "at the sites"}
    entries = [(looks[source], words[source]) for source in curves]
    legend(svg, [*entries, ("mark", "an erasure merged")])
    return svg.render()


def score_curves(report: StateReport) -> dict[str, list[tuple[int, float]]]:
    """Return the accuracy over rounds, by who measured it; empty where nobody did."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in report.view.metrics:
        known = row.source in ("server-evaluate", "clients-evaluate")
        if known and row.name == "accuracy" and math.isfinite(row.value):
            found.setdefault(row.source, []).append((row.round, row.value))
    return {source: points for source, points in found.items() if len(points) > 1}
