"""The PNG figures of a report: two scores over rounds, and who was busy when."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from flwr_afuic.errors import ConfigError
from flwr_afuic.report.look import (
    FAINT,
    INK,
    MUTED,
    Stroke,
    blank_figure,
    printable,
    save,
    say_empty,
    shorten,
    spread,
    stroke,
)
from flwr_afuic.report.record import MERGE, MODELS, REQUEST, RunRecord
from flwr_afuic.report.timeline import figure_timeline

Line = tuple[Stroke, list[float], list[float]]

_HALO = [patheffects.withStroke(linewidth=3, foreground="white")]
_LABEL_GAP = 0.072  # share of the axes' height between two labels


def figure_backdoor(record: RunRecord) -> Figure:
    """Draw backdoor success over rounds, one line a model, request and merge marked."""
    return _score_figure(
        record,
        "backdoor_success",
        "Backdoor success: does the erased site's influence come back?",
        "share of held-out images with the trigger that are answered as planted",
    )


def figure_test_score(record: RunRecord) -> Figure:
    """Draw the test score over rounds, one line a model, request and merge marked."""
    return _score_figure(
        record,
        "test_accuracy",
        "Test score: does the model stay good for everyone else?",
        "share of held-out images answered correctly; the axis is zoomed",
    )


def write_figures(record: RunRecord, out_dir: str | Path) -> dict[str, Path]:
    """Draw all figures.

    Parameters
    ----------
    record : RunRecord
        The run.
    out_dir : str or Path
        Folder for ``backdoor.png``, ``test_score.png`` and ``timeline.png``; made if missing.

    Returns
    -------
    dict
        Path of each figure under ``"backdoor"``, ``"test_score"`` and ``"timeline"``.

    Raises
    ------
    ConfigError
        The folder cannot be made.
    """
    folder = prepare_folder(out_dir)
    figures = {
        "backdoor": figure_backdoor(record),
        "test_score": figure_test_score(record),
        "timeline": figure_timeline(record),
    }
    return {name: save(figure, folder / f"{name}.png") for name, figure in figures.items()}


def prepare_folder(out_dir: str | Path) -> Path:
    """Make the folder of a report; raises ConfigError in one line where that fails."""
    folder = Path(out_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write the report to {folder}: {error.strerror}; name a folder that can be made"
        ) from error
    return folder


def _score_figure(record: RunRecord, metric: str, title: str, what: str) -> Figure:
    origin = f"{record.dataset}{' (synthetic)' if record.synthetic else ''}, seed {record.seed}"
    figure = blank_figure(4.7, title, f"{what}  ·  {printable(origin)}")
    lines = _lines(record, metric)
    if not lines:
        say_empty(figure, "Not measured over rounds in this run.")
        return figure
    axes = figure.add_axes((0.078, 0.115, 0.682, 0.685))
    for look, x, y in lines:
        axes.plot(
            x, y, color=look.colour, linewidth=look.width, linestyle=look.dashes,
            zorder=look.order, solid_capstyle="round", clip_on=len(x) > 1,
            marker="o" if len(x) == 1 else None, markersize=5,
        )  # fmt: skip
    left = min(x[0] for _, x, _ in lines)
    right = max(max(x[-1] for _, x, _ in lines), left + 1)
    axes.set_xlim(left, right)
    axes.set_ylim(*_range(lines, metric, left, right))
    _dress(axes)
    _mark_events(axes, record)
    _label_lines(axes, lines, right)
    return figure


def _lines(record: RunRecord, metric: str) -> list[Line]:
    names = [*MODELS, *(name for name in record.curves if name not in MODELS)]
    found: list[Line] = []
    for index, name in enumerate(name for name in names if name in record.curves):
        x, y = record.curves[name].points(metric)
        if x:
            found.append((stroke(name, index), x, y))
    return found


def _range(lines: list[Line], metric: str, left: float, right: float) -> tuple[float, float]:
    if metric == "backdoor_success":
        return -0.015, 1.03
    settled = left + 0.15 * (right - left)  # leave out the climb of the first rounds
    values = [v for _, x, y in lines for at, v in zip(x, y, strict=True) if at >= settled]
    low, high = min(values or [0.0]), max(values or [1.0])
    pad = max(0.12 * (high - low), 0.01)
    return max(0.0, low - pad), min(1.005, high + pad)


def _dress(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", labelsize=10, colors=MUTED, length=0, pad=5)
    axes.tick_params(axis="x", length=3)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None, symbol=" %"))
    axes.set_xlabel("Round", fontsize=10.5, color=INK, labelpad=4)


def _mark_events(axes: Axes, record: RunRecord) -> None:
    """Mark requests with words to the left of their line and merges to the right."""
    low, high = axes.get_xlim()
    for kinds, word, side, align in (
        (REQUEST, "request", -5, "right"),
        (MERGE, "merge", 5, "left"),
    ):
        seen: list[float] = []
        for event in record.happened(kinds):
            if event.round is None or not low <= event.round <= high or event.round in seen:
                continue
            axes.axvline(event.round, color=INK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1.5)
            if not seen or event.round - seen[-1] > 0.09 * (high - low):
                axes.annotate(
                    word if not seen else f"{word} {len(seen) + 1}",
                    (event.round, 1.0), xycoords=axes.get_xaxis_transform(),
                    xytext=(side, 4), textcoords="offset points", ha=align, va="bottom",
                    fontsize=10, color=INK,
                )  # fmt: skip
            seen.append(event.round)


def _label_lines(axes: Axes, lines: list[Line], right: float) -> None:
    """Name each line at its end, with its last value; lines that stop early, where they stop."""
    low, high = axes.get_ylim()
    left = axes.get_xlim()[0]
    ends: list[tuple[Stroke, float, float]] = []
    for look, x, y in lines:
        if x[-1] < left + 0.85 * (right - left):
            _label_inside(axes, look, (x[-1], y[-1]), lines)
            continue
        ends.append((look, x[-1], y[-1]))
    heights = [(min(max(y, low), high) - low) / (high - low) for _, _, y in ends]
    places = spread(heights, _LABEL_GAP, 0.02, 0.98)
    for (look, x_end, value), height, place in zip(ends, heights, places, strict=True):
        start = (x_end - left) / (right - left)
        axes.plot(
            [start + 0.006, 1.028, 1.038], [height, place, place], transform=axes.transAxes,
            color=look.colour, linewidth=0.8, clip_on=False, zorder=1,
        )  # fmt: skip
        axes.text(
            1.046, place, f"{shorten(look.label, 16)}  {100 * value:.1f} %",
            transform=axes.transAxes, va="center", fontsize=10.5, color=_darker(look),
            fontweight="bold" if look.order == 5 else "normal", parse_math=False,
        )  # fmt: skip


def _label_inside(axes: Axes, look: Stroke, end: tuple[float, float], lines: list[Line]) -> None:
    """Name a line left of its end, at the nearest height that no line passes through."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    span = np.linspace(end[0] - 0.13 * (right - left), end[0], 14)
    passed = np.concatenate([np.interp(span, x, y) for _, x, y in lines])
    heights = np.linspace(low + 0.05 * (high - low), high - 0.05 * (high - low), 60)
    clear = np.abs(heights[:, None] - passed[None, :]).min(axis=1) / (high - low)
    free = heights[clear >= min(0.06, float(clear.max()))]
    place = free[np.abs(free - end[1]).argmin()]
    axes.annotate(
        shorten(look.label, 22), (end[0], float(place)), xytext=(-7, 0),
        textcoords="offset points", ha="right", va="center", fontsize=10.5,
        color=look.colour, path_effects=_HALO, zorder=8, parse_math=False,
    )  # fmt: skip


def _darker(look: Stroke) -> str:
    """Return a text colour; the pale line of the floor needs a darker one to be read."""
    return "#4d8f7b" if look.label == "Retrained again" else look.colour
