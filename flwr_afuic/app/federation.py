"""The data of a simulated federation: who holds what, and what is planted where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_afuic.app.settings import AppSettings
from flwr_afuic.clients.torch_client import SiteData
from flwr_afuic.data.images import Dataset, ImageSet
from flwr_afuic.data.partitions import partition
from flwr_afuic.data.probes import Trigger, backdoor, backdoor_test_images, mislabel
from flwr_afuic.data.sources import load_dataset
from flwr_afuic.seeds import derive_seed

Rows = NDArray[np.int64]

_TARGET_SHARE = (0.12, 0.35)
_FAIR_SHARE = 0.9  # of an equal share: what the target holds at least, however many sites
_BACKDOOR_LABEL = 0
_PATIENT_IMAGES = 16


@dataclass(frozen=True)
class FederationData:
    """Everything a run and its evaluation need.

    Attributes
    ----------
    dataset : Dataset
        Where it all comes from.
    sites : tuple of ImageSet
        Training data by site, planted probes included.
    forget : ImageSet
        D_f: what is to be erased, with the labels it was trained on.
    proxies, tuning : ImageSet
        The halves of the validation split.
    triggered : Tensor or None, shape (n, c, h, w)
        Held-out test images of other classes with the trigger.
    """

    dataset: Dataset
    sites: tuple[ImageSet, ...]
    forget: ImageSet
    proxies: ImageSet
    tuning: ImageSet
    triggered: Tensor | None
    backdoor_label: int = _BACKDOOR_LABEL

    def site_data(self, partition_id: int) -> SiteData:
        """Return one site's data in the form a client wants it."""
        held = self.sites[partition_id]
        return SiteData(held.images, held.labels, held.ids)


@lru_cache(maxsize=2)
def build_federation(settings: AppSettings) -> FederationData:
    """Load, divide and plant, from the settings' seed alone; cached per process."""
    seed = settings.seed
    dataset = load_dataset(settings.dataset, settings.data_dir or None, seed=seed)
    parts = partition(
        dataset.train.labels.numpy(),
        settings.sites,
        scheme=settings.partition,  # type: ignore[arg-type]
        alpha=settings.alpha,
        seed=derive_seed(seed, "partition"),
        target_share=(min(_TARGET_SHARE[0], _FAIR_SHARE / settings.sites), _TARGET_SHARE[1]),
    )
    alone = _rarest(dataset) if settings.scenario == "exclusive" else None
    if alone is not None:
        parts = _given_class(dataset, parts, alone)
    sites = [dataset.train.subset(part) for part in parts]
    planted = np.array([], dtype=np.int64)
    triggered = None
    if settings.scenario == "backdoor":
        trigger = Trigger.for_channels(dataset.channels)
        sites[0], info = backdoor(
            sites[0],
            fraction=settings.poison_fraction,
            target_label=_BACKDOOR_LABEL,
            trigger=trigger,
            seed=derive_seed(seed, "backdoor"),
        )
        planted = info.poisoned
        triggered = backdoor_test_images(dataset.test, trigger, _BACKDOOR_LABEL)
    elif settings.scenario == "mislabel":
        before = sites[0].labels
        sites[0], _ = mislabel(
            sites[0],
            settings.poison_fraction,
            dataset.num_classes,
            derive_seed(seed, "mislabel"),
        )
        planted = np.flatnonzero((sites[0].labels != before).numpy())
    elif settings.scenario == "patient":
        sites[0], planted = _confused_patient(sites[0], dataset.num_classes, seed)
    proxies, tuning = dataset.split_validation(seed)
    if alone is not None:
        proxies = proxies.subset(np.flatnonzero((proxies.labels != alone).numpy()))
    forget = sites[0].subset(_forgotten(settings, len(sites[0]), planted))
    return FederationData(dataset, tuple(sites), forget, proxies, tuning, triggered)


def _forgotten(settings: AppSettings, held: int, planted: Rows) -> Rows:
    """Choose rows of the target to erase: all, or a share with planted rows first."""
    if settings.scope == "client":
        return np.arange(held)
    if settings.scenario == "patient":
        return np.sort(planted)
    rng = np.random.default_rng(derive_seed(settings.seed, "forget"))
    others = rng.permutation(np.setdiff1d(np.arange(held), planted))
    first = rng.permutation(planted) if len(planted) else planted
    count = max(1, round(settings.forget_fraction * held))
    return np.sort(np.concatenate([first, others])[:count].astype(np.int64))


def _rarest(dataset: Dataset) -> int:
    """Return the class with the fewest training images, the first of several."""
    return int(torch.bincount(dataset.train.labels, minlength=dataset.num_classes).argmin())


def _given_class(dataset: Dataset, parts: Sequence[Rows], label: int) -> list[Rows]:
    """Move every image of a class to the target, which keeps what else it holds."""
    rows = np.flatnonzero((dataset.train.labels == label).numpy())
    first = np.union1d(parts[0], rows).astype(np.int64)
    return [first, *(np.setdiff1d(part, rows) for part in parts[1:])]


def _confused_patient(site: ImageSet, num_classes: int, seed: int) -> tuple[ImageSet, Rows]:
    """Give one patient's images the next label; return the site and their rows.

    The data sets name no patients: one is here up to 16 images of one class of the site.
    """
    rng = np.random.default_rng(derive_seed(seed, "patient"))
    labels = site.labels.numpy().copy()
    rows = np.flatnonzero(labels == rng.choice(labels))
    rows = np.sort(rng.permutation(rows)[:_PATIENT_IMAGES]).astype(np.int64)
    labels[rows] = (labels[rows] + 1) % num_classes
    return ImageSet(site.images, torch.from_numpy(labels), site.ids), rows


def limit_threads() -> None:
    """Give each site one thread: sites run side by side, and numbers repeat."""
    torch.set_num_threads(1)
