"""Axes and legends of the small SVG figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flwr_afuic.report.svg import Frame, Svg
from flwr_afuic.report.times import moment

LETTER = 6.7
"""Pixels of a letter, about."""
_STEPS = [
    *(n * unit for unit in (1.0, 60.0) for n in (1, 2, 5, 10, 15, 30)),
    *(n * 3600.0 for n in (1, 2, 3, 6, 12)),
    *(n * 86400.0 for n in (1, 2, 5, 10, 30, 90, 365)),
]
"""Seconds from one named time to the next."""


def grid(svg: Svg, frame: Frame, values: Sequence[float]) -> None:
    """Draw a line across at each value, and name it at the left."""
    for value in values:
        y = frame.up(value)
        svg.line((frame.left, y), (frame.right, y), "grid")
        svg.text((frame.left - 7, y + 4), f"{value:g}", "tick", "end")


def time_axis(svg: Svg, frame: Frame) -> None:
    """Write times below a figure: as many as there is room for, as fine as they differ."""
    low, high = frame.x
    room = (frame.right - frame.left) / 92
    step = next((s for s in _STEPS if (high - low) / s <= room), (high - low) / 4)
    dated = False
    for k in range(math.ceil(low / step), math.floor(high / step) + 1):
        at = k * step
        text = moment(at)
        clock = text[11:16] if step >= 60 else text[11:]
        words = text[:10] if step >= 86400 or not dated else clock
        if step < 86400 and not dated:
            words = f"{text[:10]} {clock}"
        x = frame.across(at)
        wide = len(words) * 3.3
        anchor = "start" if x - wide < 0 else "end" if x + wide > frame.right + 12 else "middle"
        svg.line((x, frame.bottom), (x, frame.bottom + 4), "tickmark")
        svg.text((x, frame.bottom + 18), words, "tick", anchor)
        dated = True
    svg.text((frame.right, frame.bottom + 35), "UTC", "axis", "end")


def legend(svg: Svg, entries: Sequence[tuple[str, str]]) -> None:
    """Name the looks at the top right."""
    x = svg.width - 12
    for look, words in reversed(entries):
        svg.text((x, 12), words, "tick", "end")
        x -= LETTER * len(words) + 24
        if look == "spot":
            svg.dot((x + 8, 8), look)
        elif look.startswith("bar"):
            svg.box((x + 2, 3), (x + 13, 13), look)
        else:
            svg.line((x, 8), (x + 14, 8), look)
        x -= 14
