"""Score the recorded models of every arm on data no site trained on, and on D_f."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from flwr_afuic.app.arms import Arm
from flwr_afuic.app.client_app import network
from flwr_afuic.app.federation import FederationData, build_federation
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.metrics import Scores, backdoor_success, membership_auc
from flwr_afuic.models.arrays import set_arrays
from flwr_afuic.unlearning.inference import predict

_WORKERS = 2


@dataclass
class ArmCurve:
    """Scores of one arm by round, and those of its erasure versions.

    Attributes
    ----------
    by_round : dict of int to Scores
        The last model of each round that no erasure made, so that arms compare.
    times, versions : dict of int to float, int
        Of those models; seconds since the arm's start.
    at_merge : dict of int to Scores
        By version, for each erasure merge.
    """

    by_round: dict[int, Scores] = field(default_factory=dict)
    times: dict[int, float] = field(default_factory=dict)
    versions: dict[int, int] = field(default_factory=dict)
    at_merge: dict[int, Scores] = field(default_factory=dict)

    def series(self, name: str) -> dict[int, float]:
        """One score by round; rounds where it was not measured are left out."""
        values = {r: s.present().get(name) for r, s in sorted(self.by_round.items())}
        return {r: value for r, value in values.items() if value is not None}


class Scorer:
    """Evaluate models of one federation, on its data or on what is given instead."""

    def __init__(self, settings: AppSettings, data: FederationData | None = None) -> None:
        self._settings = settings
        self._data = data or build_federation(settings)

    def score(self, arrays: Arrays) -> Scores:
        """Score one model: test and forget accuracy, membership AUC, backdoor success."""
        data, model = self._data, network(self._settings)
        set_arrays(model, arrays)
        test = data.dataset.test
        success = None
        if data.triggered is not None:
            predictions = predict(model, data.triggered).argmax(1).numpy()
            success = backdoor_success(predictions, data.backdoor_label)
        forgotten = predict(model, data.forget.images)
        members = _losses(forgotten, data.forget.labels)
        others = _losses(predict(model, data.tuning.images), data.tuning.labels)
        return Scores(
            test=_accuracy(predict(model, test.images), test.labels),
            forget=_accuracy(forgotten, data.forget.labels),
            membership_auc=membership_auc(members, others),
            backdoor_success=success,
        )

    def curve(self, arm: Arm, progress: Callable[[], None] = lambda: None) -> ArmCurve:
        """Score every recorded model of an arm."""
        entries = [arm.recorder.versions[v] for v in sorted(arm.recorder.versions)]
        curve = ArmCurve()

        def one(arrays: Arrays) -> Scores:
            scores = self.score(arrays)
            progress()
            return scores

        with ThreadPoolExecutor(_WORKERS) as pool:
            results = list(pool.map(one, [arrays for _, arrays in entries]))
        for (entry, _), scores in zip(entries, results, strict=True):
            round_ = arm.recorder.first_round + entry.round
            if entry.cause == "erasure":
                curve.at_merge[entry.version] = scores
            curve.by_round[round_] = scores
            curve.times[round_] = entry.time
            curve.versions[round_] = entry.version
        return curve


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())


def _losses(logits: Tensor, labels: Tensor) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    losses = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    return np.asarray(losses.numpy(), dtype=np.float64)
