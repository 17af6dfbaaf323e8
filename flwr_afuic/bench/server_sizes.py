"""Models, messages and clocks of ``bench server``: generated, of any size, in several arrays."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from flwr_afuic import wire
from flwr_afuic.federation.layout import Arrays, Layout
from flwr_afuic.strategies.codec import to_record

ARRAYS = 16
"""Arrays of a generated model, of equal size."""


@dataclass(frozen=True)
class Model:
    """A generated model of so many float32 parameters."""

    layout: Layout
    arrays: Arrays

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return self.layout.trained_size

    @property
    def bytes(self) -> int:
        """Bytes of one copy."""
        return 4 * self.parameters


def sizes_of(parameters: int) -> list[int]:
    """Return the sizes of the arrays of a generated model."""
    edges = [parameters * number // ARRAYS for number in range(ARRAYS + 1)]
    return [end - start for start, end in pairwise(edges)]


def generated(parameters: int, seed: int = 0, scale: float = 1.0) -> Model:
    """Draw a model; a large one repeats a drawn million entries, shifted, which saves time."""
    rng = np.random.default_rng(seed)
    pattern = rng.standard_normal(min(parameters, 1_000_003), dtype=np.float32) * np.float32(scale)
    arrays = [
        np.resize(np.roll(pattern, 7919 * number), size)
        for number, size in enumerate(sizes_of(parameters))
    ]
    names = [f"block{number}.weight" for number in range(ARRAYS)]
    return Model(Layout.of(names, arrays), arrays)


def reply(model: Model, examples: int) -> RecordDict:
    """Return a training reply as a NumPyClient of ours sends it: a difference."""
    names = [str(number) for number in range(len(model.arrays))]
    return RecordDict(
        {
            "fitres.parameters": to_record(names, model.arrays),
            "fitres.num_examples": MetricRecord({"num_examples": examples}),
            "fitres.metrics": ConfigRecord({wire.KIND: wire.KIND_DELTA}),
        }
    )


def flower_reply(record: ArrayRecord, examples: int) -> RecordDict:
    """Return the same arrays as Flower's FedAvg takes them."""
    return RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": examples})})


_REST = 0.3  # seconds; OpenBLAS keeps threads awake for a tenth of one and more


def interleaved(
    works: dict[str, Callable[[], object]],
    repeats: int,
    warmup: int = 1,
    prepared: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, float]:
    """Return the least seconds that each piece of work took, all of them run in turn.

    In turn, and the least, so that what else goes on in the machine counts as little as can be.
    Before each is a rest: threads of BLAS keep a processor busy for a while after their work.
    What is ``prepared`` for a piece of work is called before it, outside of its time, and what it
    returns is let go after it.
    """
    before = prepared or {}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(warmup + repeats):
        for name, work in works.items():
            if name in before:
                before[name]()
            time.sleep(_REST)
            began = time.perf_counter()
            result = work()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - began)
            del result
    return {name: min(taken) for name, taken in seconds.items()}
