"""A site with image-text pairs: it trains the adapters of a dual-tower model, and can forget."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging import INFO
from typing import Any, Self

import torch
from flwr.app import Context
from flwr.supercore import log
from numpy.typing import NDArray
from torch import nn

from flwr_afuic import wire
from flwr_afuic.calibration.forget_lock import ForgetLock
from flwr_afuic.clients.batches import rows_of, task_batches
from flwr_afuic.clients.erasure_client import Config, ErasureClient, Metrics, UnlearningTask
from flwr_afuic.clients.node import open_inbox, site_privacy
from flwr_afuic.errors import DataError, WireError
from flwr_afuic.federation.layout import ArrayKind, Arrays
from flwr_afuic.models.arrays import get_arrays, set_arrays
from flwr_afuic.seeds import derive_seed
from flwr_afuic.unlearning.excision import ExcisionSettings, excise, forget_directions
from flwr_afuic.unlearning.level import ForgetScore
from flwr_afuic.unlearning.pairs import (
    Pairs,
    as_towers,
    contrastive_loss,
    pairs_gradient,
    score_pairs,
    similarities,
)
from flwr_afuic.unlearning.procedures import read_settings


@dataclass(frozen=True)
class PairData:
    """A site's image-text pairs, with stable ids, and what it holds out.

    Attributes
    ----------
    pairs : Pairs, length n
        See :meth:`~flwr_afuic.models.clip.Backbone.encode`.
    ids : sequence of str, length n
        Stable across restarts: erasures name pairs by them.
    patients : sequence of str or None, length n
        Whose each pair is. A patient is then erased as a whole, and stays so.
    classes : sequence of str or None, length n
        Finding of each pair, for erasures of a class.
    holdout : Pairs or None
        Never trained on.
    """

    pairs: Pairs
    ids: Sequence[str]
    patients: Sequence[str] | None = None
    classes: Sequence[str] | None = None
    holdout: Pairs | None = None

    def __post_init__(self) -> None:
        for what in ("ids", "patients", "classes"):
            given = getattr(self, what)
            if given is not None and len(given) != len(self.pairs):
                raise DataError(
                    f"{len(given)} {what} for {len(self.pairs)} pairs; name one for each"
                )
        if len(set(self.ids)) != len(self.ids):
            raise DataError("pair ids repeat; an erasure could not tell those pairs apart")


class MultimodalClient(ErasureClient):
    """A site that trains an image-text model contrastively and can forget pairs of it.

    Subclasses give :meth:`data`, :meth:`model` and, if AdamW will not do, :meth:`optimizer`. Only
    the adapters are trained and sent. An unlearning excises the pairs from both towers, down to
    the similarity the frozen base model gives them. Between two steps of training the server's
    Forget Lock is held, where there is one. Every random draw of a task comes from a generator
    seeded by the server's config.

    Attributes
    ----------
    batch_size : int
        Pairs per step; they are each other's negatives.
    local_steps : int or None
        Gradient steps per task; None for ``local_epochs``.
    local_epochs : int
        Passes over the retained pairs per task.
    lr : float
        Of AdamW.
    clip : float or None
        Greatest gradient norm.
    """

    batch_size = 32
    local_steps: int | None = None
    local_epochs = 4
    lr = 1e-2
    clip: float | None = 5.0
    holds_lock = True
    forget_lock: ForgetLock | None = None

    context: Context

    @classmethod
    def from_context(cls, context: Context) -> Self:
        """Make the client of a node, as :meth:`TorchClient.from_context` does."""
        client = cls.__new__(cls)
        partition = context.node_config.get("partition-id")
        site = "" if partition is None else f"site-{partition}"
        ErasureClient.__init__(
            client, inbox=open_inbox(context), site=site, privacy=site_privacy(context)
        )
        client.context = context
        return client

    # ---- the hooks ------------------------------------------------------------------

    @abstractmethod
    def data(self) -> PairData:
        """Return the site's pairs; called once per task."""

    @abstractmethod
    def model(self) -> nn.Module:
        """Return a model of this client's own; its adapters are replaced by the federation's.

        A :class:`~flwr_afuic.unlearning.pairs.DualTower`, such as
        :class:`~flwr_afuic.models.multimodal.AdapterCLIP`.
        """

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of one local training."""
        return torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=0.0)

    # ---- ErasureClient --------------------------------------------------------------

    def sample_ids(self) -> Sequence[str]:
        """See :class:`ErasureClient`."""
        return self._pair_data().ids

    def sample_patients(self) -> Mapping[str, str]:
        """See :class:`ErasureClient`."""
        data = self._pair_data()
        return dict(zip(data.ids, data.patients, strict=True)) if data.patients else {}

    def sample_classes(self) -> Mapping[str, str]:
        """Return the finding of each pair; empty where the site named none."""
        data = self._pair_data()
        return dict(zip(data.ids, data.classes, strict=True)) if data.classes else {}

    def array_kinds(self) -> Sequence[ArrayKind]:
        """Adapters are all trained."""
        return ["trained"] * len(self._own_model().state_dict())

    def train(self, parameters: Arrays, config: Config) -> tuple[Arrays, int, Metrics]:
        """See :class:`ErasureClient`; minimises InfoNCE over the retained pairs."""
        data, model = self._pair_data(), self._loaded(parameters)
        rows = torch.as_tensor(self._rows(self.retained_ids()))
        if not len(rows):  # erased since this task began
            return parameters, 0, {wire.STEPS: 0}
        towers, optimizer = as_towers(model), self.optimizer(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        batches = task_batches(
            len(rows),
            torch.Generator().manual_seed(int(config.get(wire.SEED, 0))),
            batch_size=self.batch_size,
            epochs=self.local_epochs,
            steps=self.local_steps,
            effort=config.get(wire.EFFORT, 1.0),
        )
        total = 0.0
        for batch in batches:
            part = data.pairs.take(rows[batch])
            v, t = towers.embed_images(part.images), towers.embed_texts(part.tokens, part.mask)
            loss = contrastive_loss(v, t, towers.scale(), part.groups)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if self.clip is not None:
                nn.utils.clip_grad_norm_(trained, self.clip)
            optimizer.step()
            if self.forget_lock is not None:
                self.forget_lock.step_(trained, float(optimizer.param_groups[0]["lr"]))
            total += float(loss.detach())
        metrics: Metrics = {"train_loss": total / len(batches), wire.STEPS: len(batches)}
        return get_arrays(model), len(rows), metrics

    def test(self, parameters: Arrays, config: Config) -> tuple[float, int, Metrics]:
        """See :class:`ErasureClient`: recall on held-out pairs; (0, 0) where there are none."""
        held_out = self._pair_data().holdout
        if held_out is None or not len(held_out):
            return 0.0, 0, {}
        result = score_pairs(as_towers(self._loaded(parameters)), held_out)
        return result.loss, result.count, {"accuracy": result.accuracy}

    def score(self, parameters: Arrays, sample_ids: Sequence[str]) -> ForgetScore:
        """See :class:`ErasureClient`: the pairs are looked for among all the site holds."""
        forget, others = self._parts(sample_ids)
        return score_pairs(as_towers(self._loaded(parameters)), forget, others)

    def base_score(self, parameters: Arrays, sample_ids: Sequence[str]) -> ForgetScore:
        """Score the base model, adapters off: what it knew of these pairs before it trained."""
        forget, others = self._parts(sample_ids)
        towers = as_towers(self._loaded(parameters))
        with towers.adapters_off():
            return score_pairs(towers, forget, others)

    def unlearn(self, task: UnlearningTask) -> tuple[Arrays, wire.Evidence]:
        """See :class:`ErasureClient`; by :func:`flwr_afuic.unlearning.excision.excise`.

        The level in the evidence (``reference``) is the score with the adapters off.
        """
        settings = read_settings(task.settings)
        if not isinstance(settings, ExcisionSettings):
            raise WireError(
                "image-text pairs are unlearned by excision; the server asks for something else "
                "(use the EASE strategy)"
            )
        model = self._loaded(task.snapshot)
        forget, _ = self._parts(task.forget_ids)
        erased = set(task.forget_ids)
        kept = [sample for sample in self.retained_ids() if sample not in erased]
        retained = self._pair_data().pairs.take(self._rows(kept)) if kept else None
        similarity = float(similarities(as_towers(model), forget).mean())
        outcome = excise(model, forget, retained, settings=settings, seed=task.seed)
        log(
            INFO,
            "unlearning for request %s: mean similarity %.3f before, %.3f after %d steps (%s)",
            task.request_id,
            similarity,
            float(similarities(as_towers(model), forget).mean()),
            outcome.steps,
            outcome.stop_reason,
        )
        arrays = get_arrays(model)
        held_out = self._pair_data().holdout
        holdout = None
        if held_out is not None and len(held_out):
            holdout = score_pairs(as_towers(self._loaded(task.snapshot)), held_out)
        evidence = wire.Evidence(
            before=outcome.before,
            after=outcome.after,
            reference=outcome.reference,
            holdout=holdout,
            steps=outcome.steps,
            stop_reason=outcome.stop_reason,
            delta_norm=outcome.delta_norm,
        )
        return arrays, evidence

    def gradient(self, parameters: Arrays, sample_ids: Sequence[str], loss: str) -> Arrays:
        """See :class:`ErasureClient`; of InfoNCE or its bounded counterpart."""
        pairs = self._pair_data().pairs.take(self._rows(sample_ids))
        return pairs_gradient(as_towers(self._loaded(parameters)), pairs, loss=loss)

    def relearning_basis(self, task: UnlearningTask, unlearned: Arrays, rank: int) -> NDArray[Any]:
        """See :class:`ErasureClient`; :func:`flwr_afuic.unlearning.excision.forget_directions`."""
        forget, _ = self._parts(task.forget_ids)
        seed = derive_seed(task.seed, "relearning")
        return forget_directions(self._loaded(unlearned), forget, rank=rank, seed=seed)

    # ---- inside ---------------------------------------------------------------------

    def _pair_data(self) -> PairData:
        if not hasattr(self, "_data"):
            self._data = self.data()
        return self._data

    def _own_model(self) -> nn.Module:
        # Made once: a backbone is large, and only its adapters change from task to task.
        if not hasattr(self, "_model"):
            self._model = self.model()
        return self._model

    def _loaded(self, arrays: Arrays) -> nn.Module:
        model = self._own_model()
        set_arrays(model, arrays)
        return model

    def _rows(self, sample_ids: Sequence[str]) -> list[int]:
        return rows_of(self._pair_data().ids, sample_ids)

    def _parts(self, sample_ids: Sequence[str]) -> tuple[Pairs, Pairs]:
        """Divide the site's pairs into those named and all others."""
        pairs, rows = self._pair_data().pairs, self._rows(sample_ids)
        named = set(rows)
        return pairs.take(rows), pairs.take([i for i in range(len(pairs)) if i not in named])
