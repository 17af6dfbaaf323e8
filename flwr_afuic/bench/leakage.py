"""What a small request's delta gives away of its data, and what protecting it costs.

Two attacks by a server that knows the snapshot, the label and the kind of images: turning the
delta back into the image by matching gradients (J. Geiping et al., "Inverting gradients",
NeurIPS 2020), and picking the erased image out of others that it has.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from flwr_afuic.app.client_app import network
from flwr_afuic.app.federation import FederationData, build_federation, limit_threads
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.seeds import derive_seed
from flwr_afuic.unlearning.inference import frozen_statistics, score
from flwr_afuic.unlearning.level import forget_level_met
from flwr_afuic.unlearning.local import unlearn
from flwr_afuic.unlearning.privacy import DeltaPrivacy, protect
from flwr_afuic.unlearning.reference import distil_reference
from flwr_afuic.unlearning.settings import UnlearningSettings

Vector = NDArray[np.float64]

SIZES = (1, 3, 7)
_CANDIDATES = 100
INVERSION_STEPS = 200
_SMOOTHNESS = 1e-2


@dataclass(frozen=True)
class Trial:
    """One request, its delta as it is and as protected.

    Attributes
    ----------
    size : int
        Samples erased.
    norm : float
        Of the delta, before protection.
    cosine : float
        Between the delta and its protected form.
    met, met_protected : bool
        Whether the forget level is met.
    test, test_raw, test_protected : float
        Accuracy on test images before, after, and after with protection.
    rank, rank_protected : float or None
        For one image: its place among others when ordered by how well their gradients fit the
        delta, as a share: 0 is the first place, .5 what chance gives.
    psnr_* : float or None
        For one image: likeness (dB) of what was made of its own gradient (a control), of the
        delta and of the protected delta, and of the mean proxy image, which needs no delta.
    """

    size: int
    norm: float
    cosine: float
    met: bool
    met_protected: bool
    test: float
    test_raw: float
    test_protected: float
    rank: float | None = None
    rank_protected: float | None = None
    psnr_mean: float | None = None
    psnr_gradient: float | None = None
    psnr_delta: float | None = None
    psnr_protected: float | None = None


def measure(
    settings: AppSettings,
    *,
    trials: int = 4,
    inverted: int = 2,
    privacy: DeltaPrivacy | None = None,
) -> list[Trial]:
    """Run small requests on one trained federation.

    Parameters
    ----------
    settings : AppSettings
        Data, model, local training; trained for ``request_round`` synchronous rounds.
    trials : int
        Requests of each size.
    inverted : int
        How many of the requests of one image are attacked.
    privacy : DeltaPrivacy, optional
        What protects; the defaults where none is given.
    """
    limit_threads()
    data = build_federation(settings)
    bench = _Bench(settings, data, privacy or DeltaPrivacy())
    rng = np.random.default_rng(derive_seed(settings.seed, "leakage"))
    found = []
    for size in SIZES:
        for number in range(trials):
            rows = torch.as_tensor(rng.choice(len(data.sites[0]), size, replace=False))
            found.append(bench.trial(rows, attack=size == 1 and number < inverted))
    return found


class _Bench:
    """A trained federation, and what the attacker has."""

    def __init__(self, settings: AppSettings, data: FederationData, privacy: DeltaPrivacy) -> None:
        self.data, self.privacy = data, privacy
        self.seed = derive_seed(settings.seed, "leakage")
        self.snapshot = _trained(settings, data)
        self.reference = network(settings, derive_seed(settings.seed, "reference"))
        distil_reference(self.snapshot, self.reference, data.proxies.images, seed=self.seed)
        self.start = _flat(self.snapshot.parameters())
        self.test = self._test(self.snapshot)

    def trial(self, rows: Tensor, *, attack: bool) -> Trial:
        """Erase these images of the first site."""
        held = self.data.sites[0]
        x, y = held.images[rows], held.labels[rows]
        model = copy.deepcopy(self.snapshot)
        outcome = unlearn(
            model,
            forget_x=x,
            forget_y=y,
            anchor_x=self.data.proxies.images,
            reference=self.reference,
            holdout=None,
            settings=UnlearningSettings(),
            seed=self.seed,
        )
        delta = _flat(model.parameters()) - self.start
        scale = float(np.linalg.norm(self.start))
        # As at a site: secret, so that two runs differ in their noise.
        key = os.urandom(32)
        safe, _ = protect(delta, self.privacy, count=len(rows), scale=scale, key=key)
        protected = self._with(self.start + safe)
        level = outcome.reference or outcome.before
        attacked = self._attack(x, y, delta, safe) if attack else {}
        return Trial(
            size=len(rows),
            norm=outcome.delta_norm,
            cosine=_cosine(delta, safe),
            met=forget_level_met(outcome.after, level).met,
            met_protected=forget_level_met(score(protected, x, y), level).met,
            test=self.test,
            test_raw=self._test(model),
            test_protected=self._test(protected),
            **attacked,
        )

    def _attack(self, x: Tensor, y: Tensor, delta: Vector, safe: Vector) -> dict[str, float]:
        own = _flat(gradient(self.snapshot, x, y))
        mean = self.data.proxies.images.mean(dim=0, keepdim=True)
        found = {"psnr_mean": psnr(mean, x)}
        for name, vector in (("gradient", own), ("delta", delta), ("protected", safe)):
            found[f"psnr_{name}"] = psnr(invert(self.snapshot, y, vector, mean, INVERSION_STEPS), x)
        others = self._others(int(y))
        for name, vector in (("rank", delta), ("rank_protected", safe)):
            fit = abs(_cosine(vector, own))
            found[name] = float(np.mean([abs(_cosine(vector, own_of)) > fit for own_of in others]))
        return found

    def _others(self, label: int) -> list[Vector]:
        test = self.data.dataset.test
        rows = torch.nonzero(test.labels == label)[:_CANDIDATES, 0]
        pairs = ((test.images[r : r + 1], test.labels[r : r + 1]) for r in rows.tolist())
        return [_flat(gradient(self.snapshot, x, y)) for x, y in pairs]

    def _with(self, weights: Vector) -> nn.Module:
        model, start = copy.deepcopy(self.snapshot), 0
        with torch.no_grad():
            for parameter in model.parameters():
                part = weights[start : start + parameter.numel()]
                parameter.copy_(torch.from_numpy(part).reshape(parameter.shape))
                start += parameter.numel()
        return model

    def _test(self, model: nn.Module) -> float:
        test = self.data.dataset.test
        return score(model, test.images, test.labels).accuracy


def gradient(model: nn.Module, x: Tensor, y: Tensor, *, graph: bool = False) -> list[Tensor]:
    """Gradient of the mean cross-entropy with respect to every parameter."""
    with frozen_statistics(model):
        loss = functional.cross_entropy(model(x), y)
        return list(torch.autograd.grad(loss, list(model.parameters()), create_graph=graph))


def invert(model: nn.Module, y: Tensor, vector: Vector, guess: Tensor, steps: int) -> Tensor:
    """Make an image whose gradient points along a vector, or against it.

    Parameters
    ----------
    model : nn.Module
        The snapshot.
    y : Tensor, shape (1,)
        The label, known to the attacker.
    vector : ndarray, shape (p,)
        What the site sent.
    guess : Tensor, shape (1, c, h, w)
        Where to begin.
    steps : int
        Of Adam on signed gradients.

    Returns
    -------
    Tensor, shape (1, c, h, w)
        Of both directions the one that fits better: the attacker sees no other score.
    """
    found = [_matched(model, y, sign * vector, guess, steps) for sign in (1.0, -1.0)]
    return min(found, key=lambda pair: pair[0])[1]


def _matched(
    model: nn.Module, y: Tensor, vector: Vector, guess: Tensor, steps: int
) -> tuple[float, Tensor]:
    wanted = functional.normalize(torch.from_numpy(vector).float(), dim=0)
    image = guess.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([image], lr=0.05)
    best = (math.inf, guess)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 if step < steps / 2 else 0.005
        own = torch.cat([g.reshape(-1) for g in gradient(model, image, y, graph=True)])
        fit = own @ wanted / own.norm().clamp_min(1e-20)
        loss = 1 - fit + _SMOOTHNESS * _roughness(image)
        if float(loss.detach()) < best[0]:
            best = (float(loss.detach()), image.detach().clone())
        (slope,) = torch.autograd.grad(loss, image)
        image.grad = slope.sign()
        optimizer.step()
        with torch.no_grad():
            image.clamp_(0, 1)
    return best


def _roughness(image: Tensor) -> Tensor:
    down, across = image.diff(dim=-2), image.diff(dim=-1)
    return down.abs().mean() + across.abs().mean()


def psnr(one: Tensor, other: Tensor) -> float:
    """Likeness of two images with values in [0, 1], in dB."""
    return -10 * math.log10(max(float((one - other).pow(2).mean()), 1e-12))


def _trained(settings: AppSettings, data: FederationData) -> nn.Module:
    """Train by federated averaging; what happens at the request is all that is measured."""
    model = network(settings)
    sizes = np.array([len(site) for site in data.sites], dtype=np.float64)
    weights = sizes / sizes.sum()
    for number in range(settings.request_round):
        states = [_local(settings, data, model, site, number) for site in range(len(data.sites))]
        mean = {
            name: sum(float(w) * state[name] for w, state in zip(weights, states, strict=True))
            for name in states[0]
        }
        model.load_state_dict(mean)
    return model


def _local(
    settings: AppSettings, data: FederationData, model: nn.Module, site: int, number: int
) -> dict[str, Tensor]:
    held, local = data.sites[site], copy.deepcopy(model)
    generator = torch.Generator().manual_seed(derive_seed(settings.seed, "leakage", site, number))
    optimizer = torch.optim.SGD(local.parameters(), lr=settings.lr, momentum=settings.momentum)
    for _ in range(settings.local_steps):
        pick = torch.randint(len(held), (settings.batch_size,), generator=generator)
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(local(held.images[pick]), held.labels[pick])
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(local.parameters(), settings.clip)
        optimizer.step()
    return dict(local.state_dict())


def _flat(tensors: Iterable[Tensor]) -> Vector:
    return torch.cat([t.detach().reshape(-1) for t in tensors]).double().numpy()


def _cosine(one: Vector, other: Vector) -> float:
    lengths = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    return float(one @ other) / max(lengths, 1e-300)
