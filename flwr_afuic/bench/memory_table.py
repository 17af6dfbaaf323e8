"""The tables, figures and verdicts of ``flwr-afuic bench memory``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flwr_afuic.app.summary import versions
from flwr_afuic.bench.memory_runs import MemoryResults, Result
from flwr_afuic.bench.rates import NAMED
from flwr_afuic.bench.storage import DEFAULT, UNCOMPRESSED
from flwr_afuic.history.lattices import LATTICES

BEGIN = "<!-- table: flwr-afuic bench memory -->"

CAPTION = (
    "Bytes per client-round against test accuracy and backdoor success after unlearning, and bits "
    "per entry of three lattices against the rate-distortion limit"
)

LEAST_RATIO = 30.0
MOST_DROP = 0.01
MOST_BACKDOOR = 0.02
MOST_ABOVE_ENTROPY = 0.01
LEAST_SPEED = 40.0
MOST_PEAK = 256.0

_BOUNDS = {
    "original": "no unlearning",
    "retrain": "retrained without the site",
    "retrain_floor": "retrained, another seed",
}
_SCORES = ("test", "backdoor_success", "distance", "average_gap")
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Judged:
    """One figure beside its bound."""

    where: str
    name: str
    value: str
    bound: str
    holds: bool


def flat_figures(results: MemoryResults) -> dict[str, float]:
    """Return every figure by name: means over the seeds."""
    flat: dict[str, float] = {}
    for dataset, runs in results.runs.items():
        prefix = f"memory/{dataset}"
        flat |= {f"{prefix}/{name}": value for name, value in _figures(runs).items()}
        for form in runs[0]["forms"]:
            flat[f"{prefix}/{form}/bytes_per_client_round"] = _mean(
                _bytes(run, form) for run in runs
            )
            for moment in ("merge", "recovered"):
                for score in _SCORES:
                    value = _score(runs, "forms", form, moment, score)
                    if value is not None:
                        flat[f"{prefix}/{form}/{moment}/{score}"] = value
    for point in results.codec.get("points", []):
        if point["distortion"] in NAMED:
            flat[f"codec/{point['lattice']}/bits_at_{point['distortion']:g}"] = point["bits"]
    if "speed" in results.codec:
        flat["codec/encode_mb_s"] = results.codec["speed"]["encode"]
        flat["codec/decode_mb_s"] = results.codec["speed"]["decode"]
    for history in results.histories:
        size = history["size"]
        flat["history/peak_mib"] = history["peak"]
        flat[f"history/{size['clients']}x{size['rounds']}/peak_mib"] = history["peak"]
    return flat


def _figures(runs: Sequence[Result]) -> dict[str, float]:
    """Figures of one data set; differences are the default's against the uncompressed history's."""

    def of(form: str, moment: str, score: str) -> float | None:
        return _score(runs, "forms", form, moment, score)

    found: dict[str, float | None] = {
        "ratio_vs_fp32": _mean(_bytes(r, UNCOMPRESSED) / _bytes(r, DEFAULT) for r in runs),
        "ratio_of_records": _mean(
            _bytes(r, UNCOMPRESSED) / _bytes(r, DEFAULT, "records") for r in runs
        ),
        "main_score_drop": _minus(of(UNCOMPRESSED, "merge", "test"), of(DEFAULT, "merge", "test")),
        "asr_gap_vs_uncompressed": _minus(
            of(DEFAULT, "merge", "backdoor_success"), of(UNCOMPRESSED, "merge", "backdoor_success")
        ),
        "average_gap_recovered": of(DEFAULT, "recovered", "average_gap"),
        "average_gap_uncompressed": of(UNCOMPRESSED, "recovered", "average_gap"),
        "average_gap_floor": _score(runs, "models", "retrain_floor", "recovered", "average_gap"),
        "correction_to_training": _mean(run["diagnosis"]["ratio"] for run in runs),
    }
    return {name: value for name, value in found.items() if value is not None}


def verdicts(results: MemoryResults) -> list[Judged]:
    """Judge every figure that has a bound."""
    judged = []
    for dataset, runs in results.runs.items():
        judged += _of_dataset(dataset, _figures(runs), runs)
    points = results.codec.get("points", [])
    bits = {(p["lattice"], p["distortion"]): p["bits"] for p in points}
    above = [p["bits"] - p["entropy"] for p in points if p["entropy"] is not None]
    if above:
        judged.append(
            Judged(
                "codec", "Z above the entropy of its symbols, at most", f"{max(above):.4f} bit",
                f"<= {MOST_ABOVE_ENTROPY:g}", max(above) <= MOST_ABOVE_ENTROPY,
            )
        )  # fmt: skip
        gains = [bits["Z", d] - bits["E8", d] for lattice, d in bits if lattice == "Z"]
        judged.append(
            Judged(
                "codec", "E8 below Z, at least", f"{min(gains):.4f} bit", "> 0 at every rate",
                min(gains) > 0,
            )
        )  # fmt: skip
    for name in ("encode", "decode") if "speed" in results.codec else ():
        rate = results.codec["speed"][name]
        judged.append(
            Judged("codec", f"{name}, MB/s of fp32 per core", f"{rate:.0f}",
                   f">= {LEAST_SPEED:g}", rate >= LEAST_SPEED)
        )  # fmt: skip
    for history in results.histories:
        judged.append(
            Judged(_words(history["size"]), "peak while unlearning, MiB", f"{history['peak']:.0f}",
                   f"<= {MOST_PEAK:g}", history["peak"] <= MOST_PEAK)
        )  # fmt: skip
    return judged


def _of_dataset(dataset: str, found: dict[str, float], runs: Sequence[Result]) -> list[Judged]:
    ratio, drop = found["ratio_vs_fp32"], found["main_score_drop"]
    ours, plain = found["average_gap_recovered"], found["average_gap_uncompressed"]
    floor = found["average_gap_floor"]
    judged = [
        Judged(dataset, "times less storage than fp32", f"{ratio:.1f}", f">= {LEAST_RATIO:g}",
               ratio >= LEAST_RATIO),
        Judged(dataset, "test score, uncompressed minus default", f"{drop:+.3f}",
               f"within ±{MOST_DROP:g}", abs(drop) <= MOST_DROP + _ROUNDING),
    ]  # fmt: skip
    gap = found.get("asr_gap_vs_uncompressed")
    if gap is not None:
        judged.append(
            Judged(dataset, "backdoor success, default minus uncompressed", f"{gap:+.3f}",
                   f"within ±{MOST_BACKDOOR:g}", abs(gap) <= MOST_BACKDOOR + _ROUNDING)
        )  # fmt: skip
    judged.append(
        Judged(
            dataset, "average gap to retraining after recovery", f"{ours:.5f}",
            f"<= {plain:.5f}, uncompressed (or the floor, {floor:.5f}); by seed {_paired(runs)}",
            ours <= max(plain, floor) + _ROUNDING,
        )
    )  # fmt: skip
    return judged


def _paired(runs: Sequence[Result]) -> str:
    """Write how much farther the default is from retraining than the uncompressed, by seed."""
    gaps = [
        [run["forms"][form]["recovered"]["average_gap"] for form in (DEFAULT, UNCOMPRESSED)]
        for run in runs
    ]
    return " / ".join(f"{ours - plain:+.5f}" for ours, plain in gaps)


def markdown(results: MemoryResults) -> str:
    """Return every table as Markdown."""
    parts = [_judged(verdicts(results))]
    parts += [_section(dataset, runs) for dataset, runs in results.runs.items()]
    if results.codec:
        parts.append(_rates(results.codec))
    if results.histories:
        parts.append(_histories(results.histories))
    return "\n\n".join(parts)


def content(results: MemoryResults) -> dict[str, Any]:
    """Build the JSON file: flat figures, verdicts, and what they were made with."""
    return {
        "figures": flat_figures(results),
        "verdicts": [asdict(verdict) for verdict in verdicts(results)],
        "settings": {
            dataset: {
                **{k: v for k, v in runs[0]["settings"].items() if k not in ("seed", "data_dir")},
                **runs[0]["memory"],
            }
            for dataset, runs in results.runs.items()
        },
        "seeds": {
            dataset: [run["settings"]["seed"] for run in runs]
            for dataset, runs in results.runs.items()
        },
        "points": results.codec.get("points", []),
        "histories": [
            {k: v for k, v in history.items() if k != "versions"} for history in results.histories
        ],
        "versions": versions(),
    }


def _judged(judged: Iterable[Judged]) -> str:
    rows = [["where", "figure", "value", "bound", "holds"]]
    rows += [[v.where, v.name, v.value, v.bound, "yes" if v.holds else "**no**"] for v in judged]
    return _table(rows)


def _section(dataset: str, runs: Sequence[Result]) -> str:
    settings, memory, first = runs[0]["settings"], runs[0]["memory"], runs[0]
    seeds = ", ".join(str(run["settings"]["seed"]) for run in runs)
    shares = " / ".join(f"{100 * run['target_share']:.0f} %" for run in runs)
    more = memory["recovery"]
    synthetic = ", SYNTHETIC data" if first["synthetic"] else ""
    head = (
        f"**{dataset}**{synthetic}, {first['entries']} parameters, {settings['sites']} sites, "
        f"{memory['rounds']} rounds of all, learning rate {settings['lr']:g} j^-{memory['decay']:g}"
        f", {settings['scenario']} at the site that left (weight {shares}), seeds {seeds}; the "
        f"correction is {_mean(r['diagnosis']['ratio'] for r in runs):.2f} times as long as all "
        "training"
    )
    rows = [[
        "stored as", "bytes per client-round", "times less", "without index", "test", "backdoor",
        "distance", "gap",
        f"test, {more} rounds later", "backdoor", "distance", "gap",
    ]]  # fmt: skip
    for name, words in _BOUNDS.items():
        rows.append([words, "-", "-", "-", *_cells(runs, "models", name)])
    for name, form in first["forms"].items():
        size = _mean(_bytes(run, name) for run in runs)
        ratio = _mean(_bytes(run, UNCOMPRESSED) / _bytes(run, name) for run in runs)
        bare = _mean(_bytes(r, UNCOMPRESSED) / _bytes(r, name, "records") for r in runs)
        sizes = [f"{size:.0f}", f"{ratio:.1f}", f"{bare:.1f}"]
        rows.append([form["words"], *sizes, *_cells(runs, "forms", name)])
    return f"{head}\n\n{_table(rows)}"


def _cells(runs: Sequence[Result], group: str, name: str) -> list[str]:
    values = (
        _score(runs, group, name, moment, score)
        for moment in ("merge", "recovered")
        for score in _SCORES
    )
    return ["-" if value is None else f"{value:.3f}" for value in values]


def _rates(codec: Result) -> str:
    rows = [["distortion", "R(D)", *LATTICES]]
    for distortion in sorted({p["distortion"] for p in codec["points"]}, reverse=True):
        of = {p["lattice"]: p for p in codec["points"] if p["distortion"] == distortion}
        rows.append(
            [f"{distortion:g}", f"{of['Z']['limit']:.3f}"]
            + [f"{of[name]['bits']:.3f}" for name in LATTICES]
        )
    speed = codec["speed"]
    return (
        f"Bits an entry of a Gaussian source, from the bytes of the entropy coder\n\n{_table(rows)}"
        f"\n\nAt the default setting one core encodes {speed['encode']:.0f} and decodes "
        f"{speed['decode']:.0f} MB of float32 a second (processor time, about a million Laplacian "
        "entries)."
    )


def _histories(histories: Sequence[Result]) -> str:
    rows = [["generated history", "float32 would take", "on disk", "sites erased, records read",
             "peak of unlearning, MiB", "before it began", "seconds",
             "peak of writing, MiB"]]  # fmt: skip
    for found in histories:
        size = found["size"]
        whole = 4 * size["clients"] * size["rounds"] * size["parameters"]
        rows.append(
            [
                _words(size), f"{whole / 2**20:.0f} MiB", f"{found['disk'] / 2**20:.1f} MiB",
                f"{size['erased']}, {found['records']}", f"{found['peak']:.0f}",
                f"{found['before']:.0f}", f"{found['seconds']:.1f}", f"{found['writer']:.0f}",
            ]
        )  # fmt: skip
    return _table(rows)


def _words(size: dict[str, Any]) -> str:
    return (
        f"{size['clients']} clients x {size['rounds']} rounds x {size['parameters']:,} parameters"
    )


def _score(runs: Sequence[Result], group: str, name: str, moment: str, score: str) -> float | None:
    found = [run[group][name][moment] for run in runs]
    values = [None if scores is None else scores[score] for scores in found]
    return None if None in values else _mean(value for value in values if value is not None)


def _bytes(run: Result, form: str, what: str = "disk") -> float:
    return float(run["forms"][form][what]) / float(run["client_rounds"])


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines)
