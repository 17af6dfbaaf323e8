"""What the runs of the latency study say: seconds to forget and to recover, stall, throughput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flwr_afuic.errors import DataError
from flwr_afuic.metrics import TaskSpan, retained_throughput, stall_seconds, time_to_forget

Run = Mapping[str, Any]
Figures = dict[str, float | None]

FORGET_BOUND, TEST_BOUND = 0.05, 0.02
_STEADY = 10
TRAINED_ROUNDS = (12, 100, 1000)
"""Lengths of the training that retraining would have to repeat."""


@dataclass(frozen=True)
class Yardstick:
    """Retraining's scores by round, and how far two retrainings are apart.

    Attributes
    ----------
    test, forget : dict of int to float
        By round. Past the last, the mean of the last ten stands for it.
    test_bound, forget_bound : float
        How far from them counts as being there: .02 and .05, or, where larger, the mean distance
        between two retrainings.
    """

    test: dict[int, float]
    forget: dict[int, float]
    test_bound: float = TEST_BOUND
    forget_bound: float = FORGET_BOUND

    def at(self, rounds: Sequence[int]) -> tuple[list[float], list[float]]:
        """Return test and forget scores at some rounds."""
        return [_at(self.test, r) for r in rounds], [_at(self.forget, r) for r in rounds]


def yardstick(retrain: Run, floor: Run | None) -> Yardstick:
    """Make the yardstick of a federation from one or two retrainings in it."""
    test, forget = _by_round(retrain, "test"), _by_round(retrain, "forget")
    if floor is None:
        return Yardstick(test, forget)
    return Yardstick(
        test,
        forget,
        max(TEST_BOUND, _distance(test, _by_round(floor, "test"))),
        max(FORGET_BOUND, _distance(forget, _by_round(floor, "forget"))),
    )


def erasing_figures(run: Run, target: str, measure: Yardstick | None) -> Figures:
    """Compute the figures of a method that erased.

    Parameters
    ----------
    run : mapping
        Of :func:`flwr_afuic.bench.latency.run_method`.
    target : str
        The site that was erased.
    measure : Yardstick or None
        None where nothing was learned: what depends on scores is left out then.

    Returns
    -------
    dict of str to float or None
        ``time_to_model``: seconds from the request's arrival at the server to the version that
        holds the erasure. ``floor``: of these, what the method's own computation and messages
        take. ``stall``, ``retained_throughput``: see :mod:`flwr_afuic.metrics.latency`; not with
        synchronous rounds, where sites wait for the slow one in any case.
        ``time_to_forget``: seconds from the request until the model scores like retraining on
        both sets and stays so for five rounds; ``time_to_recover``: the same of the test score
        alone, from the erasure on. None where that was not seen.
    """
    opened = float(run["requested"])
    closed = float("inf") if run["closed"] is None else float(run["closed"])
    spans = [TaskSpan(s["site"], s["kind"], s["start"], s["end"]) for s in run["spans"]]
    retained = {span.site for span in spans} - {target}
    until = float(run["versions"][-1][2])
    asked = [(opened, closed)]
    erased = [row for row in run["scores"] if row["cause"] == "erasure"]
    if not erased:
        raise DataError(f"the run of {run['method']} in {run['federation']} holds no erasure")
    found: Figures = {
        "time_to_model": float(erased[-1]["time"]) - opened,
        "floor": _floor(run, target),
    }
    if not run["method"].endswith("_sync"):
        found["stall"] = stall_seconds(spans, asked, retained, until=until)
        found["retained_throughput"] = retained_throughput(spans, asked, retained, until=until)
    if measure is not None:
        found |= _forgetting(run, opened, measure)
    return found


def _floor(run: Run, target: str) -> float:
    """Own computation of the last attempt: of the server's procedure, or reference and target."""
    server = [span for span in run["server_spans"] if span["kind"] == "erasure"]
    if server:
        return float(server[-1]["end"] - server[-1]["start"])
    made = [span for span in run["server_spans"] if span["kind"] == "reference"]
    tasks = [s for s in run["spans"] if s["site"] == target and s["kind"] == "unlearn"]
    return float(sum(s["end"] - s["start"] for s in (*made, *tasks)))


def _forgetting(run: Run, opened: float, measure: Yardstick) -> Figures:
    rows = run["scores"]
    rounds = [int(row["round"]) for row in rows]
    test, forget = measure.at(rounds)
    seen = [float(row["forget"]) for row in rows]

    def reached(own: Sequence[float], theirs: Sequence[float]) -> float | None:
        return time_to_forget(
            [row["time"] for row in rows],
            own,
            [row["test"] for row in rows],
            theirs,
            test,
            requested_at=opened,
            rounds=rounds,
            forget_bound=measure.forget_bound,
            test_bound=measure.test_bound,
        )

    last = rows[-1]
    return {
        "time_to_forget": reached(seen, forget),
        "time_to_recover": reached(forget, forget),
        "forget_gap_at_end": float(last["forget"]) - forget[-1],
        "test_gap_at_end": float(last["test"]) - test[-1],
    }


def retraining_figures(run: Run, request_round: int) -> Figures:
    """Compute what retraining takes: for the rounds there were, and by rule for longer training.

    The rule: as many seconds a round as its rounds took on the average. Nobody is idle while the
    federation retrains, and nobody trains the model in use: stall and throughput say nothing.
    """
    first = {int(r): float(t) for _, r, t, _ in reversed(run["versions"])}
    rounds = [r for r in first if r > 0]
    if not rounds or max(rounds) < request_round:
        raise DataError(f"the retraining in {run['federation']} is shorter than the training")
    per_round = first[max(rounds)] / max(rounds)
    own = min(first[r] for r in rounds if r >= request_round)
    found: Figures = {"seconds_per_round": per_round}
    found |= {"time_to_model": own, "time_to_forget": own, "time_to_recover": own, "floor": own}
    for number in TRAINED_ROUNDS:
        found[f"time_to_forget_{number}_rounds"] = number * per_round
    return found


def _by_round(run: Run, name: str) -> dict[int, float]:
    return {int(row["round"]): float(row[name]) for row in run["scores"]}


def _at(scores: Mapping[int, float], number: int) -> float:
    if number > max(scores):
        return float(np.mean([scores[r] for r in sorted(scores)[-_STEADY:]]))
    return scores[max((r for r in scores if r <= number), default=min(scores))]


def _distance(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    common = sorted(set(one) & set(other))
    return float(np.mean([abs(one[r] - other[r]) for r in common])) if common else 0.0
