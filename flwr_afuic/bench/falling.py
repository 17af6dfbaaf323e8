"""A federation in this process whose learning rate falls from round to round."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from flwr.app import ConfigRecord, Context
from flwr.client import Client
from flwr.clientapp import ClientApp
from torch import nn

from flwr_afuic.app.client_app import Hospital, inbox_path, network
from flwr_afuic.app.local import LocalGrid
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.clients.erasure_client import Config, Metrics
from flwr_afuic.erasure.inbox import SiteInbox
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.history.recorder import Recorder
from flwr_afuic.seeds import derive_seed
from flwr_afuic.strategies.bounds import NoUnlearning
from flwr_afuic.strategies.codec import to_record

_OFFSET = "bench.rounds-before"
_ROUND = "server-round"


class FallingSteps(Hospital):
    """A hospital of the app with learning rate ``lr * round**-decay``."""

    decay = 0.0
    _round = 1

    def train(self, parameters: Arrays, config: Config) -> tuple[Arrays, int, Metrics]:
        """See :class:`~flwr_afuic.app.client_app.Hospital`."""
        self._round = int(config.get(_ROUND, 1)) + int(config.get(_OFFSET, 0))
        return super().train(parameters, config)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """See :class:`~flwr_afuic.app.client_app.Hospital`."""
        lr = self.settings.lr * self._round**-self.decay
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=self.settings.momentum)


class FallingFederation:
    """Sites that train synchronously, all or some of them, from any model.

    Parameters
    ----------
    settings : AppSettings
        Data, model, local training.
    decay : float
        How the learning rate falls.
    folder : Path
        For the sites' inboxes.
    """

    def __init__(self, settings: AppSettings, decay: float, folder: Path) -> None:
        self._settings, self._decay, self._folder = settings, decay, folder
        self._names = list(network(settings).state_dict())
        self._grid = LocalGrid(ClientApp(self._client), settings.sites, threads=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._grid.close()

    def _client(self, context: Context) -> Client:
        partition = int(context.node_config["partition-id"])
        client = FallingSteps(
            self._settings, partition, SiteInbox(inbox_path(self._folder, partition))
        )
        client.decay = self._decay
        return client.to_client()

    def train(
        self,
        start: Arrays,
        rounds: int,
        *,
        purpose: str,
        without: tuple[str, ...] = (),
        before: int = 0,
        recorder: Recorder | None = None,
    ) -> dict[int, Arrays]:
        """Train on.

        Parameters
        ----------
        start : list of ndarray
            The model.
        rounds : int
            How long.
        purpose : str
            Names the stream of random numbers.
        without : tuple of str
            Sites that take no part.
        before : int
            Rounds that the model has been trained for: the learning rate goes on from there.
        recorder : Recorder, optional
            Where updates go.

        Returns
        -------
        dict of int to list of ndarray
            The model after each round, counted from ``before``.
        """
        models: dict[int, Arrays] = {}
        strategy = NoUnlearning(
            without=without,
            mode="sync",
            min_available_nodes=self._settings.sites,
            evaluate_every=0,
            seed=derive_seed(self._settings.seed, purpose),
            recorder=recorder,
            on_version=lambda entry, arrays: models.update({before + entry.round: arrays}),
        )
        strategy.start(
            self._grid,
            to_record(self._names, start),
            num_rounds=rounds,
            train_config=ConfigRecord({_OFFSET: before}),
        )
        return models
