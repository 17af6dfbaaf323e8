"""Pretrained weights from a local file; nothing is fetched, and nothing is unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flwr_afuic.errors import DataError, LayoutError

_NESTED = ("state_dict", "model_state_dict", "model", "net", "network")
_PREFIXES = ("module.", "network.", "model.")


@dataclass(frozen=True)
class Loaded:
    """What a file of weights filled.

    Parameters
    ----------
    filled : tuple of str
        Arrays that were taken from the file.
    kept : tuple of str
        Arrays the file has not, or has in another shape: they keep their fresh weights.
    unused : tuple of str
        Arrays of the file the network has no place for.
    """

    filled: tuple[str, ...]
    kept: tuple[str, ...]
    unused: tuple[str, ...]

    def text(self) -> str:
        """Say it in one line."""
        line = f"{len(self.filled)} of {len(self.filled) + len(self.kept)} arrays were filled"
        if self.kept:
            line += f"; fresh: {', '.join(self.kept[:4])}{' ...' if len(self.kept) > 4 else ''}"
        if self.unused:
            line += f"; {len(self.unused)} of the file were not used"
        return line


def load_pretrained(
    model: nn.Module, path: str | Path, *, allow_fresh: tuple[str, ...] | None = ()
) -> Loaded:
    """Fill a network with weights from a file.

    Every site and the server must load the same file, or none but the server: the federation's
    first model then carries it to all.

    Parameters
    ----------
    model : torch.nn.Module
        Filled in place, all or nothing.
    path : path
        ``.safetensors``, or what ``torch.save`` wrote of a state dict, also one inside a
        checkpoint; read with ``weights_only``, which runs no code of the file.
    allow_fresh : tuple of str or None
        Beginnings of names that may keep their fresh weights, for example the head of a network
        that was trained for other classes. None allows any, as long as something is filled.

    Returns
    -------
    Loaded

    Raises
    ------
    DataError
        If the file cannot be read, holds other things than arrays, or NaN.
    LayoutError
        If arrays are missing or of another shape that ``allow_fresh`` does not name, or
        nothing fits.
    """
    path = Path(path)
    found = _plain_names(_read(path), model)
    state = model.state_dict()
    fitting = {
        name: tensor
        for name, tensor in found.items()
        if name in state and tensor.shape == state[name].shape
    }
    kept = tuple(name for name in state if name not in fitting)
    unused = tuple(name for name in found if name not in fitting)
    strange = [
        name
        for name in kept
        if allow_fresh is not None and not any(name.startswith(start) for start in allow_fresh)
    ]
    if strange or not fitting:
        raise LayoutError(
            f"{path.name} does not fit the network: {len(fitting)} of {len(state)} arrays match, "
            f"{_why(strange or list(state), found, state)}; choose the network it was made for, or "
            "name in allow_fresh what may stay fresh"
        )
    bad = [n for n, t in fitting.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise DataError(f"{path.name} holds NaN or infinity in {bad[0]!r}; it cannot be used")
    with torch.no_grad():
        for name, tensor in fitting.items():
            state[name].copy_(tensor)
    return Loaded(tuple(fitting), kept, unused)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"cannot read weights from {path}: {error.strerror or error}") from error
    except Exception as error:
        text = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise DataError(
            f"{path} is no file of weights that can be read safely ({text}); save the state dict "
            "anew, best as .safetensors"
        ) from error
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise DataError(f"{path} holds a {type(content).__name__}, not a state dict")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _plain_names(found: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Take off a prefix that a wrapper left on every name."""
    state = model.state_dict()
    for prefix in _PREFIXES:
        if found and all(name.startswith(prefix) for name in found):
            shorter = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
            if len(shorter.keys() & state.keys()) > len(found.keys() & state.keys()):
                return shorter
    return found


def _why(strange: list[str], found: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    name = strange[0]
    if name not in found:
        return f"{name!r} is missing"
    return (
        f"{name!r} has shape {tuple(found[name].shape)} there and {tuple(state[name].shape)} here"
    )
