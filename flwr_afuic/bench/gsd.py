"""What a decomposition of a history takes, for adapters of CLIP-B/32's size: time and memory.

    python -m flwr_afuic.bench.gsd write FOLDER CLIENTS ROUNDS
    python -m flwr_afuic.bench.gsd decompose FOLDER

Each prints one JSON object. The updates are generated (shared and own directions, and noise): time
and memory are what is measured here, not models. Each runs in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from flwr_afuic.bench.history_peak import largest_mib
from flwr_afuic.calibration.blocks import Blocks
from flwr_afuic.federation.buffer import Update
from flwr_afuic.history.decomposition import decompose_history
from flwr_afuic.history.disk import DiskStore
from flwr_afuic.history.raw import RawHistory

CLIENTS, ROUNDS = 20, 20
_SHARED, _OWN, _NOISE = 6, 3, 0.3
_LAYERS, _RANK = 12, 8
_WIDTHS = (("text_model", 512), ("vision_model", 768))


def adapter_shapes() -> dict[str, tuple[int, int]]:
    """Return names and shapes of LoRA adapters of rank 8 on CLIP-B/32: 491,520 parameters."""
    return {
        f"{tower}.encoder.layers.{layer}.self_attn.{projection}.lora_{side}.weight": (
            (_RANK, width) if side == "A" else (width, _RANK)
        )
        for tower, width in _WIDTHS
        for layer in range(_LAYERS)
        for projection in ("q_proj", "v_proj")
        for side in ("A", "B")
    }


def measure_gsd(clients: int = CLIENTS, rounds: int = ROUNDS) -> dict[str, float]:
    """Decompose one client of a raw history on disk.

    Parameters
    ----------
    clients, rounds : int
        Of the history.

    Returns
    -------
    dict of str to float
        ``seconds`` of the decomposition, reading included; ``peak_mib``, the largest resident set
        of its process; ``before_mib``, that before it began; ``parameters`` and ``rank``.
    """
    with TemporaryDirectory(prefix="flwr-afuic-gsd-") as folder:
        _apart("write", folder, str(clients), str(rounds))
        return _apart("decompose", folder)


def _apart(*arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "flwr_afuic.bench.gsd", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def _site(number: int) -> str:
    return f"site-{number:03d}"


def _write(folder: Path, clients: int, rounds: int) -> dict[str, Any]:
    shapes = adapter_shapes()
    size = sum(a * b for a, b in shapes.values())
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(_SHARED, size)).astype(np.float32)
    cuts = np.cumsum([a * b for a, b in shapes.values()])[:-1]
    with DiskStore(folder) as store:
        history = RawHistory(store)
        history.begin([np.zeros(shape, np.float32) for shape in shapes.values()], list(shapes))
        for round_ in range(1, rounds + 1):
            for number in range(clients):
                own = np.random.default_rng(number + 1).normal(size=(_OWN, size))
                vector = rng.normal(size=_SHARED) @ shared + rng.normal(size=_OWN) @ own
                vector += _NOISE * rng.normal(size=size)
                parts = np.split(vector.astype(np.float32), cuts)
                arrays = [p.reshape(s) for p, s in zip(parts, shapes.values(), strict=True)]
                history.add(Update(_site(number), round_ - 1, 10, arrays), 1.0)
            history.merged(round_, round_)
    return {"parameters": size}


def _decompose(folder: Path) -> dict[str, Any]:
    shapes = adapter_shapes()
    blocks = Blocks(list(shapes), [a * b for a, b in shapes.values()])
    before, began = largest_mib(), time.monotonic()
    with DiskStore(folder, exclusive=False) as store:
        found = decompose_history(store, _site(0), blocks)
    return {
        "seconds": time.monotonic() - began,
        "peak_mib": largest_mib(),
        "before_mib": before,
        "parameters": blocks.size,
        "updates": found.updates,
        "rank": found.basis.rank,
    }


def main(arguments: Sequence[str]) -> None:
    """Write a history, or decompose one; print what it took."""
    task, folder, *rest = arguments
    if task == "write":
        found = _write(Path(folder), *(int(number) for number in rest))
    else:
        found = _decompose(Path(folder))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
