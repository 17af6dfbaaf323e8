"""What runs at a hospital: training on its own images, and their erasure."""

import torch
from flwr.app import Context
from flwr.client import Client
from flwr.clientapp import ClientApp
from torch import nn

from flwr_afuic.clients import SiteData, TorchClient
from hospitals.task import make_model, read_site


class Hospital(TorchClient):
    """A site whose images lie in the file its node configuration names as ``data``."""

    batch_size = 32
    local_steps = 40

    def data(self) -> SiteData:
        """Return the hospital's images."""
        return read_site(str(self.context.node_config["data"]))

    def model(self) -> nn.Module:
        """Return a fresh network; its weights are replaced by the federation's."""
        return make_model()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of one local training."""
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def hospital(context: Context) -> Client:
    """Make the client of this node; ``inbox`` in its node configuration names its inbox."""
    torch.set_num_threads(1)
    return Hospital.from_context(context).to_client()


app = ClientApp(hospital)
