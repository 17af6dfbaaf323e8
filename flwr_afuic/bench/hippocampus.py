"""The hippocampus federation: real MRI volumes of the Medical Segmentation Decathlon, by case."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flwr_afuic.clients.clinical_client import ClinicalSettings
from flwr_afuic.data.clinical import ClinicalSet, ClinicalSource, Preparation
from flwr_afuic.data.sources import resolve_data_dir
from flwr_afuic.errors import ConfigError, DataError
from flwr_afuic.seeds import derive_seed

FOLDER = "msd_hippocampus"
CLASSES = ("background", "anterior", "posterior")
PROVENANCE = (
    "Medical Segmentation Decathlon, Task04 Hippocampus, Vanderbilt University Medical Center; "
    "CC BY-SA 4.0; cases of no site"
)
_AREAS = ("site", "patient")
_TEST_SEED = 0


@dataclass(frozen=True, kw_only=True)
class HippocampusSettings:
    """One federation on the hippocampus volumes with one erasure in the middle.

    Attributes
    ----------
    data_dir : str
        Where the folder ``msd_hippocampus`` lies.
    cache_dir : str
        Where prepared volumes are kept; empty for nowhere.
    cases : int
        How many of the volumes are used, in the order of their numbers.
    size : tuple of int
        Voxels each volume is resampled to.
    model : str
    sites : int
        ``site-0`` is the one that erases: everything, or one patient.
    tests, proxies : int
        Cases that belong to no site: for scoring, and for the server. The test cases are the same
        for every seed; which others are whose, the seed says.
    tuning : bool
        Leave the test cases out altogether and score on as many others: constants are chosen there.
    request_round, rounds_for_erasure, rounds_after, verify_rounds : int
        Every arm trains for the sum of the first three, so that none waits for another.
    local_steps, batch_size, lr
        Local training, with Adam.
    unlearning_lr, unlearning_steps, unlearning_anchor
        Mean voxel losses have small gradients: a higher rate than for pictures, and less anchor.
    distillation_lr, distillation_steps, distillation_views
        A reference of half the steps and rate knew the structures less well than retraining does,
        and erasures held to it were called not met (seed 10, ``tuning``).
    max_cost : float
        1 - Dice between the segmentations before and after a merge above which it is held.
    protect_small : bool
        Clip and noise the erasure of one patient, as is the default for small requests.
    seed : int

    Raises
    ------
    ConfigError
        If a number is out of its range.
    """

    data_dir: str = ""
    cache_dir: str = ""
    cases: int = 100
    size: tuple[int, int, int] = (32, 48, 32)
    model: str = "unet"
    sites: int = 5
    tests: int = 18
    proxies: int = 12
    tuning: bool = False
    request_round: int = 20
    rounds_for_erasure: int = 8
    rounds_after: int = 30
    verify_rounds: int = 5
    local_steps: int = 6
    batch_size: int = 2
    lr: float = 0.005
    unlearning_lr: float = 1.0
    unlearning_steps: int = 60
    unlearning_anchor: float = 3.0
    distillation_lr: float = 0.1
    distillation_steps: int = 300
    distillation_views: int = 8
    max_cost: float = 0.15
    protect_small: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "request_round",
            "rounds_for_erasure",
            "rounds_after",
            "local_steps",
            "batch_size",
            "tests",
            "proxies",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.sites < 3:
            raise ConfigError(f"sites is {self.sites}; it must be at least 3")
        needed = (1 + self.tuning) * self.tests + self.proxies + 2 * self.sites
        if self.cases < needed:
            raise ConfigError(
                f"{self.cases} cases cannot be divided among {self.sites} sites with {self.tests} "
                f"tests and {self.proxies} proxies; use {needed} or more"
            )
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"lr is {self.lr}; it must be positive")

    @property
    def target(self) -> str:
        """Name of the site that erases."""
        return "site-0"

    @property
    def rounds(self) -> int:
        """Rounds that every arm trains."""
        return self.request_round + self.rounds_for_erasure + self.rounds_after

    def clinical(self) -> ClinicalSettings:
        """Return what sites and server share."""
        return ClinicalSettings(
            task="segmentation",
            classes=CLASSES,
            preparation=Preparation(size=self.size),
            model=self.model,
            lr=self.lr,
            batch_size=self.batch_size,
            local_steps=self.local_steps,
            seed=self.seed,
        )


@dataclass(frozen=True)
class HippocampusData:
    """The volumes, divided by case.

    Attributes
    ----------
    sites : tuple of ClinicalSet
        Training data; case numbers are the patients.
    test, proxies : ClinicalSet
        Of no site.
    """

    sites: tuple[ClinicalSet, ...]
    test: ClinicalSet
    proxies: ClinicalSet = field(repr=False)

    def forget(self, area: str) -> ClinicalSet:
        """D_f: all of ``site-0``, or its first patient."""
        held = self.sites[0]
        return held if area == "site" else held.subset([0])

    def kept(self, area: str) -> ClinicalSet | None:
        """What ``site-0`` keeps; None where it keeps nothing."""
        held = self.sites[0]
        return None if area == "site" else held.subset(range(1, len(held)))


def check_area(area: str) -> None:
    """Raise ConfigError unless the area of an erasure is known."""
    if area not in _AREAS:
        raise ConfigError(f"area is {area!r}; use one of {', '.join(_AREAS)}")


def load_hippocampus(settings: HippocampusSettings, folder: Path) -> HippocampusData:
    """Write the table, load the volumes and divide them by case.

    Parameters
    ----------
    settings : HippocampusSettings
    folder : pathlib.Path
        Where the table is written.

    Raises
    ------
    DataError
        If the data are not there, or a case cannot be used.
    """
    root = resolve_data_dir(settings.data_dir or None) / FOLDER
    table = write_table(root, folder / "hippocampus.csv", settings.cases)
    clinical = settings.clinical()
    source = ClinicalSource(
        table,
        clinical.preparation,
        task="segmentation",
        classes=CLASSES,
        root=root,
        cache_dir=settings.cache_dir or None,
    )
    loaded, report = source.load()
    if report.problems:
        raise DataError(f"the hippocampus volumes are damaged: {report.text()}")
    tests, proxies, sites = divide(settings, len(loaded))
    return HippocampusData(
        sites=tuple(loaded.subset(part) for part in sites),
        test=loaded.subset(tests),
        proxies=loaded.subset(proxies),
    )


def divide(
    settings: HippocampusSettings, count: int
) -> tuple[list[int], list[int], list[list[int]]]:
    """Divide cases into those for scoring, the proxies, and each site's."""
    fixed = np.random.default_rng(derive_seed(_TEST_SEED, "tests")).permutation(count)
    tests, rest = fixed[: settings.tests], fixed[settings.tests :]
    rest = np.random.default_rng(derive_seed(settings.seed, "cases")).permutation(rest)
    if settings.tuning:
        tests, rest = rest[: settings.tests], rest[settings.tests :]
    proxies, held = rest[: settings.proxies], rest[settings.proxies :]
    parts = np.array_split(held, settings.sites)
    return tests.tolist(), proxies.tolist(), [part.tolist() for part in parts]


def write_table(root: Path, table: Path, cases: int) -> Path:
    """Write the table of the first cases: each its own patient."""
    images = sorted((root / "images").glob("hippocampus_*.nii.gz"))[:cases]
    if len(images) < cases:
        raise DataError(
            f"{root} holds {len(images)} hippocampus volumes, {cases} are needed; put the "
            "Decathlon's Task04 there as images/ and labels/, or name its folder with --data-dir"
        )
    lines = ["path,patient_id,mask_path"]
    for image in images:
        number = image.name.removesuffix(".nii.gz").rpartition("_")[2]
        lines.append(f"images/{image.name},case-{number},labels/{image.name}")
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table
