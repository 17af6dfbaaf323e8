"""Membership where it can be seen: small sites, many local epochs, duplicates, wrong labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flwr_afuic.app.client_app import network
from flwr_afuic.app.federation import build_federation, limit_threads
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.bench.ablation_training import CalibratedTraining, Calibration
from flwr_afuic.bench.trained import Models, kept, train_models
from flwr_afuic.clients.torch_client import SiteData
from flwr_afuic.data.images import ImageSet
from flwr_afuic.data.probes import mislabel
from flwr_afuic.errors import ConfigError
from flwr_afuic.federation.layout import Arrays, Layout
from flwr_afuic.metrics import attack_auc, likelihood_ratio_scores, membership_auc, tpr_at_fpr
from flwr_afuic.models.arrays import get_arrays, set_arrays
from flwr_afuic.models.reinitialise import reinitialise
from flwr_afuic.seeds import derive_seed
from flwr_afuic.unlearning.inference import predict, score
from flwr_afuic.unlearning.local import UnlearningSettings, unlearn
from flwr_afuic.unlearning.reference import distil_reference

Members = NDArray[np.bool_]
_FPR = 0.05


@dataclass(frozen=True, kw_only=True)
class MembershipSettings:
    """A federation of small sites, and an attacker with reference federations.

    Attributes
    ----------
    app : AppSettings
        Data set, number of sites, rates; ``request_round`` rounds are trained. Partition, scenario
        and local steps are not used.
    images : int
        Images at each site; the pool of the target's is twice that.
    epochs : int
        Local passes over them a round.
    mislabelled : float
        Share of the pool with a wrong label, the same for members and others.
    copies : int
        How many times the target holds each of its images.
    references : int
        Federations the attacker trains: the target holds another half of the pool in each, and
        each half's rest in the next. Even, at least 4.
    rounds_after : int
        Rounds of the retained sites after the erasure.
    """

    app: AppSettings = field(default_factory=AppSettings)
    images: int = 64
    epochs: int = 8
    mislabelled: float = 0.0
    copies: int = 1
    references: int = 8
    rounds_after: int = 5

    def __post_init__(self) -> None:
        if self.references < 4 or self.references % 2:
            raise ConfigError(f"references is {self.references}; it must be even, at least 4")
        for name in ("images", "epochs", "copies", "rounds_after"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.mislabelled <= 1:
            raise ConfigError(f"mislabelled is {self.mislabelled}; it must be in [0, 1]")

    @property
    def federation(self) -> AppSettings:
        """Settings with which the sites train."""
        steps = self.epochs * max(1, self.images // self.app.batch_size)
        return replace(self.app, local_steps=steps)


PRESETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "duplicates": {"copies": 3},
    "mislabelled": {"mislabelled": 0.5},
    "both": {"copies": 3, "mislabelled": 0.5},
}


class Membership:
    """One study: data, models, attack.

    Parameters
    ----------
    settings : MembershipSettings
    folder : Path
        Keeps trained models.
    told : callable
        Hears of progress.

    Raises
    ------
    ConfigError
        If the data set has too few images.
    """

    def __init__(
        self,
        settings: MembershipSettings,
        folder: Path,
        told: Callable[[str], None] = lambda line: None,
    ) -> None:
        limit_threads()
        self.settings, self._folder, self._told = settings, folder, told
        self.app = settings.federation
        self._data = build_federation(self.app)
        self.others, self.pool = divide(self._data.dataset.train, settings)
        rng = np.random.default_rng(derive_seed(self.app.seed, "members"))
        self.members = _half(rng, len(self.pool))
        self.halves: list[Members] = []
        for _ in range(settings.references // 2):
            half = _half(rng, len(self.pool))
            self.halves += [half, ~half]

    def holdings(self, members: Members) -> list[SiteData]:
        """Return what each site holds when the target holds some of the pool."""
        own = self.pool.subset(np.flatnonzero(members))
        copies = self.settings.copies
        target = SiteData(
            own.images.repeat(copies, 1, 1, 1),
            own.labels.repeat(copies),
            [f"{name}#{copy}" for copy in range(copies) for name in own.ids],
        )
        return [target, *(SiteData(s.images, s.labels, s.ids) for s in self.others)]

    # ---- models ---------------------------------------------------------------------

    def _trained(self, name: str, rounds: int, members: Members, **options: Any) -> Models:
        asked = {**asdict(self.settings), "name": name, "rounds": rounds}
        asked["app"]["data_dir"] = ""

        def make() -> Models:
            self._told(name)
            made = train_models(self.app, rounds, holdings=self.holdings(members), **options)
            return {
                r: arrays for r, arrays in made.items() if r in (self.app.request_round, rounds)
            }

        return kept(self._folder, f"membership-s{self.app.seed}-{name}", asked, make)

    def models(self) -> dict[str, Arrays]:
        """Train, unlearn and train on; return each model that is attacked."""
        first, after, left = (
            self.app.request_round,
            self.settings.rounds_after,
            (self.app.target,),
        )
        members = self.members
        original = self._trained("original", first, members)[first]
        retrain = self._trained("retrain", first + after, members, without=left)
        floor = self._trained("retrain_floor", first + after, members, without=left,
                              purpose="floor")  # fmt: skip
        plain = self._trained("no_unlearning", after, members, without=left, start=original,
                              purpose="after")  # fmt: skip
        merged, calibrated = self._erased(original)
        held = self._trained("afuic", after, members, without=left, start=merged, purpose="after",
                             make=calibrated)  # fmt: skip
        return {
            "original": original,
            "retrain_at_merge": retrain[first],
            "afuic_at_merge": merged,
            "retrain": retrain[first + after],
            "retrain_floor": floor[first + after],
            "no_unlearning": plain[after],
            "afuic": held[after],
        }

    def _erased(self, original: Arrays) -> tuple[Arrays, Callable[..., CalibratedTraining]]:
        """Unlearn by the default recipe; return the merged model and what trains it on."""
        self._told("unlearning")
        app, proxies, held = self.app, self._data.proxies.images, self.holdings(self.members)[0]
        seed = derive_seed(app.seed, "unlearning")
        teacher, student, model = network(app), network(app), network(app)
        set_arrays(teacher, original)
        set_arrays(model, original)
        reinitialise(student, seed=seed)
        with torch.enable_grad():
            distil_reference(teacher, student, proxies, seed=seed)
            unlearn(
                model,
                forget_x=held.images,
                forget_y=held.labels,
                anchor_x=proxies,
                reference=student,
                holdout=None,
                settings=UnlearningSettings(objective=app.objective),
                seed=seed,
            )
        merged = get_arrays(model)
        layout = Layout.of(list(model.state_dict()), original)
        before = layout.flatten(original)

        def calibrated(**engine: Any) -> CalibratedTraining:
            return CalibratedTraining(
                Calibration(lock=True, phi="monai"),
                delta=layout.flatten(merged) - before,
                before=before,
                basis=None,
                factory=lambda: network(app),
                proxies=proxies,
                **engine,
            )

        return merged, calibrated

    # ---- the attack -----------------------------------------------------------------

    def losses(self, arrays: Arrays) -> NDArray[np.float64]:
        """Return a model's loss on each image of the pool, shape (2n,)."""
        logits = predict(self._model(arrays), self.pool.images).double()
        found = nn.functional.cross_entropy(logits, self.pool.labels, reduction="none")
        return np.asarray(found.numpy(), dtype=np.float64)

    def run(self) -> dict[str, Any]:
        """Attack every model; return plain values, ready for JSON."""
        first = self.app.request_round
        references = np.stack(
            [
                self.losses(self._trained(f"reference-{i}", first, half, purpose=f"ref-{i}")[first])
                for i, half in enumerate(self.halves)
            ]
        )
        found = {}
        for name, arrays in self.models().items():
            found[name] = attack(self.losses(arrays), self.members, references,
                                 np.stack(self.halves))  # fmt: skip
            found[name] |= self._scores(arrays)
        return {
            "dataset": self._data.dataset.name,
            "seed": self.app.seed,
            "settings": {k: v for k, v in asdict(self.settings).items() if k != "app"},
            "models": found,
        }

    def _model(self, arrays: Arrays) -> nn.Module:
        model = network(self.app)
        set_arrays(model, arrays)
        return model

    def _scores(self, arrays: Arrays) -> dict[str, float]:
        test, model = self._data.dataset.test, self._model(arrays)
        rows = torch.as_tensor(np.flatnonzero(self.members))
        images, labels = _rows(self.pool, rows)
        return {
            "test": score(model, test.images, test.labels).accuracy,
            "forget": score(model, images, labels).accuracy,
        }


def attack(
    losses: NDArray[np.float64],
    members: Members,
    references: NDArray[np.float64],
    reference_members: Members,
) -> dict[str, float]:
    """Attack one model twice: by its losses, and by likelihood ratios against the references.

    Parameters
    ----------
    losses : ndarray, shape (2n,)
        Of the model, on the pool.
    members : ndarray of bool, shape (2n,)
        Who was in the target's data.
    references : ndarray, shape (m, 2n)
        Losses of the reference models.
    reference_members : ndarray of bool, shape (m, 2n)

    Returns
    -------
    dict of str to float
        ``lira_auc``, ``lira_tpr`` (at 5 % false positives: a pool this small has no 1 %), and
        ``loss_auc``.
    """
    scores = likelihood_ratio_scores(losses, references, reference_members)
    return {
        "lira_auc": attack_auc(scores[members], scores[~members]),
        "lira_tpr": tpr_at_fpr(scores[members], scores[~members], _FPR),
        "loss_auc": membership_auc(losses[members], losses[~members]),
    }


def divide(train: ImageSet, settings: MembershipSettings) -> tuple[list[ImageSet], ImageSet]:
    """Draw what the other sites hold, and the pool of the target's, wrong labels included."""
    app, n = settings.app, settings.images
    needed = (app.sites + 1) * n
    if needed > len(train):
        raise ConfigError(
            f"{app.sites} sites of {n} images and a pool of {2 * n} need {needed} images; "
            f"{app.dataset} has {len(train)}: lower images or sites"
        )
    order = np.random.default_rng(derive_seed(app.seed, "small-sites")).permutation(len(train))
    others = [train.subset(order[i * n : (i + 1) * n]) for i in range(2, app.sites + 1)]
    pool = train.subset(order[: 2 * n])
    if settings.mislabelled > 0:
        classes = int(train.labels.max()) + 1
        seed = derive_seed(app.seed, "mislabelled")
        pool, _ = mislabel(pool, settings.mislabelled, classes, seed)
    return others, pool


def _half(rng: np.random.Generator, count: int) -> Members:
    chosen = np.zeros(count, dtype=np.bool_)
    chosen[rng.permutation(count)[: count // 2]] = True
    return chosen


def _rows(pool: ImageSet, rows: Tensor) -> tuple[Tensor, Tensor]:
    return pool.images[rows], pool.labels[rows]
