"""Sites of ``bench wall``: each message's process says how long it took with what.

Nothing is imported here that Flower has not imported already: what imports cost is part of what is
measured.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp

PLAIN, OURS = "plain", "ours"
PARTS = ("torch", "library", "start", "data", "codec", "train")
"""``torch``: importing it. ``library``: importing ours. ``start``: making the client. ``data``:
loading its images. ``codec``: the erasure protocol around a training. ``train``: the training."""

SIDE, CLASSES = 28, 2


def make_app(entered: float) -> ClientApp:
    """Return the ClientApp; ``entered`` is when this process came to its app's module."""

    def client_fn(context: Context) -> Any:
        watch = _Watch(entered, str(context.node_config["log"]))
        with watch.part("torch"):
            import torch

            torch.set_num_threads(1)
        ours = context.run_config["arm"] == OURS
        return (_ours(context, watch) if ours else _plain(context, watch)).to_client()

    return ClientApp(client_fn)


class _Watch:
    """Seconds of each part, the inner parts taken out of the outer ones."""

    def __init__(self, entered: float, log: str) -> None:
        self._entered, self._log = entered, Path(log)
        self._parts = dict.fromkeys(PARTS, 0.0)
        self._inner = 0.0

    def part(self, name: str) -> _Part:
        return _Part(self, name)

    def add(self, name: str, seconds: float, inner: float) -> None:
        self._parts[name] += seconds - inner

    def write(self) -> None:
        """Append what this process took to the site's file."""
        row = {**self._parts, "inside": time.time() - self._entered}
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


class _Part:
    def __init__(self, watch: _Watch, name: str) -> None:
        self._watch, self._name = watch, name

    def __enter__(self) -> None:
        self._began, self._outer = time.perf_counter(), self._watch._inner
        self._watch._inner = 0.0

    def __exit__(self, *raised: object) -> None:
        seconds = time.perf_counter() - self._began
        self._watch.add(self._name, seconds, self._watch._inner)
        self._watch._inner = self._outer + seconds


def network() -> Any:
    """Make the model of both arms, about 25,000 weights."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for before, after in ((1, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, CLASSES))


def write_images(path: Path, count: int, seed: int) -> None:
    """Write a site's generated images and labels."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, SIDE, SIDE), dtype=np.uint8)
    np.savez(path, images=images, labels=rng.integers(CLASSES, size=count))


def _read(path: str) -> tuple[Any, Any]:
    import torch

    with np.load(path, allow_pickle=False) as file:
        images = torch.from_numpy(file["images"]).float()[:, None] / 127.5 - 1.0
        return images, torch.from_numpy(file["labels"].astype(np.int64))


def _plain(context: Context, watch: _Watch) -> NumPyClient:
    """Return a client as Flower's own tutorials write it, with the same model and images."""
    import torch

    class Plain(NumPyClient):
        def fit(
            self, parameters: list[Any], config: dict[str, Any]
        ) -> tuple[list[Any], int, dict[str, Any]]:
            with watch.part("data"):
                images, labels = _read(str(context.node_config["data"]))
            with watch.part("train"):
                model = network()
                names = model.state_dict().keys()
                tensors = [torch.from_numpy(np.array(a)) for a in parameters]
                model.load_state_dict(dict(zip(names, tensors, strict=True)))
                optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
                loss = torch.nn.functional.cross_entropy(model(images[:32]), labels[:32])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                trained = [tensor.numpy() for tensor in model.state_dict().values()]
            watch.write()
            return trained, len(images), {}

    with watch.part("start"):
        return Plain()


def _ours(context: Context, watch: _Watch) -> NumPyClient:
    with watch.part("library"):
        from flwr_afuic.clients import SiteData, TorchClient

    class Ours(TorchClient):
        local_steps = 1

        def data(self) -> SiteData:
            with watch.part("data"):
                images, labels = _read(str(context.node_config["data"]))
                return SiteData(images, labels, [f"image-{n}" for n in range(len(images))])

        def model(self) -> Any:
            return network()

        def optimizer(self, model: Any) -> Any:
            import torch

            return torch.optim.SGD(model.parameters(), lr=0.01)

        def train(self, parameters: list[Any], config: dict[str, Any]) -> Any:
            with watch.part("train"):
                return super().train(parameters, config)

        def fit(self, parameters: list[Any], config: dict[str, Any]) -> Any:
            with watch.part("codec"):
                found = super().fit(parameters, config)
            watch.write()
            return found

    with watch.part("start"):
        return Ours.from_context(context)
