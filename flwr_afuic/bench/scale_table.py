"""Runs of ``bench scale``, each kept when it is done, and their table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from flwr_afuic.bench.scale import Cost, Load, run_load, warm_up

BEGIN = "<!-- table: flwr-afuic bench scale -->"
_BASE = 100
_ROUNDS = 1
_ERASURE_ROUNDS = 20
_MIB = 2**20


@dataclass(frozen=True)
class Wanted:
    """What is measured: numbers of clients; open erasures among ``erasure_clients`` sites."""

    clients: Sequence[int] = (100, 1_000, 10_000)
    erasures: Sequence[int] = (0, 1, 10, 100)
    erasure_clients: int = 400
    repeats: int = 3

    def loads(self) -> list[tuple[str, Load]]:
        """Return every run by name, repeats of different loads in turn."""
        found = []
        for repeat in range(self.repeats):
            for clients in self.clients:
                found.append((f"clients-{clients}-{repeat}", Load(clients, _ROUNDS)))
            for erasures in self.erasures:
                load = Load(self.erasure_clients, _ERASURE_ROUNDS, erasures)
                found.append((f"erasures-{erasures}-{repeat}", load))
        found.append(("calibrated-1-0", Load(_BASE, _ERASURE_ROUNDS, 1, calibrated=True)))
        return found


Results = dict[str, list[Cost]]


def measure(
    wanted: Wanted, folder: Path, *, fresh: bool = False, told: Callable[[str], None]
) -> Results:
    """Run what is not kept yet; return the costs by load, repeats together."""
    results: Results = {}
    warmed = False
    for name, load in wanted.loads():
        path = folder / f"{name}.json"
        if fresh or not path.exists():
            if not warmed:
                warm_up()
                warmed = True
            cost = run_load(load)
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(cost)), encoding="utf-8")
            told(f"{name}: {cost.events} events, {1e3 * cost.per_event:.2f} ms each")
        kept = Cost(**json.loads(path.read_text(encoding="utf-8")))
        results.setdefault(name.rpartition("-")[0], []).append(kept)
    return results


def _per_event(costs: Sequence[Cost]) -> float:
    return median(cost.per_event for cost in costs)


def figures(wanted: Wanted, results: Results) -> dict[str, float]:
    """Flat figures, medians of the repeats."""
    found: dict[str, float] = {}
    base = results.get(f"clients-{_BASE}")
    for clients in wanted.clients:
        costs = results[f"clients-{clients}"]
        found[f"scale/{clients}/events_per_s"] = 1.0 / _per_event(costs)
        if base:
            found[f"scale/{clients}/cost_vs_100"] = _per_event(costs) / _per_event(base)
        found[f"scale/{clients}/bytes_per_client"] = median(c.memory for c in costs) / clients
    none = results.get("erasures-0")
    for erasures in wanted.erasures:
        costs = results[f"erasures-{erasures}"]
        if none:
            found[f"erasure/{erasures}/cost_vs_none"] = _per_event(costs) / _per_event(none)
        if erasures:
            share = median(cost.erasure_share for cost in costs)
            found[f"erasure/{erasures}/share"] = share
            found[f"erasure/{erasures}/completed"] = min(cost.completed for cost in costs)
    if 1 in wanted.erasures:
        idle = median(c.erasure_share for c in none) if none else 0.0
        found["erasure/round_cost_ratio"] = found["erasure/1/share"]
        found["erasure/none_round_cost_ratio"] = idle
    (calibrated,) = results["calibrated-1"]
    found["erasure/steps_seconds"] = calibrated.steps_seconds
    return found


def markdown(wanted: Wanted, results: Results) -> str:
    """Write the tables."""
    found = figures(wanted, results)
    rows = [
        "| clients | most in flight | events | events per second | ms per event | against 100 "
        "| memory per client |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for clients in wanted.clients:
        cost = results[f"clients-{clients}"][0]
        rate = found[f"scale/{clients}/events_per_s"]
        against = found.get(f"scale/{clients}/cost_vs_100", float("nan"))
        size = found[f"scale/{clients}/bytes_per_client"] / 1024
        rows.append(
            f"| {clients:,} | {cost.in_flight:,} | {cost.events:,} | {rate:.0f} | "
            f"{1e3 / rate:.2f} | {against:.2f} | {size:.1f} KiB |"
        )
    rows += [
        "",
        f"{wanted.erasure_clients} clients, erasures filed together after the first round:",
        "",
        "| erasures | most open at once | completed | ms per event | against none | their share "
        "of the loop | of it locks |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for erasures in wanted.erasures:
        costs = results[f"erasures-{erasures}"]
        share = median(cost.erasure_share for cost in costs)
        locks = median(cost.lock_seconds / cost.seconds for cost in costs)
        against = found.get(f"erasure/{erasures}/cost_vs_none", float("nan"))
        rows.append(
            f"| {erasures} | {costs[0].overlapping} | {costs[0].completed} | "
            f"{1e3 * _per_event(costs):.2f} | {against:.2f} | {100 * share:.1f} % | "
            f"{100 * locks:.1f} % |"
        )
    (calibrated,) = results["calibrated-1"]
    rows += [
        "",
        f"Making the reference and the KL steps of {_ERASURE_ROUNDS} rounds ({calibrated.versions} "
        f"versions) took {calibrated.steps_seconds:.2f} s of the processor, beside the loop on "
        f"real engines; the loop itself {calibrated.seconds - calibrated.steps_seconds:.2f} s.",
    ]
    return "\n".join(rows)
