"""What a certificate must hold, and what in it would contradict itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flwr_afuic.erasure.certificate.shape import (
    BOOLEAN,
    INFINITE,
    KEY_ID,
    LOSS,
    NUMBER,
    OBJECT,
    SHA256,
    SHARE,
    TEXT,
    TIME,
    UUID_TEXT,
    WORDS,
    Each,
    Later,
    Leaf,
    Maybe,
    Shape,
    differences,
    one_of,
    pattern,
    shown,
    whole,
)

FORMAT = "flwr-afuic certificate"
VERSION = 1
COMPLETED, UNVERIFIED = "completed", "completed-unverified"

_MOST_PROBLEMS = 20

_SCORE: dict[str, Shape] = {"loss": LOSS, "accuracy": SHARE, "count": whole(1)}
_MODEL: Shape = {"version": whole(0), "fingerprint": SHA256}

FIELDS: Mapping[str, Shape] = {
    "format": one_of(FORMAT),
    "version": Leaf(str(VERSION), lambda v: type(v) is int and v == VERSION),
    "issue": whole(1),
    "issued_at": TIME,
    "federation": UUID_TEXT,
    "outcome": one_of(COMPLETED, UNVERIFIED),
    "request": {
        "id": UUID_TEXT,
        "site": WORDS,
        "filed_by": one_of("site", "operator"),
        "scope": one_of("client", "samples"),
        "count": Maybe(whole(1)),
        "commitment": pattern("a text of at most 128 characters", "(?s).{0,128}"),
        "reason": WORDS,
        "filed_at": Maybe(TIME),
        "received_at": TIME,
        "merged_at": TIME,
        "completed_at": TIME,
        "clock_set_back": BOOLEAN,
        "batch": Each(UUID_TEXT),
    },
    "history": Each(
        {
            "state": WORDS,
            "at": Maybe(TIME),
            "seconds": NUMBER,
            "round": whole(0),
            "version": whole(0),
            "text": TEXT,
        },
        least=1,
    ),
    "model": {"base": _MODEL, "merge": _MODEL, "attempts": whole(1)},
    "method": {"name": WORDS, "settings": OBJECT},
    "evidence": Maybe(
        {
            "before": _SCORE,
            "after": _SCORE,
            "reference": Maybe(_SCORE),
            "holdout": Maybe(_SCORE),
            "steps": whole(0),
            "stop_reason": TEXT,
            "delta_norm": Leaf("a number of at least 0", NUMBER.test),
        }
    ),
    "verification": {
        "required_rounds": whole(1),
        "rounds": whole(0),
        "level": Maybe(
            {
                "of": one_of("reference", "hold-out"),
                "loss_at_least": LOSS,
                "accuracy_at_most": NUMBER,
            }
        ),
        "scores": Each({"version": whole(0), **_SCORE, "met": Maybe(BOOLEAN)}),
        "score_name": Later(WORDS),
        "verdict": TEXT,
        "rests_on_the_sites_word": Leaf("true", lambda v: v is True),
    },
    "metrics": Maybe({"figures": OBJECT, "made_with": OBJECT}),
    "calibration": {"lock": {"kept": BOOLEAN, "digest": Maybe(SHA256)}, "settings": OBJECT},
    "privacy": {"asked": OBJECT, "applied": Maybe(OBJECT)},
    "purged": Each(
        {
            "file": WORDS,
            "bytes": whole(0),
            "sha256": Maybe(SHA256),
            "what": WORDS,
            "at": TIME,
        }
    ),
    "not_purged": Each({"what": WORDS, "why": WORDS}, least=1),
    "guarantee": {"kind": one_of("empirical", "formal"), "text": WORDS, "details": OBJECT},
    "proxies": {"used": BOOLEAN, "provenance": TEXT, "text": WORDS},
    "ledger": {"seq": whole(1), "hash": SHA256},
    "software": OBJECT,
    "signed_by": KEY_ID,
}
"""Every field of a certificate of this version. Times are UTC by the server's clock, except
``filed_at``, which is by the filer's; ``seconds`` count from the start of training. What every
``accuracy`` is, ``score_name`` says: of a segmentation the mean Dice."""


def problems_of(document: object) -> list[str]:
    """Return everything that is wrong with a document as a certificate; nothing if it is one.

    An unknown format or version is the only thing said of such a document: what its other
    fields should be is not known here.
    """
    if not isinstance(document, dict):
        return [f"the document is {shown(document)}; it must be a JSON object"]
    if document.get("format") != FORMAT:
        return [f"the format is {shown(document.get('format'))}; this is no {FORMAT}"]
    if document.get("version") != VERSION or type(document["version"]) is not int:
        return [
            f"the format's version is {shown(document.get('version'))}; this program reads "
            f"version {VERSION}, use the one that made the certificate"
        ]
    found = list(differences(document, FIELDS)) or list(_contradictions(document))
    if len(found) > _MOST_PROBLEMS:
        found[_MOST_PROBLEMS:] = [f"and {len(found) - _MOST_PROBLEMS} more"]
    return found


def _contradictions(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield what contradicts itself in a document whose fields are all well formed."""
    yield from _about_models(document)
    yield from _about_times(document)
    yield from _about_history(document)
    yield from _about_verification(document)
    yield from _about_the_rest(document)


def _about_models(document: Mapping[str, Any]) -> Iterator[str]:
    base, merge = document["model"]["base"], document["model"]["merge"]
    if merge["version"] <= base["version"]:
        yield (
            f"the merge version {merge['version']} is not above the base version "
            f"{base['version']}: a merge makes a later version"
        )


def _about_times(document: Mapping[str, Any]) -> Iterator[str]:
    request = document["request"]
    times = [request[f"{step}_at"] for step in ("received", "merged", "completed")]
    if times_in_order([*times, document["issued_at"]]) == request["clock_set_back"]:
        if request["clock_set_back"]:
            yield "clock_set_back is true, but the times of the request are in order"
        else:
            yield (
                "the request was not received, merged, completed and certified in this order: "
                f"{', '.join([*times, document['issued_at']])}"
            )


def times_in_order(times: list[str]) -> bool:
    """Whether times in the certificate's form come one after the other, or at once."""
    # With "Z" away, a fraction sorts after the same second without one.
    keys = [time.removesuffix("Z") for time in times]
    return keys == sorted(keys)


def _about_history(document: Mapping[str, Any]) -> Iterator[str]:
    history, outcome = document["history"], document["outcome"]
    states = [step["state"] for step in history]
    if states[0] != "received":
        yield f"the history begins with {states[0]!r}; it must begin with 'received'"
    if states[-1] != outcome:
        yield f"the outcome is {outcome!r}, but the history ends with {states[-1]!r}"
    if "merged" not in states:
        yield f"the outcome is {outcome!r}, but the history holds no merge"
    versions = [step["version"] for step in history]
    if versions != sorted(versions):
        yield "the model versions in the history go back"


def _about_verification(document: Mapping[str, Any]) -> Iterator[str]:
    verification, merge = document["verification"], document["model"]["merge"]
    level, scores = verification["level"], verification["scores"]
    rounds, required = verification["rounds"], verification["required_rounds"]
    for index, score in enumerate(scores):
        if score["met"] != is_met(score, level):
            yield (
                f"verification.scores[{index}].met is {score['met']}, but with loss "
                f"{score['loss']} and accuracy {score['accuracy']} it is {is_met(score, level)}"
            )
    if document["outcome"] == COMPLETED:
        if rounds < required:
            yield (f"the outcome is 'completed', but {rounds} of {required} rounds were verified")
        if level is None:
            yield "the outcome is 'completed', but there was no forget level to verify against"
    elif rounds >= required:
        yield f"the outcome is {UNVERIFIED!r}, but all {required} rounds were verified"
    held = sum(score["met"] is True and score["version"] >= merge["version"] for score in scores)
    if held < rounds:
        yield (
            f"{rounds} rounds are called verified, but {held} scores since the merge meet the "
            "forget level"
        )


def is_met(score: Mapping[str, Any], level: Mapping[str, Any] | None) -> bool | None:
    """Whether a score meets a forget level; None without one."""
    if level is None:
        return None
    # The same slack for rounding as in ``forget_level_met``.
    loss = _number(score["loss"]) >= _number(level["loss_at_least"]) - 1e-9
    return loss and bool(score["accuracy"] <= level["accuracy_at_most"] + 1e-9)


def _number(loss: float | str) -> float:
    return float("inf") if loss == INFINITE else float(loss)


def _about_the_rest(document: Mapping[str, Any]) -> Iterator[str]:
    lock, request = document["calibration"]["lock"], document["request"]
    if lock["kept"] != (lock["digest"] is not None):
        yield "the lock must have a digest where it is kept, and none where it is not"
    if request["count"] is None and request["filed_by"] == "site":
        yield "a request filed by a site must say how many samples it names"
    if request["scope"] == "samples" and request["filed_by"] == "operator":
        yield "an operator can file for all of a site's data only, not for samples"
    level, evidence = document["verification"]["level"], document["evidence"]
    of = {"reference": "reference", "hold-out": "holdout"}
    # A site that took no part in the unlearning may still give the level, its hold-out's.
    alone = evidence is None and level is not None and level["of"] == "hold-out"
    if level is not None and not alone and (evidence is None or evidence[of[level["of"]]] is None):
        yield f"the forget level is the {level['of']}'s, but the evidence holds no such score"
    if document["guarantee"]["kind"] == "formal" and not document["guarantee"]["details"]:
        yield "the guarantee is called formal, but its details are empty"
    figures = (document["metrics"] or {}).get("figures", {})
    wrong = [
        name for name, value in figures.items() if value is not None and not NUMBER.test(value)
    ]
    if wrong:
        yield f"the figure {shown(wrong[0])} is {shown(figures[wrong[0]])}; it must be a number"
