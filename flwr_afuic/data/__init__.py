"""Data: sources, partitions among hospitals, and probes to measure forgetting."""

from flwr_afuic.data.images import Dataset, ImageSet, concat
from flwr_afuic.data.partitions import partition
from flwr_afuic.data.phantoms import make_phantoms
from flwr_afuic.data.probes import (
    BackdoorInfo,
    Trigger,
    apply_trigger,
    backdoor,
    backdoor_test_images,
    mislabel,
)
from flwr_afuic.data.sources import known_names, load_dataset

__all__ = [
    "BackdoorInfo",
    "Dataset",
    "ImageSet",
    "Trigger",
    "apply_trigger",
    "backdoor",
    "backdoor_test_images",
    "concat",
    "known_names",
    "load_dataset",
    "make_phantoms",
    "mislabel",
    "partition",
]
