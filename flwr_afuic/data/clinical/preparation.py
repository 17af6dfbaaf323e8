"""From a file to a tensor of the federation's shape, by MONAI transforms."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from flwr_afuic.data.clinical.reading import Volume, check_affine, kind_of, read_volume
from flwr_afuic.errors import ConfigError, DataError
from flwr_afuic.monai_import import import_monai

Intensity = Literal["percentiles", "zscore", "window", "none"]
Fit = Literal["resize", "pad-crop"]

_AFFINE_TOLERANCE = 1e-3  # mm; headers hold float32


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How every image of a federation is brought to one shape and scale.

    Parameters
    ----------
    size : tuple of int
        Voxels along each spatial axis, two or three of them.
    channels : int
        Channels every image must have.
    fit : {"resize", "pad-crop"}
        Resample to ``size``, or pad with the darkest value and crop around the middle.
    spacing : tuple of float or None
        Voxel size to resample volumes to first, mm.
    intensity : {"percentiles", "zscore", "window", "none"}
        Per image: the first to the 99th percentile to ``[0, 1]``; mean 0 and deviation 1;
        ``window`` to ``[0, 1]``; or as it is.
    window : tuple of float or None
        Lowest and highest intensity shown, for example (-160, 240) Hounsfield units.

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """

    size: tuple[int, ...]
    channels: int = 1
    fit: Fit = "resize"
    spacing: tuple[float, ...] | None = None
    intensity: Intensity = "percentiles"
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if len(self.size) not in (2, 3) or any(side < 1 for side in self.size):
            raise ConfigError(f"size is {self.size}; give two or three sides of 1 voxel or more")
        if self.channels < 1:
            raise ConfigError(f"channels is {self.channels}; it must be at least 1")
        if self.fit not in ("resize", "pad-crop"):
            raise ConfigError(f"fit is {self.fit!r}; use 'resize' or 'pad-crop'")
        if self.intensity not in ("percentiles", "zscore", "window", "none"):
            raise ConfigError(
                f"intensity is {self.intensity!r}; use 'percentiles', 'zscore', 'window' or 'none'"
            )
        if (self.intensity == "window") != (self.window is not None):
            raise ConfigError("intensity 'window' and window=(low, high) belong together")
        if self.window is not None and not -math.inf < self.window[0] < self.window[1] < math.inf:
            raise ConfigError(f"window is {self.window}; the first value must be the lower one")
        if self.spacing is not None and (
            len(self.size) != 3
            or len(self.spacing) != 3
            or not all(0 < step < math.inf for step in self.spacing)
        ):
            raise ConfigError(f"spacing is {self.spacing}; volumes take three positive sizes in mm")

    def to_json(self) -> str:
        """Write the settings as one line, the same for the same settings."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    def image(self, path: Path) -> tuple[Tensor, Volume]:
        """Read and prepare one image.

        Returns
        -------
        Tensor, shape (channels, *size), float32
        Volume
            As read, for comparing a mask with it.

        Raises
        ------
        DataError
            If it cannot be read, holds non-finite values, or has another number of channels or
            axes.
        """
        volume = self._read(path)
        if not np.isfinite(volume.values).all():
            raise DataError("holds NaN or infinite intensities; correct or leave out the image")
        if volume.values.shape[0] != self.channels:
            raise DataError(
                f"has {volume.values.shape[0]} channel(s), the federation uses {self.channels}"
            )
        image = self._shape(volume, "bilinear")
        return self._scale(image), volume

    def mask(self, path: Path, of: Volume, classes: int) -> Tensor:
        """Read and prepare the mask of an image.

        Parameters
        ----------
        path : pathlib.Path
        of : Volume
            The image as read; same shape, and where both know it, same place in space.
        classes : int
            Values lie in ``[0, classes)``, 0 being the background.

        Returns
        -------
        Tensor, shape size, int64

        Raises
        ------
        DataError
            If it cannot be read or does not fit the image; ``kind`` is its first word.
        """
        mask = self._read(path)
        if mask.values.shape[0] != 1:
            raise DataError(f"shape: the mask has {mask.values.shape[0]} channels; it needs one")
        if mask.spatial != of.spatial:
            raise DataError(f"shape: the mask is {mask.spatial} and its image {of.spatial}")
        known = "picture" not in (mask.kind, of.kind) and len(of.spatial) == 3
        if known and not np.allclose(mask.affine, of.affine, atol=_AFFINE_TOLERANCE):
            worst = float(np.abs(mask.affine - of.affine).max())
            raise DataError(
                f"affine: the mask lies elsewhere than its image (entries differ by up to "
                f"{worst:.3g} mm); export it again from that image"
            )
        found = np.unique(mask.values)
        strange = (
            [float(v) for v in found if v != int(v) or not 0 <= v < classes]
            if np.isfinite(found).all()
            else [math.nan]
        )
        if strange:
            shown = ", ".join(f"{value:g}" for value in strange[:5])
            raise DataError(
                f"label: the mask holds the value(s) {shown}; classes are 0 to {classes - 1}"
            )
        return self._shape(mask, "nearest")[0].round().long()

    def _read(self, path: Path) -> Volume:
        volume = read_volume(path)
        trouble = check_affine(volume.affine) if kind_of(path) != "picture" else None
        if trouble:
            raise DataError(f"affine: {trouble}; correct the header")
        values = volume.values
        if values.ndim == len(self.size) + 2 and values.shape[-1] == 1:  # a volume of one slice
            values = values[..., 0]
        if values.ndim != len(self.size) + 1:
            raise DataError(
                f"shape: has {values.ndim - 1} spatial axes {volume.spatial}, the federation uses "
                f"{len(self.size)}"
            )
        return dataclasses.replace(volume, values=values)

    def _shape(self, volume: Volume, mode: str) -> Tensor:
        import_monai()
        from monai.data.meta_tensor import MetaTensor
        from monai.transforms.croppad.array import ResizeWithPadOrCrop
        from monai.transforms.spatial.array import Resize, Spacing

        image: Any = MetaTensor(
            torch.from_numpy(volume.values), affine=torch.from_numpy(volume.affine)
        )
        if self.spacing is not None:
            image = Spacing(self.spacing, mode=mode, padding_mode="border")(image)
        if self.fit == "pad-crop":
            lowest = 0.0 if mode == "nearest" else float(image.min())  # a mask's 0 is background
            image = ResizeWithPadOrCrop(self.size, mode="constant", constant_values=lowest)(image)
        elif mode == "nearest":
            image = Resize(self.size, mode="nearest")(image)
        else:
            image = Resize(self.size, mode="area")(image)
        return torch.as_tensor(np.asarray(image), dtype=torch.float32)

    def _scale(self, image: Tensor) -> Tensor:
        import_monai()
        from monai.transforms.intensity.array import (
            NormalizeIntensity,
            ScaleIntensityRange,
            ScaleIntensityRangePercentiles,
        )

        if self.intensity == "none":
            return image
        change: Any
        if self.intensity == "zscore":
            change = NormalizeIntensity()
        elif self.window is not None:
            low, high = self.window
            change = ScaleIntensityRange(a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)
        elif float(image.max()) == float(image.min()):
            return torch.zeros_like(image)  # percentiles of one value cannot be told apart
        else:
            change = ScaleIntensityRangePercentiles(
                lower=1, upper=99, b_min=0.0, b_max=1.0, clip=True
            )
        return torch.as_tensor(np.asarray(change(image)), dtype=torch.float32)
