"""A hospital whose data are a table of images of patients: ready to train and to forget."""

from __future__ import annotations

from dataclasses import dataclass
from logging import WARNING
from pathlib import Path

import torch
from flwr.app import Context
from flwr.supercore import log
from torch import nn

from flwr_afuic.clients.erasure_client import ErasureClient
from flwr_afuic.clients.node import open_inbox, site_privacy
from flwr_afuic.clients.torch_client import SiteData, TorchClient
from flwr_afuic.data.clinical import ClinicalSet, ClinicalSource, Preparation
from flwr_afuic.data.clinical.source import TaskName
from flwr_afuic.errors import ConfigError
from flwr_afuic.models.networks import make_model
from flwr_afuic.seeds import derive_seed

TABLE, CACHE = "table", "cache"


@dataclass(frozen=True, kw_only=True)
class ClinicalSettings:
    """What all sites of a federation have in common, and its server.

    Attributes
    ----------
    task : {"classification", "multi-label", "segmentation"}
    classes : tuple of str
        See :class:`~flwr_afuic.data.clinical.ClinicalSource`.
    preparation : Preparation
    model : str
        A name :func:`~flwr_afuic.models.networks.make_model` knows.
    lr : float
        Of Adam, which suits Dice losses.
    batch_size, local_steps : int
    holdout : float
        Share of a site's patients that never train, for evaluation and as the forget level
        where there are no proxies; 0 for none.
    seed : int
    """

    task: TaskName
    classes: tuple[str, ...]
    preparation: Preparation
    model: str
    lr: float = 0.003
    batch_size: int = 2
    local_steps: int = 8
    holdout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"holdout is {self.holdout}; it must be in [0, 1)")

    def network(self, seed: int | None = None) -> nn.Module:
        """Make the federation's network."""
        return make_model(
            self.model,
            channels=self.preparation.channels,
            num_classes=len(self.classes),
            image_size=self.preparation.size,
            seed=self.seed if seed is None else seed,
            task=self.task,
        )


class ClinicalClient(TorchClient):
    """A site of a federation on clinical images.

    Patients are its units of erasure: see ``flwr-afuic request --patients``. Rows of the table
    that cannot be used are named in the site's log, all at once, and left out.

    Parameters
    ----------
    settings : ClinicalSettings
    source : ClinicalSource or ClinicalSet
        The site's table, or what was loaded of it.
    context : Context, optional
        Of the node: its inbox, its name and its privacy. Or set up the client yourself.
    """

    def __init__(
        self,
        settings: ClinicalSettings,
        source: ClinicalSource | ClinicalSet,
        context: Context,
    ) -> None:
        partition = context.node_config.get("partition-id")
        ErasureClient.__init__(
            self,
            inbox=open_inbox(context),
            site="" if partition is None else f"site-{partition}",
            privacy=site_privacy(context),
        )
        self.context = context
        self.settings = settings
        self.source = source
        self.batch_size = settings.batch_size
        self.local_steps = settings.local_steps

    @classmethod
    def of_node(cls, settings: ClinicalSettings, context: Context) -> ClinicalClient:
        """Make the client of a node whose configuration names its ``table`` and ``cache``.

        Raises
        ------
        ConfigError
            If ``node_config`` has no ``table``.
        """
        table = context.node_config.get(TABLE)
        if table is None:
            raise ConfigError(
                "no 'table' in node_config; start the SuperNode with --node-config "
                "'table=\"/path/table.csv\"'"
            )
        cache = context.node_config.get(CACHE)
        source = ClinicalSource(
            Path(str(table)),
            settings.preparation,
            task=settings.task,
            classes=settings.classes,
            cache_dir=None if cache is None else Path(str(cache)),
        )
        return cls(settings, source, context)

    def data(self) -> SiteData:
        """See :class:`TorchClient`."""
        if isinstance(self.source, ClinicalSet):
            loaded = self.source
        else:
            loaded, report = self.source.load()
            if report.problems:
                log(WARNING, "%s", report.text())
        held_out = hold_out(loaded, self.settings.holdout, self.settings.seed)
        kept = loaded.subset([i for i in range(len(loaded)) if i not in held_out])
        rest = loaded.subset(sorted(held_out))
        return SiteData(
            kept.images,
            kept.targets,
            kept.ids,
            holdout_images=rest.images if held_out else None,
            holdout_labels=rest.targets if held_out else None,
            patients=kept.patients,
        )

    def model(self) -> nn.Module:
        """See :class:`TorchClient`."""
        return self.settings.network()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """See :class:`TorchClient`."""
        return torch.optim.Adam(model.parameters(), lr=self.settings.lr)


def hold_out(loaded: ClinicalSet, share: float, seed: int) -> set[int]:
    """Choose positions that never train: whole patients, the same whatever else the table holds.

    Each patient is drawn by its own id, so that a patient who joins or leaves moves no other one
    from one side to the other.
    """
    bound = share * 2**31  # seeds are drawn below 2**31
    chosen = {p for p in set(loaded.patients) if derive_seed(seed, "holdout", p) < bound}
    return {i for i, patient in enumerate(loaded.patients) if patient in chosen}
