"""Pretraining of a small CLIP where none can be downloaded: on pairs of places that are no clients.

Without it "what the base model knew" would mean nothing. It is made once and frozen; all that a
federation learns afterwards is in the adapters.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from flwr_afuic.data.multimodal.pairs import ImageTextSet
from flwr_afuic.errors import ConfigError
from flwr_afuic.models.clip import Backbone, SmallCLIP, build_small_clip, load_clip
from flwr_afuic.models.multimodal import image_embeddings, text_embeddings
from flwr_afuic.models.tokens import build_tokenizer
from flwr_afuic.seeds import derive_seed
from flwr_afuic.unlearning.pairs import contrastive_loss

_RECIPE = 1
"""Part of a cached model's name; raised when the same settings would make another model."""


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How a small CLIP is pretrained.

    Parameters
    ----------
    shape : SmallCLIP
    steps, batch_size : int
        Of AdamW; the step size falls to zero along a half cosine.
    lr, weight_decay : float
    shift : int
        Images are moved by up to this many pixels, so that they are not learned by heart.
    """

    shape: SmallCLIP = field(default_factory=SmallCLIP)
    steps: int = 150
    batch_size: int = 48
    lr: float = 1e-3
    weight_decay: float = 0.05
    shift: int = 4

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2 or self.lr <= 0 or self.shift < 0:
            raise ConfigError(f"pretraining needs positive numbers, not {self}")


def pretrain(
    pairs: ImageTextSet,
    settings: Pretraining | None = None,
    *,
    seed: int,
    cache_dir: str | Path | None = None,
) -> Backbone:
    """Pretrain a small CLIP and its tokenizer; the same for the same pairs, settings and seed.

    Parameters
    ----------
    pairs : ImageTextSet
        Of places that are no clients, see
        :func:`~flwr_afuic.data.multimodal.split_places`; images of ``settings.shape.image_size``.
    settings : Pretraining, optional
    seed : int
    cache_dir : path, optional
        Where the model is kept (safetensors), under a name made of all of the above, and found
        the next time.

    Raises
    ------
    ConfigError
        If transformers is missing.
    DataError
        If images have another size, or there are no pairs.
    """
    settings = settings or Pretraining()
    if cache_dir is None:
        return _pretrained(pairs, settings, seed)
    folder = Path(cache_dir) / f"clip-{_name(pairs, settings, seed)}"
    if not (folder / "config.json").is_file():
        _keep(_pretrained(pairs, settings, seed), folder)
    return load_clip(folder)


def _pretrained(pairs: ImageTextSet, settings: Pretraining, seed: int) -> Backbone:
    tokenizer = build_tokenizer(pairs.captions, vocabulary=settings.shape.vocabulary)
    backbone = build_small_clip(settings.shape, tokenizer, seed=seed)
    clip, data = backbone.clip, backbone.encode(pairs)
    pixels = (data.images - backbone.mean[0]) / backbone.std[0]
    trained = [p for name, p in clip.named_parameters() if name != "logit_scale"]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay)
    generator = torch.Generator().manual_seed(derive_seed(seed, "pretraining"))
    scale = clip.logit_scale.detach().exp()
    with torch.enable_grad():
        for step in range(settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * (1 + math.cos(math.pi * step / settings.steps)) / 2
            rows = torch.randperm(len(data), generator=generator)[: settings.batch_size]
            v = image_embeddings(clip, _shifted(pixels[rows], settings.shift, generator))
            t = text_embeddings(clip, data.tokens[rows], data.mask[rows])
            loss = contrastive_loss(v, t, scale, data.groups[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
    clip.requires_grad_(False)
    return backbone


def _shifted(pixels: Tensor, most: int, generator: torch.Generator) -> Tensor:
    if most == 0:
        return pixels
    down, right = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    return torch.roll(pixels, (down, right), dims=(2, 3))


def _name(pairs: ImageTextSet, settings: Pretraining, seed: int) -> str:
    """Hash everything the model depends on."""
    digest = hashlib.sha256()
    facts = [_RECIPE, seed, torch.__version__, dataclasses.asdict(settings)]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    digest.update("\x1f".join([*pairs.ids, *pairs.captions]).encode())
    digest.update(pairs.images.numpy().tobytes())
    return digest.hexdigest()[:16]


def _keep(backbone: Backbone, folder: Path) -> None:
    """Write beside, then rename: another process never finds half a model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        backbone.save(beside)
        os.replace(beside, folder)
    except OSError:
        if not (folder / "config.json").is_file():  # not made by another process meanwhile
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
