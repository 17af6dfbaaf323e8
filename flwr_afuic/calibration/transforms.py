"""Transformations Phi under which the calibrated model's predictions are to stay the same."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from flwr_afuic.errors import ConfigError, DataError
from flwr_afuic.monai_import import import_monai
from flwr_afuic.unlearning.checks import check_range
from flwr_afuic.unlearning.inference import frozen_statistics
from flwr_afuic.unlearning.tasks import task_of


@runtime_checkable
class Phi(Protocol):
    """A random transformation of a batch of images."""

    def __call__(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """Transform images of shape (n, c, h, w[, d]); draws come from ``generator`` only."""
        ...


class IdentityPhi:
    """Leaves images as they are: the control that any calibration must beat.

    With it the paper's consistency loss (arXiv 2604.26809, Eq. 4) is zero and changes nothing.
    """

    def __call__(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return the images themselves."""
        return images


class MonaiPhi:
    """Random augmentation, another one for each image: the default Phi.

    Rotation, scaling and shift by MONAI's batched ``AffineTransform`` layer (border pixels are
    repeated; of volumes, in the plane of their first two axes), then contrast, brightness and
    Gaussian noise. Intensities are changed in units of the image's own spread, so any intensity
    scale will do. MONAI's dictionary transforms work image by image in Python; the layer
    resamples a batch of 64 in about a millisecond.

    Parameters
    ----------
    rotate : float, default 0.2
        Greatest rotation, radians.
    scale : float, default 0.1
        Greatest relative change of size.
    shift : float, default 0.1
        Greatest shift, as a share of the image's side.
    contrast : float, default 0.2
        Greatest relative change of the deviations from the image's mean.
    brightness : float, default 0.2
        Greatest offset, in standard deviations of the image.
    noise : float, default 0.1
        Greatest standard deviation of the noise, in standard deviations of the image.

    Raises
    ------
    ConfigError
        If a value is out of its range.

    Notes
    -----
    The paper's exact Phi is not known to us; this one is ours.
    """

    def __init__(
        self,
        *,
        rotate: float = 0.2,
        scale: float = 0.1,
        shift: float = 0.1,
        contrast: float = 0.2,
        brightness: float = 0.2,
        noise: float = 0.1,
    ) -> None:
        check_range("rotate", rotate, high=math.pi)
        check_range("scale", scale, high=0.9)
        check_range("shift", shift, high=1.0)
        check_range("contrast", contrast, high=1.0)
        check_range("brightness", brightness)
        check_range("noise", noise)
        self.rotate, self.scale, self.shift = rotate, scale, shift
        self.contrast, self.brightness, self.noise = contrast, brightness, noise

    def __call__(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """Augment each image by its own draw.

        Parameters
        ----------
        images : Tensor, shape (n, c, h, w) or (n, c, h, w, d), floating
        generator : torch.Generator

        Returns
        -------
        Tensor, shape of the images
        """
        moved = self._move(images, generator)
        return self._change_intensity(moved, generator)

    def in_place(self) -> MonaiPhi:
        """Return the same without rotation, scaling and shift."""
        return MonaiPhi(
            rotate=0,
            scale=0,
            shift=0,
            contrast=self.contrast,
            brightness=self.brightness,
            noise=self.noise,
        )

    def _move(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if self.rotate == self.scale == self.shift == 0:
            return images
        if images.ndim == 5:
            # Slice by slice, each with its volume's draw: slices become channels.
            count, channels, height, width, depth = images.shape
            flat = images.permute(0, 1, 4, 2, 3).reshape(count, channels * depth, height, width)
            flat = self._move(flat, generator).reshape(count, channels, depth, height, width)
            return flat.permute(0, 1, 3, 4, 2)
        # Imported here: MONAI takes seconds, and the sites' processes never augment.
        import_monai()
        from monai.networks.layers.spatial_transforms import AffineTransform

        count, _, height, width = images.shape
        # Columns: angle, size, shift down, shift right; each uniform on [-1, 1].
        draws = 2 * torch.rand(count, 4, generator=generator, dtype=images.dtype) - 1
        angle, size = self.rotate * draws[:, 0], 1 + self.scale * draws[:, 1]
        # Coordinates run over [-1, 1]: a whole side is 2 units long.
        down, right = 2 * self.shift * draws[:, 2], 2 * self.shift * draws[:, 3]
        cos, sin = size * torch.cos(angle), size * torch.sin(angle)
        theta = torch.stack(
            [torch.stack([cos, -sin, down], dim=1), torch.stack([sin, cos, right], dim=1)], dim=1
        )
        layer = AffineTransform(
            (height, width), normalized=True, padding_mode="border", align_corners=False
        )
        moved: Tensor = layer(images, theta)
        return moved

    def _change_intensity(self, images: Tensor, generator: torch.Generator) -> Tensor:
        shape = (len(images), *[1] * (images.ndim - 1))
        rest = tuple(range(1, images.ndim))
        draws = torch.rand(3, *shape, generator=generator, dtype=images.dtype)
        mean = images.mean(dim=rest, keepdim=True)
        spread = images.std(dim=rest, keepdim=True)
        gain = 1 + self.contrast * (2 * draws[0] - 1)
        offset = self.brightness * (2 * draws[1] - 1)
        changed = mean + gain * (images - mean) + offset * spread
        if self.noise > 0:
            noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
            changed = changed + self.noise * draws[2] * spread * noise
        return changed


class SignaturePhi:
    """Adds one fixed pattern to every image: a learned signature of what two models disagree on.

    Parameters
    ----------
    perturbation : Tensor, shape (c, *spatial)
        The pattern; ``SignaturePhi.learn`` makes one.

    Notes
    -----
    Here for comparison only: measured, calibrating with it made erased influence come back
    sooner than no calibration at all.
    """

    def __init__(self, perturbation: Tensor) -> None:
        if perturbation.ndim not in (3, 4) or not bool(torch.isfinite(perturbation).all()):
            raise ConfigError(
                f"a signature must be finite and of shape (c, *spatial), got "
                f"{tuple(perturbation.shape)}"
            )
        self.perturbation = perturbation.detach().clone()

    def __call__(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return ``images + perturbation``; draws nothing."""
        if images.shape[1:] != self.perturbation.shape:
            raise DataError(
                f"images have shape {tuple(images.shape[1:])} and the signature "
                f"{tuple(self.perturbation.shape)}; learn it on such images"
            )
        return images + self.perturbation

    @classmethod
    def learn(
        cls,
        before: nn.Module,
        after: nn.Module,
        images: Tensor,
        *,
        seed: int,
        steps: int = 40,
        bound: float = 0.5,
        batch_size: int = 64,
    ) -> SignaturePhi:
        """Learn the pattern that drives two models furthest apart.

        Maximises ``E KL(f_before(x + delta) || f_after(x + delta))`` over
        ``|delta| <= bound`` by signed gradient steps of ``2.5 bound / steps``.

        Parameters
        ----------
        before, after : nn.Module
            Usually the models before and after an erasure's merge. Left unchanged.
        images : Tensor, shape (n, c, *spatial)
        seed : int
        steps : int, default 40
        bound : float, default 0.5
            Greatest absolute change of a pixel, in the images' units.
        batch_size : int, default 64

        Returns
        -------
        SignaturePhi
        """
        if len(images) == 0:
            raise DataError("no images to learn a signature on; pass at least one")
        check_range("bound", bound, above=True)
        generator, task = torch.Generator().manual_seed(seed), task_of(before)
        start = torch.rand(images.shape[1:], generator=generator, dtype=images.dtype)
        delta = (2 * start - 1) * bound * 0.1
        with frozen_statistics(before), frozen_statistics(after):
            for _ in range(steps):
                pick = torch.randint(
                    len(images), (min(batch_size, len(images)),), generator=generator
                )
                delta.requires_grad_(True)
                shown = images[pick] + delta
                disagreement = task.divergence(before(shown), after(shown))
                (slope,) = torch.autograd.grad(disagreement, delta)
                step = 2.5 * bound / steps * slope.sign()
                delta = (delta.detach() + step).clamp(-bound, bound)
        return cls(delta)


_PHIS: dict[str, Callable[..., Phi]] = {
    "identity": IdentityPhi,
    "monai": MonaiPhi,
    "signature": SignaturePhi,
}

PHI_NAMES = tuple(_PHIS)


def make_phi(name: str, **options: Any) -> Phi:
    """Build a transformation by name.

    Parameters
    ----------
    name : str
        One of ``PHI_NAMES``.
    **options
        Those of ``MonaiPhi``; ``perturbation`` for ``"signature"``; none for ``"identity"``.

    Returns
    -------
    Phi

    Raises
    ------
    ConfigError
        If the name or an option is unknown, a needed option is missing, or a value is out of
        its range.
    """
    factory = _PHIS.get(name)
    if factory is None:
        raise ConfigError(f"unknown transformation {name!r}; known: {', '.join(PHI_NAMES)}")
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise ConfigError(f"transformation {name!r}: {error}") from error
    return factory(**options)
