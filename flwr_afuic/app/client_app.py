"""The ready-made ClientApp: a hospital of the demo, its data taken from a partition."""

from __future__ import annotations

from pathlib import Path

import torch
from flwr.app import Context
from flwr.client import Client
from flwr.clientapp import ClientApp
from torch import nn

from flwr_afuic.app.federation import build_federation, limit_threads
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.clients.erasure_client import Config, ErasureClient, Metrics
from flwr_afuic.clients.node import site_privacy
from flwr_afuic.clients.torch_client import SiteData, TorchClient, open_inbox
from flwr_afuic.erasure.inbox import SiteInbox
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.models.networks import make_model


class Hospital(TorchClient):
    """One hospital of the demo: a partition of a MedMNIST-format set."""

    def __init__(self, settings: AppSettings, partition_id: int, inbox: SiteInbox) -> None:
        ErasureClient.__init__(self, inbox=inbox, site=f"site-{partition_id}")
        self.settings = settings
        self.partition_id = partition_id
        self.batch_size = settings.batch_size
        self.local_steps = settings.local_steps
        self.clip = settings.clip

    def data(self) -> SiteData:
        """See :class:`TorchClient`."""
        return build_federation(self.settings).site_data(self.partition_id)

    def model(self) -> nn.Module:
        """See :class:`TorchClient`."""
        return network(self.settings)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """See :class:`TorchClient`."""
        settings = self.settings
        return torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=settings.momentum)

    def train(self, parameters: Arrays, config: Config) -> tuple[Arrays, int, Metrics]:
        """See :class:`TorchClient`."""
        limit_threads()
        return super().train(parameters, config)


def network(settings: AppSettings, seed: int | None = None) -> nn.Module:
    """Make the federation's model for its data set."""
    dataset = build_federation(settings).dataset
    return make_model(
        settings.model,
        channels=dataset.channels,
        num_classes=dataset.num_classes,
        image_size=dataset.image_size,
        seed=settings.seed if seed is None else seed,
    )


def inbox_path(folder: Path, partition_id: int) -> Path:
    """Where the demo keeps the inbox of a site."""
    return folder / f"site-{partition_id}" / "inbox.sqlite"


def make_client_app(settings: AppSettings, inbox_folder: Path) -> ClientApp:
    """Build the ClientApp of an in-process or simulated federation."""

    def client_fn(context: Context) -> Client:
        partition_id = int(context.node_config["partition-id"])
        inbox = SiteInbox(inbox_path(inbox_folder, partition_id))
        return Hospital(settings, partition_id, inbox).to_client()

    return ClientApp(client_fn)


def _deployed(context: Context) -> Client:
    settings = AppSettings.from_mapping(dict(context.run_config))
    partition_id = int(context.node_config["partition-id"])
    hospital = Hospital(settings, partition_id, open_inbox(context))
    hospital.privacy = site_privacy(context)
    return hospital.to_client()


app = ClientApp(_deployed)
