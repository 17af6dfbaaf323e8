"""The picture of ``flwr-afuic bench segmentation``: Dice on the erased cases over the rounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from flwr_afuic.bench.segmentation_scores import AreaResult
from flwr_afuic.report.look import FAINT, INK, MUTED, blank_figure, save

CAPTION = (
    "Dice on the erased cases over rounds: without unlearning it stays above retraining, AFU-IC "
    "comes down to it at the merge"
)
_ARMS = {
    "no_unlearning": ("no unlearning", "#d55e00", (0, (4, 2))),
    "retrain_floor": ("retrained, another seed", "#999999", (0, (1, 1))),
    "retrain": ("retrained", INK, "solid"),
    "afuic": ("AFU-IC", "#0072b2", "solid"),
}
_HEIGHT = 3.9


def draw(results: Mapping[str, Mapping[int, AreaResult]], path: Path) -> Path:
    """Write the picture as PNG and return its path: a panel an area, means over seeds."""
    figure = blank_figure(
        _HEIGHT,
        "Dice on the erased cases, hippocampus MRI",
        "From the request on, mean over the seeds; marks: the last merge of each seed.",
    )
    count = max(1, len(results))
    for index, (area, runs) in enumerate(results.items()):
        axes = figure.add_axes((0.07 + index * 0.94 / count, 0.14, 0.94 / count - 0.06, 0.60))
        title = "a site is erased" if area == "site" else "one patient is erased"
        _panel(axes, runs, title, labelled=index == 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(figure, path)


def _panel(axes: Axes, runs: Mapping[int, AreaResult], title: str, *, labelled: bool) -> None:
    for arm, (words, colour, line) in _ARMS.items():
        curves = [r.curves[arm].rounds for r in runs.values() if arm in r.curves]
        if not curves:
            continue
        common = sorted(set.intersection(*(set(curve) for curve in curves)))
        values = [np.mean([curve[r].forget_dice for curve in curves]) for r in common]
        axes.plot(common, values, color=colour, linestyle=line, linewidth=1.5, label=words)
    for result in runs.values():
        axes.axvline(result.merge_round, color=MUTED, linewidth=0.8, alpha=0.6)
    axes.set_title(title, fontsize=10, color=INK, loc="left", parse_math=False)
    axes.set_xlabel("round", fontsize=8, color=MUTED)
    axes.tick_params(labelsize=8, colors=MUTED)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if labelled:
        axes.legend(fontsize=8, frameon=False, loc="lower right")
