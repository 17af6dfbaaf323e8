"""How near the proxy-distilled reference is to retraining on the erased data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flwr_afuic.app.client_app import network
from flwr_afuic.app.federation import FederationData, build_federation, limit_threads
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.bench.trained import kept, train_models, training
from flwr_afuic.data.phantoms import make_phantoms
from flwr_afuic.data.sources import load_dataset
from flwr_afuic.errors import ConfigError
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.models.arrays import set_arrays
from flwr_afuic.models.reinitialise import reinitialise
from flwr_afuic.seeds import derive_seed
from flwr_afuic.unlearning.inference import score
from flwr_afuic.unlearning.level import ForgetScore, forget_level_met
from flwr_afuic.unlearning.reference import distil_reference

COUNTS = (32, 64, 128, 256)
"""Proxies of the task's own validation split."""
OTHERS = {
    "pneumoniamnist": "breastmnist",
    "breastmnist": "pneumoniamnist",
    "pbc28": "pneumoniamnist",
    "mednist": "pbc28",
}
"""A set of another modality for each known one; of any other, ``pneumoniamnist``."""
HOLDOUT = "holdout"


@dataclass(frozen=True)
class ReferenceSettings:
    """Where proxies come from, and how many.

    Attributes
    ----------
    counts : tuple of int
        Numbers of the task's own proxies; more than there are means all.
    others : bool
        Also as many images of another modality, and of synthetic phantoms.
    """

    counts: tuple[int, ...] = COUNTS
    others: bool = True

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 1:
            raise ConfigError(f"counts are {self.counts}; give positive numbers of proxies")


def measure(
    app: AppSettings,
    settings: ReferenceSettings,
    folder: Path,
    told: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Compare references of one federation with retraining on its erased data.

    Parameters
    ----------
    app : AppSettings
        The federation; ``request_round`` is how long the original and retraining train.
    settings : ReferenceSettings
    folder : Path
        Keeps the trained models.
    told : callable
        Hears of progress.

    Returns
    -------
    dict
        ``models``: accuracy and loss on the erased data of the original, of retraining, and of a
        second retraining. ``references``: the same of each reference, its number of proxies, its
        test accuracy, and whether retraining, and the original, would pass as having forgotten by
        it: the first should, the second should not.
    """
    limit_threads()
    data, rounds = build_federation(app), app.request_round
    left = (app.target,) if app.scope == "client" else ()
    if not left:
        raise ConfigError("bench reference erases a whole site; use scope=client")
    ends = {}
    for name, without, purpose in (
        ("original", (), "run"),
        ("retrain", left, "run"),
        ("retrain_floor", left, "floor"),
    ):
        told(f"{name}, {rounds} rounds")
        asked = {**training(app), "rounds": rounds, "without": without, "purpose": purpose}
        stem = f"{Path(app.dataset).stem}-s{app.seed}-{app.sites}-{name}"
        ends[name] = kept(folder, stem, asked, _trainer(app, rounds, without, purpose))[rounds]
    scores = {name: _scored(app, data, arrays) for name, arrays in ends.items()}
    known = [_forget_score(scores[name], data) for name in ("original", "retrain")]
    teacher = _loaded(app, ends["original"])
    references: dict[str, dict[str, Any]] = {}
    for name, proxies in proxy_sets(app, data, settings).items():
        told(f"reference of {name}")
        student = network(app)
        seed = derive_seed(app.seed, "reference", rounds)
        reinitialise(student, seed=seed)
        distil_reference(teacher, student, proxies, seed=seed)
        found = _scores(student, data)
        references[name] = {**found, **_judged(found, known, data), "proxies": len(proxies)}
    held = score(teacher, data.tuning.images, data.tuning.labels)
    unseen = {"forget": held.accuracy, "forget_loss": held.loss}
    references[HOLDOUT] = {**unseen, **_judged(unseen, known, data), "proxies": 0}
    return {
        "dataset": data.dataset.name,
        "scenario": app.scenario,
        "seed": app.seed,
        "sites": app.sites,
        "erased": len(data.forget),
        "models": scores,
        "references": references,
    }


def proxy_sets(
    app: AppSettings, data: FederationData, settings: ReferenceSettings
) -> dict[str, Tensor]:
    """Return the proxies of each kind, by name: own ones by number, then the other kinds."""
    own = data.proxies.images
    generator = torch.Generator().manual_seed(derive_seed(app.seed, "proxies"))
    order = torch.randperm(len(own), generator=generator)
    found: dict[str, Tensor] = {}
    for count in settings.counts:
        number = min(count, len(own))
        found.setdefault(str(number), own[order[:number]])
    if not settings.others:
        return found
    most = max(settings.counts)
    other = OTHERS.get(data.dataset.name, "pneumoniamnist")
    images = load_dataset(other, app.data_dir or None, seed=app.seed).val.images
    found[f"other:{other}"] = like(images[:most], own)
    phantoms = make_phantoms(app.seed, n_train=8, n_val=most, n_test=8)
    found["phantoms"] = like(phantoms.val.images, own)
    return found


def like(images: Tensor, own: Tensor) -> Tensor:
    """Give foreign images the size and channels of one's own.

    Parameters
    ----------
    images : Tensor, shape (n, c, h, w)
    own : Tensor, shape (m, channels, height, width)

    Returns
    -------
    Tensor, shape (n, channels, height, width)
        Colours are averaged to grey, grey is repeated to colours.
    """
    if images.shape[1] != own.shape[1]:
        images = images.mean(dim=1, keepdim=True).repeat(1, own.shape[1], 1, 1)
    if images.shape[2:] != own.shape[2:]:
        images = nn.functional.interpolate(images, size=own.shape[2:], mode="area")
    return images


def _judged(
    found: dict[str, float], known: list[ForgetScore], data: FederationData
) -> dict[str, float | bool]:
    original, retrained = known
    level = ForgetScore(found["forget_loss"], found["forget"], len(data.forget))
    return {
        "forget_gap": found["forget"] - retrained.accuracy,
        "loss_ratio": found["forget_loss"] / max(retrained.loss, 1e-9),
        "retraining_passes": forget_level_met(retrained, level).met,
        "original_passes": forget_level_met(original, level).met,
    }


def _trainer(
    app: AppSettings, rounds: int, without: tuple[str, ...], purpose: str
) -> Callable[[], dict[int, Arrays]]:
    return lambda: {rounds: train_models(app, rounds, without=without, purpose=purpose)[rounds]}


def _loaded(app: AppSettings, arrays: Arrays) -> nn.Module:
    model = network(app)
    set_arrays(model, arrays)
    return model


def _scored(app: AppSettings, data: FederationData, arrays: Arrays) -> dict[str, float]:
    return _scores(_loaded(app, arrays), data)


def _scores(model: nn.Module, data: FederationData) -> dict[str, float]:
    forgotten = score(model, data.forget.images, data.forget.labels)
    test = score(model, data.dataset.test.images, data.dataset.test.labels)
    return {"forget": forgotten.accuracy, "forget_loss": forgotten.loss, "test": test.accuracy}


def _forget_score(scores: dict[str, float], data: FederationData) -> ForgetScore:
    return ForgetScore(scores["forget_loss"], scores["forget"], len(data.forget))


def variants(app: AppSettings, seeds: tuple[int, ...], sites: tuple[int, ...]) -> list[AppSettings]:
    """List the federations of a study: every seed at the first number of sites, others once."""
    found = [replace(app, seed=seed, sites=sites[0]) for seed in seeds]
    return found + [replace(app, seed=seeds[0], sites=number) for number in sites[1:]]
