"""The erasure protocol at the site, for any framework."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging import ERROR
from typing import Any

import numpy as np
from flwr.client import NumPyClient
from flwr.supercore import log
from numpy.typing import NDArray

from flwr_afuic import wire
from flwr_afuic.erasure.inbox import CLOSED, KNOWN, SiteInbox
from flwr_afuic.errors import AfuicError, WireError
from flwr_afuic.federation.layout import ArrayKind, Arrays
from flwr_afuic.unlearning.level import ForgetScore

Config = dict[str, wire.Scalar]
Metrics = dict[str, wire.Scalar]


@dataclass(frozen=True)
class UnlearningTask:
    """What the server asks of a site that erases.

    Attributes
    ----------
    request_id : str
        The request; its sample ids are in the site's inbox.
    forget_ids : list of str
        Ids of the samples to unlearn (D_f), read from the inbox.
    snapshot : list of ndarray
        The global model to start from, ``w_s``.
    reference : list of ndarray or None
        The proxy-distilled reference, where the server could make one.
    proxies : ndarray of shape (n, c, h, w) or None
        Proxy images, where the server has any.
    settings : str
        Settings of the unlearning, as JSON.
    seed : int
        For every random draw.
    """

    request_id: str
    forget_ids: list[str]
    snapshot: Arrays
    reference: Arrays | None
    proxies: NDArray[np.float32] | None
    settings: str
    seed: int


class ErasureClient(NumPyClient, ABC):
    """A NumPyClient that can be asked to forget.

    A subclass says how its model trains, is tested, unlearns and is scored; this class
    speaks the protocol: it reports requests from the hospital's own inbox, keeps erased
    samples out of training for good, and answers unlearning and verification tasks.
    Sample ids and free text never leave the site.

    Parameters
    ----------
    inbox : SiteInbox
        The hospital's erasure inbox, a file on its own disk.
    site : str
        Name of the site where nodes are not authenticated, for example the partition id.
    """

    def __init__(self, *, inbox: SiteInbox, site: str = "") -> None:
        self.inbox = inbox
        self.site = site

    # ---- what a subclass provides ---------------------------------------------------

    @abstractmethod
    def sample_ids(self) -> Sequence[str]:
        """Return the stable ids of all training samples the site holds."""

    @abstractmethod
    def train(self, parameters: Arrays, config: Config) -> tuple[Arrays, int, Metrics]:
        """Train on the samples of :meth:`retained_ids`; as ``NumPyClient.fit``."""

    @abstractmethod
    def test(self, parameters: Arrays, config: Config) -> tuple[float, int, Metrics]:
        """Evaluate the model; as ``NumPyClient.evaluate``."""

    @abstractmethod
    def unlearn(self, task: UnlearningTask) -> tuple[Arrays, wire.Evidence]:
        """Unlearn from the snapshot; return the unlearned model and the evidence."""

    @abstractmethod
    def score(self, parameters: Arrays, sample_ids: Sequence[str]) -> ForgetScore:
        """Score a model on the given training samples."""

    def array_kinds(self) -> Sequence[ArrayKind] | None:
        """Return what each array is, in order; None if unknown.

        Where it is known the client returns differences, and the server keeps no snapshot
        for it.
        """
        return None

    def retained_ids(self) -> list[str]:
        """Return the ids that may train: held and not erased, in the site's order."""
        erased = self.inbox.tombstones()
        return [sample for sample in self.sample_ids() if sample not in erased]

    # ---- NumPyClient ----------------------------------------------------------------

    def get_properties(self, config: Config) -> dict[str, wire.Scalar]:
        """Answer the server's light poll: who this is and what was filed."""
        self._take_news(config)
        return self._about()

    def fit(self, parameters: Arrays, config: Config) -> tuple[Arrays, int, Metrics]:
        """Train, or carry out an unlearning task."""
        self._take_news(config)
        if config.get(wire.TASK) == wire.TASK_UNLEARN:
            return self._carry_out(parameters, config)
        about = self._about()
        if wire.PENDING in about and wire.KNOWN in config:
            # The server discards updates of a site that asks for erasure: do not train in vain.
            return parameters, 0, {**about, wire.STEPS: 0}
        if not self.retained_ids():
            return parameters, 0, {**about, wire.STEPS: 0}
        trained, examples, metrics = self.train([np.array(a) for a in parameters], config)
        kinds = self.array_kinds()
        if kinds is None or not config.get(wire.WANT_DELTA):
            return trained, examples, {**metrics, **about}
        reply = {**metrics, **about, wire.KIND: wire.KIND_DELTA}
        return _difference(trained, parameters, kinds), examples, reply

    def evaluate(self, parameters: Arrays, config: Config) -> tuple[float, int, Metrics]:
        """Evaluate, or score the model on the erased data of a request."""
        self._take_news(config)
        if config.get(wire.TASK) != wire.TASK_VERIFY:
            loss, examples, metrics = self.test(parameters, config)
            return float(loss), int(examples), {**metrics, **self._about()}
        request_id = str(config.get(wire.REQUEST, ""))
        score = self.score(parameters, self.inbox.forget_set(request_id))
        reply: Metrics = {"accuracy": score.accuracy, wire.REQUEST: request_id, **self._about()}
        return score.loss, score.count, reply

    # ---- the protocol ---------------------------------------------------------------

    def _about(self) -> Metrics:
        about: Metrics = {wire.CLIENT: wire.PROTOCOL, wire.SITE: self.site}
        pending = self.inbox.pending()
        if pending:
            about[wire.PENDING] = wire.encode_notices(pending)
        return about

    def _take_news(self, config: Mapping[str, Any]) -> None:
        for key, status in ((wire.KNOWN, KNOWN), (wire.CLOSED, CLOSED)):
            ids = [part for part in str(config.get(key, "")).split(",") if part]
            if ids:
                self.inbox.mark(ids, status)

    def _carry_out(self, parameters: Arrays, config: Config) -> tuple[Arrays, int, Metrics]:
        request_id = str(config.get(wire.REQUEST, ""))
        extras = _split(parameters, config)
        snapshot = extras["model"]
        reply: Metrics = {
            wire.KIND: wire.KIND_ERASURE,
            wire.REQUEST: request_id,
        }
        try:
            if config.get(wire.SCOPE) == "client":
                forget_ids = self.inbox.adopt(request_id, self.sample_ids())
            else:
                forget_ids = self.inbox.forget_set(request_id)
            proxies = extras.get("proxies")
            task = UnlearningTask(
                request_id=request_id,
                forget_ids=forget_ids,
                snapshot=[np.array(array) for array in snapshot],
                reference=extras.get("reference"),
                proxies=proxies[0] if proxies else None,
                settings=str(config.get(wire.SETTINGS, "{}")),
                seed=int(config.get(wire.SEED, 0)),
            )
            unlearned, evidence = self.unlearn(task)
        except AfuicError as error:
            # Texts may name samples; only the stable code leaves the site.
            log(ERROR, "unlearning for request %s failed: %s", request_id, error)
            reply[wire.FAILURE] = f"{error.code} ({type(error).__name__}); see the site's log"
            return snapshot, 0, {**reply, **self._about()}
        reply[wire.EVIDENCE] = evidence.to_json()
        reply[wire.STEPS] = 3 * evidence.steps
        kinds = self.array_kinds() or _guess_kinds(snapshot)
        delta = _difference(unlearned, snapshot, kinds)
        return delta, evidence.before.count, {**reply, **self._about()}


def _split(parameters: Arrays, config: Mapping[str, Any]) -> dict[str, Arrays]:
    """Separate the model's arrays from the groups that follow them."""
    counts = wire.decode_json(config.get(wire.EXTRAS, "{}"), wire.EXTRAS)
    if not isinstance(counts, dict) or any(type(n) is not int or n < 0 for n in counts.values()):
        raise WireError(f"{wire.EXTRAS} must map groups to counts, got {json.dumps(counts)[:200]}")
    end = len(parameters) - sum(counts.values())
    if end < 1:
        raise WireError(f"{len(parameters)} arrays cannot hold the groups {counts} and a model")
    groups: dict[str, Arrays] = {"model": parameters[:end]}
    for group, count in counts.items():
        groups[group] = parameters[end : end + count]
        end += count
    return groups


def _guess_kinds(arrays: Arrays) -> list[ArrayKind]:
    return ["trained" if np.issubdtype(a.dtype, np.floating) else "counter" for a in arrays]


def _difference(after: Arrays, before: Arrays, kinds: Sequence[ArrayKind]) -> Arrays:
    return [
        np.asarray(new - old, dtype=old.dtype) if kind == "trained" else np.array(new)
        for new, old, kind in zip(after, before, kinds, strict=True)
    ]
