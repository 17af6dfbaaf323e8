"""The certificate as one page for a data steward: no network, no script, no other file."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

from flwr_afuic.erasure.certificate.checks import COMPLETED, problems_of
from flwr_afuic.errors import ErasureError

if TYPE_CHECKING:
    from jinja2 import Template

_STATES = {
    "received": "Received",
    "dispatched": "Sent to the site",
    "unlearned": "Unlearned at the site",
    "held": "Held by the fidelity gate",
    "merged": "Merged",
    "verifying": "Being verified",
    "completed": "Completed",
    "completed-unverified": "Closed, not verified",
}
_ACCURACY = "accuracy"
_SCORE_WORDS = {
    _ACCURACY: "Accuracy is the share classified as labelled.",
    "label accuracy": "Label accuracy is the share of labels that are right.",
    "mean Dice": "Mean Dice is the overlap with the masks, from 0 to 1, over cases and structures.",
}
_SCORED = {
    "before": "Erased data: model the site started from",
    "after": "Erased data: the same, after unlearning",
    "reference": "Erased data: reference, distilled on proxy images",
    "holdout": "Data held out from training: model the site started from",
}


_HASH = re.compile(r"([0-9a-f]{12})[0-9a-f]{52}(\.safetensors)?")
_KEPT_FOR = (
    (re.compile(r"\bversion/(\d+)"), r"model version \1"),
    (re.compile(r"\bsnapshot/([0-9a-f-]{36})/(\d+)"), r"model that request \1 began with"),
    (re.compile(r"\bdelta/([0-9a-f-]{36})(/\d+)?"), r"change sent for request \1"),
)


def render_certificate(document: Mapping[str, Any]) -> str:
    """Return a certificate as a self-contained HTML page; the page itself is not signed.

    Raises
    ------
    ErasureError
        If the document is no certificate of a version this program knows.
    """
    found = problems_of(document)
    if found:
        raise ErasureError(f"this document cannot be shown as a certificate: {'; '.join(found)}")
    return _template().render(c=document, **_context(document))


@functools.cache
def _template() -> Template:
    """Return the page's template, read and compiled once: a server's loop waits for it."""
    # Imported here: checking a certificate should not wait for a template engine.
    from jinja2 import Environment, StrictUndefined

    source = resources.files("flwr_afuic.erasure.certificate").joinpath("certificate.html")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(moment=moment, printable=printable, size=size, score=score)
    environment.filters.update(short=short)
    return environment.from_string(source.read_text(encoding="utf-8"))


def printable(text: object) -> str:
    """Replace control characters by a space: what sites wrote is shown, never acted upon."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def moment(time: str | None) -> str:
    """Return a time for reading: date, time to the second, UTC."""
    return "not known" if time is None else f"{time[:10]} {time[11:19]} UTC"


def size(count: int) -> str:
    """Return a number of bytes for reading.

    Examples
    --------
    >>> size(999), size(1_234_000)
    ('999 bytes', '1.2 MB')
    """
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} byte{'' if count == 1 else 's'}"


def score(value: float | str) -> str:
    """Return a loss or an accuracy with three decimals."""
    return value if isinstance(value, str) else f"{value:.3f}"


def _context(document: Mapping[str, Any]) -> dict[str, Any]:
    completed = document["outcome"] == COMPLETED
    evidence = document["evidence"] or {}
    return {
        "completed": completed,
        "mark": "Completed" if completed else "Not verified",
        "headline": _headline(document),
        "answers": _answers(document),
        "doubts": _doubts(document),
        "score_name": score_name(document),
        "score_words": _SCORE_WORDS.get(score_name(document), "The other score is the task's own."),
        "scored": [(words, evidence.get(key)) for key, words in _SCORED.items()],
        "course": [{**step, "words": _STATES.get(step["state"], step["state"])}
                   for step in document["history"]],
        "purged": _purged(document),
        "total": sum(entry["bytes"] for entry in document["purged"]),
        "tables": _tables(document),
        "stem": f"{document['request']['id']}-{document['issue']}",
    }  # fmt: skip


def short(name: str) -> str:
    """Shorten SHA-256 digests in a file's name; the whole name is in the JSON document."""
    return _HASH.sub(r"\1…", name)


def _purged(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what was deleted, what each file was kept for in words."""
    own = f"request {document['request']['id']}"
    rows = []
    for entry in document["purged"]:
        words = entry["what"]
        for kept_for, text in _KEPT_FOR:
            words = kept_for.sub(text, words)
        rows.append({**entry, "what": words.replace(own, "this request")})
    return rows


def _headline(document: Mapping[str, Any]) -> str:
    site, verification = document["request"]["site"], document["verification"]
    if document["outcome"] == COMPLETED:
        return (
            f"The erasure for {site} was carried out in the shared model and verified in "
            f"{verification['rounds']} rounds."
        )
    return (
        f"The erasure for {site} was carried out in the shared model, but it is not verified: "
        f"{verification['rounds']} of {verification['required_rounds']} rounds."
    )


def _answers(document: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    return [
        ("What was asked", _asked(document["request"])),
        ("What was done", _done(document)),
        ("What was found", _found(document)),
    ]


def _asked(request: Mapping[str, Any]) -> list[str]:
    count = request["count"]
    some = "" if count is None else f" ({count} sample{'' if count == 1 else 's'})"
    what = f"all its data{some}" if request["scope"] == "client" else f"part of its data{some}"
    if request["filed_by"] == "operator":
        who = f"The federation's operator asked, for {request['site']}, that {what}"
    else:
        who = f"{request['site']} asked that {what}"
    lines = [
        f"{who} be erased from the shared model. Reason code: {request['reason']}.",
        f"Filed {moment(request['filed_at'])} by the clock of whoever filed it; received by the "
        f"server {moment(request['received_at'])}.",
    ]
    if request["batch"]:
        lines.append(
            f"It was unlearned together with {len(request['batch'])} other request(s), so that "
            "no single one of them shows."
        )
    return lines


def _done(document: Mapping[str, Any]) -> list[str]:
    model, request = document["model"], document["request"]
    attempts = "one attempt" if model["attempts"] == 1 else f"{model['attempts']} attempts"
    start = "The site unlearned the data" if document["evidence"] else "The data were unlearned"
    purged = len(document["purged"])
    files = "No file of the server had to be deleted for it."
    if purged:
        files = f"{purged} file{'' if purged == 1 else 's'} at the server that held the influence "
        files += "of the data were deleted." if purged > 1 else "of the data was deleted."
    return [
        f"{start} from version {model['base']['version']} of the shared model, and the change "
        f"was merged as version {model['merge']['version']} on {moment(request['merged_at'])}, in "
        f"{attempts}.",
        files,
    ]


def _found(document: Mapping[str, Any]) -> list[str]:
    evidence, verification = document["evidence"], document["verification"]
    lines = []
    if evidence:
        lines.append(_scored(document))
    level = verification["level"]
    if level:
        whose = {
            "reference": "of the reference model",
            "hold-out": "of the model on data the site held out",
        }[level["of"]]
        lines.append(
            f"The level to forget down to was taken from the score {whose}: loss of at least "
            f"{score(level['loss_at_least'])}, {score_name(document)} of at most "
            f"{score(level['accuracy_at_most'])}."
        )
    if verification["verdict"]:
        lines.append(f"The last verdict: {verification['verdict']}.")
    return lines or ["Nothing was measured."]


def score_name(document: Mapping[str, Any]) -> str:
    """Return what the accuracies of a certificate are, in words."""
    return str(document["verification"].get("score_name", _ACCURACY))


def _scored(document: Mapping[str, Any]) -> str:
    before, after = document["evidence"]["before"], document["evidence"]["after"]
    if score_name(document) == _ACCURACY:
        return (
            f"Of the erased data the model classified {_percent(before)} as labelled before, and "
            f"{_percent(after)} after unlearning."
        )
    return (
        f"On the erased data the model's {score_name(document)} was {score(before['accuracy'])} "
        f"before, and {score(after['accuracy'])} after unlearning."
    )


def _percent(value: Mapping[str, Any]) -> str:
    return f"{100 * value['accuracy']:.1f} %"


def _doubts(document: Mapping[str, Any]) -> list[str]:
    """Return what the certificate does not prove."""
    lines = [
        document["guarantee"]["text"],
        "The scores on the erased data come from the site. The server never sees the data and "
        "cannot check them: the verification rests on the site's word.",
        document["proxies"]["text"],
    ]
    if document["outcome"] != COMPLETED:
        lines.insert(0, "That the data are forgotten was not verified over the rounds required.")
    if document["metrics"] is None:
        lines.append("No model was retrained without the data to compare with.")
    if document["request"]["clock_set_back"]:
        lines.append(
            "The server's clock was set back while the request was open: its times are not in "
            "order. The order of steps and versions is."
        )
    lines.append("It is not legal advice, and no statement about other copies of the data.")
    return lines


def _tables(document: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the technical details: a title, and names with values."""
    model, request, lock = document["model"], document["request"], document["calibration"]["lock"]
    identity = [
        ("request", request["id"]),
        ("federation", document["federation"]),
        ("commitment to the sample ids", request["commitment"] or "none"),
        ("fingerprint of the base version", model["base"]["fingerprint"]),
        ("fingerprint of the merge version", model["merge"]["fingerprint"]),
        ("number of the ledger's last row", str(document["ledger"]["seq"])),
        ("hash of the ledger's last row", document["ledger"]["hash"]),
        ("signing key", document["signed_by"]),
    ]
    calibration = [("lock", lock["digest"] if lock["kept"] else "not kept")]
    protection = flat(document["privacy"]["asked"], "asked")
    if document["privacy"]["applied"] is not None:
        protection += flat(document["privacy"]["applied"], "applied by the site")
    tables = [
        ("Identity", identity),
        ("Method", [("method", document["method"]["name"]), *flat(document["method"]["settings"])]),
        ("Calibration at the server", calibration + flat(document["calibration"]["settings"])),
        ("Protection of the change itself", protection or [("clipping, noise, batching", "none")]),
        ("Software", flat(document["software"])),
    ]
    evidence = document["evidence"]
    if evidence:
        rows = [
            ("steps", str(evidence["steps"])),
            ("stopped because", evidence["stop_reason"]),
            ("size of the change (Euclidean norm)", f"{evidence['delta_norm']:.4g}"),
        ]
        tables.insert(2, ("Unlearning at the site", rows))
    if document["proxies"]["provenance"]:
        tables.insert(3, ("Proxy images", [("provenance", document["proxies"]["provenance"])]))
    if document["guarantee"]["details"]:
        tables.insert(1, ("Guarantee", flat(document["guarantee"]["details"])))
    return tables


def flat(value: object, path: str = "") -> list[tuple[str, str]]:
    """Return nested values as rows of a name, parts joined by dots, and a text.

    Examples
    --------
    >>> flat({"a": {"b": 1}, "c": True})
    [('a.b', '1'), ('c', 'yes')]
    """
    if isinstance(value, Mapping) and value:
        rows: list[tuple[str, str]] = []
        for name, inner in value.items():
            rows += flat(inner, f"{path}.{name}" if path else str(name))
        return rows
    words = {True: "yes", False: "no", None: "none"}
    if value is None or isinstance(value, bool):
        return [(path, words[value])]
    if isinstance(value, list):
        return [(path, ", ".join(str(entry) for entry in value) or "none")]
    return [
        (path, "none" if value == {} else f"{value:g}" if isinstance(value, float) else str(value))
    ]
