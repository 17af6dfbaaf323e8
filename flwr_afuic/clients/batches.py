"""The rows of one local task: which samples are meant, and in which batches they come."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flwr_afuic import wire
from flwr_afuic.errors import UnknownSampleError


def rows_of(held: Sequence[str], sample_ids: Sequence[str]) -> list[int]:
    """Find samples among those a site holds, in the order asked for.

    Raises
    ------
    UnknownSampleError
        If the site does not hold one of them.
    """
    position = {sample: row for row, sample in enumerate(held)}
    missing = [sample for sample in sample_ids if sample not in position]
    if missing:
        raise UnknownSampleError(
            f"{len(missing)} of {len(sample_ids)} samples are not held at this site, the "
            f"first is {missing[0]!r}"
        )
    return [position[sample] for sample in sample_ids]


def task_batches(
    count: int,
    generator: torch.Generator,
    *,
    batch_size: int,
    epochs: int,
    steps: int | None,
    effort: wire.Scalar = 1.0,
) -> list[Tensor]:
    """Draw the batches of one task: shuffled passes, cut to the number of steps.

    Parameters
    ----------
    count : int
        Samples there are, at least 1.
    generator : torch.Generator
    batch_size : int
        At most; fewer where there are fewer samples.
    epochs : int
        Passes, where ``steps`` is None.
    steps : int or None
    effort : float
        A method may ask for less than the usual, of at least one step, or for up to twice as
        much, in (0, 2]; anything else counts as 1.

    Returns
    -------
    list of Tensor, shape (batch,), int64
    """
    size = min(batch_size, count)
    per_epoch = max(1, count // size)
    wanted = per_epoch * epochs if steps is None else steps
    if isinstance(effort, int | float) and 0 < effort <= wire.MOST_EFFORT:
        wanted = max(1, round(effort * wanted))
    batches: list[Tensor] = []
    while len(batches) < wanted:
        order = torch.randperm(count, generator=generator)
        batches += [order[i * size : (i + 1) * size] for i in range(per_epoch)]
    return batches[:wanted]
