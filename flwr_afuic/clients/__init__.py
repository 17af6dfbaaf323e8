"""Flower NumPyClients: local training, erasure, and the wire to the server."""

from flwr_afuic.clients.erasure_client import ErasureClient, UnlearningTask
from flwr_afuic.clients.message_app import message_app
from flwr_afuic.clients.torch_client import SiteData, TorchClient, open_inbox

__all__ = [
    "ErasureClient",
    "SiteData",
    "TorchClient",
    "UnlearningTask",
    "message_app",
    "open_inbox",
]
