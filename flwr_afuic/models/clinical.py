"""Networks for clinical images, by name from MONAI: pictures and volumes, labels and masks."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flwr_afuic.errors import ConfigError
from flwr_afuic.monai_import import import_monai

_NETS = "monai.networks.nets"
LEAST_SIDE = 32  # of DenseNet and ResNet, which halve it five times
_MOST_PATCH = 16
_WIDTHS = (16, 32, 64)
_SEGRES_BLOCKS = (1, 2, 2)
_UP = (1, 1)
_GROUPS = ("GROUP", {"num_groups": 8})


@dataclass(frozen=True)
class Shape:
    """What goes into a network, and how much comes out.

    Parameters
    ----------
    channels, classes : int
    size : tuple of int
        Pixels or voxels along each of the two or three spatial axes.
    """

    channels: int
    classes: int
    size: tuple[int, ...]

    @property
    def dims(self) -> int:
        """Two or three."""
        return len(self.size)


Builder = Callable[[Shape], nn.Module]


class First(nn.Module):
    """A network that answers with its first output only."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return logits. # shape: (n, classes)."""
        outputs: tuple[Tensor, ...] = self.network(images)
        return outputs[0]


def _nets(module: str) -> Any:
    # MONAI takes longer to import than torch: only who makes one of its networks waits for it.
    import_monai()
    return importlib.import_module(f"{_NETS}.{module}")


def resnet(name: str) -> Builder:
    """One of MONAI's ResNets, with BatchNorm."""

    def build(shape: Shape) -> nn.Module:
        network: nn.Module = getattr(_nets("resnet"), name)(
            spatial_dims=shape.dims, n_input_channels=shape.channels, num_classes=shape.classes
        )
        return network

    return build


def densenet(name: str) -> Builder:
    """One of MONAI's DenseNets, with BatchNorm; small images are enlarged for it."""

    def build(shape: Shape) -> nn.Module:
        network: nn.Module = getattr(_nets("densenet"), name)(
            spatial_dims=shape.dims, in_channels=shape.channels, out_channels=shape.classes
        )
        if min(shape.size) >= LEAST_SIDE:
            return network
        # It halves the image five times, and would be left with nothing of a smaller one.
        mode = "bilinear" if shape.dims == 2 else "trilinear"
        size: Any = (
            LEAST_SIDE if shape.dims == 2 else tuple(max(LEAST_SIDE, side) for side in shape.size)
        )
        return nn.Sequential(nn.Upsample(size=size, mode=mode, align_corners=False), network)

    return build


def unet(shape: Shape) -> nn.Module:
    """MONAI's UNet, three levels, its own InstanceNorm and PReLU; 0.1 million parameters in 3D.

    With them it finds the few voxels of a structure within a hundred steps; with one group of
    GroupNorm and ReLU it answered background for the first two hundred.
    """
    _divisible("unet", shape, 4)
    network: nn.Module = _nets("unet").UNet(
        spatial_dims=shape.dims,
        in_channels=shape.channels,
        out_channels=shape.classes,
        channels=_WIDTHS,
        strides=(2, 2),
        num_res_units=0,
        act="PRELU",
        norm="INSTANCE",  # without weights and running statistics: nothing to average wrongly
    )
    return network


def segresnet(shape: Shape) -> nn.Module:
    """MONAI's SegResNet with GroupNorm, three levels."""
    _divisible("segresnet", shape, 4)
    network: nn.Module = _nets("segresnet").SegResNet(
        spatial_dims=shape.dims,
        init_filters=_WIDTHS[0],
        in_channels=shape.channels,
        out_channels=shape.classes,
        norm=_GROUPS,
        blocks_down=_SEGRES_BLOCKS,
        blocks_up=_UP,
        upsample_mode="deconv",
    )
    return network


def vit(shape: Shape) -> nn.Module:
    """MONAI's vision transformer, small: width 192, six blocks of three heads."""
    if importlib.util.find_spec("einops") is None:
        raise ConfigError("vit needs einops; install flwr-afuic[clinical]")
    network: nn.Module = _nets("vit").ViT(
        in_channels=shape.channels,
        img_size=shape.size,
        patch_size=tuple(_patch(side) for side in shape.size),
        hidden_size=192,
        mlp_dim=768,
        num_layers=6,
        num_heads=3,
        proj_type="conv",
        classification=True,
        num_classes=shape.classes,
        spatial_dims=shape.dims,
        post_activation="none",
    )
    return First(network)


def _divisible(name: str, shape: Shape, by: int) -> None:
    if any(side % by for side in shape.size):
        raise ConfigError(
            f"{name} needs sides that are multiples of {by}, not {shape.size}; choose another size"
        )


def _patch(side: int) -> int:
    """Largest patch that divides a side into four or more."""
    fitting = [p for p in range(2, _MOST_PATCH + 1) if side % p == 0 and side // p >= 4]
    if not fitting:
        raise ConfigError(f"vit cannot divide a side of {side} into patches; use a multiple of 8")
    return max(fitting)


def direct_parameters(module: nn.Module, generator: torch.Generator) -> bool:
    """Initialise a transformer's class token and positions; False where there is neither.

    The usual truncated normal distribution of deviation .02.
    """
    named = dict(module.named_parameters(recurse=False))
    if not named or not set(named) <= {"cls_token", "position_embeddings"}:
        return False
    for parameter in named.values():
        nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
    return True
