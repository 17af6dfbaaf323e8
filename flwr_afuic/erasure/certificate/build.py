"""Making the document of a certificate, and its bytes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from flwr_afuic.erasure.certificate.checks import (
    FORMAT,
    VERSION,
    is_met,
    problems_of,
    times_in_order,
)
from flwr_afuic.erasure.certificate.plain import iso_utc, plain
from flwr_afuic.erasure.certificate.words import OUT_OF_REACH, guarantee_words, proxy_words
from flwr_afuic.errors import ErasureError
from flwr_afuic.unlearning.level import ACCURACY_SLACK, LOSS_SHARE

Values = Mapping[str, Any]

_OF_SCORE = ("loss", "accuracy", "count")


def build_certificate(
    *,
    federation: str,
    request: Values,
    history: Sequence[Values],
    received_at: float,
    merged_at: float,
    completed_at: float,
    base: tuple[int, str],
    merge: tuple[int, str],
    attempts: int,
    method: str,
    settings: Values,
    evidence: Values | None,
    scores: Sequence[Values],
    required_rounds: int,
    verified_rounds: int,
    verdict: str,
    ledger: tuple[int, str],
    software: Values,
    signed_by: str,
    issue: int = 1,
    issued_at: float | None = None,
    lock_digest: str | None = None,
    calibration: Values | None = None,
    privacy: Values | None = None,
    purged: Sequence[Values] = (),
    kept: Sequence[tuple[str, str]] = (),
    proxies: str | None = None,
    guarantee: Values | None = None,
    holdout: Values | None = None,
    metrics: Values | None = None,
) -> dict[str, Any]:
    """Build the document of a completed erasure from plain values.

    Times are seconds since the epoch; a model is its version and the SHA-256 of its file.

    Parameters
    ----------
    federation : str
        Id of the federation (UUID).
    request : mapping
        ``id`` or ``request_id``, ``site``, ``scope``, ``count``, ``commitment``, ``reason``,
        ``filed_at``; ``filed_by`` (``site`` unless given) and ``batch`` (ids of the requests
        unlearned together). The count of a request that the operator filed is not known.
    history : sequence of mapping
        ``state``, ``time`` (seconds since the start of training), ``round``, ``version``,
        ``text``, and ``at`` (0 or None: not known). The last state is the outcome.
    received_at, merged_at, completed_at : float
        By the server's clock; the merge and the completion that count are the last.
    base, merge : (int, str)
        The model that was unlearned from, and the version that holds the erasure.
    attempts : int
        Unlearnings it took.
    method, settings : str, mapping
        What unlearned, with every setting.
    evidence : mapping or None
        :class:`~flwr_afuic.wire.Evidence` of the last attempt as a dict; None if the site took
        no part.
    scores : sequence of mapping
        ``version``, ``loss``, ``accuracy``, ``count`` of every verification, oldest first.
    required_rounds, verified_rounds, verdict : int, int, str
        Rounds that must be and were verified, and the last verdict in words.
    ledger : (int, str)
        Number and hash of the ledger's last row.
    software, signed_by : mapping, str
        Versions of the programs, and the id of the key that will sign.
    issue, issued_at : int, float
        Number of this certificate of the request, and when it is made; now unless given.
    lock_digest : str, optional
        SHA-256 of the lock's directions, where one is kept.
    calibration, privacy : mapping, optional
        Settings of the server's calibration, and the clipping, noise and batching it asked for;
        what the site applied is in its evidence.
    purged : sequence of mapping
        ``file``, ``bytes``, ``what``, ``at`` (seconds) and, if known, ``sha256``.
    kept : sequence of (str, str)
        What was not purged beyond :data:`OUT_OF_REACH`, and why.
    proxies : str, optional
        Provenance of the proxy images; None if the server had none.
    guarantee : mapping, optional
        ``kind``, ``text``, ``details`` of a formal guarantee; empirical unless given.
    holdout : mapping, optional
        ``loss`` and ``accuracy`` of the site's hold-out, where it did not unlearn itself.
    metrics : mapping, optional
        ``figures`` (flat, numbers) and ``made_with``: measured beside retraining.

    Returns
    -------
    dict
        The document; :func:`to_bytes` gives the file.

    Raises
    ------
    ErasureError
        If a value is missing or malformed, or the values contradict each other: then
        :func:`~flwr_afuic.erasure.certificate.verify_certificate` would refuse the certificate.
    """
    issued_at = time.time() if issued_at is None else issued_at
    level = _level(evidence if evidence is not None else {"holdout": holdout})
    document = {
        "format": FORMAT,
        "version": VERSION,
        "issue": issue,
        "issued_at": iso_utc(issued_at),
        "federation": federation,
        "outcome": history[-1].get("state") if history else None,
        "request": _request(request, (received_at, merged_at, completed_at, issued_at)),
        "history": [_step(step) for step in history],
        "model": {"base": _model(*base), "merge": _model(*merge), "attempts": attempts},
        "method": {"name": method, "settings": settings},
        "evidence": None if evidence is None else _evidence(evidence),
        "verification": {
            "required_rounds": required_rounds,
            "rounds": verified_rounds,
            "level": level,
            "scores": [_score(score, level) for score in scores],
            "score_name": _score_name(evidence, holdout),
            "verdict": verdict,
            "rests_on_the_sites_word": True,
        },
        "metrics": metrics,
        "calibration": {
            "lock": {"kept": lock_digest is not None, "digest": lock_digest},
            "settings": calibration or {},
        },
        "privacy": {"asked": privacy or {}, "applied": (evidence or {}).get("privacy")},
        "purged": [_purged(entry) for entry in purged],
        "not_purged": [{"what": what, "why": why} for what, why in (*kept, *OUT_OF_REACH)],
        "guarantee": guarantee or _empirical(level),
        "proxies": {
            "used": proxies is not None,
            "provenance": proxies or "",
            "text": proxy_words(proxies is not None),
        },
        "ledger": {"seq": ledger[0], "hash": ledger[1]},
        "software": software,
        "signed_by": signed_by,
    }
    return _checked(document)


def reissue(
    document: Values,
    *,
    issue: int,
    ledger: tuple[int, str],
    signed_by: str,
    metrics: Values,
    issued_at: float | None = None,
) -> dict[str, Any]:
    """Return a certificate with metrics that were measured later; the erasure is unchanged.

    Raises
    ------
    ErasureError
        As :func:`build_certificate`, or if the issue is not later than the document's.
    """
    if issue <= document["issue"]:
        raise ErasureError(
            f"issue {issue} does not come after issue {document['issue']}; number it later"
        )
    when = iso_utc(time.time() if issued_at is None else issued_at)
    steps = ("received_at", "merged_at", "completed_at")
    times = [*(document["request"][step] for step in steps), when]
    request = {**document["request"], "clock_set_back": not times_in_order(times)}
    changed = {
        "issue": issue,
        "issued_at": when,
        "request": request,
        "metrics": metrics,
        "ledger": {"seq": ledger[0], "hash": ledger[1]},
        "signed_by": signed_by,
    }
    return _checked({**document, **changed})


def to_bytes(document: Values) -> bytes:
    """Return the file of a document: indented JSON in UTF-8 with a newline at its end."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _checked(document: Values) -> dict[str, Any]:
    # The order of fields is that of reading; within each, names are sorted: equal values give
    # equal bytes.
    ready = {key: plain(value, key) for key, value in document.items()}
    found = problems_of(ready)
    if found:
        raise ErasureError(
            f"no certificate can be made of these values: {'; '.join(found)}; correct them"
        )
    return ready


def _request(request: Values, times: tuple[float, float, float, float]) -> dict[str, Any]:
    filed_by = request.get("filed_by", "site")
    received, merged, completed, issued = (iso_utc(moment) for moment in times)
    return {
        "id": request.get("id", request.get("request_id")),
        "site": request.get("site"),
        "filed_by": filed_by,
        "scope": request.get("scope"),
        "count": None if filed_by == "operator" else request.get("count"),
        "commitment": request.get("commitment"),
        "reason": request.get("reason"),
        "filed_at": _filed_at(request.get("filed_at")),
        "received_at": received,
        "merged_at": merged,
        "completed_at": completed,
        "clock_set_back": not times_in_order([received, merged, completed, issued]),
        "batch": list(request.get("batch", ())),
    }


def _filed_at(seconds: Any) -> str | None:
    """Return the filer's time; it comes from a site, whose clock may say anything."""
    try:
        return iso_utc(seconds)
    except ErasureError:
        return None


def _step(step: Values) -> dict[str, Any]:
    at = step.get("at")
    return {
        "state": step.get("state"),
        "at": iso_utc(at) if at else None,
        "seconds": step.get("time"),
        "round": step.get("round"),
        "version": step.get("version"),
        "text": step.get("text"),
    }


def _model(version: int, fingerprint: str) -> dict[str, Any]:
    return {"version": version, "fingerprint": fingerprint}


def _evidence(evidence: Values) -> dict[str, Any]:
    return {
        key: {name: value[name] for name in _OF_SCORE} if isinstance(value, Mapping) else value
        for key, value in evidence.items()
        if key != "privacy"
    }


def _score_name(evidence: Values | None, holdout: Values | None) -> str:
    """Say what the accuracies are: of a segmentation the mean Dice."""
    of = evidence["before"] if evidence is not None else holdout or {}
    return str(of.get("name", "accuracy"))


def _level(evidence: Values | None) -> dict[str, Any] | None:
    """Return the numbers a score is held against: the reference's, else the hold-out's."""
    for name, key in (("reference", "reference"), ("hold-out", "holdout")):
        score = evidence and evidence.get(key)
        if score:
            return {
                "of": name,
                "loss_at_least": plain(LOSS_SHARE * score["loss"]),
                "accuracy_at_most": score["accuracy"] + ACCURACY_SLACK,
            }
    return None


def _score(score: Values, level: Values | None) -> dict[str, Any]:
    read = {key: plain(score[key]) for key in ("version", "loss", "accuracy", "count")}
    return {**read, "met": is_met(read, level)}


def _purged(entry: Values) -> dict[str, Any]:
    return {
        "file": entry.get("file"),
        "bytes": entry.get("bytes"),
        "sha256": entry.get("sha256"),
        "what": entry.get("what"),
        "at": iso_utc(entry["at"]),
    }


def _empirical(level: Values | None) -> dict[str, Any]:
    words = guarantee_words(None if level is None else level["of"])
    return {"kind": "empirical", "text": words, "details": {}}
