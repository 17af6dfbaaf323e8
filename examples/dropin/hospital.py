"""What a federation already has: its model, its data, and images that belong to no site.

Phantoms stand in for a hospital's images here. Site 0 labelled most of its images wrongly, which
is why it will ask to be forgotten. A site keeps the ids by which it knows its images.
"""

from functools import cache

import torch
from flwr.app import Context
from torch import nn

from flwr_afuic.data.images import Dataset
from flwr_afuic.data.partitions import partition
from flwr_afuic.data.phantoms import make_phantoms
from flwr_afuic.data.probes import mislabel
from flwr_afuic.models.networks import make_model as build


@cache
def _dataset() -> Dataset:
    return make_phantoms(seed=0, n_train=1200, n_val=200, n_test=200)


def make_model() -> nn.Module:
    """Return a fresh model."""
    return build("groupnorm-cnn", channels=1, num_classes=2, image_size=28, seed=0)


def local_images(context: Context) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Return this site's images, labels and sample ids."""
    site = int(context.node_config["partition-id"])
    sites = int(context.node_config["num-partitions"])
    train = _dataset().train
    held = train.subset(partition(train.labels.numpy(), sites, scheme="iid", seed=0)[site])
    if site == 0:
        held, _ = mislabel(held, 0.6, num_classes=2, seed=0)
    return held.images, held.labels, held.ids


def public_images() -> torch.Tensor:
    """Return unlabelled images like the task's that belong to no site."""
    return _dataset().val.images
