"""Networks by name, initialised from a seed without touching the process-wide generator."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable

import torch
from torch import nn

from flwr_afuic.errors import ConfigError
from flwr_afuic.seeds import derive_seed

Builder = Callable[[int, int, int], nn.Module]
# MONAI takes longer to import than torch, and a deployed site starts a process for every message:
# only who makes one of these networks waits for it.
_CONVOLUTION = "monai.networks.blocks.convolutions"
_RESNET = "monai.networks.nets.resnet"
_DENSENET = "monai.networks.nets.densenet"

WIDTHS = (16, 32, 64)
MAX_HEAD_SIDE = 4
DENSENET_LEAST_SIDE = 32
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_NORMS = (nn.GroupNorm, nn.BatchNorm2d, nn.LayerNorm, nn.InstanceNorm2d)


class Centre(nn.Module):
    """Map intensities from ``[0, 1]`` to ``[-1, 1]``; without it training starts late."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Centre images. # shape: (n, channels, height, width), unchanged."""
        return images * 2.0 - 1.0


def _groupnorm_cnn(channels: int, num_classes: int, image_size: int) -> nn.Module:
    """Three strided 3x3 convolutions, GroupNorm, ReLU, and a linear head on the flat map.

    GroupNorm keeps no running statistics, which averaging in a federation would blur. The
    head sees positions (at most 4x4): pooled to one value a channel, features that
    GroupNorm has just normalised carry little, and training stalls for 100 steps or more.
    """
    convolution = importlib.import_module(_CONVOLUTION).Convolution
    layers: list[nn.Module] = [Centre()]
    width_in, side = channels, image_size
    for width in WIDTHS:
        layers.append(
            convolution(
                spatial_dims=2,
                in_channels=width_in,
                out_channels=width,
                strides=2,
                kernel_size=3,
                act="RELU",
                norm=("GROUP", {"num_groups": 8}),
            )
        )
        width_in, side = width, math.ceil(side / 2)
    if side > MAX_HEAD_SIDE:
        layers.append(nn.AdaptiveAvgPool2d(MAX_HEAD_SIDE))
        side = MAX_HEAD_SIDE
    layers += [nn.Flatten(), nn.Linear(width_in * side * side, num_classes)]
    return nn.Sequential(*layers)


def _monai_resnet(name: str) -> Builder:
    def build(channels: int, num_classes: int, image_size: int) -> nn.Module:
        del image_size  # any size: the network ends in global pooling
        factory = getattr(importlib.import_module(_RESNET), name)
        network: nn.Module = factory(
            spatial_dims=2, n_input_channels=channels, num_classes=num_classes
        )
        return network

    return build


def _monai_densenet(name: str) -> Builder:
    def build(channels: int, num_classes: int, image_size: int) -> nn.Module:
        factory = getattr(importlib.import_module(_DENSENET), name)
        network: nn.Module = factory(spatial_dims=2, in_channels=channels, out_channels=num_classes)
        if image_size >= DENSENET_LEAST_SIDE:
            return network
        # It halves the image five times, and would be left with nothing of a smaller one.
        return nn.Sequential(
            nn.Upsample(size=DENSENET_LEAST_SIDE, mode="bilinear", align_corners=False), network
        )

    return build


_BUILDERS: dict[str, Builder] = {
    "groupnorm-cnn": _groupnorm_cnn,
    "densenet121": _monai_densenet("DenseNet121"),
    "densenet169": _monai_densenet("DenseNet169"),
    "resnet10": _monai_resnet("resnet10"),
    "resnet18": _monai_resnet("resnet18"),
    "resnet34": _monai_resnet("resnet34"),
    "resnet50": _monai_resnet("resnet50"),
}

MODEL_NAMES: tuple[str, ...] = tuple(_BUILDERS)
"""Names that ``make_model`` knows."""


def make_model(
    name: str, *, channels: int, num_classes: int, image_size: int = 28, seed: int = 0
) -> nn.Module:
    """Make a network with weights that depend on the seed alone.

    Safe to call from several threads: the network is built without memory (so that no
    constructor draws from the process-wide generator), then each layer is initialised from
    a generator of its own. Convolutions get He-normal weights (fan-in), norms 1 and 0, the
    final linear layer 0, so that training starts from even predictions.

    Parameters
    ----------
    name : str
        One of ``MODEL_NAMES``. ``groupnorm-cnn`` is the small default (about 25,600 parameters
        for 28x28 grey images and 2 classes); the others are MONAI's, for GPUs.
    channels : int
        Channels of the images.
    num_classes : int
        Number of outputs, at least 2.
    image_size : int
        Height and width of the images, in pixels, at least 8.
    seed : int
        Root seed of the weights.

    Returns
    -------
    torch.nn.Module
        In training mode, on the CPU; maps float32 ``(n, channels, image_size, image_size)``
        to logits ``(n, num_classes)``.

    Raises
    ------
    ConfigError
        If the name is unknown or a setting out of range.
    """
    if name not in _BUILDERS:
        close = difflib.get_close_matches(name.lower(), MODEL_NAMES, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ConfigError(f"unknown model {name!r}{hint}; known: {', '.join(MODEL_NAMES)}")
    for label, value, least in (
        ("channels", channels, 1),
        ("num_classes", num_classes, 2),
        ("image_size", image_size, 8),
    ):
        if value < least:
            raise ConfigError(f"{label} is {value}; a model needs at least {least}")
    for module in (_CONVOLUTION, _RESNET, _DENSENET):
        importlib.import_module(module)  # not under "meta", where its constants would be empty
    with torch.device("meta"):
        model = _BUILDERS[name](channels, num_classes, image_size)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(derive_seed(seed, "model", name))
    _initialise(model, generator)
    return model.train()


def _initialise(model: nn.Module, generator: torch.Generator) -> None:
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
                if linear and module is linear[-1]:
                    nn.init.zeros_(module.weight)
                else:
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, _NORMS):
                # Fills weights, biases and running statistics; draws nothing.
                module.reset_parameters()
            elif list(module.parameters(recurse=False)) or list(module.buffers(recurse=False)):
                # Memory without a value: better no model than one that differs by chance.
                raise ConfigError(
                    f"layer {name!r} of type {type(module).__name__} has no initialisation rule; "
                    "choose another model"
                )
