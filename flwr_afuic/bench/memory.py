"""One federation, its updates stored in many forms, and what is unlearned from each.

Training is synchronous, by plain gradient steps whose sizes fall as ``lr * round**-decay`` with a
finite sum: that is where MEDU's rule has a bound (see :mod:`flwr_afuic.history.diagnosis`). With
momentum and steps that do not fall it mostly ended farther from retraining than where it began.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from flwr_afuic.app.client_app import network
from flwr_afuic.app.demo import write_json
from flwr_afuic.app.federation import build_federation, limit_threads
from flwr_afuic.app.scoring import Scorer
from flwr_afuic.app.server_app import initial_arrays
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.app.summary import versions
from flwr_afuic.bench.falling import FallingFederation
from flwr_afuic.bench.storage import EXACT, NOT_RECOVERED, UNCOMPRESSED, Form, Stored
from flwr_afuic.data.probes import Trigger, backdoor_test_images
from flwr_afuic.errors import ConfigError
from flwr_afuic.federation.layout import Arrays, Layout
from flwr_afuic.history.diagnosis import diagnose
from flwr_afuic.history.disk import DiskStore
from flwr_afuic.history.recorder import Recorder, RecorderSettings
from flwr_afuic.history.unlearn import Correction
from flwr_afuic.metrics import average_gap, backdoor_success, parameter_distance_ratio
from flwr_afuic.models.arrays import set_arrays
from flwr_afuic.seeds import derive_seed
from flwr_afuic.strategies.codec import from_record
from flwr_afuic.unlearning.inference import predict

Told = Callable[[str], None]


@dataclass(frozen=True)
class MemorySettings:
    """What of the experiment the app's settings do not name.

    Parameters
    ----------
    rounds : int
        Rounds of the original, each a window of all sites; and of retraining.
    recovery : int
        Rounds of the retained sites after unlearning.
    decay : float
        Step sizes are ``lr * round**-decay``.

    Raises
    ------
    ConfigError
        If a number is out of its range.
    """

    rounds: int = 12
    recovery: int = 5
    decay: float = 1.1

    def __post_init__(self) -> None:
        if self.rounds < 2 or self.recovery < 1 or not 0 <= self.decay <= 10:
            raise ConfigError(
                f"{self.rounds} rounds, {self.recovery} of recovery, decay {self.decay}: at least "
                "2 and 1 rounds and a decay from 0 to 10 are needed"
            )


def measure(
    settings: AppSettings,
    memory: MemorySettings,
    forms: dict[str, tuple[str, Form]],
    *,
    keep: Path | None = None,
    told: Told = lambda line: None,
) -> dict[str, Any]:
    """Train, store in every form, unlearn from each, recover, and score everything.

    Parameters
    ----------
    settings : AppSettings
        Data, model, local training; the seed of everything.
    memory : MemorySettings
        The rest.
    forms : dict of str to (str, Form)
        As :func:`flwr_afuic.bench.storage.forms` returns them; the uncompressed one is needed.
    keep : path, optional
        Folder in which what was trained and measured is kept, so that a run that was stopped goes
        on from there; the caller deletes it.
    told : callable
        Gets a line of text per step.

    Returns
    -------
    dict
        Plain values: ``forms`` by name, ``models``, ``diagnosis``, settings and versions.
    """
    limit_threads()
    began = time.monotonic()
    with (
        TemporaryDirectory(prefix="flwr-afuic-memory-") as folder,
        FallingFederation(settings, memory.decay, Path(folder) / "sites") as federation,
    ):
        content = _Bench(settings, memory, federation, keep or Path(folder), told).run(forms)
    return {
        "dataset": build_federation(settings).dataset.name,
        "synthetic": build_federation(settings).dataset.synthetic,
        **content,
        "settings": asdict(settings),
        "memory": asdict(memory),
        "versions": versions(),
        "wall_seconds": time.monotonic() - began,
    }


class _Bench:
    """The federation of one run."""

    def __init__(
        self,
        settings: AppSettings,
        memory: MemorySettings,
        federation: FallingFederation,
        folder: Path,
        told: Told,
    ) -> None:
        self.settings, self.memory, self.federation = settings, memory, federation
        self.folder, self.told = folder, told
        self.data = build_federation(settings)
        self.scorer = Scorer(settings)
        self.initial = from_record(initial_arrays(settings))
        self.layout = Layout.of(network(settings).state_dict(), self.initial)
        self.probe = None
        if settings.scenario == "backdoor":
            trigger = Trigger.for_channels(self.data.dataset.channels)
            self.probe = backdoor_test_images(self.data.tuning, trigger, self.data.backdoor_label)

    def run(self, forms: dict[str, tuple[str, Form]]) -> dict[str, Any]:
        end, total = self.memory.rounds, self.memory.rounds + self.memory.recovery
        with DiskStore(self.folder / "exact") as exact:
            original = self._original(exact)
            retrained, floor = self._retrained()
            self.judge = _Judge(self, original, retrained[end], retrained[total])
            bounds = {
                "original": self._both(original),
                "retrain": self.judge.both(retrained[end], retrained[total]),
                "retrain_floor": self.judge.both(floor[end], floor[total]),
            }
            windows = list(exact.windows())
            found, warnings = self._forms(exact, forms, original)
        return {
            "forms": found,
            "models": bounds,
            "diagnosis": warnings,
            "client_rounds": sum(len(window.participants) for window in windows),
            "entries": self.layout.trained_size,
            "target_share": windows[0].participants[0].weight,
        }

    def _original(self, exact: DiskStore) -> Arrays:
        """Train with everybody and record it exactly, or take what an earlier try trained."""
        end = self.memory.rounds
        kept = exact.arrays("original")
        if kept is not None:
            return kept
        self.told("original")
        exact.truncate(0)
        exact.set("seed", derive_seed(self.settings.seed, "history"))
        recorder = Recorder(exact, RecorderSettings(codec=EXACT, aggregate=EXACT))
        trained = self.federation.train(self.initial, end, purpose="run", recorder=recorder)[end]
        exact.put_arrays("original", trained)
        return trained

    def _retrained(self) -> tuple[dict[int, Arrays], dict[int, Arrays]]:
        """Train without the site, from the same start and from another."""
        left = (self.settings.target,)
        end, total = self.memory.rounds, self.memory.rounds + self.memory.recovery
        fresh = derive_seed(self.settings.seed, "floor-model")
        found = []
        for words, purpose, start in (
            ("retraining", "run", self.initial),
            ("retraining with another seed", "floor", from_record(
                initial_arrays(self.settings, fresh))),
        ):  # fmt: skip
            with DiskStore(self.folder / purpose) as kept:
                models = {moment: kept.arrays(str(moment)) for moment in (end, total)}
                if None in models.values():
                    self.told(words)
                    trained = self.federation.train(start, total, purpose=purpose, without=left)
                    for moment in models:
                        kept.put_arrays(str(moment), trained[moment])
                        models[moment] = trained[moment]
            found.append({moment: model for moment, model in models.items() if model is not None})
        return found[0], found[1]

    def _forms(
        self, exact: DiskStore, forms: dict[str, tuple[str, Form]], original: Arrays
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        found: dict[str, Any] = {}
        diagnosis: dict[str, Any] = {}
        for name, (words, form) in forms.items():
            path = self.folder / "forms" / f"{name}.json"
            if not path.is_file():
                self.told(name)
                rmtree(self.folder / "stores" / name, ignore_errors=True)
                write_json(path, self._form(exact, name, form, original))
            one = json.loads(path.read_text(encoding="utf-8"))
            diagnosis = one.pop("diagnosis", diagnosis)
            found[name] = {"words": words, **one}
        return found, diagnosis

    def _form(self, exact: DiskStore, name: str, form: Form, original: Arrays) -> dict[str, Any]:
        stored = form.store(exact, self.folder / "stores" / name, self.settings.target)
        trained = stored.correction.apply(self.layout.trained(original))
        flat = np.concatenate([array.reshape(-1) for array in trained])
        digest = hashlib.sha256(flat.tobytes()).hexdigest()[:16]
        path = self.folder / "scores" / f"{digest}-{name not in NOT_RECOVERED}.json"
        if not path.is_file():  # forms without loss give the same model
            unlearned = self.layout.with_trained(flat.astype(np.float64), original)
            write_json(path, self._both(unlearned, recover=name not in NOT_RECOVERED))
        content = {**_sizes(stored), **json.loads(path.read_text(encoding="utf-8"))}
        if name == UNCOMPRESSED:
            content["diagnosis"] = self._diagnosis(exact, stored.correction, original)
        return content

    def _diagnosis(
        self, exact: DiskStore, correction: Correction, original: Arrays
    ) -> dict[str, Any]:
        lr, decay = self.settings.lr, self.memory.decay
        verdict = diagnose(
            exact,
            correction,
            initial=self.layout.trained(self.initial),
            final=self.layout.trained(original),
            step_sizes=[lr * j**-decay for j in range(1, self.memory.rounds + 1)],
        )
        return {
            "ratio": verdict.ratio,
            "decay": None if math.isnan(verdict.decay) else verdict.decay,
            "warnings": list(verdict.warnings),
        }

    def _both(self, model: Arrays, *, recover: bool = True) -> dict[str, Any]:
        """Score a model as it is, and after its recovery."""
        if not recover:
            return self.judge.both(model, None)
        end, more = self.memory.rounds, self.memory.recovery
        left = (self.settings.target,)
        later = self.federation.train(model, more, purpose="recovery", without=left, before=end)
        return self.judge.both(model, later[end + more])


class _Judge:
    """Scores beside retraining's at the same round."""

    def __init__(self, bench: _Bench, original: Arrays, merge: Arrays, later: Arrays) -> None:
        self._bench, self._original, self._retrained = bench, original, (merge, later)
        self._scores = [bench.scorer.score(model) for model in self._retrained]

    def both(self, model: Arrays, later: Arrays | None) -> dict[str, Any]:
        """Score a model at the erasure, and after the recovery rounds if there were any."""
        recovered = None if later is None else self._one(later, 1)
        return {"merge": self._one(model, 0), "recovered": recovered}

    def _one(self, arrays: Arrays, moment: int) -> dict[str, Any]:
        bench = self._bench
        scores = bench.scorer.score(arrays)
        layout = bench.layout
        distance = parameter_distance_ratio(
            layout.trained(arrays),
            layout.trained(self._retrained[moment]),
            layout.trained(self._original),
        )
        model = network(bench.settings)
        set_arrays(model, arrays)
        tuning = bench.data.tuning
        hits = predict(model, tuning.images).argmax(1) == tuning.labels
        probe = None
        if bench.probe is not None:
            predictions = predict(model, bench.probe).argmax(1).numpy()
            probe = backdoor_success(predictions, bench.data.backdoor_label)
        return {
            **asdict(scores),
            "average_gap": average_gap(scores, self._scores[moment]),
            "distance": distance,
            "validation": float(hits.double().mean()),
            "validation_backdoor": probe,
        }


def _sizes(stored: Stored) -> dict[str, Any]:
    return {
        "records": stored.records,
        "disk": stored.disk,
        "coverage": stored.correction.coverage.share,
        "correction_norm": stored.correction.norm,
    }
