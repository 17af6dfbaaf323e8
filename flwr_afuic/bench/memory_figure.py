"""The picture of ``flwr-afuic bench memory``: bytes against scores, and rates against R(D)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flwr_afuic.bench.memory_runs import MemoryResults, Result
from flwr_afuic.bench.storage import DEFAULT, WITHOUT_AGGREGATES
from flwr_afuic.report.look import FAINT, INK, MUTED, blank_figure, save

_MAIN, _BACKDOOR = "#0072b2", "#d55e00"
_LATTICES = {"Z": "#d55e00", "A2": "#e69f00", "E8": "#0072b2"}
_HEIGHT = 6.4


def draw(results: MemoryResults, path: Path) -> Path:
    """Write the picture as PNG and return its path."""
    figure = blank_figure(
        _HEIGHT if results.codec else _HEIGHT / 2 + 0.4,
        "Storage of a federation's updates, and what is unlearned from them",
        "One point a way of storing, means over seeds, not recovered; lines: retraining"
        + (". Below: bits on a Gaussian source." if results.codec else "."),
    )
    bottom, height = (0.53, 0.30) if results.codec else (0.14, 0.62)
    count = max(1, len(results.runs))
    for index, (dataset, runs) in enumerate(results.runs.items()):
        left = 0.07 + index * 0.92 / count
        axes = _axes(figure, (left, bottom, 0.92 / count - 0.05, height), dataset)
        _scores(axes, runs, labelled=index == 0)
    if results.codec:
        _rates(_axes(figure, (0.07, 0.08, 0.38, 0.29), "bits per entry"), results.codec)
        _excess(_axes(figure, (0.56, 0.08, 0.38, 0.29), "bits above R(D)"), results.codec)
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(figure, path)


def _axes(figure: Figure, place: tuple[float, float, float, float], title: str) -> Axes:
    axes = figure.add_axes(place)
    axes.set_title(title, fontsize=10, color=INK, loc="left", parse_math=False)
    axes.tick_params(labelsize=8, colors=MUTED)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return axes


def _scores(axes: Axes, runs: Sequence[Result], *, labelled: bool) -> None:
    forms = [name for name in runs[0]["forms"] if name != WITHOUT_AGGREGATES]
    sizes = [
        float(np.mean([run["forms"][name]["disk"] / run["client_rounds"] for run in runs])) / 1e3
        for name in forms
    ]
    for score, colour, words in (
        ("test", _MAIN, "test accuracy"),
        ("backdoor_success", _BACKDOOR, "backdoor success"),
    ):
        if runs[0]["models"]["retrain"]["merge"][score] is None:
            continue
        values = [np.mean([run["forms"][f]["merge"][score] for run in runs]) for f in forms]
        again = np.mean([run["models"]["retrain"]["merge"][score] for run in runs])
        axes.axhline(float(again), color=colour, linewidth=1.0, linestyle=(0, (3, 2)))
        axes.scatter(sizes, values, s=22, color=colour, alpha=0.75, linewidths=0, label=words)
        chosen = forms.index(DEFAULT)
        axes.scatter(
            [sizes[chosen]], [values[chosen]], s=90, facecolors="none", edgecolors=colour,
            linewidths=1.6, label="the default" if colour == _MAIN else None,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("kB per client-round, whole store", fontsize=8, color=MUTED)
    if labelled:
        axes.legend(fontsize=7, frameon=False, loc="center right")


def _rates(axes: Axes, codec: Result) -> None:
    for name, colour in _LATTICES.items():
        xs, ys, limit = _curve(codec, name)
        axes.plot(xs, ys, color=colour, marker="o", markersize=3, linewidth=1.4, label=name)
    axes.plot(xs, limit, color=INK, linewidth=1.2, linestyle=(0, (3, 2)), label="R(D)")
    _distortion(axes)
    axes.legend(fontsize=8, frameon=False)


def _excess(axes: Axes, codec: Result) -> None:
    for name, colour in _LATTICES.items():
        xs, ys, limit = _curve(codec, name)
        above = [bits - least for bits, least in zip(ys, limit, strict=True)]
        axes.plot(xs, above, color=colour, marker="o", markersize=3, linewidth=1.4, label=name)
    axes.set_ylim(bottom=0)
    _distortion(axes)


def _curve(codec: Result, lattice: str) -> tuple[list[float], list[float], list[float]]:
    points = [p for p in codec["points"] if p["lattice"] == lattice]
    return (
        [p["distortion"] for p in points],
        [p["bits"] for p in points],
        [p["limit"] for p in points],
    )


def _distortion(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("mean squared error / variance", fontsize=8, color=MUTED)
