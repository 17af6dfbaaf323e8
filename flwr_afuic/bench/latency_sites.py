"""Sites of the latency study: they train once what several methods ask for, or only take time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from flwr.app import Context
from flwr.client import Client
from flwr.clientapp import ClientApp

from flwr_afuic import wire
from flwr_afuic.app.client_app import Hospital, inbox_path, network
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.clients.erasure_client import Config, Metrics, UnlearningTask
from flwr_afuic.clients.torch_client import SiteData
from flwr_afuic.erasure.inbox import SiteInbox
from flwr_afuic.federation.layout import ArrayKind, Arrays, infer_kind
from flwr_afuic.unlearning.ascent import PgaSettings
from flwr_afuic.unlearning.contrast import FcuSettings
from flwr_afuic.unlearning.level import ForgetScore
from flwr_afuic.unlearning.local import STOP_BUDGET
from flwr_afuic.unlearning.procedures import read_settings

Trained = tuple[Arrays, int, Metrics]
Memory = dict[str, Trained]
"""Local trainings that were done, by what they depend on."""

_KNOWN = ForgetScore(0.1, 1.0, 1)
_FORGOTTEN = ForgetScore(1.0, 0.5, 1)
_LITTLE = 1e-4


class QuickHospital(Hospital):
    """A hospital that looks up once what does not change: only ``site-0`` erases anything.

    Attributes
    ----------
    holdings : sequence of SiteData or None
        What each site holds, where that is not the settings' federation.
    """

    holdings: Sequence[SiteData] | None = None

    def data(self) -> SiteData:
        """See :class:`Hospital`."""
        return super().data() if self.holdings is None else self.holdings[self.partition_id]

    def array_kinds(self) -> Sequence[ArrayKind]:
        """See :class:`Hospital`."""
        return _kinds(self.settings)

    def retained_ids(self) -> list[str]:
        """See :class:`Hospital`."""
        return list(self.data().ids) if self.partition_id else super().retained_ids()


@lru_cache(maxsize=2)
def _kinds(settings: AppSettings) -> tuple[ArrayKind, ...]:
    state = network(settings).state_dict()
    return tuple(infer_kind(name, tensor.numpy()) for name, tensor in state.items())


class RememberingHospital(QuickHospital):
    """A hospital that does not train twice from the same model with the same draws.

    Until the request all methods train alike; a local training depends on the model, the seed in
    the task, the effort and the samples that are left, and on nothing else.
    """

    memory: Memory

    def train(self, parameters: Arrays, config: Config) -> Trained:
        """See :class:`Hospital`."""
        digest = hashlib.sha256()
        for array in parameters:
            digest.update(array.tobytes())
        left = len(self.retained_ids())
        said = (self.partition_id, config.get(wire.SEED), config.get(wire.EFFORT), left)
        digest.update(repr(said).encode())
        key = digest.hexdigest()
        if key not in self.memory:
            self.memory[key] = super().train(parameters, config)
        arrays, examples, metrics = self.memory[key]
        return [np.array(array) for array in arrays], examples, dict(metrics)


class ClockHospital(QuickHospital):
    """A hospital that computes nothing, and says how many steps it would have taken.

    Its updates are noise and its scores always say that the data are forgotten at the first
    attempt: for questions of time alone.
    """

    def train(self, parameters: Arrays, config: Config) -> Trained:
        """See :class:`Hospital`."""
        steps, effort = self.local_steps or 1, config.get(wire.EFFORT, 1.0)
        if isinstance(effort, int | float) and 0 < effort < 1:
            steps = max(1, round(effort * steps))
        noisy = _moved(parameters, int(config.get(wire.SEED, 0)))
        return noisy, len(self.retained_ids()), {wire.STEPS: steps}

    def score(self, parameters: Arrays, sample_ids: Sequence[str]) -> ForgetScore:
        """See :class:`Hospital`."""
        return _FORGOTTEN

    def unlearn(self, task: UnlearningTask) -> tuple[Arrays, wire.Evidence]:
        """See :class:`Hospital`."""
        settings = read_settings(task.settings)
        if isinstance(settings, PgaSettings | FcuSettings):
            steps = settings.epochs * math.ceil(len(task.forget_ids) / settings.batch_size)
        else:
            steps = settings.steps
        evidence = wire.Evidence(
            before=_KNOWN,
            after=_FORGOTTEN,
            reference=_FORGOTTEN,
            holdout=None,
            steps=steps,
            stop_reason=STOP_BUDGET,
            delta_norm=_LITTLE,
        )
        return _moved(task.snapshot, task.seed), evidence

    def gradient(self, parameters: Arrays, sample_ids: Sequence[str], loss: str) -> Arrays:
        """See :class:`Hospital`."""
        return _moved(parameters, len(sample_ids))


def make_app(
    settings: AppSettings,
    folder: Path,
    memory: Memory | None,
    holdings: Sequence[SiteData] | None = None,
) -> ClientApp:
    """Build the ClientApp of all sites.

    Parameters
    ----------
    settings : AppSettings
    folder : Path
        A fresh folder, for the inboxes.
    memory : dict or None
        What was trained already, shared by several runs; None for sites that only take time.
    holdings : sequence of SiteData, optional
        What each site holds, instead of the settings' federation.
    """

    def client_fn(context: Context) -> Client:
        partition = int(context.node_config["partition-id"])
        inbox = SiteInbox(inbox_path(folder, partition))
        if memory is None:
            return ClockHospital(settings, partition, inbox).to_client()
        hospital = RememberingHospital(settings, partition, inbox)
        hospital.memory, hospital.holdings = memory, holdings
        return hospital.to_client()

    return ClientApp(client_fn)


def _moved(arrays: Arrays, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return [
        (a + _LITTLE * rng.standard_normal(a.shape)).astype(a.dtype)
        if a.dtype.kind == "f"
        else np.array(a)
        for a in arrays
    ]
