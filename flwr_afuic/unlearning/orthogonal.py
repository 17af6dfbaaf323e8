"""FedOSD's pieces: a bounded unlearning loss, an orthogonal direction, and no way back.

Z. Pan et al., "Federated Unlearning with Gradient Descent and Conflict Mitigation", AAAI 2025.
[P] is the paper's word as we know it, [O] our choice where we know of none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from flwr_afuic.errors import DataError, LayoutError
from flwr_afuic.federation.layout import Arrays, Vector, infer_kind
from flwr_afuic.unlearning.inference import check_set, frozen_statistics

LOSSES = ("cross-entropy", "unlearning-cross-entropy")

_NEGLIGIBLE = 1e-10


def unlearning_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``-mean log(1 - p_y / 2)`` [P]: minimised where the label has no probability left.

    Unlike an ascent on cross-entropy it is bounded, by 0 and ``log 2``, and so are its gradients.

    Parameters
    ----------
    logits : Tensor, shape (n, k)
    labels : Tensor, shape (n,), int64

    Returns
    -------
    Tensor, shape ()

    Examples
    --------
    >>> round(float(unlearning_cross_entropy(torch.zeros(1, 2), torch.tensor([0]))), 6)  # p = 1/2
    0.287682
    """
    own = functional.softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]
    return -torch.log1p(-own / 2).mean()


def mean_gradient(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    loss: str = "cross-entropy",
    batch_size: int = 256,
) -> Arrays:
    """Gradient of the mean loss over a whole set, at a model that is left as it is.

    The paper's clients send the gradient of their local loss [P]; that it is the full gradient,
    with normalisation statistics and dropout frozen, is ours [O].

    Parameters
    ----------
    model : nn.Module
    images : Tensor, shape (n, c, h, w)
    labels : Tensor, shape (n,), int64
    loss : {"cross-entropy", "unlearning-cross-entropy"}
    batch_size : int
        Images at once.

    Returns
    -------
    list of ndarray
        In ``state_dict`` order: gradients of trained arrays; statistics and counters as they are.
    """
    check_set("gradient set", images, labels)
    if loss not in LOSSES:
        raise DataError(f"unknown loss {loss!r}; known: {', '.join(LOSSES)}")
    value = unlearning_cross_entropy if loss == LOSSES[1] else functional.cross_entropy
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in trained.items()}
    with frozen_statistics(model), torch.enable_grad():
        for x, y in zip(
            torch.split(images, batch_size), torch.split(labels, batch_size), strict=True
        ):
            part = value(model(x), y) * (len(x) / len(images))
            found = torch.autograd.grad(part, list(trained.values()), allow_unused=True)
            for name, gradient in zip(trained, found, strict=True):
                if gradient is not None:
                    sums[name] += gradient.double()
    return [_as_array(name, tensor, sums.get(name)) for name, tensor in model.state_dict().items()]


def _as_array(name: str, tensor: Tensor, gradient: Tensor | None) -> NDArray[np.generic]:
    value: NDArray[np.generic] = tensor.detach().cpu().numpy().copy()
    if gradient is not None:
        return gradient.cpu().numpy().astype(value.dtype)
    # A frozen parameter is trained to the server, which goes by name and dtype.
    return np.zeros_like(value) if infer_kind(name, value) == "trained" else value


def orthogonal_direction(target: Vector, retained: Sequence[Vector]) -> Vector:
    """Return the part of a gradient that is orthogonal to every retained gradient.

    ``d = g_u - A^T (A A^T)^-1 A g_u`` with the retained gradients as the rows of ``A``: of all
    directions that change no retained loss to first order, the one closest to ``g_u`` [P].

    Parameters
    ----------
    target : ndarray, shape (p,)
        Gradient ``g_u`` of the erasing site's unlearning loss.
    retained : sequence of ndarray, shape (p,)
        Gradients of the retained sites. May depend on each other.

    Returns
    -------
    ndarray, shape (p,), float64
        Not rescaled: its norm is at most that of ``g_u`` [O].
    """
    direction = np.array(target, dtype=np.float64)
    rows = [np.asarray(g, dtype=np.float64) for g in retained]
    lengths = [float(np.linalg.norm(row)) for row in rows]
    unit = [row / length for row, length in zip(rows, lengths, strict=True) if length > 0]
    if not unit:
        return direction
    if any(row.shape != direction.shape for row in unit):
        raise LayoutError("retained gradients differ in length from the target's")
    _, values, basis = np.linalg.svd(np.stack(unit), full_matrices=False)
    basis = basis[values > _NEGLIGIBLE * values[0]]
    for _ in range(2):  # twice: rounding of the first pass is itself projected away
        direction -= basis.T @ (basis @ direction)
    return direction


def without_return(update: Vector, away: Vector) -> Vector:
    """Strip an update of what points back against the way the unlearning went.

    With ``r = theta - theta_before``, ``u <- u - min(0, <u, r>) r / <r, r>``: an update that
    goes on along ``r``, or across it, stays as it is. That only the part against ``r`` goes is
    our reading of the paper's post-training [O].

    Parameters
    ----------
    update : ndarray, shape (p,)
        A step added to the model.
    away : ndarray, shape (p,)
        ``r``.
    """
    length = float(away @ away)
    along = float(update @ away)
    if length == 0 or along >= 0:
        return update
    cleaned: Vector = update - (along / length) * away
    return cleaned
