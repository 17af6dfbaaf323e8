"""The wire between server and site: every key both sides share, and nothing else.

Tasks ride in the ``train`` and ``evaluate`` configs because a NumPyClient app refuses
custom message types. Configs and metrics carry scalars only, so lists travel as JSON.
A client that knows nothing of erasure ignores all of these keys and simply trains.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args
from uuid import UUID

from flwr_afuic.errors import ConfigError, WireError
from flwr_afuic.unlearning.level import ForgetScore

Scalar: TypeAlias = bool | bytes | float | int | str
Scope = Literal["client", "samples"]

PROTOCOL = 1

TASK = "afuic.task"
VERSION = "afuic.version"
SEED = "afuic.seed"
WANT_DELTA = "afuic.delta"
REQUEST = "afuic.request"
SCOPE = "afuic.scope"
SETTINGS = "afuic.settings"
EXTRAS = "afuic.extras"
KNOWN = "afuic.known-requests"
CLOSED = "afuic.closed-requests"
CANCELLED = "afuic.cancelled-requests"
KEPT = "afuic.kept-requests"
REFUSED = "afuic.refused-requests"
FAILED = "afuic.failed-requests"
LEDGER_HEAD = "afuic.ledger-head"
CERTIFICATE = "afuic.certificate"
PRIVACY = "afuic.privacy"
BASIS_RANK = "afuic.basis-rank"
BATCH = "afuic.batch"
EFFORT = "afuic.effort"
WANT_LEVEL = "afuic.want-level"
FORGET_LOCK = "afuic.forget-lock"
ERASE_CLASSES = "afuic.erase-classes"
SCORE_FOR = "afuic.score-for"

SITE = "afuic.site"
CLIENT = "afuic.client"
KIND = "afuic.kind"
PENDING = "afuic.pending-requests"
EVIDENCE = "afuic.evidence"
STEPS = "afuic.steps"
FAILURE = "afuic.failure"
LEVEL = "afuic.level"
CANCEL = "afuic.cancel-requests"
SEEN_HEAD = "afuic.seen-head"
HAVE_CERTIFICATES = "afuic.have-certificates"
HOLDS_LOCK = "afuic.holds-lock"
SCORES = "afuic.scores"
SCORED = "afuic.scored"

TASK_TRAIN = "train"
TASK_UNLEARN = "unlearn"
TASK_VERIFY = "verify"
TASK_GRADIENT = "gradient"

KIND_WEIGHTS = "weights"
KIND_DELTA = "delta"
KIND_ERASURE = "erasure"
KIND_GRADIENT = "gradient"

KIND_LOCK = "lock"
"""Name of the arrays that follow a training task's model where a forget lock holds."""

FAILURE_CODES = ("not-unlearned", "merge-refused", "level-not-met")
"""Why a request failed, as far as its site has to know."""
REASON_CODES = ("consent-withdrawn", "retention-expired", "data-error", "site-left", "other")

_LATEST = 253402300800.0  # the first second of the year 10000
_MOST_COUNTED = 2**53  # more than any site holds, and every smaller integer is exact on disk
_HEX = re.compile(r"[0-9a-f]{0,128}")
MAX_PENDING = 64
"""Most requests one reply may carry; a site with more reports the oldest first."""
MOST_EFFORT = 2.0
"""Most training one task may ask for, in times the usual."""
MOST_SCORED = 8
"""Most requests whose erased data a site scores with one training task."""
MOST_ENTRIES = 16
"""Most entries of a mapping of scalars inside a message."""


@dataclass(frozen=True)
class ErasureNotice:
    """What a site tells the server of an erasure: never an identifier, never free text.

    Attributes
    ----------
    request_id : str
        UUID, made at the site.
    scope : {"client", "samples"}
        All of the site's data (the site leaves) or some of it (the site stays).
    count : int
        Number of samples to erase, at least 1.
    commitment : str
        Lowercase hex HMAC-SHA256 over the sorted sample ids under a key that stays at
        the site.
    reason : str
        One of ``REASON_CODES``.
    filed_at : float
        Seconds since the epoch, by the site's clock.
    """

    request_id: str
    scope: Scope
    count: int
    commitment: str
    reason: str
    filed_at: float

    def __post_init__(self) -> None:
        if not is_uuid(self.request_id):
            raise WireError(
                f"request id {str(self.request_id)[:80]!r} is not a UUID in its usual form "
                "(lowercase, with hyphens)"
            )
        if self.scope not in get_args(Scope):
            raise WireError(f"scope is {self.scope!r}; it must be 'client' or 'samples'")
        if type(self.count) is not int or not 1 <= self.count <= _MOST_COUNTED:
            raise WireError(
                f"count is {str(self.count)[:40]}; an erasure names at least one sample, and no "
                f"more than {_MOST_COUNTED}"
            )
        if not isinstance(self.commitment, str) or not _HEX.fullmatch(self.commitment):
            raise WireError("commitment must be a lowercase hex string of at most 128 characters")
        if self.reason not in REASON_CODES:
            raise WireError(
                f"reason is {self.reason!r}; it travels as a code: {', '.join(REASON_CODES)}"
            )
        number = isinstance(self.filed_at, float | int) and not isinstance(self.filed_at, bool)
        if not number or not abs(self.filed_at) < _LATEST:
            raise WireError("filed_at must be a number of seconds since the epoch")


def is_uuid(text: object) -> bool:
    """Whether ``text`` is a UUID in the one form that makes equal requests equal strings."""
    try:
        return isinstance(text, str) and str(UUID(text)) == text
    except ValueError:
        return False


def encode_notices(notices: list[ErasureNotice]) -> str:
    """Serialise erasure notices for a metrics or properties entry."""
    return json.dumps([asdict(notice) for notice in notices])


def decode_ids(text: object, key: str) -> list[str]:
    """Read request ids separated by commas; WireError if they are none, or too many."""
    if not isinstance(text, str):
        raise WireError(f"{key} must be a string of ids, got {type(text).__name__}")
    ids = [part for part in text.split(",") if part]
    if len(ids) > MAX_PENDING or not all(is_uuid(part) for part in ids):
        raise WireError(f"{key} must hold at most {MAX_PENDING} UUIDs separated by commas")
    return ids


def decode_notices(text: object) -> list[ErasureNotice]:
    """Read erasure notices; WireError names what is malformed."""
    rows = decode_json(text, PENDING)
    if not isinstance(rows, list) or len(rows) > MAX_PENDING:
        raise WireError(f"{PENDING} must be a JSON list of at most {MAX_PENDING} requests")
    notices = []
    for row in rows:
        try:
            notices.append(ErasureNotice(**row))
        except TypeError as error:
            raise WireError(f"{PENDING} holds a malformed request: {error}") from error
    return notices


@dataclass(frozen=True)
class Evidence:
    """What a site reports of an unlearning: numbers, no data.

    Attributes
    ----------
    before, after : ForgetScore
        The erased data under the snapshot and under the unlearned model.
    reference : ForgetScore or None
        The erased data under the proxy-distilled reference, where there is one.
    holdout : ForgetScore or None
        The site's held-out data under the snapshot, where it has any.
    steps : int
        Optimisation steps taken.
    stop_reason : str
        Why it stopped.
    delta_norm : float
        Euclidean norm of the delta over trained arrays, as it left the site.
    privacy : mapping of str to scalar, or None
        How the delta was protected before it left; None where it was not. The score
        ``after`` is that of the model so protected.
    """

    before: ForgetScore
    after: ForgetScore
    reference: ForgetScore | None
    holdout: ForgetScore | None
    steps: int
    stop_reason: str
    delta_norm: float
    privacy: Mapping[str, Scalar | None] | None = None

    def to_json(self) -> str:
        """Serialise for a metrics entry."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: object) -> Evidence:
        """Read evidence; WireError names what is malformed."""
        row = decode_json(text, EVIDENCE)
        if not isinstance(row, dict):
            raise WireError(f"{EVIDENCE} must be a JSON object, got {type(row).__name__}")
        try:
            scores = {
                key: None if row[key] is None else _score(row[key])
                for key in ("before", "after", "reference", "holdout")
            }
            before, after = scores["before"], scores["after"]
            if before is None or after is None:
                raise WireError(f"{EVIDENCE} lacks the scores before and after")
            delta_norm = float(row["delta_norm"])
            steps = int(row["steps"])
            if not math.isfinite(delta_norm) or abs(steps) > _MOST_COUNTED:
                raise WireError(f"{EVIDENCE} holds no finite delta norm, or too many steps")
            return cls(
                before=before,
                after=after,
                reference=scores["reference"],
                holdout=scores["holdout"],
                steps=steps,
                stop_reason=str(row["stop_reason"])[:200],
                delta_norm=delta_norm,
                privacy=_entries(row.get("privacy")),
            )
        except WireError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise WireError(f"{EVIDENCE} is malformed: {error!r}") from error


def _entries(row: object) -> dict[str, Scalar | None] | None:
    """Read a small mapping of JSON scalars, or None."""
    if row is None:
        return None
    if not isinstance(row, dict) or len(row) > MOST_ENTRIES:
        raise WireError(f"{EVIDENCE} holds no mapping of at most {MOST_ENTRIES} privacy entries")
    for name, value in row.items():
        number = isinstance(value, int | float) and abs(value) < _LATEST
        text = isinstance(value, str) and len(value) <= 200
        if len(name) > 40 or not (number or text or value is None):
            raise WireError(f"{EVIDENCE} holds a malformed privacy entry {name[:40]!r}")
    return dict(row)


def split_groups(arrays: list[Any], counts: object) -> dict[str, list[Any]]:
    """Separate a model's arrays from the groups that follow them.

    Parameters
    ----------
    arrays : list of ndarray
        The model's arrays, then those of each group.
    counts : object
        What came under ``EXTRAS``: JSON that maps each group's name to its number of arrays.

    Returns
    -------
    dict of str to list of ndarray
        The groups, and the rest as ``model``.

    Raises
    ------
    WireError
        If the counts are malformed or leave no model.
    """
    wanted = decode_json(counts, EXTRAS)
    if (
        not isinstance(wanted, dict)
        or "model" in wanted
        or any(type(n) is not int or n < 0 for n in wanted.values())
    ):
        raise WireError(f"{EXTRAS} must map groups to counts, got {json.dumps(wanted)[:200]}")
    end = len(arrays) - sum(wanted.values())
    if end < 1:
        raise WireError(f"{len(arrays)} arrays cannot hold the groups {wanted} and a model")
    groups = {"model": arrays[:end]}
    for group, count in wanted.items():
        groups[group] = arrays[end : end + count]
        end += count
    return groups


def _score(row: Mapping[str, Any]) -> ForgetScore:
    return read_score(row["loss"], row["accuracy"], row["count"], row.get("name"))


def read_level(text: object) -> ForgetScore | None:
    """Read a site's forget level, a score as JSON; None where it gave none."""
    if text is None:
        return None
    row = decode_json(text, LEVEL)
    if not isinstance(row, dict) or not {"loss", "accuracy", "count"} <= set(row):
        raise WireError(f"{LEVEL} must be a JSON object with loss, accuracy and count")
    return _score(row)


def encode_scored(scores: Mapping[str, ForgetScore]) -> str:
    """Serialise the scores on erased data, by request, that a site returns with its update."""
    return json.dumps({request: asdict(score) for request, score in scores.items()})


def read_scored(text: object) -> dict[str, ForgetScore]:
    """Read what :func:`encode_scored` wrote; WireError names what is malformed."""
    rows = decode_json(text, SCORED)
    wanted = {"loss", "accuracy", "count"}
    if (
        not isinstance(rows, dict)
        or len(rows) > MOST_SCORED
        or any(not isinstance(row, dict) or not wanted <= set(row) for row in rows.values())
    ):
        raise WireError(
            f"{SCORED} must map at most {MOST_SCORED} requests to loss, accuracy and count"
        )
    return {request: _score(row) for request, row in rows.items()}


def read_score(loss: object, accuracy: object, count: object, name: object = None) -> ForgetScore:
    """Build a score from untrusted values; WireError names what is malformed."""
    words = "accuracy" if name is None else str(name)
    try:
        examples = int(count)  # type: ignore[call-overload]
        if examples > _MOST_COUNTED:
            raise WireError("a site's score is malformed: no site holds that many examples")
        return ForgetScore(float(loss), float(accuracy), examples, words)  # type: ignore[arg-type]
    except (ConfigError, TypeError, ValueError, OverflowError) as error:
        raise WireError(f"a site's score is malformed: {error}") from error


def decode_json(text: object, key: str) -> Any:
    """Parse a JSON string that came under ``key``."""
    if not isinstance(text, str):
        raise WireError(f"{key} must be a JSON string, got {type(text).__name__}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError(f"{key} is not valid JSON: {error}") from error
