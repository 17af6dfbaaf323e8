"""Flower NumPyClients: local training, erasure, and the wire to the server."""

from typing import TYPE_CHECKING, Any

from flwr_afuic.clients.erasure_client import ErasureClient, UnlearningTask
from flwr_afuic.clients.message_app import message_app
from flwr_afuic.clients.node import open_inbox, site_privacy

if TYPE_CHECKING:
    from flwr_afuic.clients.multimodal_client import MultimodalClient, PairData
    from flwr_afuic.clients.torch_client import SiteData, TorchClient

__all__ = [
    "ErasureClient",
    "MultimodalClient",
    "PairData",
    "SiteData",
    "TorchClient",
    "UnlearningTask",
    "message_app",
    "open_inbox",
    "site_privacy",
]


def __getattr__(name: str) -> Any:
    """Import torch only for those who use it: a deployed site starts a process a message."""
    if name in ("SiteData", "TorchClient"):
        from flwr_afuic.clients import torch_client

        return getattr(torch_client, name)
    if name in ("MultimodalClient", "PairData"):
        from flwr_afuic.clients import multimodal_client

        return getattr(multimodal_client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
