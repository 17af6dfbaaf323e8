"""Backbones: a CLIP from a folder or the hub, or a small one built from its configuration."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flwr_afuic.data.multimodal.pairs import ImageTextSet
from flwr_afuic.errors import ConfigError, DataError
from flwr_afuic.models.multimodal import CLIP_MEAN, CLIP_STD, AdapterCLIP
from flwr_afuic.models.tokens import encode, load_tokenizer, need_multimodal
from flwr_afuic.seeds import derive_seed
from flwr_afuic.unlearning.pairs import Pairs


@dataclass(frozen=True, kw_only=True)
class SmallCLIP:
    """Shape of a small CLIP for grey images.

    Parameters
    ----------
    image_size, patch : int
        Pixels; the first a multiple of the second.
    length : int
        Tokens of a caption.
    width, layers, heads : int
        Of both towers.
    projection : int
        Dimensions e of the embeddings.
    vocabulary : int
        Tokens the tokenizer may hold.
    """

    image_size: int = 64
    patch: int = 16
    length: int = 48
    width: int = 64
    layers: int = 2
    heads: int = 4
    projection: int = 64
    vocabulary: int = 2048

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 1:
            raise ConfigError(f"a small CLIP needs positive sizes, not {self}")
        if self.image_size % self.patch or self.width % self.heads:
            raise ConfigError(
                f"image_size {self.image_size} must be a multiple of patch {self.patch}, and width "
                f"{self.width} of heads {self.heads}"
            )


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP, its tokenizer, and how images are scaled for it.

    Attributes
    ----------
    clip : transformers.CLIPModel
    tokenizer : transformers.PreTrainedTokenizerBase
    mean, std : tuple of float
    """

    clip: Any
    tokenizer: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def length(self) -> int:
        """Most tokens of a caption."""
        return int(self.clip.config.text_config.max_position_embeddings)

    @property
    def image_size(self) -> int:
        """Height and width of images, pixels."""
        return int(self.clip.config.vision_config.image_size)

    def with_adapters(self, *, rank: int = 8, alpha: float = 16.0, seed: int = 0) -> AdapterCLIP:
        """Return a model with fresh adapters on a copy of the backbone."""
        return AdapterCLIP(
            copy.deepcopy(self.clip),
            rank=rank,
            alpha=alpha,
            seed=seed,
            mean=self.mean,
            std=self.std,
        )

    @property
    def fingerprint(self) -> str:
        """Hash of weights, vocabulary and scaling: equal wherever the same backbone is held.

        Adapters mean nothing on another backbone, and no error would show it: compare this between
        the sites and the server before training.
        """
        digest = hashlib.sha256()
        for name, tensor in sorted(self.clip.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        words = sorted(self.tokenizer.get_vocab().items())
        digest.update(json.dumps([words, self.mean, self.std]).encode())
        return digest.hexdigest()[:16]

    def encode(self, pairs: ImageTextSet) -> Pairs:
        """Encode captions for this backbone; images must have its size already.

        Raises
        ------
        DataError
            If the images are of another size.
        """
        if tuple(pairs.images.shape[-2:]) != (self.image_size, self.image_size):
            raise DataError(
                f"images of {tuple(pairs.images.shape[-2:])} pixels for a backbone of "
                f"{self.image_size}; load them with size={self.image_size}"
            )
        tokens, mask = encode(self.tokenizer, pairs.captions, self.length)
        return Pairs(pairs.images, tokens, mask, pairs.groups)

    def save(self, folder: str | Path) -> None:
        """Write weights (safetensors), configuration, tokenizer and scaling into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.clip.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        scaling = {"image_mean": list(self.mean), "image_std": list(self.std)}
        (folder / _SCALING).write_text(json.dumps(scaling), encoding="utf-8")


_SCALING = "preprocessor_config.json"


def load_clip(path_or_name: str | Path) -> Backbone:
    """Load a pretrained CLIP from a folder, or by its name on the hub.

    Parameters
    ----------
    path_or_name : path or str
        What ``save_pretrained`` wrote, or for example ``"openai/clip-vit-base-patch32"``; weights
        as safetensors only, so that nothing is unpickled. A name that is not in the local cache is
        downloaded from the hub.

    Raises
    ------
    ConfigError
        If it is neither a folder with such a model nor to be had from the hub.
    """
    need_multimodal()
    from transformers import CLIPModel

    try:
        clip: Any = CLIPModel.from_pretrained(str(path_or_name), use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise ConfigError(
            f"no CLIP could be loaded from {str(path_or_name)!r}: {line}; give a folder with "
            "config.json and model.safetensors, or the name of a model on the hub while there is a "
            "connection to it"
        ) from error
    mean, std = _scaling(Path(path_or_name) / _SCALING)
    return Backbone(clip.eval(), load_tokenizer(path_or_name), mean, std)


def build_small_clip(shape: SmallCLIP, tokenizer: Any, *, seed: int) -> Backbone:
    """Build a small CLIP with weights that depend on the seed alone; it knows nothing yet.

    Parameters
    ----------
    shape : SmallCLIP
    tokenizer : transformers.PreTrainedTokenizerBase
        Of :func:`~flwr_afuic.models.tokens.build_tokenizer`.
    seed : int

    Raises
    ------
    ConfigError
        If transformers is missing.
    """
    need_multimodal()
    from transformers import CLIPConfig, CLIPModel

    tower = {
        "hidden_size": shape.width,
        "intermediate_size": 2 * shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
    }
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": shape.length,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            **tower,
            "image_size": shape.image_size,
            "patch_size": shape.patch,
            "num_channels": 1,
        },
        projection_dim=shape.projection,
    )
    # transformers draws from the process-wide generator; the weights are drawn anew, by name.
    with torch.random.fork_rng(devices=[]):
        clip: Any = CLIPModel(config)
    _initialise(clip, derive_seed(seed, "clip"))
    return Backbone(clip.eval(), tokenizer, (0.5,), (0.25,))


def _initialise(clip: nn.Module, seed: int) -> None:
    """Draw each weight from a generator of its own, with the deviation its first draw had."""
    with torch.no_grad():
        for name, parameter in clip.named_parameters():
            if parameter.ndim == 0 or float(parameter.std(correction=0)) == 0:
                continue  # biases, norms and the scale start at constants
            generator = torch.Generator().manual_seed(derive_seed(seed, name))
            fan = parameter[0].numel() if parameter.ndim > 1 else parameter.numel()
            std = 0.02 if "embedding" in name and parameter.ndim == 2 else fan**-0.5
            parameter.normal_(0.0, std, generator=generator)


def _scaling(file: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Read how images are scaled; CLIP's own values where the folder does not say."""
    if not file.is_file():
        return CLIP_MEAN, CLIP_STD
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        mean = tuple(float(v) for v in found["image_mean"])
        std = tuple(float(v) for v in found["image_std"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} holds no image_mean and image_std; correct it") from error
    if len(mean) != len(std) or not all(v > 0 for v in std):
        raise ConfigError(f"{file}: image_mean and image_std must be of one length, std positive")
    return mean, std
