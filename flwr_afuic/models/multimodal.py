"""A CLIP with LoRA adapters in both towers: the backbone is frozen, only adapters travel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flwr_afuic.errors import ConfigError, LayoutError
from flwr_afuic.models.tokens import need_multimodal
from flwr_afuic.seeds import derive_seed

TARGETS = ("q_proj", "v_proj")
"""Projections of every attention layer, of both towers, that get an adapter."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class AdapterCLIP(nn.Module):
    """A dual-tower contrastive model of which only the LoRA adapters are parameters.

    ``named_parameters`` and ``state_dict`` hold the adapters and nothing else, so that whatever
    trains, sends or merges a model's arrays deals with adapters only: the backbone neither
    changes nor travels, and every site and the server must hold the same one. Names are those of
    transformers and peft, ``vision_model.encoder.layers.0.self_attn.q_proj.lora_A.weight``, in
    alphabetical order with layers by number.

    Parameters
    ----------
    clip : transformers.CLIPModel
        The backbone; frozen, in evaluation mode (no dropout), and owned from now on.
    rank : int
        Rank r of each adapter, at least 1.
    alpha : float
        An adapter adds ``alpha / r * B A x``.
    seed : int
        Of the adapters: A is He-uniform as peft has it, B is 0, so that a fresh model is the
        base model.
    mean, std : tuple of float
        Images in [0, 1] are brought to the backbone's scale by these; one or three values.

    Raises
    ------
    ConfigError
        If transformers or peft are missing, or a value is out of its range.
    """

    clip: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        clip: Any,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        seed: int = 0,
        mean: tuple[float, ...] = (0.5,),
        std: tuple[float, ...] = (0.25,),
    ) -> None:
        super().__init__()
        need_multimodal()
        from peft import LoraConfig, inject_adapter_in_model

        if not isinstance(rank, int) or rank < 1 or alpha <= 0:
            raise ConfigError(f"rank is {rank!r}, alpha {alpha!r}; both must be positive")
        clip.requires_grad_(False)
        # peft draws A from the process-wide generator; it is drawn anew below.
        with torch.random.fork_rng(devices=[]):
            options: dict[str, Any] = {"r": rank, "lora_alpha": alpha}
            config = LoraConfig(target_modules=list(TARGETS), **options)
            self.clip = inject_adapter_in_model(config, clip)
        self.eval()
        self.register_buffer("mean", torch.tensor(mean)[None, :, None, None])
        self.register_buffer("std", torch.tensor(std)[None, :, None, None])
        names = [n for n, p in self.clip.named_parameters() if p.requires_grad]
        self._inner = {_outer(name): name for name in sorted(names, key=_order)}
        self._initialise(derive_seed(seed, "adapters"))

    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if ".lora_A." in name:
                    nn.init.kaiming_uniform_(parameter, a=5**0.5, generator=generator)
                else:
                    parameter.zero_()

    # ---- only adapters --------------------------------------------------------------

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the adapters, in the order in which they travel."""
        for outer, inner in self._inner.items():
            yield prefix + ("." if prefix else "") + outer, self.clip.get_parameter(inner)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the adapters by name."""
        keep = bool(kwargs.get("keep_vars", False))
        return {n: p if keep else p.detach() for n, p in self.named_parameters()}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> None:
        """Load adapters by name, all or none.

        Raises
        ------
        LayoutError
            If names or shapes are not this model's.
        """
        own = dict(self.named_parameters())
        if set(state_dict) != set(own):
            odd = sorted(set(state_dict) ^ set(own))
            raise LayoutError(f"adapters differ in {len(odd)} names, the first is {odd[0]!r}")
        for name, value in state_dict.items():
            if tuple(value.shape) != tuple(own[name].shape):
                raise LayoutError(
                    f"adapter {name!r} has shape {tuple(value.shape)}, not "
                    f"{tuple(own[name].shape)}; use the same rank"
                )
        with torch.no_grad():
            for name, value in state_dict.items():
                own[name].copy_(value)

    def train(self, mode: bool = True) -> AdapterCLIP:
        """Stay in evaluation mode: the backbone is frozen, dropout included."""
        return super().train(False)

    @contextmanager
    def adapters_off(self) -> Iterator[None]:
        """Switch all adapters off: inside, this is the base model."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [m for m in self.clip.modules() if isinstance(m, BaseTunerLayer)]
        try:
            for layer in layers:
                layer.enable_adapters(False)
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    # ---- the two towers -------------------------------------------------------------

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed images with intensities in [0, 1].

        Parameters
        ----------
        images : Tensor, shape (n, c, h, w)
            Grey images become three equal channels where the backbone wants three.

        Returns
        -------
        Tensor, shape (n, e)
            Rows of norm 1.
        """
        return image_embeddings(self.clip, (images - self.mean) / self.std)

    def embed_texts(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Embed captions.

        Parameters
        ----------
        tokens, mask : Tensor, shape (n, length), int64
            See :func:`~flwr_afuic.models.tokens.encode`.

        Returns
        -------
        Tensor, shape (n, e)
            Rows of norm 1.
        """
        return text_embeddings(self.clip, tokens, mask)

    def scale(self) -> Tensor:
        """Return the factor of similarities, ``exp(logit_scale)``, frozen with the backbone."""
        factor: Tensor = self.clip.logit_scale.detach().exp().clamp(max=100.0)
        return factor

    def forward(self, images: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return logits of all images against all captions. # shape: (n, m)."""
        found: Tensor = self.scale() * self.embed_images(images) @ self.embed_texts(tokens, mask).T
        return found


def image_embeddings(clip: Any, pixels: Tensor) -> Tensor:
    """Embed scaled images by a CLIP's vision tower; rows of norm 1. # shape: (n, e)."""
    channels = clip.config.vision_config.num_channels
    if pixels.shape[1] == 1 and channels > 1:
        pixels = pixels.expand(-1, channels, -1, -1)
    pooled = clip.vision_model(pixel_values=pixels).pooler_output
    return functional.normalize(clip.visual_projection(pooled), dim=1)


def text_embeddings(clip: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    """Embed captions by a CLIP's text tower; rows of norm 1. # shape: (n, e)."""
    # What follows the end token is not looked at: attention is causal, pooling at the end.
    longest = int(mask.sum(dim=1).max()) if len(mask) else tokens.shape[1]
    tokens, mask = tokens[:, :longest], mask[:, :longest]
    pooled = clip.text_model(input_ids=tokens, attention_mask=mask).pooler_output
    return functional.normalize(clip.text_projection(pooled), dim=1)


def _outer(name: str) -> str:
    return name.replace(".default", "")


def _order(name: str) -> list[tuple[int, str]]:
    """Sort numbers as numbers: layer 10 comes after layer 2."""
    return [(int(p), "") if p.isdigit() else (0, p) for p in name.split(".")]
