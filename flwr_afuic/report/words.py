"""What a run showed, in plain words: for a data steward, not for an engineer.

Nothing here calls an erasure a success unless its state is ``completed`` and every bound
holds; every other outcome says what was not met, with the number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flwr_afuic.report.look import printable
from flwr_afuic.report.record import MERGE, REQUEST, RunRecord, Verdict
from flwr_afuic.report.tables import MetricSense, number, sense

SILENT_FAILURE = 0.05
"""Backdoor success above retraining's from which a completed request is a silent failure."""

PLANTED = 0.5
"""Backdoor success of the original model up to which the probe was not planted."""

_MERGED = frozenset({"merged", "verifying", "completed", "completed-unverified"})

_STATES: dict[str, tuple[str, str]] = {
    "": ("open", "No erasure request is on record for {site}."),
    "received": ("open", "The erasure of {site} has been asked for and not begun."),
    "dispatched": ("open", "The erasure of {site} is under way and not finished."),
    "unlearned": ("open", "{site} has unlearned its data; the shared model has not changed yet."),
    "merged": ("open", "The erasure of {site} is merged and not verified yet."),
    "verifying": ("open", "The erasure of {site} is merged; its verification is not finished."),
    "completed-unverified": (
        "warn", "The erasure of {site} was merged, and the site left before it was verified."),
    "not-met": ("bad", "The erasure of {site} did not reach its forget level."),
    "held": ("bad", "The erasure of {site} is held back: it would have harmed the shared model."),
    "refused": ("bad", "The erasure of {site} was refused."),
    "failed": ("bad", "The erasure of {site} failed."),
    "cancelled": ("warn", "The erasure of {site} was cancelled."),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """The headline of a report, the tone it is set in, and four questions with answers.

    An answer's lines are a first sentence and the facts behind it. ``tone`` is ``"good"``,
    ``"warn"``, ``"bad"`` or ``"open"``; ``mark`` says the same in a word, so that colour is
    never the only carrier.
    """

    tone: str
    mark: str
    headline: str
    answers: tuple[tuple[str, str], ...]
    not_met: tuple[str, ...]


def outcome(record: RunRecord) -> Outcome:
    """Return the outcome of a run in plain words."""
    tone, headline = _headline(record)
    marks = {"good": "Completed", "warn": "With reservations", "bad": "Not met", "open": "Open"}
    answers = (
        ("What was asked", _asked(record)),
        ("What happened", _happened(record)),
        ("Does the measurement say it is gone?", _gone(record, tone)),
        ("Did it come back?", _back(record)),
    )
    return Outcome(tone, marks[tone], printable(headline), answers, tuple(not_met(record)))


def not_met(record: RunRecord) -> list[str]:
    """Return every bound that was not met, with its number, and what the events say about it."""
    lines = [_miss(verdict) for verdict in record.verdicts if not verdict.met]
    excess = silent_failure(record)
    if excess is not None:
        lines.append(
            f"backdoor success is {number(excess)} above retraining's "
            f"(more than {SILENT_FAILURE:g} makes a completed request a silent failure)"
        )
    for event in record.happened({"not-met", "failed", "refused", "held"}):
        lines.append(
            f"{event.kind.replace('-', ' ')}: {printable(event.text) or 'no reason given'}"
        )
    return lines


def silent_failure(record: RunRecord) -> float | None:
    """Return how far a completed request's backdoor success is above retraining's, if too far."""
    ours = record.score("afuic", "backdoor_success")
    theirs = record.score("retrain", "backdoor_success")
    if record.state != "completed" or ours is None or theirs is None:
        return None
    return ours - theirs if ours - theirs > SILENT_FAILURE else None


def percent(value: float | None) -> str:
    """Return a share as a percentage with one decimal."""
    return "an unknown share" if value is None else f"{100 * value:.1f} %"


def _headline(record: RunRecord) -> tuple[str, str]:
    site, state = record.target, record.state
    if state != "completed":
        unknown = ("bad", "The erasure of {site} ended in an unknown state (" + state + ").")
        tone, words = _STATES.get(state, unknown)
        return tone, words.replace("{site}", site)
    missed = [verdict for verdict in record.verdicts if not verdict.met]
    if silent_failure(record) is not None:
        return (
            "bad",
            f"The erasure of {site} was called completed, but its influence is still there.",
        )
    if missed:
        count = f"{len(missed)} of {len(record.verdicts)} bounds are not met"
        return "warn", f"The erasure of {site} was completed, but {count}."
    if not record.verdicts:
        return "warn", f"The erasure of {site} was completed; this run checked no bounds."
    return "good", f"{site} was erased from the shared model, and every measured bound holds."


def _miss(verdict: Verdict) -> str:
    value = "not measured" if verdict.value is None else number(verdict.value)
    floor = "" if verdict.floor is None else f", retrain-to-retrain floor {number(verdict.floor)}"
    return f"{printable(verdict.name)}: {value} (bound {printable(verdict.bound)}{floor})"


def _asked(record: RunRecord) -> str:
    scope = str(record.erasure.get("scope") or "client")
    count = record.erasure.get("count")
    some = f"{count} of its samples" if isinstance(count, int) else "some of its samples"
    what = "all its data" if scope == "client" else some
    requests = record.happened(REQUEST)
    when = ""
    if requests and requests[0].time is not None:
        when = f", {requests[0].time:.1f} s after training began"
        if requests[0].round is not None:
            when += f" (round {requests[0].round:.0f} of {record.rounds})"
    if not requests and not record.state:
        return "This record holds no request."
    return printable(
        f"{record.target}, one of {len(record.sites)} sites, asked that {what} be erased from the "
        f"shared model{when}."
    )


def _happened(record: RunRecord) -> str:
    requests, merges = record.happened(REQUEST), record.happened(MERGE)
    if not merges and record.state not in _MERGED:
        return f"Nothing was merged into the shared model. {_state_words(record)}"
    words = "The data was unlearned and the change merged into the current model"
    if requests and merges and requests[0].time is not None and merges[-1].time is not None:
        words += f" {merges[-1].time - requests[0].time:.1f} s after the request"
    if len(merges) > 1:
        words += f", in {len(merges)} attempts"
    stall = record.measure("stall_seconds")
    pace = record.measure("retained_throughput")
    if stall is not None:
        words += f". The other sites waited {stall:.1f} s because of it"
        if pace is not None:
            words += f" and went on at {percent(pace)} of their pace"
    return f"{words}. {_state_words(record)}"


def _state_words(record: RunRecord) -> str:
    state = printable(record.state.replace("-", " ")) or "not recorded"
    return f"The state of the request is: {state}."


def _gone(record: RunRecord, tone: str) -> str:
    facts = [fact for fact in (_backdoor(record), *_other_scores(record)) if fact]
    if not facts:
        return "It was not measured in this run."
    met = sum(verdict.met for verdict in record.verdicts)
    tally = f"{met} of {len(record.verdicts)} bounds hold." if record.verdicts else ""
    if record.state != "completed":
        lead = f"No claim is made, since the request is not completed. Measured: {tally}"
    elif tone == "good":
        lead = f"Yes, as far as it was measured: {tally}"
    elif silent_failure(record) is not None:
        lead = f"No: its influence is measurable. {tally}"
    else:
        lead = f"Not in every respect: {tally}" if tally else "No bound was checked. Measured:"
    return "\n".join([lead.strip(), *facts])


def _backdoor(record: RunRecord) -> str:
    def at(model: str) -> float | None:
        return record.score(model, "backdoor_success")

    ours, retrained, original = at("afuic"), at("retrain"), at("original")
    if ours is None:
        return ""
    words = f"Images with the planted trigger are answered as planted in {percent(ours)} of cases"
    if retrained is not None:
        words += f"; by a model trained without the site, in {percent(retrained)}"
    if original is not None:
        words += f"; before the erasure it was {percent(original)}"
    words += "." + _beside_floor(record, "backdoor_success")
    if original is not None and original <= PLANTED:
        words += (
            " The trigger was never planted firmly in the original model, so in this run it says "
            "little."
        )
    return words


def _other_scores(record: RunRecord) -> list[str]:
    lines: list[str] = []
    for metric, what in (
        ("forget_accuracy", "On the erased data itself the model scores"),
        ("membership_auc", "An attack that tries to tell erased images from unseen ones reaches"),
    ):
        ours, theirs = record.score("afuic", metric), record.score("retrain", metric)
        if ours is None:
            continue
        form: Callable[[float | None], str] = number if metric == "membership_auc" else percent
        beside = "" if theirs is None else f", a model trained without it {form(theirs)}"
        lines.append(f"{what} {form(ours)}{beside}." + _beside_floor(record, metric))
    return lines


def _beside_floor(record: RunRecord, metric: str) -> str:
    seen: MetricSense = next(item for item in sense(record) if item.metric == metric)
    if seen.after is None or seen.floor is None:
        return ""
    gap, floor = number(abs(seen.after)), number(seen.floor)
    side = "within" if seen.within else "more than"
    return f" The difference of {gap} is {side} that between two retrainings ({floor})."


def _back(record: RunRecord) -> str:
    mean, largest = record.measure("resurfacing", "mean"), record.measure("resurfacing", "max")
    if not record.happened(MERGE) and record.state not in _MERGED:
        return "Does not apply: nothing was merged."
    if mean is None and largest is None:
        return "It was not measured in this run."
    rounds = _rounds_after(record)
    over = f"Over the {rounds} rounds after the merge" if rounds else "After the merge"
    words = (
        f"{over}, backdoor success was {number(mean, sign=True)} beside retraining's on average "
        f"and {number(largest, sign=True)} at most."
    )
    without = record.score("no_unlearning", "backdoor_success")
    if without is not None:
        words += f" Had the other sites only trained on, it would be {percent(without)} at the end."
    if record.state != "completed":
        return f"No claim is made, since the request is not completed. {words}"
    if silent_failure(record) is not None:
        return f"It was never gone: its influence is measurable at the end. {words}"
    judged = [v for v in record.verdicts if "resurfac" in v.name.lower()]
    if not judged:
        return f"No bound was checked. {words}"
    holds = all(verdict.met for verdict in judged)
    return (
        "No. " if holds else "It is not shown that it stayed away: a bound is not met. "
    ) + words


def _rounds_after(record: RunRecord) -> int:
    merges = [event.round for event in record.happened(MERGE) if event.round is not None]
    curve = record.curves.get("afuic")
    if not merges or curve is None:
        return 0
    return sum(at > merges[-1] for at in curve.points("backdoor_success")[0])
