"""Models: networks by name, their weights as arrays, and pretrained weights from a file."""

from flwr_afuic.models.arrays import Kind, array_kinds, get_arrays, set_arrays
from flwr_afuic.models.networks import MODEL_NAMES, make_model
from flwr_afuic.models.preflight import Preflight, preflight
from flwr_afuic.models.pretrained import Loaded, load_pretrained

__all__ = [
    "MODEL_NAMES",
    "Kind",
    "Loaded",
    "Preflight",
    "array_kinds",
    "get_arrays",
    "load_pretrained",
    "make_model",
    "preflight",
    "set_arrays",
]
