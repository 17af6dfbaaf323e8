"""What merge rule and calibration are worth: one erasure, forked after its unlearning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from flwr_afuic.app.client_app import network
from flwr_afuic.app.federation import build_federation, limit_threads
from flwr_afuic.app.scoring import Scorer
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.bench.ablation_training import CalibratedTraining, Calibration
from flwr_afuic.bench.trained import Models, kept, train_models, training
from flwr_afuic.calibration.fidelity import confine, keep_fidelity
from flwr_afuic.calibration.transforms import MonaiPhi
from flwr_afuic.errors import ConfigError
from flwr_afuic.federation.layout import Arrays, Layout, Vector
from flwr_afuic.metrics import Scores, average_gap, resurfacing
from flwr_afuic.models.arrays import get_arrays, set_arrays
from flwr_afuic.models.reinitialise import reinitialise
from flwr_afuic.seeds import derive_seed
from flwr_afuic.unlearning.local import UnlearningSettings, unlearn
from flwr_afuic.unlearning.reference import distil_reference
from flwr_afuic.unlearning.relearning import relearning_basis

MERGES = ("delta", "fidelity", "damped", "overwrite")
CALIBRATIONS: dict[str, Calibration] = {
    "none": Calibration(),
    "identity": Calibration(phi="identity"),
    "augmentation": Calibration(phi="monai"),
    "signature": Calibration(phi="signature"),
    "direction": Calibration(lock=True),
    "lock_1": Calibration(lock=True, rank=1),
    "lock_4": Calibration(lock=True, rank=4),
    "lock_8": Calibration(lock=True, rank=8),
    "lock_16": Calibration(lock=True, rank=16),
    "per_layer": Calibration(lock=True, per_layer=True),
    "lock_kl": Calibration(lock=True, phi="monai"),
}
_CROSSED = ("none", "lock_kl")
"""Calibrations that every merge rule is crossed with; the default rule meets them all."""


@dataclass(frozen=True, kw_only=True)
class AblationSettings:
    """One erasure and what follows it.

    Attributes
    ----------
    app : AppSettings
        The federation; its ``objective`` is that of the unlearning.
    staleness : tuple of int
        Rounds that go on between the snapshot and the merge.
    rounds_after : int
        Rounds of the retained sites after the merge.
    """

    app: AppSettings = field(default_factory=AppSettings)
    staleness: tuple[int, ...] = (0, 3, 8)
    rounds_after: int = 10

    def __post_init__(self) -> None:
        if not self.staleness or min(self.staleness) < 0 or self.rounds_after < 1:
            raise ConfigError(
                f"staleness is {self.staleness} and rounds_after {self.rounds_after}; give "
                "numbers of at least 0, and at least 1"
            )
        if self.app.scope != "client":
            raise ConfigError("bench ablation erases a whole site; use scope=client")


@dataclass(frozen=True)
class Cell:
    """One fork: a merge rule, a calibration, and how stale the delta is."""

    merge: str
    calibration: str
    staleness: int


def cells(settings: AblationSettings, *, full: bool = False) -> list[Cell]:
    """List the forks, the middle staleness first.

    With ``full`` every merge rule is crossed with every calibration; without it the plain delta is,
    and the other rules only with none and with lock and KL. At staleness 0 damping and
    overwriting are the plain delta and are left out.
    """
    order = sorted(settings.staleness, key=lambda tau: (tau != 3, tau))
    found = []
    for tau in order:
        for merge in MERGES:
            if tau == 0 and merge in ("damped", "overwrite"):
                continue
            for name in CALIBRATIONS:
                if full or merge == "delta" or name in _CROSSED:
                    found.append(Cell(merge, name, tau))
    return found


class Ablation:
    """The common part of all forks of one seed, made once and kept in a folder.

    Parameters
    ----------
    settings : AblationSettings
    folder : Path
    told : callable
        Hears of progress.
    """

    def __init__(
        self, settings: AblationSettings, folder: Path, told: Callable[[str], None]
    ) -> None:
        limit_threads()
        self.settings, self._folder, self._told = settings, folder, told
        app = self.app = settings.app
        self._data = build_federation(app)
        self._scorer = Scorer(app)
        self._known: dict[int, Scores] = {}
        longest = max(settings.staleness) + settings.rounds_after
        first = app.request_round
        self.original = self._trained("original", first, ())[first]
        self.plain = self._trained("plain", longest, (app.target,), self.original)
        self.retrained = self._trained("retrain", first + longest, (app.target,))
        names = list(network(app).state_dict())
        self.layout = Layout.of(names, self.original)
        self.unlearned, self.bases = self._unlearned()

    @property
    def delta(self) -> Vector:
        """``d = w_u - w_s``."""
        return self.layout.flatten(self.unlearned) - self.layout.flatten(self.original)

    # ---- what all forks share -------------------------------------------------------

    def _trained(
        self, name: str, rounds: int, without: tuple[str, ...], start: Arrays | None = None
    ) -> Models:
        asked = {**training(self.app), "objective": "", "rounds": rounds, "name": name}
        stem = f"{Path(self.app.dataset).stem}-s{self.app.seed}-{name}"

        def make() -> Models:
            self._told(f"{name}: {rounds} rounds")
            return train_models(self.app, rounds, without=without, start=start)

        return kept(self._folder, stem, asked, make)

    def _unlearned(self) -> tuple[Arrays, dict[int, Vector]]:
        """Unlearn once, and span the ways back once for each rank."""
        ranks = sorted({c.rank for c in CALIBRATIONS.values() if c.rank})
        asked = {**training(self.app), "ranks": ranks, "name": "unlearned"}
        stem = f"{Path(self.app.dataset).stem}-s{self.app.seed}-{self.app.objective}"
        found = kept(self._folder, stem, asked, lambda: self._unlearn(ranks))
        return found[0], {rank: found[rank][0] for rank in ranks}

    def _unlearn(self, ranks: list[int]) -> Models:
        self._told(f"unlearning: {self.app.objective}")
        data, app = self._data, self.app
        seed = derive_seed(app.seed, "ablation")
        teacher, student, model = self._model(self.original), network(app), network(app)
        set_arrays(model, self.original)
        reinitialise(student, seed=seed)
        with torch.enable_grad():
            distil_reference(teacher, student, data.proxies.images, seed=seed)
            unlearn(
                model,
                forget_x=data.forget.images,
                forget_y=data.forget.labels,
                anchor_x=data.proxies.images,
                reference=student,
                holdout=None,
                settings=UnlearningSettings(objective=app.objective),
                seed=seed,
            )
            made: Models = {0: get_arrays(model)}
            for rank in ranks:
                made[rank] = [
                    relearning_basis(
                        model,
                        forget_x=data.forget.images,
                        forget_y=data.forget.labels,
                        rank=rank,
                        seed=seed,
                    )
                ]
        return made

    def _model(self, arrays: Arrays) -> nn.Module:
        model = network(self.app)
        set_arrays(model, arrays)
        return model

    # ---- one fork -------------------------------------------------------------------

    def merged(self, merge: str, staleness: int) -> Arrays:
        """Return the model right after a merge.

        Parameters
        ----------
        merge : {"delta", "fidelity", "damped", "overwrite"}
            ``w_c + d``; the same after fidelity steps; ``w_c + d / (1 + tau)``; ``w_s + d``.
        staleness : int
            Rounds ``tau`` between snapshot and merge.
        """
        if merge not in MERGES:
            raise ConfigError(f"unknown merge rule {merge!r}; known: {', '.join(MERGES)}")
        flat = self.layout.flatten
        current, delta = self.plain[staleness], self.delta
        if merge == "overwrite":
            return self.unlearned
        scale = 1 / (1 + staleness) if merge == "damped" else 1.0
        vector = flat(current) + scale * delta
        if merge == "fidelity":
            model, teacher = network(self.app), self._model(current)
            set_arrays(model, self.layout.with_trained(vector, current))
            seed = derive_seed(self.app.seed, "fidelity", staleness)
            with torch.enable_grad():
                keep_fidelity(model, teacher, self._data.proxies.images, MonaiPhi(), seed=seed)
            step = flat(get_arrays(model)) - vector
            progress = flat(current) - flat(self.original)
            vector = vector + confine(step, delta=delta, progress=progress)
        return self.layout.with_trained(vector, current)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Train one fork on and score every round; return plain values, ready for JSON."""
        settings, app = self.settings, self.app
        chosen, start = CALIBRATIONS[cell.calibration], self.merged(cell.merge, cell.staleness)
        before = self.plain[cell.staleness]
        data = self._data

        def make(**options: Any) -> CalibratedTraining:
            return CalibratedTraining(
                chosen,
                delta=self.delta,
                before=self.layout.flatten(before),
                basis=self.bases.get(chosen.rank),
                factory=lambda: network(app),
                proxies=data.proxies.images,
                **options,
            )

        models = train_models(
            app,
            settings.rounds_after,
            without=(app.target,),
            start=start,
            purpose=f"after-{cell.staleness}",
            make=make,
        )
        models[0] = start
        first = app.request_round + cell.staleness
        own = {first + r: self._scorer.score(arrays) for r, arrays in sorted(models.items())}
        again = {r: self._retrained_score(r) for r in own if r in self.retrained}
        return {
            "cell": asdict(cell),
            "objective": app.objective,
            "scores": {r: asdict(s) for r, s in own.items()},
            "retrain": {r: asdict(s) for r, s in again.items()},
            "figures": compare(own, again, first),
        }

    def _retrained_score(self, number: int) -> Scores:
        if number not in self._known:
            self._known[number] = self._scorer.score(self.retrained[number])
        return self._known[number]


def compare(own: dict[int, Scores], again: dict[int, Scores], merge_round: int) -> dict[str, float]:
    """Compare a fork with retraining, round by round.

    Returns
    -------
    dict of str to float
        ``test_at_merge``, ``test_mean`` (of the rounds after), ``forget_gap_at_merge``,
        ``average_gap`` at the end, and, where there is a trigger, ``asr_gap_at_merge``,
        ``resurfacing_mean`` and ``resurfacing_max``.
    """
    after = [r for r in own if r > merge_round and r in again]
    there, end = own[merge_round], max(after)
    found = {
        "test_at_merge": there.test,
        "test_mean": float(np.mean([own[r].test for r in after])),
        "retrain_test_mean": float(np.mean([again[r].test for r in after])),
        "forget_gap_at_merge": there.forget - again[merge_round].forget,
        "average_gap": average_gap(own[end], again[end]),
    }
    success = {r: s.backdoor_success for r, s in own.items() if s.backdoor_success is not None}
    theirs = {r: s.backdoor_success for r, s in again.items() if s.backdoor_success is not None}
    if success and theirs:
        back = resurfacing(success, theirs, merge_round=merge_round)
        found["asr_gap_at_merge"] = success[merge_round] - theirs[merge_round]
        found["resurfacing_mean"], found["resurfacing_max"] = back.mean, back.max
    return found
