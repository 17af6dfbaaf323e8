"""The figure of ``bench multimodal``: forget recall over rounds, and entanglement by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flwr_afuic.bench.multimodal_scores import Curve, Point
from flwr_afuic.bench.multimodal_table import ABLATION, Results

CAPTION = (
    "Left: forget recall at 1 over the rounds after the erasure, with and without the lock. Right: "
    "principal cosines of the erased place's updates with all others', by layer and tower"
)
_LONGEST = 31
_SHOWN = ("retrained", "no_unlearning", "excision_only", *ABLATION)


def draw(results: Results, path: Path) -> Path:
    """Draw both panels for the first seed as a PNG; return the path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    arms = next(iter(results.values()))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for arm in _SHOWN:
        if arm in arms:
            recalls = [100 * p.forget["mean/r1"] for p in _tail(arms[arm])]
            style = ":" if arm.endswith("no_lock") else "-"
            left.plot(range(len(recalls)), recalls, style, label=arm.replace("_", " "))
    left.set_xlabel("versions since the erasure")
    left.set_ylabel("forget R@1, %")
    left.legend(fontsize=7)
    blocks = arms["ease"].subspaces.get("blocks", {}) if "ease" in arms else {}
    for name, block in blocks.items():
        cosines = block["cosines"]
        style = "o-" if name.startswith("vision") else "s--"
        right.plot(np.arange(1, len(cosines) + 1), cosines, style, label=name, ms=3, alpha=0.8)
    right.set_xlabel("principal direction")
    right.set_ylabel("cosine with the retained subspace")
    right.set_ylim(-0.02, 1.02)
    if blocks:
        right.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _tail(curve: Curve) -> list[Point]:
    return list(curve.after if curve.merge_version else curve.points[-_LONGEST:])
