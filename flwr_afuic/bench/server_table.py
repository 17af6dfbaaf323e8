"""Parts of ``bench server``, each kept when it is done, and their tables."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flwr_afuic.bench.server import Timed, disk_part, lock_part, merge_part, wire_part
from flwr_afuic.bench.server_memory import KINDS, Peak, measure
from flwr_afuic.errors import ConfigError

BEGIN = "<!-- table: flwr-afuic bench server -->"
PARTS = ("merge", "lock", "wire", "disk", "memory")
_MB = 1e6


@dataclass(frozen=True)
class Wanted:
    """What is measured.

    Attributes
    ----------
    parts : sequence of str
        Of :data:`PARTS`.
    parameters : sequence of int
        Sizes of models.
    updates : int
        Updates of one merge.
    ranks : sequence of int
        Ranks of locks, on models of ``lock_parameters``.
    clients : sequence of int
        Of the memory runs with delta clients, on models of ``memory_parameters``; those of
        other kinds have ``clients[1]``.
    repeats : int
        Of each timing; the fastest is shown.
    """

    parts: Sequence[str] = PARTS
    parameters: Sequence[int] = (1_000_000, 10_000_000, 100_000_000)
    updates: int = 4
    ranks: Sequence[int] = (1, 8, 32)
    lock_parameters: int = 4_000_000
    clients: Sequence[int] = (2, 10, 100, 1_000)
    memory_parameters: int = 10_000_000
    repeats: int = 5

    def __post_init__(self) -> None:
        unknown = sorted(set(self.parts) - set(PARTS))
        if unknown or not self.parts:
            raise ConfigError(f"--parts: unknown {unknown}; use some of {', '.join(PARTS)}")

    def pieces(self) -> list[tuple[str, Callable[[], Timed | Peak]]]:
        """Return every measurement by name."""
        made: list[tuple[str, Callable[[], Timed | Peak]]] = []
        repeats = self.repeats
        if "merge" in self.parts:
            made += [
                (f"merge-{n}", lambda n=n: merge_part(n, self.updates, repeats))  # type: ignore[misc]
                for n in self.parameters
            ]
        if "lock" in self.parts:
            made += [
                (f"lock-{r}", lambda r=r: lock_part(self.lock_parameters, r, repeats))  # type: ignore[misc]
                for r in self.ranks
            ]
        sizes = [n for n in self.parameters if n > min(self.parameters)] or self.parameters
        if "wire" in self.parts:
            made += [(f"wire-{n}", lambda n=n: wire_part(n, repeats)) for n in sizes]  # type: ignore[misc]
        if "disk" in self.parts:
            made += [(f"disk-{n}", lambda n=n: disk_part(n, repeats)) for n in sizes]  # type: ignore[misc]
        if "memory" in self.parts:
            size, some = self.memory_parameters, self.clients[min(1, len(self.clients) - 1)]
            loads = [("deltas", n) for n in self.clients]
            loads += [(kind, some) for kind in KINDS if kind != "deltas"]
            made += [
                (f"memory-{kind}-{n}", lambda kind=kind, n=n: measure(kind, n, size))  # type: ignore[misc]
                for kind, n in loads
            ]
        return made


@dataclass
class Results:
    """What was measured, in the order wanted."""

    timed: list[Timed]
    peaks: list[Peak]


def run(
    wanted: Wanted, folder: Path, *, fresh: bool = False, told: Callable[[str], None]
) -> Results:
    """Measure what is not kept yet."""
    results = Results([], [])
    for name, piece in wanted.pieces():
        path = folder / f"{name}.json"
        if fresh or not path.exists():
            load = os.getloadavg()[0]
            content = {"kind": "", "content": asdict(found := piece()), "load": load}
            content["kind"] = type(found).__name__
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content), encoding="utf-8")
            told(f"{name}: done (load average {load:.1f})")
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if kept["kind"] == "Timed":
            results.timed.append(Timed(**kept["content"]))
        else:
            results.peaks.append(Peak(**kept["content"]))
    return results


def figures(results: Results) -> dict[str, float]:
    """Flat figures."""
    found: dict[str, float] = {}
    for timed in results.timed:
        if timed.part == "merge":
            name = f"merge/{timed.size}"
            found[f"{name}/ratio_to_floor"] = timed.ratio("merge", "floor")
            found[f"{name}/ratio_to_float64_floor"] = timed.ratio("merge", "float64 floor")
            found[f"{name}/speedup_vs_flower"] = timed.ratio("Flower", "message to model")
            found[f"{name}/merge_speedup_vs_flower"] = timed.ratio("Flower", "merge")
        elif timed.part == "lock":
            found[f"lock/{timed.size}/ratio_to_floor"] = timed.ratio("violated", "floor")
        elif timed.part == "wire":
            name = f"wire/{timed.size}"
            found[f"{name}/encode_vs_flower"] = timed.ratio("encode", "Flower's encode")
            found[f"{name}/decode_vs_flower"] = timed.ratio("decode", "Flower's decode")
        else:
            name = f"disk/{timed.size}"
            found[f"{name}/checkpoint_vs_write"] = timed.ratio(
                "checkpoint", "sequential write, synced"
            )
    for peak in results.peaks:
        place = peak.clients if peak.kind == "deltas" else f"{peak.kind}/{peak.clients}"
        found[f"memory/{place}/model_copies"] = peak.copies
    return found


def markdown(results: Results) -> str:
    """Write the tables."""
    rows: list[str] = []
    for timed in results.timed:
        size = f"rank {timed.size}" if timed.part == "lock" else f"{timed.size:,} parameters"
        notes = ", ".join(f"{name} {value:,.0f}" for name, value in timed.notes.items())
        rows += [
            f"**{timed.part}, {size}**" + (f" ({notes})" if notes else ""),
            "",
            "| " + " | ".join(timed.seconds) + " |",
            "|" + " --- |" * len(timed.seconds),
            "| " + " | ".join(f"{1e3 * s:.2f} ms" for s in timed.seconds.values()) + " |",
            "",
        ]
    if results.peaks:
        rows += [
            f"Peak memory, a model of {results.peaks[0].model / _MB:.0f} MB:",
            "",
            "| clients | how many | peak | model copies | above four copies |",
            "| --- | --- | --- | --- | --- |",
        ]
        rows += [
            f"| {p.kind} | {p.clients:,} | {p.peak / _MB:.1f} MB | {p.copies:.2f} | "
            f"{(p.peak - 4 * p.model) / _MB:+.1f} MB |"
            for p in results.peaks
        ]
        rows.append("")
    named = [f"{name}: {value:.3f}" for name, value in figures(results).items()]
    return "\n".join([*rows, *(f"- {line}" for line in named)])
