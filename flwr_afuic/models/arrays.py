"""Model weights as a list of NumPy arrays, in the order of ``state_dict``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from flwr_afuic.errors import LayoutError

Kind = Literal["trained", "statistic", "counter"]
Array = npt.NDArray[Any]


def array_kinds(model: nn.Module) -> list[tuple[str, Kind]]:
    """Say what each array of a model is.

    Parameters
    ----------
    model : torch.nn.Module
        Any network.

    Returns
    -------
    list of (str, str)
        Name and kind of each entry, in ``state_dict`` order. ``trained``: a parameter;
        ``counter``: an integer buffer, such as BatchNorm's ``num_batches_tracked``;
        ``statistic``: any other buffer, such as BatchNorm's running mean and variance.
    """
    trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    kinds: list[tuple[str, Kind]] = []
    for name, tensor in model.state_dict().items():
        if name in trained:
            kinds.append((name, "trained"))
        elif tensor.is_floating_point() or tensor.is_complex():
            kinds.append((name, "statistic"))
        else:
            kinds.append((name, "counter"))
    return kinds


def get_arrays(model: nn.Module) -> list[Array]:
    """Copy a model's arrays, in ``state_dict`` order.

    Parameters
    ----------
    model : torch.nn.Module
        Any network, on any device.

    Returns
    -------
    list of numpy.ndarray
        Copies: training on does not change them. # shapes: those of the ``state_dict``
    """
    return [tensor.detach().cpu().numpy().copy() for tensor in model.state_dict().values()]


def set_arrays(model: nn.Module, arrays: Sequence[Array]) -> None:
    """Load arrays into a model, in ``state_dict`` order; all of them or none.

    Parameters
    ----------
    model : torch.nn.Module
        The network to fill, on any device.
    arrays : sequence of numpy.ndarray
        One an entry, of its shape. Values are converted to the entry's dtype; a counter
        that was averaged to a fraction is rounded.

    Raises
    ------
    LayoutError
        If count, shape or dtype does not fit, naming the array.
    """
    state = model.state_dict()
    if len(arrays) != len(state):
        raise LayoutError(
            f"got {len(arrays)} arrays for a model of {len(state)} ({', '.join(list(state)[:3])}, "
            "...); server and site must build the same model"
        )
    converted = [
        _convert(name, tensor, array)
        for (name, tensor), array in zip(state.items(), arrays, strict=True)
    ]
    with torch.no_grad():
        for tensor, value in zip(state.values(), converted, strict=True):
            tensor.copy_(value)


def _convert(name: str, tensor: torch.Tensor, array: Array) -> torch.Tensor:
    value = np.asarray(array)
    if value.shape != tuple(tensor.shape):
        raise LayoutError(
            f"array {name!r} has shape {value.shape}, the model needs {tuple(tensor.shape)}; "
            "server and site must build the same model"
        )
    if value.dtype.kind not in "fiub":
        raise LayoutError(
            f"array {name!r} has dtype {value.dtype}; model arrays must be real numbers"
        )
    if not tensor.is_floating_point() and value.dtype.kind == "f":
        if not np.isfinite(value).all():
            raise LayoutError(f"counter {name!r} holds NaN or infinity; refuse that update")
        value = np.rint(value)
    # A copy: the arrays may be read-only views of a message.
    return torch.from_numpy(np.array(value)).to(tensor.dtype)
