"""The erasure protocol at the site, for any framework."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import ERROR
from typing import Any

import numpy as np
from flwr.client import NumPyClient
from flwr.supercore import log
from numpy.typing import NDArray

from flwr_afuic import wire
from flwr_afuic.calibration.forget_lock import ForgetLock
from flwr_afuic.clients.classes import file_classes
from flwr_afuic.clients.conversation import Conversation
from flwr_afuic.clients.deltas import ErasureDelta, difference
from flwr_afuic.clients.protection import Protection
from flwr_afuic.clients.sealing import outward, sealed
from flwr_afuic.erasure.inbox import CANCELLED, SiteInbox
from flwr_afuic.errors import AfuicError, ErasureError, StateTransitionError
from flwr_afuic.federation.layout import ArrayKind, Arrays
from flwr_afuic.unlearning.level import ForgetScore
from flwr_afuic.unlearning.privacy import DeltaPrivacy

Config = dict[str, wire.Scalar]
Metrics = dict[str, wire.Scalar]

_KNOWN_GROUPS = ("model", "reference", "proxies")
_GRADIENT_BATCH = 32  # samples that cost as much as one step of training

MOST_RANK = 64
"""Most rows of a relearning basis a site makes."""


@dataclass(frozen=True)
class UnlearningTask:
    """What the server asks of a site that erases.

    Attributes
    ----------
    request_id : str
        The request; its sample ids are in the site's inbox. Of a batch, the one that leads it.
    forget_ids : list of str
        Ids of the samples to unlearn (D_f), read from the inbox; of a batch, of all its
        requests.
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
    extras : mapping of str to list of ndarray
        Further models a method sends along, by name.
    radius : float
        Norm to which the delta will be cut before it leaves; infinite if it will not be.
    """

    request_id: str
    forget_ids: list[str]
    snapshot: Arrays
    reference: Arrays | None
    proxies: NDArray[np.float32] | None
    settings: str
    seed: int
    extras: Mapping[str, Arrays] = field(default_factory=dict)
    radius: float = math.inf


class ErasureClient(NumPyClient, ABC):
    """A NumPyClient that can be asked to forget.

    A subclass says how its model trains, is tested, unlearns and is scored; this class
    speaks the protocol: it reports requests from the hospital's own inbox, keeps erased
    samples out of training for good, and answers unlearning and verification tasks.
    Sample ids, free text and texts of exceptions never leave the site: what fails here is
    logged here, and the server is told a stable code. What an unlearning returns is clipped
    and noised here, before it leaves, as strictly as the server or the site wants it.

    Parameters
    ----------
    inbox : SiteInbox
        The hospital's erasure inbox, a file on its own disk.
    site : str
        Name of the site where nodes are not authenticated, for example the partition id.
    privacy : DeltaPrivacy, optional
        How the site protects its deltas at least; small requests are by default.

    Attributes
    ----------
    holds_lock : bool
        Whether :meth:`train` heeds ``forget_lock``; only such clients are sent one.
    forget_lock : ForgetLock or None
        What the model may not learn again in the training under way, where the server says so:
        ``forget_lock.step_(trained, lr)`` after each optimiser step.
    """

    holds_lock = False
    forget_lock: ForgetLock | None = None

    def __init__(
        self, *, inbox: SiteInbox, site: str = "", privacy: DeltaPrivacy | None = None
    ) -> None:
        self.inbox = inbox
        self.site = site
        self.privacy = privacy or DeltaPrivacy()
        self._conversation = Conversation(inbox, site, holds_lock=self.holds_lock)

    # ---- what a subclass provides ---------------------------------------------------

    @abstractmethod
    def sample_ids(self) -> Sequence[str]:
        """Return the stable ids of all training samples the site holds."""

    def sample_patients(self) -> Mapping[str, str]:
        """Return whose each training sample is, by sample id; empty where that is not known.

        A patient is erased as a whole: every sample of theirs, and any that comes later.
        """
        return {}

    def sample_classes(self) -> Mapping[str, str]:
        """Return the class of each training sample, by sample id; empty where there are none.

        The operator may have a class erased: the client then files a request for its own samples
        of it. Ids stay at the site.
        """
        return {}

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

    def score_name(self) -> str:
        """Return what the accuracies of this client are, in words: ``mean Dice``, say."""
        return "accuracy"

    def relearning_basis(
        self, task: UnlearningTask, unlearned: Arrays, rank: int
    ) -> NDArray[np.float32] | None:
        """Return the directions along which the model would learn D_f again.

        Shape (r, p) with r of at most ``rank``, rows orthonormal, over the trained arrays in
        their order; None where the framework has no way to tell. Only asked for if the
        federation wants one.
        """
        return None

    def gradient(self, parameters: Arrays, sample_ids: Sequence[str], loss: str) -> Arrays:
        """Return the gradient of a mean loss over samples, at a model that is not changed.

        In the model's order: gradients of trained arrays, the others as they are. Only methods
        that compare the sites' gradients ask for it; ``loss`` is a name of
        :data:`flwr_afuic.unlearning.orthogonal.LOSSES`.
        """
        raise ErasureError("this client computes no gradients; derive it from TorchClient")

    def array_kinds(self) -> Sequence[ArrayKind] | None:
        """Return what each array is, in order; None if unknown.

        Where it is known the client returns differences, and the server keeps no snapshot
        for it.
        """
        return None

    def retained_ids(self) -> list[str]:
        """Return the ids that may train: held and not erased, in the site's order."""
        held = self._note_held()
        erased = self.inbox.tombstones()
        return [sample for sample in held if sample not in erased]

    def _note_held(self) -> Sequence[str]:
        held = self.sample_ids()
        self.inbox.note_held(held, self.sample_patients())
        return held

    # ---- NumPyClient ----------------------------------------------------------------

    def get_properties(self, config: Config) -> dict[str, wire.Scalar]:
        """Answer the server's light poll: who this is and what was filed."""
        with sealed("a poll"), self.inbox.kept_open():
            self._conversation.hear(config)
            self._hear_classes(config)
            return self._conversation.say(config)

    def fit(self, parameters: Arrays, config: Config) -> tuple[Arrays, int, Metrics]:
        """Train, or carry out an unlearning task."""
        with sealed("a train task"), self.inbox.kept_open():
            self._conversation.hear(config)
            if config.get(wire.TASK) == wire.TASK_UNLEARN:
                return self._carry_out(parameters, config)
            if config.get(wire.TASK) == wire.TASK_GRADIENT:
                return self._differentiate(parameters, config)
            self._hear_classes(config)
            return self._train(self._take_lock(parameters, config), config)

    def evaluate(self, parameters: Arrays, config: Config) -> tuple[float, int, Metrics]:
        """Evaluate, or score the model on the erased data of a request or a batch."""
        with sealed("an evaluate task"), self.inbox.kept_open():
            self._conversation.hear(config)
            if config.get(wire.TASK) != wire.TASK_VERIFY:
                loss, examples, metrics = self.test(parameters, config)
                return float(loss), int(examples), {**metrics, **self._conversation.say(config)}
            self._note_held()
            requests = _requests(config)
            if config.get(wire.SCOPE) == "client":
                self.inbox.adopt(requests[0], self.sample_ids())
            score = self.score(parameters, self._forget_set(requests))
            reply: Metrics = {"accuracy": score.accuracy, wire.REQUEST: requests[0]}
            if config.get(wire.WANT_LEVEL):
                reply |= self._level(parameters, config)
            return score.loss, score.count, {**reply, **self._conversation.say(config)}

    # ---- the protocol ---------------------------------------------------------------

    def _take_lock(self, parameters: Arrays, config: Config) -> Arrays:
        """Separate a forget lock from the model it came with."""
        self.forget_lock = None
        if wire.FORGET_LOCK not in config:
            return parameters
        groups = wire.split_groups(parameters, config.get(wire.EXTRAS, "{}"))
        lock = groups.get(wire.KIND_LOCK, [])
        self.forget_lock = ForgetLock.unpack(lock, config[wire.FORGET_LOCK])
        return groups["model"]

    def _hear_classes(self, config: Config) -> None:
        """File requests for the site's samples of the classes the operator has erased."""
        if wire.ERASE_CLASSES in config:
            file_classes(self.inbox, config, self._note_held(), self.sample_classes())

    def _level(self, parameters: Arrays, config: Config) -> Metrics:
        """Give a level to forget down to where the site did not unlearn itself: its hold-out's."""
        loss, examples, metrics = self.test(parameters, config)
        if examples < 1 or "accuracy" not in metrics:
            return {}
        level = {"loss": float(loss), "accuracy": metrics["accuracy"], "count": int(examples)}
        return {wire.LEVEL: json.dumps({**level, "name": self.score_name()})}

    def _train(self, parameters: Arrays, config: Config) -> tuple[Arrays, int, Metrics]:
        # The server discards updates of a site that asks for erasure: do not train in vain.
        in_vain = wire.KNOWN in config and self._conversation.has_news(config)
        scored = self._scored(parameters, config)
        trained, examples, metrics = parameters, 0, Metrics({wire.STEPS: 0})
        if not in_vain and self.retained_ids():
            trained, examples, metrics = self.train([np.array(a) for a in parameters], config)
        # Asked only now: what was filed while the model trained travels with this very reply.
        reply = {**metrics, **scored, **self._conversation.say(config)}
        kinds = self.array_kinds()
        if kinds is None or not config.get(wire.WANT_DELTA):
            return trained, examples, reply
        reply[wire.KIND] = wire.KIND_DELTA
        return difference(trained, parameters, kinds), examples, reply

    def _scored(self, parameters: Arrays, config: Config) -> Metrics:
        """Score the model of a training task on erased data, where the server asks for it.

        Who cannot says nothing, and trains: the server then asks in a message of its own.
        """
        groups = [part for part in str(config.get(wire.SCORE_FOR, "")).split(";") if part]
        if not groups:
            return {}
        self._note_held()
        scores = {}
        for group in groups[: wire.MOST_SCORED]:
            requests = group.split(",")
            try:
                scores[requests[0]] = self.score(parameters, self._forget_set(requests))
            except AfuicError as error:  # its text may name samples and stays here
                log(ERROR, "the data of request %s could not be scored: %s", requests[0], error)
        return {wire.SCORED: wire.encode_scored(scores)} if scores else {}

    def _carry_out(self, parameters: Arrays, config: Config) -> tuple[Arrays, int, Metrics]:
        groups = wire.split_groups(parameters, config.get(wire.EXTRAS, "{}"))
        snapshot = groups["model"]
        requests = _requests(config)
        reply: Metrics = {wire.KIND: wire.KIND_ERASURE, wire.REQUEST: requests[0]}
        try:
            task = self._task(groups, config, requests)
            arrays, evidence = self._unlearned(task, config, requests)
        except AfuicError as error:
            # Texts may name samples; only the stable code leaves the site.
            log(ERROR, "unlearning for request %s failed: %s", requests[0], error)
            reply[wire.FAILURE] = outward(error)
            return snapshot, 0, {**reply, **self._conversation.say(config)}
        if len(arrays) > len(snapshot):
            reply[wire.EXTRAS] = json.dumps({"basis": len(arrays) - len(snapshot)})
        reply[wire.EVIDENCE] = evidence.to_json()
        reply[wire.STEPS] = 3 * evidence.steps
        return arrays, evidence.before.count, {**reply, **self._conversation.say(config)}

    def _differentiate(self, parameters: Arrays, config: Config) -> tuple[Arrays, int, Metrics]:
        """Answer with a gradient: of the erased data for a request, else of what is retained."""
        reply: Metrics = {wire.KIND: wire.KIND_GRADIENT}
        if wire.REQUEST in config:
            requests = _requests(config)
            reply[wire.REQUEST] = requests[0]
            ids = self._task({"model": parameters}, config, requests).forget_ids
        else:
            ids = self.retained_ids()
        if not ids:
            return parameters, 0, {**reply, wire.STEPS: 0, **self._conversation.say(config)}
        gradient = self.gradient(parameters, ids, str(config.get(wire.SETTINGS, "")))
        if wire.REQUEST in config:  # of erased data: nearer to them than any delta
            protection = Protection(self.inbox, self.privacy, config, requests, len(ids))
            vector = ErasureDelta.of_gradient(gradient, parameters, self.array_kinds())
            gradient, _ = protection.delta(vector, "gradient")
        reply[wire.STEPS] = math.ceil(len(ids) / _GRADIENT_BATCH)
        return gradient, len(ids), {**reply, **self._conversation.say(config)}

    def _task(
        self, groups: Mapping[str, Arrays], config: Config, requests: list[str]
    ) -> UnlearningTask:
        """Read the task; the inbox says what is to be erased."""
        held = self._note_held()
        if config.get(wire.SCOPE) == "client":
            self.inbox.adopt(requests[0], held)
        for request_id in requests:
            if self.inbox.knows(request_id) and self.inbox.status(request_id) == CANCELLED:
                raise StateTransitionError(
                    f"request {request_id} was cancelled and the server confirmed it; its samples "
                    "train again and are not unlearned"
                )
        proxies = groups.get("proxies")
        return UnlearningTask(
            request_id=requests[0],
            forget_ids=self._forget_set(requests),
            snapshot=[np.array(array) for array in groups["model"]],
            reference=groups.get("reference"),
            proxies=proxies[0] if proxies else None,
            settings=str(config.get(wire.SETTINGS, "{}")),
            seed=int(config.get(wire.SEED, 0)),
            extras={name: group for name, group in groups.items() if name not in _KNOWN_GROUPS},
        )

    def _forget_set(self, requests: list[str]) -> list[str]:
        """Return the samples of all these requests, sorted, each once."""
        return sorted({sample for r in requests for sample in self.inbox.forget_set(r)})

    def _unlearned(
        self, task: UnlearningTask, config: Config, requests: list[str]
    ) -> tuple[Arrays, wire.Evidence]:
        """Unlearn; return what may leave the site, and evidence of the model it makes."""
        count = len(task.forget_ids)
        protection = Protection(self.inbox, self.privacy, config, requests, count)
        kinds = self.array_kinds()
        scale = ErasureDelta.of(task.snapshot, task.snapshot, kinds).scale
        unlearned, evidence = self.unlearn(replace(task, radius=protection.radius(scale)))
        delta = ErasureDelta.of(unlearned, task.snapshot, kinds)
        arrays, applied = protection.delta(delta)
        if applied is not None:
            evidence = replace(
                evidence,
                after=self.score(delta.model(arrays), task.forget_ids),
                delta_norm=delta.norm(arrays),
                privacy=applied,
            )
        rank = min(int(config.get(wire.BASIS_RANK, 0)), MOST_RANK)
        basis = self.relearning_basis(task, delta.model(arrays), rank) if rank > 0 else None
        if basis is not None and len(basis):
            arrays.append(protection.basis(basis, delta, rank))
        return arrays, evidence


def _requests(config: Mapping[str, Any]) -> list[str]:
    """Name the requests of a task, the leading one first."""
    leader = str(config.get(wire.REQUEST, ""))
    batch = wire.decode_ids(config.get(wire.BATCH, ""), wire.BATCH)
    return [leader, *(request_id for request_id in batch if request_id != leader)]
