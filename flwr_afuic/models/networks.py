"""Networks by name, initialised from a seed without touching the process-wide generator."""

from __future__ import annotations

import difflib
import importlib
import math

import torch
from torch import nn

from flwr_afuic.errors import ConfigError
from flwr_afuic.models.clinical import (
    Builder,
    Shape,
    densenet,
    direct_parameters,
    resnet,
    segresnet,
    unet,
    vit,
)
from flwr_afuic.monai_import import import_monai
from flwr_afuic.seeds import derive_seed
from flwr_afuic.unlearning.tasks import make_task, set_task

# MONAI takes longer to import than torch, and a deployed site starts a process for every message:
# only who makes one of these networks waits for it.
_CONVOLUTION = "monai.networks.blocks.convolutions"
_PRELOADED = (
    _CONVOLUTION,
    *(f"monai.networks.nets.{net}" for net in ("resnet", "densenet", "unet", "segresnet", "vit")),
)

WIDTHS = (16, 32, 64)
MAX_HEAD_SIDE = 4
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d, nn.Conv3d, nn.ConvTranspose3d)
_RESET = (
    nn.GroupNorm,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.LayerNorm,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.PReLU,
)


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
    import_monai()
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


def _small(shape: Shape) -> nn.Module:
    if shape.dims != 2 or len(set(shape.size)) != 1:
        raise ConfigError(f"groupnorm-cnn takes square pictures, not {shape.size}; use another")
    return _groupnorm_cnn(shape.channels, shape.classes, shape.size[0])


_BUILDERS: dict[str, Builder] = {
    "groupnorm-cnn": _small,
    "densenet121": densenet("DenseNet121"),
    "densenet169": densenet("DenseNet169"),
    "resnet10": resnet("resnet10"),
    "resnet18": resnet("resnet18"),
    "resnet34": resnet("resnet34"),
    "resnet50": resnet("resnet50"),
    "vit": vit,
    "unet": unet,
    "segresnet": segresnet,
}
SEGMENTERS = ("unet", "segresnet")
"""Names of networks with an output a voxel."""
_TRANSFORMERS = ("vit",)

MODEL_NAMES: tuple[str, ...] = tuple(_BUILDERS)
"""Names that ``make_model`` knows."""


def make_model(
    name: str,
    *,
    channels: int,
    num_classes: int,
    image_size: int | tuple[int, ...] = 28,
    seed: int = 0,
    task: str | None = None,
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
        for 28x28 grey images and 2 classes); the others are MONAI's, for pictures and volumes.
    channels : int
        Channels of the images.
    num_classes : int
        Number of outputs, at least 2 (1 for ``multi-label``); of a segmentation, the
        background included.
    image_size : int or tuple of int
        Height and width of the images, in pixels, at least 8; or each of two or three sides.
    seed : int
        Root seed of the weights.
    task : str, optional
        What the network is for, see :mod:`flwr_afuic.unlearning.tasks`; ``segmentation`` for
        ``unet`` and ``segresnet``, else ``classification``. The model remembers it.

    Returns
    -------
    torch.nn.Module
        In training mode, on the CPU; maps float32 ``(n, channels, *image_size)`` to logits
        ``(n, num_classes)``, of a segmentation ``(n, num_classes, *image_size)``.

    Raises
    ------
    ConfigError
        If the name is unknown, a setting out of range, or the network not for the task.
    """
    if name not in _BUILDERS:
        close = difflib.get_close_matches(name.lower(), MODEL_NAMES, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ConfigError(f"unknown model {name!r}{hint}; known: {', '.join(MODEL_NAMES)}")
    dense = name in SEGMENTERS
    task = task or ("segmentation" if dense else "classification")
    if make_task(task).dense != dense:
        other = [n for n in MODEL_NAMES if (n in SEGMENTERS) != dense]
        raise ConfigError(f"model {name!r} is not for {task}; use one of {', '.join(other)}")
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) not in (2, 3):
        raise ConfigError(f"image_size is {image_size}; give one, two or three sides")
    for label, value, least in (
        ("channels", channels, 1),
        ("num_classes", num_classes, 1 if task == "multi-label" else 2),
        ("image_size", min(size), 8),
    ):
        if value < least:
            raise ConfigError(f"{label} is {value}; a model needs at least {least}")
    import_monai()
    for module in _PRELOADED:
        importlib.import_module(module)  # not under "meta", where its constants would be empty
    with torch.device("meta"):
        model = _BUILDERS[name](Shape(channels, num_classes, size))
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(derive_seed(seed, "model", name))
    _initialise(model, generator, linear_std=0.02 if name in _TRANSFORMERS else None)
    set_task(model, task)
    return model.train()


def _initialise(
    model: nn.Module, generator: torch.Generator, linear_std: float | None = None
) -> None:
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
                if linear and module is linear[-1]:
                    nn.init.zeros_(module.weight)
                elif linear_std is not None and isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=linear_std, generator=generator)
                else:
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, _RESET):
                # Fills weights, biases and running statistics; draws nothing.
                module.reset_parameters()
            elif direct_parameters(module, generator):
                continue
            elif list(module.parameters(recurse=False)) or list(module.buffers(recurse=False)):
                # Memory without a value: better no model than one that differs by chance.
                raise ConfigError(
                    f"layer {name!r} of type {type(module).__name__} has no initialisation rule; "
                    "choose another model"
                )
