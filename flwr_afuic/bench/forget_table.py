"""The Markdown of ``flwr-afuic bench forget``: every method beside retraining and its floor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from flwr_afuic.app.verdicts import Verdict
from flwr_afuic.bench.forget import Cells, Result, other_code
from flwr_afuic.bench.forget_figures import Row, rows, verdicts
from flwr_afuic.bench.forget_protocol import Protocol
from flwr_afuic.report.look import model_name

NAMES = {
    "afuic": "**AFU-IC**",
    "pga": "PGA",
    "federaser": "FedEraser",
    "fedosd": "FedOSD",
    "not": "NoT",
    "fcu": "FCU",
    "proxy_distill": "ProxyDistill",
    "medu": "MEDU",
    "no_unlearning": "no unlearning",
    "retrain_floor": "*retrained twice (floor)*",
}
_COLUMNS = {
    "average_gap": "average gap",
    "asr_gap": "backdoor",
    "forget_gap": "forget",
    "membership_gap": "membership",
    "test_gap": "test",
    "resurfacing_mean": "resurfacing",
    "resurfacing_max": "worst",
    "merge_dip": "merge dip",
    "dip_rounds": "dip rounds",
    "relearn_ratio": "relearn",
    "distance_ratio": "distance",
}
_WORDS = {
    "average_gap": "average gap at the end",
    "resurfacing_mean": "resurfacing, mean over the rounds after the merge",
    "resurfacing_max": "resurfacing, worst round",
    "merge_dip": "dip of the test score at the merge",
    "dip_rounds": "rounds until the test score is retraining's, within .01 or the floor",
    "relearn_ratio": "relearn time over retraining's",
    "resurfacing_best": "resurfacing beside the best other method's",
    "forget_gap_at_merge": "score on the erased data at the merge, minus retraining's",
    "kept_gap_at_merge": "score on the site's kept data at the merge, minus retraining's",
    "kept_change_at_merge": "what the merge itself changed in it",
    "silent_failures": "silent failures, of all seeds",
}
_UNSIGNED = {"average_gap", "dip_rounds", "relearn_ratio", "distance_ratio"}
_SCORES = {
    "test": "test",
    "backdoor_success": "backdoor",
    "forget": "forget",
    "membership_auc": "membership AUC",
}
_CANNOT_TELL = 0.03


def begin_mark(variant: str) -> str:
    """Return the line that marks the place of a variant's tables in a Markdown file."""
    return f"<!-- table: flwr-afuic bench forget {variant} -->"


def variant_of(
    scenario: str, protocol: Protocol, pairs: Sequence[str], constants: Sequence[str] = ()
) -> str:
    """Name the scenario, and the options that are not the defaults: each has tables of its own."""
    usual = Protocol()
    words = [scenario, *(f"--set {pair}" for pair in sorted(pairs))]
    words += [f"--constant {constant}" for constant in sorted(constants)]
    for option in ("staleness", "rounds_after", "judged_on"):
        value = getattr(protocol, option)
        if value != getattr(usual, option):
            words.append(f"--{option.replace('_', '-')} {value}")
    return " ".join(words)


def markdown(all_cells: Iterable[Cells]) -> str:
    """Return the tables of every data set."""
    return "\n".join(_section(cells) for cells in all_cells if rows(cells))


def _section(cells: Cells) -> str:
    found = rows(cells)
    any_seed = next(iter(cells.counted.values()))["original"]
    synthetic = ", SYNTHETIC data" if any_seed["synthetic"] else ""
    lines = [f"**{any_seed['dataset']}**{synthetic}, {_conditions(cells, any_seed)}", ""]
    lines += [*_table(_gap_rows(found)), "", *_table(_score_rows(cells, found)), ""]
    judged = verdicts(found)
    if judged:
        lines += [*_table(_judged_rows(judged)), ""]
    return "\n".join([*lines, *_notes(cells, found), ""])


def _conditions(cells: Cells, original: Result) -> str:
    settings, protocol = cells.plan.settings, cells.plan.protocol
    spread = "IID" if settings.partition == "iid" else f"{settings.partition}({settings.alpha:g})"
    text = (
        f"{cells.plan.scenario}, {settings.sites} sites, {spread}, staleness "
        f"{protocol.staleness} rounds, erased {original['erased_samples']} images "
        f"({original['target_share']:.0%} of the data at the site; seed {original['seed']})"
    )
    if protocol.judged_on != "test":
        text += "; scored on validation data, to choose constants"
    if own := {m: v for m, v in cells.plan.constants.items() if m in cells.plan.methods}:
        words = (f"{m}.{name}={value}" for m, pairs in own.items() for name, value in pairs)
        text += f"; constants {', '.join(words)}"
    if cells.left_out:
        text += f"; no backdoor planted, left out: seed {', '.join(map(str, cells.left_out))}"
    return text


def _gap_rows(found: Sequence[Row]) -> list[list[str]]:
    shown = [name for name in _COLUMNS if any(_has(row, name) for row in found)]
    table = [["minus retraining's", "seeds", *(_COLUMNS[name] for name in shown)]]
    for row in found:
        cells = [_cell(row, name) for name in shown]
        table.append([NAMES.get(row.method, row.method), _seeds(row.seeds), *cells])
    return table


def _has(row: Row, name: str) -> bool:
    return any(value is not None for value in row.values.get(name, []))


def _cell(row: Row, name: str) -> str:
    values = row.values.get(name, [])
    known = [value for value in values if value is not None]
    if name not in row.values:
        return "-"
    if len(known) < len(values):
        if name != "dip_rounds" or not values:
            return "-" if not known else f"{_text(known, name)} ({len(known)} of {len(values)})"
        return f"never in {len(values) - len(known)} of {len(values)}"
    return _text(known, name)


def _text(known: Sequence[float], name: str) -> str:
    sign = "" if name in _UNSIGNED else "+"
    digits = 1 if name == "dip_rounds" else 2 if name in ("relearn_ratio", "distance_ratio") else 3
    text = f"{np.mean(known):{sign}.{digits}f}"
    if len(known) > 1:
        text += f" ± {np.std(known, ddof=1):.{digits}f}"
    return text


def _score_rows(cells: Cells, found: Sequence[Row]) -> list[list[str]]:
    """Mean scores in the last round, of the original at the request."""
    table = [["scores, last round", "seeds", *_SCORES.values()]]
    for method in ("original", "retrain", *(row.method for row in found)):
        seeds = cells.complete(method)
        ends = [_last(cells.counted[seed][method]) for seed in seeds]
        name = NAMES.get(method) or (
            "original, at the request" if method == "original" else model_name(method)
        )
        table.append([name, _seeds(seeds), *(_mean([e[s] for e in ends]) for s in _SCORES)])
    return table


def _last(result: Result) -> dict[str, float | None]:
    return dict(result["curve"][max(result["curve"], key=int)])


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.3f}" if known and len(known) == len(values) else "-"


def _judged_rows(judged: Sequence[Verdict]) -> list[list[str]]:
    table = [["asked of AFU-IC", "mean", "bound", "floor", "holds"]]
    for verdict in judged:
        value = "never" if verdict.value is None else f"{verdict.value:+.4f}"
        floor = "-" if verdict.floor is None else f"{verdict.floor:+.4f}"
        # A bar would end the cell.
        bound = verdict.bound.replace("|.|", "size")
        words = _WORDS.get(verdict.name, verdict.name)
        table.append([words, value, bound, floor, "yes" if verdict.holds else "**no**"])
    return table


def _notes(cells: Cells, found: Sequence[Row]) -> list[str]:
    """Say what is missing, what failed in silence, and what no metric can tell here."""
    lines = []
    fewer = [NAMES[row.method] for row in found if len(row.seeds) < len(cells.counted)]
    if fewer:
        lines.append(f"Not all seeds are there yet for: {', '.join(fewer)}.")
    missing = [NAMES[m] for m in cells.plan.methods if not cells.complete(m)]
    if missing:
        lines.append(f"Not run yet: {', '.join(missing)}.")
    silent = [
        f"{NAMES[row.method]} ({int(sum(v or 0 for v in row.values['silent_failure']))} of "
        f"{len(row.seeds)})"
        for row in found
        if any(row.values.get("silent_failure", []))
    ]
    if silent:
        triggered = any(_has(row, "asr_gap") for row in found)
        what = "backdoor" if triggered else "score on the erased data"
        lines.append(f"Called completed, and {what} .05 above retraining's: {', '.join(silent)}.")
    ours = next((row for row in found if row.method == "afuic"), None)
    if ours is not None and "kept_gap_at_merge" in ours.values:
        for name in ("forget_gap_at_merge", "kept_gap_at_merge", "kept_change_at_merge"):
            known = ours.values.get(name, [])
            if known:
                seeds = " / ".join("-" if v is None else f"{v:+.3f}" for v in known)
                lines.append(f"By seed, {_WORDS[name]}: {seeds}.")
    plain = next((row for row in found if row.method == "no_unlearning"), None)
    if plain is not None:
        hidden = [
            words
            for name, words in (
                ("asr_gap", "backdoor success"),
                ("forget_gap", "the score on the erased data"),
                ("membership_gap", "membership AUC"),
                ("test_gap", "the test score"),
            )
            if (mean := plain.mean(name)) is not None and abs(mean) < _CANNOT_TELL
        ]
        if hidden:
            lines.append(
                f"Even without unlearning within .03 of retraining, so that they tell nothing "
                f"here: {', '.join(hidden)}."
            )
    other = other_code([cells])
    if other:
        lines.append(f"{other} of these runs were made by another version of the code.")
    return lines


def _seeds(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _table(rows_: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows_]
    lines.insert(1, "|" + " --- |" * len(rows_[0]))
    return lines
