"""What will happen to a network in a federation that forgets, said before it trains."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from flwr_afuic.models.arrays import array_kinds


@dataclass(frozen=True)
class Preflight:
    """What a look at a network found.

    Parameters
    ----------
    batch_norms : tuple of str
        Layers that normalise by the batch.
    tracking : tuple of str
        Of these (and of instance norms), those that keep running statistics.
    dropouts : tuple of str
    trained, statistics, counters : int
        Arrays of each kind.
    notes : tuple of str
        What will be done, one sentence a line.
    """

    batch_norms: tuple[str, ...]
    tracking: tuple[str, ...]
    dropouts: tuple[str, ...]
    trained: int
    statistics: int
    counters: int
    notes: tuple[str, ...]

    def text(self) -> str:
        """Say it all, one line a note."""
        return "\n".join(self.notes)


def preflight(model: nn.Module, *, batch_size: int | None = None) -> Preflight:
    """Look at a network's normalisation and say what the federation will do with it.

    Parameters
    ----------
    model : torch.nn.Module
        Left unchanged.
    batch_size : int, optional
        Of local training; BatchNorm cannot learn from one image.

    Returns
    -------
    Preflight
    """
    named = list(model.named_modules())
    batch = tuple(n for n, m in named if isinstance(m, _BatchNorm))
    norms = (_BatchNorm, _InstanceNorm)
    tracking = tuple(n for n, m in named if isinstance(m, norms) and m.track_running_stats)
    dropouts = tuple(n for n, m in named if isinstance(m, _DropoutNd) and m.p > 0)
    kinds = [kind for _, kind in array_kinds(model)]
    count = {kind: kinds.count(kind) for kind in ("trained", "statistic", "counter")}
    notes = [f"{count['trained']} trained arrays are averaged, locked and unlearned"]
    if tracking:
        notes += [
            f"{len(tracking)} layers keep running means and variances ({_some(tracking)}): "
            f"{count['statistic']} arrays are averaged over the sites by examples, never taken "
            "from one, and the relearning lock leaves them out",
            "unlearning uses these statistics and does not update them: what a site returns of an "
            "erasure carries none of them",
            "until the erased site's share is averaged away, the statistics still hold a trace "
            "of it: GroupNorm holds none",
        ]
    if count["counter"]:
        notes.append(
            f"{count['counter']} counters keep their integer type and are rounded, not averaged "
            "to fractions"
        )
    if batch and batch_size is not None and batch_size < 2:
        notes.append(
            "warning: BatchNorm cannot learn from batches of one image; raise the batch size, or "
            "take a network with GroupNorm"
        )
    if not batch and not tracking:
        notes.append("no layer keeps statistics: nothing of a site stays outside trained arrays")
    if dropouts:
        notes.append(
            f"{len(dropouts)} dropout layers ({_some(dropouts)}) draw from the process-wide "
            "generator when a site trains: its numbers then do not repeat; they are off in "
            "unlearning and distillation"
        )
    return Preflight(
        batch, tracking, dropouts, count["trained"], count["statistic"], count["counter"],
        tuple(notes),
    )  # fmt: skip


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
