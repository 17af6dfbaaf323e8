"""Fresh weights for any torch model, from a seed alone."""

from __future__ import annotations

import math
import threading

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from flwr_afuic.seeds import derive_seed

_GLOBAL_GENERATOR = threading.Lock()


def reinitialise(model: nn.Module, *, seed: int) -> None:
    """Give every layer fresh weights that depend on the seed and the layer's name only.

    Convolutions, linear layers and embeddings get PyTorch's own default distributions, from
    a generator of their own; norms are reset. Layers of other types are reset by their
    ``reset_parameters`` under a seeded process-wide generator, which is then restored.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place.
    seed : int
        Root seed of the weights.
    """
    with torch.no_grad():
        for name, module in model.named_modules():
            own = derive_seed(seed, "reinitialise", name)
            if isinstance(module, _ConvNd | nn.Linear):
                _uniform(module, torch.Generator().manual_seed(own))
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(generator=torch.Generator().manual_seed(own))
            elif callable(reset := getattr(module, "reset_parameters", None)):
                with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):
                    torch.manual_seed(own)
                    reset()


def _uniform(module: _ConvNd | nn.Linear, generator: torch.Generator) -> None:
    nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
    if module.bias is not None:
        fan_in = module.weight[0].numel()
        bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
        module.bias.uniform_(-bound, bound, generator=generator)
