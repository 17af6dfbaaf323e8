"""Small inline SVG figures: sharp at any size, in the page's own colours, light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from flwr_afuic.report.look import printable

Point = tuple[float, float]


class Svg:
    """Collects shapes; every text is escaped, every look is a class of the page's style.

    Parameters
    ----------
    width, height : float
        In pixels of the page, before it is scaled to its place.
    label : str
        What the figure shows, for those who cannot see it.
    """

    def __init__(self, width: float, height: float, label: str) -> None:
        self.width, self.height = width, height
        self._label = label
        self._parts: list[str] = []

    def line(self, a: Point, b: Point, look: str) -> None:
        """Draw a straight line."""
        self._add(f'<path class="{look}" d="M{_xy(a)}L{_xy(b)}"/>')

    def path(self, points: Sequence[Point], look: str) -> None:
        """Draw a line through points."""
        if len(points) > 1:
            self._add(f'<path class="{look}" d="M{"L".join(_xy(p) for p in points)}"/>')

    def box(self, a: Point, b: Point, look: str, title: str = "") -> None:
        """Draw a filled rectangle between two corners, with words shown on hovering."""
        x, y = min(a[0], b[0]), min(a[1], b[1])
        wide, tall = abs(b[0] - a[0]), abs(b[1] - a[1])
        shape = f'x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}"'
        self._add(f'<rect class="{look}" {shape}>{_title(title)}</rect>')

    def dot(self, at: Point, look: str, title: str = "", radius: float = 3.2) -> None:
        """Draw a circle, with words shown on hovering."""
        place = f'cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius:g}"'
        self._add(f'<circle class="{look}" {place}>{_title(title)}</circle>')

    def text(self, at: Point, words: str, look: str = "", anchor: str = "start") -> None:
        """Write words."""
        self._add(
            f'<text class="{look}" x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}">'
            f"{escape(printable(words))}</text>"
        )

    def render(self) -> Markup:
        """Return the figure as markup."""
        label = escape(printable(self._label))
        head = (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{label}" '
            'xmlns="http://www.w3.org/2000/svg">'
        )
        # Each part was escaped where it was made.
        return Markup(f"{head}{''.join(self._parts)}</svg>")  # noqa: S704

    def _add(self, part: str) -> None:
        self._parts.append(part)


class Frame:
    """Where data lie in a figure: maps values to pixels.

    Parameters
    ----------
    x, y : (float, float)
        The values at the edges; a range without width is widened.
    left, right, top, bottom : float
        The edges in pixels.
    """

    def __init__(
        self, x: Point, y: Point, *, left: float, right: float, top: float, bottom: float
    ) -> None:
        self.x, self.y = _widened(x), _widened(y)
        self.left, self.right, self.top, self.bottom = left, right, top, bottom

    def at(self, x: float, y: float) -> Point:
        """Return the pixel of a value."""
        return self.across(x), self.up(y)

    def across(self, x: float) -> float:
        """Return the horizontal pixel of a value."""
        low, high = self.x
        return self.left + (x - low) / (high - low) * (self.right - self.left)

    def up(self, y: float) -> float:
        """Return the vertical pixel of a value, kept inside."""
        low, high = self.y
        share = min(max((y - low) / (high - low), 0.0), 1.0)
        return self.bottom - share * (self.bottom - self.top)


def ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Return at most about ``most`` round values from ``low`` to ``high``.

    Examples
    --------
    >>> ticks(0, 57, 6, whole=True)
    [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]
    """
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    step = 10.0 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if span / (step * factor) <= most)
    if whole:
        step = max(1.0, round(step))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(step * k, 10) for k in range(first, last + 1)]


def _widened(edges: Point) -> Point:
    low, high = edges
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _xy(point: Point) -> str:
    return f"{point[0]:.1f} {point[1]:.1f}"


def _title(words: str) -> str:
    return f"<title>{escape(printable(words))}</title>" if words else ""
