"""Hippocampus MRI, a 3D UNet, five hospitals: one erases everything, one erases a patient.

    python examples/segmentation/run.py --data-dir ../shared/data

Needs ``msd_hippocampus`` (the Medical Segmentation Decathlon's Task04) under the data folder. Each
area takes minutes on two free cores; ``--cases 40`` is quicker and says less.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from flwr_afuic.bench.hippocampus import HippocampusSettings
from flwr_afuic.bench.segmentation import measure
from flwr_afuic.bench.segmentation_scores import summary
from flwr_afuic.models import preflight


def main() -> None:
    """Run both erasures and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--cache", default="", help="keep prepared volumes in this folder")
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--areas", nargs="+", default=["site", "patient"])
    arguments = parser.parse_args()
    settings = HippocampusSettings(
        data_dir=arguments.data_dir, cache_dir=arguments.cache, cases=arguments.cases
    )
    print(preflight(settings.clinical().network(), batch_size=settings.batch_size).text())
    for area in arguments.areas:
        with TemporaryDirectory() as folder:
            print(summary(measure(settings, area, Path(folder), told=print)))


if __name__ == "__main__":
    main()
