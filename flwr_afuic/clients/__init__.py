"""Flower NumPyClients: local training, erasure, and the wire to the server."""

from flwr_afuic.clients.erasure_client import ErasureClient, UnlearningTask
from flwr_afuic.clients.message_app import message_app
from flwr_afuic.clients.node import open_inbox, site_privacy
from flwr_afuic.clients.torch_client import SiteData, TorchClient

__all__ = [
    "ErasureClient",
    "SiteData",
    "TorchClient",
    "UnlearningTask",
    "message_app",
    "open_inbox",
    "site_privacy",
]
