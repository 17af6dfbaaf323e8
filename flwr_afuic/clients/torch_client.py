"""An erasure client for PyTorch models: four hooks, and it trains and forgets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from flwr.app import Context
from numpy.typing import NDArray
from torch import Tensor, nn

from flwr_afuic import wire
from flwr_afuic.clients.batches import rows_of, task_batches
from flwr_afuic.clients.erasure_client import Config, ErasureClient, Metrics, UnlearningTask
from flwr_afuic.clients.node import open_inbox as open_inbox
from flwr_afuic.clients.node import site_privacy
from flwr_afuic.errors import ConfigError, DataError, WireError
from flwr_afuic.federation.layout import ArrayKind, Arrays, infer_kind
from flwr_afuic.models.arrays import get_arrays, set_arrays
from flwr_afuic.seeds import derive_seed
from flwr_afuic.unlearning.ascent import PgaSettings, ascend, start_from_reference
from flwr_afuic.unlearning.contrast import FcuSettings, unlearn_by_contrast
from flwr_afuic.unlearning.excision import ExcisionSettings
from flwr_afuic.unlearning.inference import score
from flwr_afuic.unlearning.level import ForgetScore
from flwr_afuic.unlearning.local import UnlearningOutcome, unlearn
from flwr_afuic.unlearning.orthogonal import mean_gradient
from flwr_afuic.unlearning.procedures import read_settings
from flwr_afuic.unlearning.relearning import relearning_basis
from flwr_afuic.unlearning.tasks import Task, task_of


@dataclass(frozen=True)
class SiteData:
    """A site's training data, with stable ids, and what it holds out.

    Attributes
    ----------
    images : Tensor, shape (n, c, *spatial)
    labels : Tensor, length n
        Targets as the model's task has them: int64 of shape (n,) for classification, float32 of
        (n, classes) for multi-label, int64 of (n, *spatial) for segmentation.
    ids : sequence of str, length n
        Stable across restarts: erasures name samples by them.
    holdout_images, holdout_labels : Tensor or None
        Never trained on; used for evaluation and, where the federation has no proxies, as
        the anchor and the forget level of an unlearning.
    patients : sequence of str or None, length n
        Whose each sample is. A patient is then erased as a whole, and stays so.
    """

    images: Tensor
    labels: Tensor
    ids: Sequence[str]
    holdout_images: Tensor | None = None
    holdout_labels: Tensor | None = None
    patients: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.labels) == len(self.ids):
            raise DataError(
                f"{len(self.images)} images, {len(self.labels)} labels and {len(self.ids)} ids; "
                "each sample needs one of each"
            )
        if len(set(self.ids)) != len(self.ids):
            raise DataError("sample ids repeat; an erasure could not tell those samples apart")
        if self.patients is not None and len(self.patients) != len(self.ids):
            raise DataError(
                f"{len(self.patients)} patients for {len(self.ids)} samples; name one for each"
            )


class TorchClient(ErasureClient):
    """A site that trains a ``torch.nn.Module`` and can forget.

    Subclasses give four hooks: :meth:`data`, :meth:`model`, :meth:`optimizer` and
    :meth:`loss`. Every random draw of a task comes from a generator seeded by the server's
    config, so that runs repeat.

    Attributes
    ----------
    batch_size : int
        Samples per step.
    local_steps : int or None
        Gradient steps per task; None for ``local_epochs``.
    local_epochs : int
        Passes over the retained data per task.
    clip : float or None
        Greatest gradient norm.
    """

    batch_size = 32
    local_steps: int | None = None
    local_epochs = 1
    clip: float | None = 5.0
    holds_lock = True

    @classmethod
    def from_context(cls, context: Context) -> Self:
        """Make the client of a node: site from ``partition-id``, inbox from ``inbox``.

        ``node_config`` entries: ``inbox`` is the path of the hospital's inbox. Without it a
        file in the temporary folder is used, with a warning: fine in simulation, not in a
        hospital, whose erasures must outlive the machine's temporary files. See also
        :func:`~flwr_afuic.clients.node.open_inbox` and
        :func:`~flwr_afuic.clients.node.site_privacy`.
        """
        client = cls.__new__(cls)
        partition = context.node_config.get("partition-id")
        site = "" if partition is None else f"site-{partition}"
        ErasureClient.__init__(
            client, inbox=open_inbox(context), site=site, privacy=site_privacy(context)
        )
        client.context = context
        return client

    context: Context

    # ---- the four hooks -------------------------------------------------------------

    @abstractmethod
    def data(self) -> SiteData:
        """Return the site's data; called once per task."""

    @abstractmethod
    def model(self) -> nn.Module:
        """Return a fresh model; its weights are replaced by the federation's."""

    @abstractmethod
    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of one local training."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the training loss of one batch; the task's unless overridden.

        Of classification that is cross-entropy, of segmentation Dice loss plus cross-entropy.
        """
        return self._learns().training_loss(outputs, targets)

    # ---- ErasureClient --------------------------------------------------------------

    def sample_ids(self) -> Sequence[str]:
        """See :class:`ErasureClient`."""
        return self._site_data().ids

    def sample_patients(self) -> Mapping[str, str]:
        """See :class:`ErasureClient`."""
        data = self._site_data()
        return dict(zip(data.ids, data.patients, strict=True)) if data.patients else {}

    def array_kinds(self) -> Sequence[ArrayKind]:
        """Tell arrays apart by name and dtype, exactly as the server does."""
        if not hasattr(self, "_known_kinds"):
            self._fresh()
        return self._known_kinds

    def train(self, parameters: Arrays, config: Config) -> tuple[Arrays, int, Metrics]:
        """See :class:`ErasureClient`."""
        data, model = self._site_data(), self._loaded(parameters)
        rows = torch.as_tensor(self._rows(self.retained_ids()))
        if not len(rows):  # erased since this task began
            return parameters, 0, {wire.STEPS: 0}
        generator = torch.Generator().manual_seed(int(config.get(wire.SEED, 0)))
        optimizer = self.optimizer(model)
        model.train()
        losses, hits, seen = 0.0, 0.0, 0
        task, travelling = task_of(model), trained_tensors(model)
        batches = self._batches(len(rows), generator, effort=config.get(wire.EFFORT, 1.0))
        for batch in batches:
            images, labels = data.images[rows[batch]], data.labels[rows[batch]]
            optimizer.zero_grad(set_to_none=True)
            outputs = model(images)
            loss = self.loss(outputs, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            if self.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            optimizer.step()
            if self.forget_lock is not None:
                self.forget_lock.step_(travelling, float(optimizer.param_groups[0]["lr"]))
            losses += float(loss.detach()) * len(batch)
            hits += float(task.scores(outputs.detach(), labels).sum())
            seen += len(batch)
        metrics: Metrics = {
            "train_loss": losses / seen,
            "train_accuracy": hits / seen,
            wire.STEPS: len(batches),
        }
        return get_arrays(model), len(rows), metrics

    def test(self, parameters: Arrays, config: Config) -> tuple[float, int, Metrics]:
        """See :class:`ErasureClient`: scores the held-out data; (0, 0) where there is none."""
        data = self._site_data()
        if data.holdout_images is None or data.holdout_labels is None:
            return 0.0, 0, {}
        result = score(self._loaded(parameters), data.holdout_images, data.holdout_labels)
        return result.loss, result.count, {"accuracy": result.accuracy}

    def score(self, parameters: Arrays, sample_ids: Sequence[str]) -> ForgetScore:
        """See :class:`ErasureClient`."""
        data, rows = self._site_data(), self._rows(sample_ids)
        return score(self._loaded(parameters), data.images[rows], data.labels[rows])

    def score_name(self) -> str:
        """See :class:`ErasureClient`; the task says."""
        return self._learns().score_name

    def unlearn(self, task: UnlearningTask) -> tuple[Arrays, wire.Evidence]:
        """See :class:`ErasureClient`; by :func:`flwr_afuic.unlearning.local.unlearn`."""
        data, model = self._site_data(), self._loaded(task.snapshot)
        rows = self._rows(task.forget_ids)
        holdout = None
        if data.holdout_images is not None and data.holdout_labels is not None:
            holdout = score(model, data.holdout_images, data.holdout_labels)
        outcome = self._carried_out(task, model, data.images[rows], data.labels[rows], holdout)
        evidence = wire.Evidence(
            before=outcome.before,
            after=outcome.after,
            reference=outcome.reference,
            holdout=holdout,
            steps=outcome.steps,
            stop_reason=outcome.stop_reason,
            delta_norm=outcome.delta_norm,
        )
        return get_arrays(model), evidence

    def _carried_out(
        self,
        task: UnlearningTask,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        holdout: ForgetScore | None,
    ) -> UnlearningOutcome:
        """Unlearn in place, the way the task's settings name."""
        settings = read_settings(task.settings)
        if isinstance(settings, ExcisionSettings):
            raise WireError("this client has no image-text pairs; derive it from MultimodalClient")
        if isinstance(settings, PgaSettings):
            if "own" in task.extras:
                own = self._loaded(task.extras["own"])
                start_from_reference(model, own, settings.sites)
            return ascend(model, forget_x=x, forget_y=y, settings=settings, seed=task.seed)
        if isinstance(settings, FcuSettings):
            downgraded = task.extras.get("downgraded")
            if downgraded is None:
                raise WireError("the task brings no downgraded model to contrast with")
            return unlearn_by_contrast(
                model,
                self._loaded(downgraded),
                forget_x=x,
                forget_y=y,
                settings=settings,
                seed=task.seed,
            )
        return unlearn(
            model,
            forget_x=x,
            forget_y=y,
            anchor_x=self._anchor(task, self._site_data()),
            reference=None if task.reference is None else self._loaded(task.reference),
            holdout=holdout,
            settings=settings,
            seed=task.seed,
            radius=task.radius,
        )

    def gradient(self, parameters: Arrays, sample_ids: Sequence[str], loss: str) -> Arrays:
        """See :class:`ErasureClient`; by :func:`flwr_afuic.unlearning.orthogonal.mean_gradient`."""
        data, rows = self._site_data(), self._rows(sample_ids)
        model = self._loaded(parameters)
        return mean_gradient(model, data.images[rows], data.labels[rows], loss=loss)

    def relearning_basis(
        self, task: UnlearningTask, unlearned: Arrays, rank: int
    ) -> NDArray[np.float32]:
        """See :class:`ErasureClient`; :func:`flwr_afuic.unlearning.relearning.relearning_basis`."""
        data, rows = self._site_data(), self._rows(task.forget_ids)
        return relearning_basis(
            self._loaded(unlearned),
            forget_x=data.images[rows],
            forget_y=data.labels[rows],
            rank=rank,
            loss=self.loss,
            seed=derive_seed(task.seed, "relearning"),
        )

    # ---- inside ---------------------------------------------------------------------

    def _site_data(self) -> SiteData:
        if not hasattr(self, "_data"):
            self._data = self.data()
        return self._data

    def _learns(self) -> Task:
        if not hasattr(self, "_known_task"):
            self._fresh()
        return self._known_task

    def _fresh(self) -> nn.Module:
        """Make a model; of the first one, remember what all of them have in common."""
        model = self.model()
        if not hasattr(self, "_known_task"):
            self._known_task = task_of(model)
            state = model.state_dict()
            self._known_kinds = [infer_kind(name, _head(t)) for name, t in state.items()]
        return model

    def _loaded(self, arrays: Arrays) -> nn.Module:
        model = self._fresh()
        set_arrays(model, arrays)
        return model

    def _rows(self, sample_ids: Sequence[str]) -> list[int]:
        return rows_of(self._site_data().ids, sample_ids)

    def _anchor(self, task: UnlearningTask, data: SiteData) -> Tensor:
        """Choose what the unlearned model must keep: proxies, else kept, else held-out images."""
        if task.proxies is not None:
            return torch.from_numpy(np.asarray(task.proxies, dtype=np.float32))
        kept = self._rows(self.retained_ids())
        if kept:
            return data.images[kept]
        if data.holdout_images is None:
            raise ConfigError(
                "nothing to anchor the unlearning on: the federation has no proxies, and the site "
                "neither keeps nor holds out any data; give SiteData holdout images"
            )
        return data.holdout_images

    def _batches(
        self, count: int, generator: torch.Generator, *, effort: wire.Scalar = 1.0
    ) -> list[Tensor]:
        """Draw the batches of one task, see :func:`~flwr_afuic.clients.batches.task_batches`."""
        return task_batches(
            count,
            generator,
            batch_size=self.batch_size,
            epochs=self.local_epochs,
            steps=self.local_steps,
            effort=effort,
        )


def trained_tensors(model: nn.Module) -> list[Tensor]:
    """Return the tensors the server calls trained, in the order in which they travel."""
    state = model.state_dict(keep_vars=False)
    return [t for name, t in state.items() if infer_kind(name, _head(t)) == "trained"]


def _head(tensor: Tensor) -> NDArray[Any]:
    """Return an empty array of the tensor's dtype."""
    return tensor.detach().reshape(-1)[:0].cpu().numpy()
