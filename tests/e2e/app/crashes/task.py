"""Eight weights: the first is moved by training, the one of a site only by its erasures."""

from typing import Any

ERASURE_STEP = -1.0
TRAINING_STEP = 0.1
SAMPLES = 400


def make_model() -> Any:
    import torch  # the sites need none, and start a process for every message
    from torch import nn

    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[1].weight.zero_()
    return model


def sample_ids(site: str) -> list[str]:
    return [f"{site}/patient-{row:03d}" for row in range(SAMPLES)]


def weight_of(site: str) -> int:
    """Position of the weight that only this site's erasures move."""
    return 1 + int(site.rsplit("-", 1)[1])
