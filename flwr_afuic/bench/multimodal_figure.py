"""The figure of ``bench multimodal``: forget recall over rounds, and entanglement by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flwr_afuic.bench.multimodal_scores import Curve, Point
from flwr_afuic.bench.multimodal_table import Results

CAPTION = (
    "Left: forget recall at 10 over the versions after the erasure, mean of the seeds. Right: "
    "principal cosines of the erased place's updates with all others', by layer and tower, of the "
    "first seed"
)
_LONGEST = 31
_SHOWN = {
    "retrained": "retrained",
    "no_unlearning": "no unlearning",
    "excision_only": "excision and lock, nothing taken back",
    "ease": "EASE",
    "no_lock": "EASE without the lock",
}


def draw(results: Results, path: Path) -> Path:
    """Draw both panels as a PNG; return the path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    arms = next(iter(results.values()))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for arm, label in _SHOWN.items():
        tails = [_tail(found[arm]) for found in results.values() if arm in found]
        if tails:
            length = min(map(len, tails))
            recalls = [[100 * p.forget["mean/r10"] for p in tail[:length]] for tail in tails]
            style = ":" if arm == "no_lock" else "--" if arm == "retrained" else "-"
            left.plot(range(length), np.mean(recalls, axis=0), style, label=label)
    left.set_xlabel("versions since the erasure")
    left.set_ylabel("forget R@10, %")
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
