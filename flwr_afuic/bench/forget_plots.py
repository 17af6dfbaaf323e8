"""The pictures of ``flwr-afuic bench forget``: what comes back, and what forgetting costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flwr_afuic.bench.forget import Cells
from flwr_afuic.bench.forget_figures import rows
from flwr_afuic.bench.forget_protocol import WINDOW
from flwr_afuic.report.look import FAINT, INK, MUTED, blank_figure, save

_NAMES = {
    "afuic": "AFU-IC",
    "pga": "PGA",
    "federaser": "FedEraser",
    "fedosd": "FedOSD",
    "not": "NoT",
    "fcu": "FCU",
    "proxy_distill": "ProxyDistill",
    "medu": "MEDU",
    "no_unlearning": "no unlearning",
    "retrain_floor": "retrained again",
}
_COLOURS = {
    "afuic": "#0072b2",
    "pga": "#d55e00",
    "federaser": "#009e73",
    "fedosd": "#cc79a7",
    "not": "#e69f00",
    "fcu": "#56b4e9",
    "proxy_distill": "#7a5195",
    "medu": "#8a8a00",
    "no_unlearning": "#9aa5b1",
    "retrain_floor": "#2b3440",
}
_MARKS = dict(zip(_COLOURS, "osv^D<>PXd", strict=True))
_HEAD, _SIDE = 0.95, 3.1
_COLUMNS = 2
_LINEAR = 0.1
_TICKS = (-0.3, -0.1, -0.05, 0.0, 0.05, 0.1, 0.3, 1.0)


def draw_resurfacing(all_cells: Sequence[Cells], path: Path) -> Path:
    """Draw the score that tells, minus retraining's, over the 30 rounds after each merge."""
    figure, places = _panels(
        all_cells,
        "What comes back after the merge",
        "Backdoor success (or the erased data's score) minus retraining's at the same round; "
        f"means over seeds; logarithmic beyond ±{_LINEAR:g}.",
    )
    for cells, axes in zip(all_cells, places, strict=True):
        axes.axhline(0.0, color=INK, linewidth=1.0, linestyle=(0, (3, 2)))
        for method in ("retrain_floor", *cells.plan.methods):
            curve = _curve(cells, method)
            if curve:
                axes.plot(
                    list(curve), list(curve.values()), color=_COLOURS[method],
                    linewidth=2.4 if method == "afuic" else 1.2, label=_NAMES[method],
                    zorder=5 if method == "afuic" else 3,
                )  # fmt: skip
        # What tells methods apart is near zero, and what was not unlearned far from it.
        axes.set_yscale("symlog", linthresh=_LINEAR, linscale=1.5)
        low, high = axes.get_ylim()
        axes.set_yticks([tick for tick in _TICKS if low <= tick <= high], minor=False)
        axes.set_yticks([], minor=True)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("rounds after the merge", fontsize=8, color=MUTED)
    return _written(figure, places, path)


def draw_plane(all_cells: Sequence[Cells], path: Path) -> Path:
    """Draw each method's distance to retraining on erased against retained data."""
    figure, places = _panels(
        all_cells,
        "Forgetting against keeping",
        "Last round, means over seeds, bars one standard deviation: retraining is the origin.",
    )
    for cells, axes in zip(all_cells, places, strict=True):
        axes.axhline(0.0, color=INK, linewidth=0.8)
        axes.axvline(0.0, color=INK, linewidth=0.8)
        for row in rows(cells):
            x, y = row.mean("test_gap"), row.mean("forget_gap")
            if x is None or y is None:
                continue
            axes.errorbar(
                x, y, xerr=row.deviation("test_gap"), yerr=row.deviation("forget_gap"),
                color=_COLOURS[row.method], marker=_MARKS[row.method], linestyle="none",
                markersize=8 if row.method == "afuic" else 5, elinewidth=0.8,
                label=_NAMES[row.method], zorder=5 if row.method == "afuic" else 3,
            )  # fmt: skip
        axes.set_xlabel("test score minus retraining's", fontsize=8, color=MUTED)
        axes.set_ylabel("score on the erased data, likewise", fontsize=8, color=MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    return _written(figure, places, path)


def _curve(cells: Cells, method: str) -> dict[int, float]:
    """Mean difference by round after the merge, over the seeds that have the round."""
    per_round: dict[int, list[float]] = {}
    for seed in cells.complete(method):
        result, retrain = cells.counted[seed][method], cells.counted[seed]["retrain"]
        shared = sorted(map(int, result["curve"].keys() & retrain["curve"].keys()))
        first = result["curve"][str(shared[0])]
        score = "forget" if first["backdoor_success"] is None else "backdoor_success"
        merge = result["merge"]
        start = shared[-1] - WINDOW if merge is None else int(merge["round"])
        for round_ in shared:
            if 0 < round_ - start <= WINDOW:
                ours, theirs = (r["curve"][str(round_)][score] for r in (result, retrain))
                per_round.setdefault(round_ - start, []).append(ours - theirs)
    return {r: float(np.mean(values)) for r, values in sorted(per_round.items())}


def _panels(all_cells: Sequence[Cells], title: str, subtitle: str) -> tuple[Figure, list[Axes]]:
    lines = max(1, -(-len(all_cells) // _COLUMNS))
    height = _HEAD + _SIDE * lines
    figure = blank_figure(height, title, subtitle)
    places = []
    for index, cells in enumerate(all_cells):
        line, column = divmod(index, _COLUMNS)
        bottom = 1 - (_HEAD + _SIDE * (line + 1) - 0.45) / height
        axes = figure.add_axes((0.08 + 0.48 * column, bottom, 0.41, (_SIDE - 0.85) / height))
        axes.set_title(cells.plan.piece(0, "afuic").dataset, fontsize=10, color=INK, loc="left",
                       parse_math=False)  # fmt: skip
        axes.tick_params(labelsize=8, colors=MUTED)
        axes.grid(color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        places.append(axes)
    return figure, places


def _written(figure: Figure, places: Sequence[Axes], path: Path) -> Path:
    named: dict[str, Any] = {}
    for axes in places:
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    figure.legend(
        list(named.values()), list(named), fontsize=7.5, frameon=False, ncols=5, loc="upper left",
        bbox_to_anchor=(0.01, 1 - 0.58 / figure.get_figheight()), handlelength=1.6,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(figure, path)
