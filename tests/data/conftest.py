from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flwr_afuic.data.images import ImageSet


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("AFUIC_DATA_DIR")
    if not folder:
        pytest.skip("AFUIC_DATA_DIR is not set: no real data")
    return Path(folder)


def arrays(n: int = 12, size: int = 28, channels: int = 1, classes: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shape = (n, size, size) if channels == 1 else (n, size, size, channels)
    content: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        content[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        content[f"{split}_labels"] = (np.arange(n) % classes).astype(np.uint8)[:, None]
    return content


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Save a small file in MedMNIST layout; keywords change arrays, None leaves one out."""

    def write(name: str = "tiny.npz", **changes: Any) -> Path:
        content = arrays() | changes
        path = tmp_path / name
        np.savez(path, **{key: value for key, value in content.items() if value is not None})
        return path

    return write


def image_set(n: int = 40, channels: int = 1, classes: int = 2, size: int = 28) -> ImageSet:
    generator = torch.Generator().manual_seed(n)
    return ImageSet(
        torch.rand(n, channels, size, size, generator=generator) * 0.5,
        torch.arange(n) % classes,
        tuple(f"t/{row}" for row in range(n)),
    )
