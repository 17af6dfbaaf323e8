"""Clipping and noise on what a site returns from an unlearning, applied before it leaves.

A delta that erases one patient is nearly the gradient of one image, and a gradient can be
turned back into the image. Small requests are therefore protected by default.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flwr_afuic.errors import ConfigError, LayoutError, WireError
from flwr_afuic.unlearning.accounting import gaussian_epsilon
from flwr_afuic.unlearning.checks import check_range

Vector = npt.NDArray[np.float64]

FAILURE_PROBABILITY = 1e-5
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Rule:
    """What one delta undergoes: the greatest norm, and the noise's norm relative to it."""

    clip: float
    noise: float
    small: bool


@dataclass(frozen=True, kw_only=True)
class DeltaPrivacy:
    """How strongly deltas are protected; scalars only, so that they can cross the wire.

    Parameters
    ----------
    clip : float or None
        Greatest Euclidean norm of a delta over trained arrays; None for no bound.
    noise : float, default 0
        Expected norm of the Gaussian noise as a multiple of the clip, which it needs: each of
        the ``p`` entries gets a standard deviation of ``noise * clip / sqrt(p)``.
    small : int, default 8
        Requests (or batches) of fewer samples than this are protected in any case; 0 for none.
    small_clip : float, default 0.02
        Their clip, as a multiple of the norm of the snapshot's trained arrays. The server
        knows that norm, so that the bound itself says nothing of the data.
    small_noise : float, default 2.5
        Their noise, a multiple of their clip.

    Raises
    ------
    ConfigError
        If a value is out of its range, or there is noise without a clip.

    Notes
    -----
    At these levels of noise this is **no formal guarantee** of differential privacy: spread
    over tens of thousands of entries, noise as long as the delta itself gives an epsilon in the
    ten thousands (:func:`gaussian_epsilon`). It is measured by what it does to attacks that turn
    a delta back into an image. The evidence that travels beside the delta (losses, accuracies,
    counts) is not noised.
    """

    clip: float | None = None
    noise: float = 0.0
    small: int = 8
    small_clip: float = 0.02
    small_noise: float = 2.5

    def __post_init__(self) -> None:
        if self.clip is not None:
            check_range("clip", self.clip, above=True)
        check_range("noise", self.noise)
        if self.noise > 0 and self.clip is None:
            raise ConfigError(
                f"noise is {self.noise}, a multiple of the clip, but there is none; set clip too"
            )
        if isinstance(self.small, bool) or not isinstance(self.small, int) or self.small < 0:
            raise ConfigError(f"small must be a number of samples >= 0, got {self.small!r}")
        check_range("small_clip", self.small_clip, above=True)
        check_range("small_noise", self.small_noise)

    def rule(self, count: int, scale: float) -> Rule | None:
        """Say what a delta of a request undergoes; None if nothing.

        Parameters
        ----------
        count : int
            Samples of the request, or of all requests of a batch.
        scale : float
            Norm of the snapshot's trained arrays.
        """
        small = count < self.small
        if small:
            # A model of zeros has no scale; its delta must still be bounded by something.
            clip = self.small_clip * (scale or 1.0)
            clip = clip if self.clip is None else min(clip, self.clip)
            return Rule(clip, max(self.noise, self.small_noise), True)
        return None if self.clip is None else Rule(self.clip, self.noise, False)

    def stricter(self, other: DeltaPrivacy) -> DeltaPrivacy:
        """Combine with another side's wishes; of each two values the stricter one holds."""
        clips = [c for c in (self.clip, other.clip) if c is not None]
        wanting = [settings for settings in (self, other) if settings.small > 0] or [self]
        return DeltaPrivacy(
            clip=min(clips, default=None),
            noise=max(self.noise, other.noise),
            small=max(self.small, other.small),
            small_clip=min(settings.small_clip for settings in wanting),
            small_noise=max(settings.small_noise for settings in wanting),
        )

    def to_json(self) -> str:
        """Write the settings as one JSON object of scalars."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: object) -> DeltaPrivacy:
        """Read settings written by ``to_json``; nothing is taken on trust.

        Raises
        ------
        WireError
            If the text is no JSON object, or names an unknown or mistyped setting.
        ConfigError
            If a value is out of its range.
        """
        try:
            values = json.loads(text)  # type: ignore[arg-type]
        except (TypeError, ValueError, RecursionError) as error:
            raise WireError(f"privacy settings are no JSON: {error}") from error
        if not isinstance(values, dict):
            raise WireError(f"privacy settings must be a JSON object, got {type(values).__name__}")
        return cls(**{name: _typed(name, value) for name, value in values.items()})


NO_PRIVACY = DeltaPrivacy(small=0)
"""Deltas leave as they are, small ones included."""


def _typed(name: str, value: Any) -> Any:
    known = {field.name for field in dataclasses.fields(DeltaPrivacy)}
    if name not in known:
        raise WireError(f"unknown privacy setting {name!r}; known: {', '.join(sorted(known))}")
    if name == "clip" and value is None:
        return None
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole and (name == "small" or not isinstance(value, float)):
        raise WireError(f"privacy setting {name!r} has the wrong type: {value!r}")
    try:
        return value if name == "small" else float(value)
    except OverflowError as error:
        raise WireError(f"privacy setting {name!r} is too large") from error


def protect(
    delta: npt.ArrayLike,
    settings: DeltaPrivacy,
    *,
    count: int,
    scale: float,
    key: bytes,
) -> tuple[Vector, dict[str, float | None]]:
    """Clip a delta and add noise that only the site could subtract.

    Parameters
    ----------
    delta : array of shape (p,)
        Unlearned minus snapshot, trained arrays only.
    settings : DeltaPrivacy
    count : int
        Samples the delta erases.
    scale : float
        Norm of the snapshot's trained arrays.
    key : bytes
        Secret of this very delta. It must not be derived from anything the server sends, or
        the server could make the same noise and subtract it; and two different deltas, or two
        strengths of noise, must not share one, or the noise could be worked out. A site takes
        ``SiteInbox.noise_key``: a MAC, under a key that stays at the site, of the request, the
        number of the release, the delta itself and the rule. The same delta sent twice (a
        retried task) then carries the same noise, so that asking again averages nothing out.

    Returns
    -------
    vector : ndarray of shape (p,), float64
        What may leave the site.
    applied : dict
        Empty if nothing was done. Else ``clip`` and ``noise`` as they held, ``std`` of the
        noise per entry, ``small`` (1 if for being small), and, where there is noise,
        ``epsilon`` and ``delta`` of the analytic Gaussian mechanism for this vector as one
        release, between this request and any other in its place (sensitivity
        ``2 * clip``). Whether the delta was longer than the clip is not said.

    Raises
    ------
    LayoutError
        If the delta is no vector of finite numbers.
    """
    vector = np.array(delta, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0 or not bool(np.isfinite(vector).all()):
        raise LayoutError(f"a delta must be a finite vector, got shape {vector.shape}")
    rule = settings.rule(count, scale)
    if rule is None:
        return vector, {}
    norm = float(np.linalg.norm(vector))
    if norm > rule.clip:
        vector *= rule.clip / norm
    std = rule.noise * rule.clip / math.sqrt(vector.size)
    applied: dict[str, float | None] = {
        "clip": rule.clip,
        "noise": rule.noise,
        "std": std,
        "small": int(rule.small),
    }
    if std > 0:
        vector += std * secret_normal(key, vector.size)
        applied["epsilon"] = gaussian_epsilon(std / (2 * rule.clip), FAILURE_PROBABILITY)
        applied["delta"] = FAILURE_PROBABILITY
    return vector, applied


def protect_basis(basis: npt.ArrayLike, *, noise: float, key: bytes) -> npt.NDArray[np.float32]:
    """Add noise to each row of a relearning basis and make the rows orthonormal again.

    Parameters
    ----------
    basis : array of shape (r, p)
        Orthonormal rows; they have no length to clip.
    noise : float
        Expected norm of the noise on each row of norm 1.
    key : bytes
        See :func:`protect`; another than the delta's.

    Returns
    -------
    ndarray of shape (r, p), float32
    """
    rows = np.array(basis, dtype=np.float64)
    size = rows.shape[1]
    rows += noise / math.sqrt(size) * secret_normal(key, rows.size).reshape(rows.shape)
    return orthonormal(rows).astype(np.float32)


def orthonormal(rows: Vector) -> Vector:
    """Orthonormalise rows of shape (r, p), each as near to its old direction as that allows."""
    left, _, right = np.linalg.svd(rows, full_matrices=False)
    return np.asarray(left @ right, dtype=np.float64)


def secret_normal(key: bytes, size: int) -> Vector:
    """Standard normal numbers that cannot be told without the key.

    SHAKE-256 of the key gives uniform numbers, the Box-Muller transform makes them normal.
    NumPy's generators would not do: where a delta is zero the noise shows, and from enough of
    it their state could be worked out.

    Parameters
    ----------
    key : bytes
    size : int

    Returns
    -------
    ndarray of shape (size,), float64
    """
    parts = []
    for index, start in enumerate(range(0, size, _CHUNK)):
        pairs = (min(_CHUNK, size - start) + 1) // 2
        stream = hashlib.shake_256(index.to_bytes(8, "big") + key).digest(16 * pairs)
        bits = np.frombuffer(stream, dtype=">u8") >> np.uint64(11)
        uniform = (bits.astype(np.float64) + 0.5) * 2.0**-53  # in (0, 1), never at its ends
        radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))
        angle = 2.0 * np.pi * uniform[pairs:]
        parts += [radius * np.cos(angle), radius * np.sin(angle)]
    return np.concatenate([*parts, np.zeros(0)])[:size]
