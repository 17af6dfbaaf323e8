"""The erasure protocol at the site, for any framework."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import ERROR
from typing import Any

import numpy as np
from flwr.client import NumPyClient
from flwr.supercore import log
from numpy.typing import NDArray

from flwr_afuic import wire
from flwr_afuic.erasure.inbox import CANCELLED, CLOSED, KNOWN, SiteInbox
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
    Sample ids, free text and texts of exceptions never leave the site: what fails here is
    logged here, and the server is told a stable code.

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
        with _sealed("a poll"):
            self._take_news(config)
            return self._about(config)

    def fit(self, parameters: Arrays, config: Config) -> tuple[Arrays, int, Metrics]:
        """Train, or carry out an unlearning task."""
        with _sealed("a train task"):
            self._take_news(config)
            if config.get(wire.TASK) == wire.TASK_UNLEARN:
                return self._carry_out(parameters, config)
            return self._train(parameters, config)

    def evaluate(self, parameters: Arrays, config: Config) -> tuple[float, int, Metrics]:
        """Evaluate, or score the model on the erased data of a request."""
        with _sealed("an evaluate task"):
            self._take_news(config)
            if config.get(wire.TASK) != wire.TASK_VERIFY:
                loss, examples, metrics = self.test(parameters, config)
                return float(loss), int(examples), {**metrics, **self._about(config)}
            request_id = str(config.get(wire.REQUEST, ""))
            score = self.score(parameters, self.inbox.forget_set(request_id))
            reply: Metrics = {"accuracy": score.accuracy, wire.REQUEST: request_id}
            return score.loss, score.count, {**reply, **self._about(config)}

    # ---- the protocol ---------------------------------------------------------------

    def _about(self, config: Mapping[str, Any]) -> Metrics:
        """Say who this is, and which open requests the server has not just named as known."""
        about: Metrics = {wire.CLIENT: wire.PROTOCOL, wire.SITE: self.site}
        known = _ids(config, wire.KNOWN)
        news = [n for n in self.inbox.unfinished() if n.request_id not in known]
        if news:
            about[wire.PENDING] = wire.encode_notices(news[: wire.MAX_PENDING])
        return about

    def _take_news(self, config: Mapping[str, Any]) -> None:
        for key, status in (
            (wire.KNOWN, KNOWN),
            (wire.CLOSED, CLOSED),
            (wire.CANCELLED, CANCELLED),
        ):
            ids = _ids(config, key)
            if ids:
                self.inbox.mark(ids, status)

    def _train(self, parameters: Arrays, config: Config) -> tuple[Arrays, int, Metrics]:
        # The server discards updates of a site that asks for erasure: do not train in vain.
        in_vain = wire.KNOWN in config and wire.PENDING in self._about(config)
        trained, examples, metrics = parameters, 0, Metrics({wire.STEPS: 0})
        if not in_vain and self.retained_ids():
            trained, examples, metrics = self.train([np.array(a) for a in parameters], config)
        # Asked once more: what was filed while the model trained travels with this very reply.
        reply = {**metrics, **self._about(config)}
        kinds = self.array_kinds()
        if kinds is None or not config.get(wire.WANT_DELTA):
            return trained, examples, reply
        return (
            _difference(trained, parameters, kinds),
            examples,
            {**reply, wire.KIND: wire.KIND_DELTA},
        )

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
            reply[wire.FAILURE] = _outward(error)
            return snapshot, 0, {**reply, **self._about(config)}
        reply[wire.EVIDENCE] = evidence.to_json()
        reply[wire.STEPS] = 3 * evidence.steps
        kinds = self.array_kinds() or _guess_kinds(snapshot)
        delta = _difference(unlearned, snapshot, kinds)
        return delta, evidence.before.count, {**reply, **self._about(config)}


@contextmanager
def _sealed(what: str) -> Iterator[None]:
    """Log what fails here, and let only a stable code out: texts may name samples.

    Flower sends the text of an exception to the server.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - raised again, without its text
        log(ERROR, "%s failed", what, exc_info=error)
        raise AfuicError(_outward(error)) from None


def _outward(error: Exception) -> str:
    code = error.code if isinstance(error, AfuicError) else AfuicError.code
    return f"{code} ({type(error).__name__}); see the site's log"


def _ids(config: Mapping[str, Any], key: str) -> set[str]:
    return {part for part in str(config.get(key, "")).split(",") if part}


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
