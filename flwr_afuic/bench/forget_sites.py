"""Sites of ``flwr-afuic bench forget``: they remember what they trained before the request.

All methods share the federation's training up to the request, message by message: same models,
same seeds. It is computed once. A site is asked again by every method and answers from a file,
so that each method runs whole, from the first round on, with its own records of that time, and
costs only what comes after the request. Anything that differs is not found and trained.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import Context
from flwr.client import Client
from flwr.clientapp import ClientApp
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from flwr_afuic import wire
from flwr_afuic.app.client_app import Hospital, inbox_path
from flwr_afuic.app.local import SpeedModel
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.bench.forget_protocol import Protocol
from flwr_afuic.clients.erasure_client import Config, Metrics
from flwr_afuic.clients.torch_client import SiteData
from flwr_afuic.erasure.inbox import SiteInbox
from flwr_afuic.errors import DataError
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.state.files import make_folder, partial

Reply = tuple[Arrays, int, Metrics]


class Replies:
    """Answers to training tasks, one safetensors file each, named by what was asked.

    Parameters
    ----------
    folder : Path
        Where they are.
    keeps : bool
        Whether new answers are kept.
    """

    def __init__(self, folder: Path, *, keeps: bool) -> None:
        self.folder, self.keeps = folder, keeps
        self.found = 0

    def get(self, key: str) -> Reply | None:
        """Return an answer, or None; DataError if its file is damaged."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                facts = json.loads(file.metadata()["reply"])
                arrays = [file.get_tensor(str(number)) for number in range(facts["arrays"])]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"cannot read {path} ({error}); delete {self.folder}") from error
        self.found += 1
        return arrays, int(facts["examples"]), dict(facts["metrics"])

    def put(self, key: str, reply: Reply) -> None:
        """Keep an answer, where answers are kept."""
        if not self.keeps:
            return
        arrays, examples, metrics = reply
        facts = {"arrays": len(arrays), "examples": examples, "metrics": metrics}
        named = {str(number): np.ascontiguousarray(array) for number, array in enumerate(arrays)}
        make_folder(self.folder)
        beside = partial(self.folder)
        save_file(named, beside, metadata={"reply": json.dumps(facts)})
        beside.replace(self._path(key))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


class RememberingHospital(Hospital):
    """The demo's hospital, asked by many methods for the same training.

    ``without`` are samples it never had: of a site that stays when some of its samples are
    erased, for retraining and for training on without unlearning.
    """

    replies: Replies
    without: frozenset[str] = frozenset()

    def data(self) -> SiteData:
        """See :class:`Hospital`."""
        held = super().data()
        if self.partition_id or not self.without:
            return held
        rows = [row for row, sample in enumerate(held.ids) if sample not in self.without]
        ids = tuple(held.ids[row] for row in rows)
        return SiteData(held.images[rows], held.labels[rows], ids)

    def train(self, parameters: Arrays, config: Config) -> Reply:
        """See :class:`Hospital`."""
        key = self._key(parameters, config)
        found = self.replies.get(key)
        if found is not None:
            return found
        reply = super().train(parameters, config)
        self.replies.put(key, reply)
        return reply

    def _key(self, parameters: Arrays, config: Config) -> str:
        digest = hashlib.sha256()
        effort = config.get(wire.EFFORT, 1.0)
        asked = [self.partition_id, config.get(wire.SEED, 0), effort, self.retained_ids()]
        digest.update(json.dumps(asked).encode())
        for array in parameters:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:32]


def make_sites(
    settings: AppSettings,
    inboxes: Path,
    replies: Replies,
    without: frozenset[str] = frozenset(),
) -> ClientApp:
    """Build the ClientApp of all sites."""

    def client_fn(context: Context) -> Client:
        partition_id = int(context.node_config["partition-id"])
        inbox = SiteInbox(inbox_path(inboxes, partition_id))
        hospital = RememberingHospital(settings, partition_id, inbox)
        hospital.replies, hospital.without = replies, without
        return hospital.to_client()

    return ClientApp(client_fn)


@dataclass(frozen=True)
class StaleUnlearning(SpeedModel):
    """A virtual clock on which the target's unlearning takes so many rounds of the others.

    Attributes
    ----------
    training_steps : int
        Of an ordinary task: what takes the target more is an unlearning.
    staleness : int
        Rounds an unlearning takes.
    """

    training_steps: int = 16
    staleness: int = 3

    def seconds(self, partition: int, kind: str, steps: int | None, task: int = 0) -> float:
        """See :class:`SpeedModel`."""
        if partition == 0 and steps is not None and steps > self.training_steps:
            a_round = super().seconds(1, kind, self.training_steps, task)
            # Half a message less, so that it arrives before the round that it must not miss.
            return max(0.0, self.staleness * a_round - self.overhead / 2)
        return super().seconds(partition, kind, steps, task)


def speed_of(settings: AppSettings, protocol: Protocol) -> StaleUnlearning:
    """Return the clock of a cell."""
    return StaleUnlearning(
        factors={1: settings.straggler},
        training_steps=settings.local_steps,
        staleness=protocol.staleness,
    )
