"""Which rows of a task, in how many batches."""

from __future__ import annotations

import pytest
import torch

from flwr_afuic.clients.batches import rows_of, task_batches
from flwr_afuic.errors import UnknownSampleError


def batches(count=10, **changes):
    options = {"batch_size": 4, "epochs": 1, "steps": 6, **changes}
    return task_batches(count, torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize(
    ("effort", "steps"),
    [(1.0, 6), (0.5, 3), (0.01, 1), (2.0, 12), (1, 6), (2.5, 6), (0.0, 6), (-1.0, 6), ("2", 6)],
)
def test_effort_is_less_than_usual_or_up_to_twice_as_much(effort, steps):
    assert len(batches(effort=effort)) == steps
    assert len(batches(steps=None, epochs=3, effort=effort)) == steps


def test_whole_passes_come_first():
    first, second = batches(steps=2)
    assert not set(first.tolist()) & set(second.tolist())
    assert [len(batch) for batch in batches(count=3)] == [3] * 6


def test_rows_are_found_in_the_order_asked_for():
    assert rows_of(["a", "b", "c"], ["c", "a"]) == [2, 0]
    with pytest.raises(UnknownSampleError, match=r"1 of 2 samples.*'x'"):
        rows_of(["a"], ["a", "x"])
