"""The picture of ``flwr-afuic bench latency``: retraining's time over AFU-IC's, by rounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from flwr_afuic.bench.latency_table import LatencyResults
from flwr_afuic.report.look import FAINT, INK, MUTED, blank_figure, save

_COLOURS = ("#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7")
_ROUNDS = np.geomspace(5, 2000, 60)
_HEIGHT = 4.6


def draw(results: LatencyResults, path: Path) -> Path:
    """Write the picture as PNG and return its path.

    A federation is drawn if retraining and AFU-IC both ran in it with fixed speeds; AFU-IC's time
    is that to forget, or, where nothing was learned, that to the erased model.
    """
    figure = blank_figure(
        _HEIGHT,
        "Retraining beside AFU-IC, by the training it has to repeat",
        "Retraining's virtual seconds (as many a round as measured, times the rounds) over "
        "AFU-IC's time to forget. Above 1, AFU-IC is sooner.",
    )
    left = figure.add_axes((0.08, 0.14, 0.42, 0.62))
    right = figure.add_axes((0.56, 0.14, 0.42, 0.62))
    _panel(left, results, target=False)
    _panel(right, results, target=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(figure, path)


def _panel(axes: Axes, results: LatencyResults, *, target: bool) -> None:
    axes.set_title(
        "the slow site is the target" if target else "the slow site stays",
        fontsize=10, color=INK, loc="left",
    )  # fmt: skip
    factors = sorted({s.straggler for s in results.federations})
    for settings in results.federations:
        wanted = settings.target_straggles == target or settings.straggler == 1
        figures = results.figures(settings)
        if not wanted or settings.tail is not None or not {"afuic", "retrain"} <= figures.keys():
            continue
        own = figures["afuic"].get("time_to_forget") or figures["afuic"]["time_to_model"]
        per_round = figures["retrain"]["seconds_per_round"]
        if own is None or per_round is None:
            continue
        colour = _COLOURS[factors.index(settings.straggler) % len(_COLOURS)]
        label = "nobody slow" if settings.straggler == 1 else f"x{settings.straggler:g}"
        axes.plot(_ROUNDS, _ROUNDS * per_round / own, color=colour, linewidth=1.8, label=label)
    axes.axhline(1.0, color=INK, linewidth=1.0, linestyle=(0, (3, 2)))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("rounds of training to repeat", fontsize=8, color=MUTED)
    axes.tick_params(labelsize=8, colors=MUTED)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.get_lines()[:-1]:
        axes.legend(fontsize=7, frameon=False, loc="upper left")
