"""A dual-tower model small enough to test with: two linear towers with low-rank adapters."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from flwr_afuic.unlearning.pairs import Pairs

WORDS, PIXELS, SIZE = 12, 16, 8


class Adapted(nn.Module):
    """A frozen linear map with an adapter that starts at zero."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        base = torch.randn(SIZE, width, generator=generator) / width**0.5
        self.register_buffer("base", base, persistent=False)
        self.lora_A = nn.Parameter(torch.randn(4, width, generator=generator) / width**0.5)
        self.lora_B = nn.Parameter(torch.zeros(SIZE, 4))
        self.on = True

    def forward(self, x: Tensor) -> Tensor:
        weight = self.base + self.lora_B @ self.lora_A if self.on else self.base
        return functional.normalize(x @ weight.T, dim=1)


class Towers(nn.Module):
    """Images by their pixels, captions by the words in them."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_model, self.text_model = Adapted(PIXELS, 1), Adapted(WORDS, 2)

    def embed_images(self, images: Tensor) -> Tensor:
        return self.vision_model(images.flatten(1))

    def embed_texts(self, tokens: Tensor, mask: Tensor) -> Tensor:
        words = functional.one_hot(tokens, WORDS) * mask[:, :, None]
        return self.text_model(words.sum(dim=1).float())

    def scale(self) -> Tensor:
        return torch.tensor(10.0)

    @contextmanager
    def adapters_off(self):
        for tower in (self.vision_model, self.text_model):
            tower.on = False
        try:
            yield
        finally:
            for tower in (self.vision_model, self.text_model):
                tower.on = True


def pairs(seed: int, n: int = 12) -> Pairs:
    """Random images with random captions: nothing to learn but by heart."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, WORDS, (n, 5), generator=generator)
    return Pairs(
        torch.randn(n, 1, 4, 4, generator=generator),
        tokens,
        torch.ones_like(tokens),
        torch.arange(n) + 1000 * seed,
    )
