"""What leaves a site of an erasure: everything made of the erased data passes here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_afuic import wire
from flwr_afuic.clients.deltas import ErasureDelta
from flwr_afuic.erasure.inbox import SiteInbox
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.unlearning.privacy import DeltaPrivacy, protect, protect_basis


class Protection:
    """Clipping and noise for one task, as strictly as the site or the server wants them.

    Parameters
    ----------
    inbox : SiteInbox
        Holds the secret the noise is made from.
    own : DeltaPrivacy
        What the site wants at least.
    config : mapping
        Of the task; what the server wants, where it says so.
    requests : sequence of str
        The requests that are carried out.
    count : int
        Their samples.

    Raises
    ------
    WireError, ConfigError
        If what the server wants cannot be read: nothing may leave then.
    """

    def __init__(
        self,
        inbox: SiteInbox,
        own: DeltaPrivacy,
        config: Mapping[str, Any],
        requests: Sequence[str],
        count: int,
    ) -> None:
        self._inbox, self._requests, self._count = inbox, requests, count
        wanted = config.get(wire.PRIVACY)
        self._privacy = own if wanted is None else own.stricter(DeltaPrivacy.from_json(wanted))

    def radius(self, scale: float) -> float:
        """Norm to which a delta will be cut, given that of the model; infinite if it is not."""
        rule = self._privacy.rule(self._count, scale)
        return math.inf if rule is None else rule.clip

    def delta(
        self, delta: ErasureDelta, purpose: str = "delta"
    ) -> tuple[Arrays, dict[str, wire.Scalar | None] | None]:
        """Protect a delta or a gradient; return it as it travels, and what was done, or None."""
        rule = self._privacy.rule(self._count, delta.scale)
        if rule is None:
            return delta.arrays(delta.vector), None
        content = delta.vector.tobytes()
        key, number = self._inbox.noise_key(self._requests, content, str(rule), purpose)
        vector, applied = protect(
            delta.vector, self._privacy, count=self._count, scale=delta.scale, key=key
        )
        return delta.arrays(vector), {**applied, "release": number}

    def basis(
        self, basis: NDArray[np.float32], delta: ErasureDelta, rank: int
    ) -> NDArray[np.float32]:
        """Protect a relearning basis as its delta is."""
        rule = self._privacy.rule(self._count, delta.scale)
        if rule is None or rule.noise == 0:
            return np.asarray(basis, dtype=np.float32)
        how = f"{rule} rank {rank}"
        key, _ = self._inbox.noise_key(self._requests, basis.tobytes(), how, "basis")
        return protect_basis(basis, noise=rule.noise, key=key)
