"""The table of ``flwr-afuic bench leakage``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flwr_afuic.bench.leakage import SIZES, Trial

_HEADER = (
    "| samples | norm of the delta | cosine with the protected one | forget level met, raw / "
    "protected | test score before / raw / protected |\n|---|---|---|---|---|"
)


def markdown(trials: Sequence[Trial]) -> str:
    """Format the means over all trials."""
    lines = [_HEADER]
    for size in SIZES:
        of = [trial for trial in trials if trial.size == size]
        if not of:
            continue
        met, safe = sum(t.met for t in of), sum(t.met_protected for t in of)
        scores = (_mean([getattr(t, n) for t in of]) for n in ("test", "test_raw"))
        protected = [t.test_protected for t in of]
        lines.append(
            f"| {size} | {_mean([t.norm for t in of]):.2f} | {_mean([t.cosine for t in of]):.2f} "
            f"| {met}/{len(of)} / {safe}/{len(of)} | {' / '.join(f'{s:.3f}' for s in scores)} "
            f"/ {_mean(protected):.3f} (worst {min(protected):.3f}) |"
        )
    attacked = [trial for trial in trials if trial.psnr_delta is not None]
    if attacked:
        lines += ["", *_attacks(attacked)]
    return "\n".join(lines)


def _attacks(attacked: Sequence[Trial]) -> list[str]:
    def of(name: str) -> float:
        return _mean([getattr(trial, name) for trial in attacked])

    return [
        f"| one erased image ({len(attacked)} attacked) | its own gradient | its delta | protected "
        "| no delta |\n|---|---|---|---|---|",
        f"| likeness of the reconstruction, dB | {of('psnr_gradient'):.1f} "
        f"| {of('psnr_delta'):.1f} | {of('psnr_protected'):.1f} | {of('psnr_mean'):.1f} |",
        "| share of other images that fit better (0: it is told, .5: chance) | 0 "
        f"| {of('rank'):.2f} | {of('rank_protected'):.2f} | .50 |",
    ]


def flat_figures(dataset: str, trials: Sequence[Trial]) -> dict[str, float]:
    """Mean of every number, by data set and size, for a program."""
    flat: dict[str, float] = {}
    for size in sorted({trial.size for trial in trials}):
        of = [vars(trial) for trial in trials if trial.size == size]
        for name in of[0]:
            known = [row[name] for row in of if row[name] is not None]
            if known and name != "size":
                flat[f"{dataset}/leakage/{size}/{name}"] = _mean(known)
    return flat


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
