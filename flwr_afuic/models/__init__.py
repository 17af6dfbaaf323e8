"""Models: networks by name, and their weights as arrays."""

from flwr_afuic.models.arrays import Kind, array_kinds, get_arrays, set_arrays
from flwr_afuic.models.networks import MODEL_NAMES, make_model

__all__ = ["MODEL_NAMES", "Kind", "array_kinds", "get_arrays", "make_model", "set_arrays"]
