"""Lost progress: what a merge overwrote of that which the retained sites learned meanwhile."""

from __future__ import annotations

from flwr_afuic.metrics._checks import Weights, dot, flat_weights, minus, same_layout


def lost_progress(
    snapshot: Weights, current: Weights, merged: Weights, erasure_delta: Weights
) -> float:
    """Share of the retained sites' progress that the merge of an erasure overwrote.

    ``1 - <w_after - w_s - d, w_c - w_s> / ||w_c - w_s||^2``.

    Parameters
    ----------
    snapshot : list of array
        w_s, from which the target unlearned.
    current : list of array
        w_c, the version just before the merge.
    merged : list of array
        w_after, the version of the merge.
    erasure_delta : list of array
        d, what the target returned, as it was merged. All of one layout, trained arrays only.

    Returns
    -------
    float
        0 for adding the delta, 1 for assigning w_s + d. 0 where nothing was learned meanwhile:
        there was nothing to lose.

    Raises
    ------
    ConfigError
        If layouts differ or a value is not finite.

    Examples
    --------
    >>> lost_progress([[0.0, 0.0]], [[2.0, 0.0]], [[2.0, 1.0]], [[0.0, 1.0]])
    0.0
    >>> lost_progress([[0.0, 0.0]], [[2.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]])
    1.0
    """
    base = flat_weights(snapshot, "snapshot")
    others = {"current": current, "merged": merged, "erasure_delta": erasure_delta}
    models = {name: flat_weights(weights, name) for name, weights in others.items()}
    for name, model in models.items():
        same_layout(base, model, f"snapshot and {name}")
    progress = minus(models["current"], base)
    kept = minus(minus(models["merged"], base), models["erasure_delta"])
    length = dot(progress, progress)
    return 0.0 if length == 0 else 1.0 - dot(kept, progress) / length
