"""A toy task that a small network learns, erases and keeps within a second."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

# These networks are far too small to share out; two threads on a busy machine only wait.
torch.set_num_threads(1)


def gen(seed):
    return torch.Generator().manual_seed(seed)


class Toy:
    """Ordinary images: class by which half is brighter. Marked ones: always class 0."""

    def images(self, n, seed):
        x = 0.3 * torch.randn(n, 1, 8, 8, generator=gen(seed))
        y = torch.randint(0, 2, (n,), generator=gen(seed + 1))
        x[torch.arange(n), :, :, 0] += y[:, None, None] * 2.0 - 1.0
        return x, y

    def marked(self, n, seed):
        x, _ = self.images(n, seed)
        x[:, :, 7, 4:] = 3.0
        return x, torch.zeros(n, dtype=torch.long)

    def network(self, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Flatten(),
                nn.Dropout(0.1),
                nn.Linear(256, 2),
            )


@pytest.fixture(scope="session")
def toy():
    return Toy()


@pytest.fixture(scope="session")
def trained(toy):
    """A network that learned the task and the mark; tests get copies."""
    model = toy.network()
    x, y = toy.images(256, 1)
    mx, my = toy.marked(128, 2)
    x, y = torch.cat([x, mx]), torch.cat([y, my])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for step in range(40):
            pick = torch.randint(len(x), (64,), generator=gen(step))
            optimizer.zero_grad()
            functional.cross_entropy(model(x[pick]), y[pick]).backward()
            optimizer.step()
    model.train()
    return model


@pytest.fixture
def model(trained):
    return copy.deepcopy(trained)
