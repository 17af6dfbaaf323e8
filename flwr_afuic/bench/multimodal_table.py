"""The tables of ``flwr-afuic bench multimodal``: every arm beside retraining and its floor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from flwr_afuic.bench.multimodal_scores import KS, Curve, interval

BEGIN = "<!-- table: flwr-afuic bench multimodal -->"

Results = Mapping[int, Mapping[str, Curve]]
"""By seed and arm."""

FORGET_BOUND, RETAIN_BOUND = 0.01, 0.04

_WORDS = {
    "original": "original, at the request",
    "retrained": "retrained without the place",
    "retrained_again": "retrained, another seed (the floor)",
    "no_unlearning": "no unlearning",
    "ease": "**EASE**: taken back, both towers, lock",
    "excision_only": "both towers, lock, nothing taken back",
    "no_lock": "taken back, both towers, no lock",
    "vision_only": "taken back, image tower, lock",
    "vision_only_no_lock": "taken back, image tower, no lock",
    "text_only": "taken back, text tower, lock",
    "text_only_no_lock": "taken back, text tower, no lock",
    "ascent": "gradient ascent",
    "fedosd": "orthogonal descent (FedOSD-like)",
}
ABLATION = (
    "ease", "no_lock", "vision_only", "vision_only_no_lock", "text_only", "text_only_no_lock"
)  # fmt: skip


def gaps(results: Results, arm: str, part: str, k: int) -> list[float]:
    """Recall at k of an arm minus retraining's, mean of both directions, seed by seed."""
    name = f"mean/r{k}"
    return [
        arms[arm].at_end(part, name) - arms["retrained"].at_end(part, name)
        for arms in results.values()
        if arm in arms and "retrained" in arms
    ]


def rebounds(results: Results, arm: str) -> list[float]:
    """Rise of forget R@1 since the erasure, seed by seed; without one, since the request."""
    return [arms[arm].rebound for arms in results.values() if arm in arms]


def figures(results: Results) -> dict[str, float]:
    """Mean over the seeds of every figure, and ``holds`` as 0 or 1."""
    flat: dict[str, float] = {}
    arms = sorted({arm for found in results.values() for arm in found} - {"original", "retrained"})
    for arm in arms:
        for part in ("forget", "retain"):
            for k in KS:
                found = gaps(results, arm, part, k)
                if found:
                    flat[f"ease/{arm}/{part}_r{k}_gap"] = float(np.mean(found))
        flat[f"ease/{arm}/rebound"] = float(np.mean(rebounds(results, arm)))
    if any("ease" in found for found in results.values()):
        for part, bound in (("forget", FORGET_BOUND), ("retain", RETAIN_BOUND)):
            for k in KS if part == "forget" else (1,):
                value = holds(results, part, k, bound)
                if value is not None:
                    flat[f"ease/ease/{part}_r{k}_holds"] = float(value)
    least = least_rebound(results)
    if least is not None:
        flat["ease/ease/least_rebound"] = float(least == "ease")
        above, floor = above_least(results, least)
        flat["ease/ease/rebound_above_least"] = above
        flat["ease/ease/rebound_floor"] = floor
    return flat


def holds(results: Results, part: str, k: int, bound: float) -> bool | None:
    """Whether EASE's mean gap is within its bound, or within retraining's own floor."""
    found, floor = gaps(results, "ease", part, k), gaps(results, "retrained_again", part, k)
    if not found:
        return None
    allowed = max(bound, float(np.mean(np.abs(floor))) if floor else 0.0)
    return abs(float(np.mean(found))) <= allowed + 1e-12


def least_rebound(results: Results) -> str | None:
    """Return the arm of the ablation with the least mean rebound; None if some are missing."""
    found = {arm: rebounds(results, arm) for arm in ABLATION}
    if not all(found.values()):
        return None
    return min(found, key=lambda arm: float(np.mean(found[arm])))


def above_least(results: Results, least: str) -> tuple[float, float]:
    """Return how far EASE's mean rebound is above the least, and what two retrainings differ by."""
    means = {arm: float(np.mean(rebounds(results, arm))) for arm in ("ease", least)}
    pairs = [
        abs(arms["retrained_again"].rebound - arms["retrained"].rebound)
        for arms in results.values()
        if "retrained_again" in arms and "retrained" in arms
    ]
    return means["ease"] - means[least], float(np.mean(pairs)) if pairs else 0.0


def markdown(results: Results, gsd: Mapping[str, float] | None = None) -> str:
    """Return recall of every arm, gaps with intervals, rebound, and what the decomposition took."""
    seeds = ", ".join(map(str, results))
    arms = [arm for arm in _WORDS if all(arm in found for found in results.values())]
    lines = [
        f"Seeds {seeds}. Recall at 1 in percent, image to text / text to image, mean of the last "
        "five versions and of the seeds; in the gallery of all clients' pairs, identical captions "
        "count as hits.",
        "",
        *_rows(["", "forget R@1", "retain R@1"], [_recalls(results, arm) for arm in arms]),
        "",
        "Difference to retraining in points, mean of both directions, with the 95 % t-interval "
        "over the seeds; rebound is the rise of forget R@1 from the merge to the last five "
        "versions.",
        "",
        *_rows(
            ["", "forget R@1", "forget R@5", "forget R@10", "retain R@1", "rebound"],
            [_gaps(results, arm) for arm in arms if arm not in ("original", "retrained")],
        ),
        "",
        *_verdicts(results),
    ]
    lines += _dips([found["ease"] for found in results.values() if "ease" in found])
    ranks = [found["ease"].subspaces for found in results.values() if "ease" in found]
    if any(ranks):
        lines += ["", *_entanglement(ranks)]
    if gsd:
        lines += [
            "",
            f"Decomposition of {gsd['parameters']:.0f} parameters, {gsd['updates']:.0f} updates of "
            f"a raw history on disk: {gsd['seconds']:.1f} s, peak {gsd['peak_mib']:.0f} MiB "
            f"({gsd['before_mib']:.0f} MiB before it began).",
        ]
    return "\n".join(lines)


def _recalls(results: Results, arm: str) -> list[str]:
    cells = [_WORDS[arm]]
    for part in ("forget", "retain"):
        means = [
            float(np.mean([found[arm].at_end(part, f"{way}/r1") for found in results.values()]))
            for way in ("image_to_text", "text_to_image")
        ]
        cells.append(" / ".join(f"{100 * value:.1f}" for value in means))
    return cells


def _gaps(results: Results, arm: str) -> list[str]:
    wanted = [("forget", 1), ("forget", 5), ("forget", 10), ("retain", 1)]
    cells = [_with_interval(gaps(results, arm, part, k)) for part, k in wanted]
    return [_WORDS[arm], *cells, _with_interval(rebounds(results, arm))]


def _with_interval(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean, half = interval(values)
    return f"{100 * mean:+.1f}" if math.isinf(half) else f"{100 * mean:+.1f} ± {100 * half:.1f}"


def _verdicts(results: Results) -> list[str]:
    lines = []
    for part, k, bound in (
        ("forget", 1, FORGET_BOUND),
        ("forget", 5, FORGET_BOUND),
        ("forget", 10, FORGET_BOUND),
        ("retain", 1, RETAIN_BOUND),
    ):
        held = holds(results, part, k, bound)
        if held is not None:
            word = "holds" if held else "does **not** hold"
            lines.append(
                f"- {part} R@{k} within {100 * bound:.0f} points of retraining or its floor: {word}"
            )
    least = least_rebound(results)
    if least is not None:
        line = f"- least rebound of the ablation: {_WORDS[least]}"
        if least != "ease":
            above, floor = above_least(results, least)
            line += (
                f"; {_WORDS['ease']}: {100 * above:.2f} points more, where two retrainings differ "
                f"by {100 * floor:.2f}"
            )
        lines.append(line)
    return lines


def _dips(curves: Sequence[Curve]) -> list[str]:
    if not curves:
        return []
    cells = []
    for before, low, rounds in (curve.dip for curve in curves):
        back = "not back" if rounds is None else f"{rounds} rounds"
        cells.append(f"{100 * before:.0f} / {100 * low:.0f} / {back}")
    text = "Retained R@1 of EASE before the erasure, at its lowest, and until it is back, by seed"
    return ["", f"{text}: {'; '.join(cells)}."]


def _entanglement(found: Sequence[Mapping[str, object]]) -> list[str]:
    parts = []
    for row in found:
        blocks = row.get("blocks", {})
        if isinstance(blocks, dict):
            parts.append(
                ", ".join(
                    f"{name} {block['exclusive']} of {len(block['cosines'])}"
                    for name, block in blocks.items()
                )
            )
    return [f"Forget-exclusive directions of the place's own, by block: {'; '.join(parts)}."]


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruler = ["---"] * len(head)
    return [f"| {' | '.join(cells)} |" for cells in (head, ruler, *rows)]
