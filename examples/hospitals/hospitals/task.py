"""The model of the federation, and how a hospital's images are read."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from flwr_afuic.clients import SiteData


def make_model(seed: int = 0) -> nn.Module:
    """Return a fresh network for 28x28 grey images and two classes, about 25,000 weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in ((1, 16), (16, 32), (32, 64)):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                nn.GroupNorm(8, after),  # no running statistics, which averaging would blur
                nn.ReLU(),
            ]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, 2))


def read_images(images: np.ndarray) -> Tensor:
    """Scale uint8 images of shape (n, h, w) to float32 in [-1, 1], shape (n, 1, h, w)."""
    return torch.from_numpy(images).float()[:, None] / 127.5 - 1.0


def read_site(path: str | Path) -> SiteData:
    """Read a hospital's file: images, labels and the ids by which it knows its images."""
    with np.load(path, allow_pickle=False) as file:
        return SiteData(
            read_images(file["images"]),
            torch.from_numpy(file["labels"].astype(np.int64)),
            [str(sample) for sample in file["ids"]],
            read_images(file["holdout_images"]),
            torch.from_numpy(file["holdout_labels"].astype(np.int64)),
        )


def read_proxies(path: str | Path) -> Tensor:
    """Read the coordinator's images, which belong to no hospital."""
    with np.load(path, allow_pickle=False) as file:
        return read_images(file["images"])
