"""The picture of ``flwr-afuic bench segmentation``: Dice on the erased cases over the rounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from flwr_afuic.bench.segmentation_scores import AreaResult
from flwr_afuic.bench.segmentation_table import BOUNDS
from flwr_afuic.report.look import FAINT, INK, MUTED, blank_figure, save, stroke

CAPTION = "Dice on the erased cases over rounds: AFU-IC beside retraining, whose band is the bound"
_ARMS = ("no_unlearning", "retrain_floor", "retrain", "afuic")
_HEIGHT = 3.9


def draw(results: Mapping[str, Mapping[int, AreaResult]], path: Path) -> Path:
    """Write the picture as PNG and return its path: a panel an area, means over seeds."""
    bound = BOUNDS["forget_dice_gap"].limit
    figure = blank_figure(
        _HEIGHT,
        "Dice on the erased cases, hippocampus MRI",
        f"Mean over the seeds, from the request on. Band: retraining ± {bound:g}. Vertical lines: "
        "the last merge of each seed.",
    )
    count = max(1, len(results))
    lines: dict[str, Line2D] = {}
    for index, (area, runs) in enumerate(results.items()):
        axes = figure.add_axes((0.07 + index * 0.94 / count, 0.20, 0.94 / count - 0.06, 0.54))
        title = "a site is erased" if area == "site" else "one patient is erased"
        lines |= _panel(axes, runs, title, bound)
    figure.legend(
        list(lines.values()),
        list(lines),
        loc="lower center",
        ncols=len(_ARMS),
        fontsize=8,
        frameon=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(figure, path)


def _panel(
    axes: Axes, runs: Mapping[int, AreaResult], title: str, bound: float
) -> dict[str, Line2D]:
    """Draw one area; return its lines by their labels."""
    lines = {}
    for arm in _ARMS:
        curves = [r.curves[arm].rounds for r in runs.values() if arm in r.curves]
        if not curves:
            continue
        common = sorted(set.intersection(*(set(curve) for curve in curves)))
        values = np.array([np.mean([c[r].forget_dice for c in curves]) for r in common])
        look = stroke(arm)
        (lines[look.label],) = axes.plot(
            common,
            values,
            color=look.colour,
            linestyle=look.dashes,
            linewidth=look.width,
            zorder=look.order,
        )
        if arm == "retrain":
            axes.fill_between(
                common, values - bound, values + bound, color=look.colour, alpha=0.12, linewidth=0
            )
    for result in runs.values():
        axes.axvline(result.merge_round, color=MUTED, linewidth=0.8, alpha=0.6)
    axes.set_title(title, fontsize=10, color=INK, loc="left", parse_math=False)
    axes.set_xlabel("round", fontsize=8, color=MUTED)
    axes.tick_params(labelsize=8, colors=MUTED)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return lines
