"""A tokenizer built from captions, and captions as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flwr_afuic.errors import ConfigError, DataError

PAD, START, END = "<pad>", "<start>", "<end>"
_SPECIALS = (PAD, START, END)
_LEAST = len(_SPECIALS) + 256


def need_multimodal() -> None:
    """Refuse at once, and say what to install, where the extra is missing.

    Raises
    ------
    ConfigError
        If ``transformers`` or ``peft`` cannot be imported.
    """
    try:
        import peft  # noqa: F401
        import tokenizers  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"image-text models need the package {error.name!r}; install flwr-afuic[multimodal]"
        ) from error


def build_tokenizer(captions: Sequence[str], *, vocabulary: int = 1024) -> Any:
    """Build a byte-level BPE tokenizer from captions, lower-cased, wrapped for transformers.

    Every text can be encoded, also words no caption holds: in the worst case byte by byte. Build
    it from captions of places that are no clients, so that it holds no word of a client.

    Parameters
    ----------
    captions : sequence of str
        At least one.
    vocabulary : int
        Greatest number of tokens, at least 259: the bytes and three special tokens.

    Returns
    -------
    transformers.PreTrainedTokenizerFast
        The same for the same captions in the same order.

    Raises
    ------
    ConfigError
        If transformers is missing or the vocabulary too small.
    DataError
        If there is no caption.
    """
    need_multimodal()
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    if vocabulary < _LEAST:
        raise ConfigError(f"vocabulary is {vocabulary}; byte-level BPE needs {_LEAST} or more")
    if not any(text.strip() for text in captions):
        raise DataError("there is no caption to build a tokenizer from; give at least one")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(_SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=ends
    )
    wrap: Any = PreTrainedTokenizerFast
    return wrap(tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, eos_token=END)


def load_tokenizer(folder: str | Path) -> Any:
    """Load a tokenizer from a folder or by its name on the hub.

    Raises
    ------
    ConfigError
        If transformers is missing or there is no such tokenizer here or on the hub.
    """
    need_multimodal()
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no tokenizer could be loaded from {str(folder)!r}: {_first_line(error)}; give a "
            "folder that save_pretrained wrote, or a name the hub knows while it can be reached"
        ) from error


def encode(tokenizer: Any, captions: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """Encode captions to one length; longer ones are cut, and still end with the end token.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
    captions : sequence of str
    length : int
        Tokens of each, the special ones included.

    Returns
    -------
    tokens, mask : Tensor, shape (n, length), int64
        Ids, and 1 where there is a token.
    """
    if not captions:
        empty = torch.zeros(0, length, dtype=torch.int64)
        return empty, empty.clone()
    found = tokenizer(
        list(captions),
        padding="max_length",
        truncation=True,
        max_length=length,
        return_tensors="pt",
    )
    return found["input_ids"].long(), found["attention_mask"].long()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
