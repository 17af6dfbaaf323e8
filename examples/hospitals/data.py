"""The images of the example's hospitals: generated, and different at each of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flwr_afuic.data.images import ImageSet
from flwr_afuic.data.partitions import partition
from flwr_afuic.data.phantoms import make_phantoms
from flwr_afuic.data.probes import Trigger, backdoor

IMAGES = 1000
PROXIES = 160
HELD_OUT = 40
_WRONG_SHARE = 0.9


def write_data(folder: Path, hospitals: Sequence[str], wrong: str, *, seed: int = 0) -> None:
    """Write each hospital's ``images.npz`` and the coordinator's ``proxies.npz``.

    At the hospital named ``wrong`` a scanner burnt a white mark into most images of diseased
    lungs, and they were labelled "clear". Their ids are in its ``withdrawn.csv``: that is what
    its data steward asks to be forgotten. No other hospital can teach the model that mark, so
    whoever likes can see that it is gone.
    """
    made = make_phantoms(seed, n_train=IMAGES, n_val=PROXIES, n_test=HELD_OUT * len(hospitals))
    parts = partition(
        made.train.labels.numpy(),
        len(hospitals),
        scheme="dirichlet",
        alpha=1.0,
        seed=seed,
        target_share=(0.2, 0.3),
    )
    for number, name in enumerate(hospitals):
        held = made.train.subset(parts[number])
        ids = [f"{name}/exam-{row:04d}" for row in range(len(held))]
        if name == wrong:
            held, planted = backdoor(
                held,
                fraction=_WRONG_SHARE,
                target_label=0,
                trigger=Trigger.for_channels(1),
                seed=seed,
                only_other_classes=True,
            )
            lines = "".join(f"{ids[row]}\n" for row in planted.poisoned)
            (folder / name / "withdrawn.csv").write_text(lines, encoding="utf-8")
        out = made.test.subset(range(number * HELD_OUT, (number + 1) * HELD_OUT))
        np.savez(
            folder / name / "images.npz",
            images=_bytes(held),
            labels=held.labels.numpy().astype(np.uint8),
            ids=np.array(ids),
            holdout_images=_bytes(out),
            holdout_labels=out.labels.numpy().astype(np.uint8),
        )
    np.savez(folder / "coordinator" / "proxies.npz", images=_bytes(made.val))


def _bytes(images: ImageSet) -> np.ndarray:
    return np.round(images.images[:, 0].numpy() * 255).astype(np.uint8)
