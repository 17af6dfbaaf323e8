"""Hippocampus MRI, a 3D UNet, five hospitals: one erases everything, one erases a patient.

    python examples/segmentation/run.py --data-dir ../shared/data

Needs ``msd_hippocampus`` (Decathlon's Task04) under the data folder. Prints the tables of
both erasures and draws them as ``segmentation.png``. It takes some eleven minutes of one
core, half of that with ``--areas patient``, and about twice as long with ``--bounds``. A second
call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from flwr_afuic.bench.hippocampus import HippocampusSettings
from flwr_afuic.bench.segmentation import ARMS
from flwr_afuic.bench.segmentation_figure import draw
from flwr_afuic.bench.segmentation_runs import SegmentationRunner
from flwr_afuic.bench.segmentation_table import markdown
from flwr_afuic.models import preflight


def main() -> None:
    """Run both erasures, print their tables and draw their curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--out", type=Path, default=Path("runs/segmentation"))
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--areas", nargs="+", default=["site", "patient"])
    parser.add_argument(
        "--bounds",
        action="store_true",
        help="retrain a second time, and train on without unlearning",
    )
    arguments = parser.parse_args()
    settings = HippocampusSettings(
        data_dir=arguments.data_dir,
        cache_dir=str(arguments.out / "warm"),
        cases=arguments.cases,
    )
    print(preflight(settings.clinical().network(), batch_size=settings.batch_size).text())
    runner = SegmentationRunner(arguments.out, told=print)
    arms = ARMS if arguments.bounds else ARMS[:2]
    results = runner.run(settings, arguments.areas, [settings.seed], arms)
    print(markdown(results))
    print(f"the curves: {draw(results, arguments.out / 'segmentation.png')}")


if __name__ == "__main__":
    main()
