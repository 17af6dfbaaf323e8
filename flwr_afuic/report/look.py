"""Names, colours and small drawing helpers that every figure shares.

Colours are those of Okabe and Ito, which stay apart for colour-blind readers; dashes and
widths carry the same distinction for print in grey.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK = "#1f2933"
MUTED = "#66727f"
FAINT = "#e3e8ed"
WIDTH = 9.0  # inches; at DPI this is 1800 pixels, sharp when shown 900 wide
DPI = 200


@dataclass(frozen=True, slots=True)
class Stroke:
    """How the line of one model is drawn, and what it is called beside it."""

    label: str
    colour: str
    width: float = 1.8
    dashes: str | tuple[float, tuple[float, ...]] = "-"
    order: int = 3


STROKES = {
    "original": Stroke("Original", "#2b3440", 1.4, (0, (3, 2)), 6),
    "no_unlearning": Stroke("No unlearning", "#d55e00"),
    "retrain": Stroke("Retrained", "#009e73", 2.0, "-", 4),
    "retrain_floor": Stroke("Retrained again", "#8ccfb9", 1.4, "-", 1),
    "afuic": Stroke("AFU-IC", "#0072b2", 2.6, "-", 5),
}
_SPARE = ("#cc79a7", "#e69f00", "#56b4e9", "#7a5195")


def stroke(model: str, index: int = 0) -> Stroke:
    """Return the stroke of a model; models beyond the usual five share spare colours."""
    known = STROKES.get(model)
    return known or Stroke(model_name(model), _SPARE[index % len(_SPARE)], 1.4, (0, (1, 1.2)))


def model_name(model: str) -> str:
    """Return what a model is called in tables and figures."""
    known = STROKES.get(model)
    return known.label if known else shorten(model.replace("_", " "), 22)


def printable(text: str) -> str:
    """Replace control characters, which terminals and fonts would act upon, by a space."""
    return "".join(c if c.isprintable() else " " for c in text)


def shorten(text: str, limit: int = 20) -> str:
    """Return printable text of at most ``limit`` characters."""
    text = printable(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def blank_figure(height: float, title: str, subtitle: str) -> Figure:
    """Return a white figure of the shared width with a title and a line below it."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(
        0.02, 1 - 0.14 / height, title,
        fontsize=13.5, fontweight="bold", color=INK, va="top", parse_math=False,
    )  # fmt: skip
    figure.text(
        0.02, 1 - 0.42 / height, subtitle,
        fontsize=9.5, color=MUTED, va="top", parse_math=False,
    )  # fmt: skip
    return figure


def say_empty(figure: Figure, words: str) -> None:
    """Write in the middle of a figure why there is nothing to draw."""
    figure.text(0.5, 0.42, words, ha="center", va="center", fontsize=12, color=MUTED)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and return its path."""
    figure.savefig(path, format="png", dpi=DPI, facecolor="white")
    return path


def spread(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart to at least ``gap``, each near where it wants to be.

    Neighbours closer than ``gap`` are merged into groups centred on their mean, which keeps
    the order and the total displacement small; groups are kept within ``low`` and ``high``
    as far as there is room.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    groups: list[list[int]] = []
    centres: list[float] = []
    for index in order:
        groups.append([index])
        centres.append(_inside(wanted[index], gap, 1, low, high))
        while len(groups) > 1 and _overlap(groups, centres, gap):
            last = groups.pop()
            centres.pop()
            groups[-1] += last
            mean = sum(wanted[i] for i in groups[-1]) / len(groups[-1])
            centres[-1] = _inside(mean, gap, len(groups[-1]), low, high)
    placed = [0.0] * len(wanted)
    for members, centre in zip(groups, centres, strict=True):
        for rank, index in enumerate(members):
            placed[index] = centre + (rank - (len(members) - 1) / 2) * gap
    return placed


def _inside(centre: float, gap: float, count: int, low: float, high: float) -> float:
    half = (count - 1) / 2 * gap
    return max(low + half, min(high - half, centre))


def _overlap(groups: list[list[int]], centres: list[float], gap: float) -> bool:
    reach = (len(groups[-1]) + len(groups[-2])) / 2 * gap
    return centres[-1] - centres[-2] < reach - 1e-12
