"""How much faster a later process of a client finds its data than the first one read them.

Flower starts a client's process anew for each message. Here each message is a process of its own,
too: the first reads the site's table, checks and prepares every volume and keeps it; the second
finds it kept.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from flwr_afuic.bench.hippocampus import (
    FOLDER,
    HippocampusSettings,
    write_table,
)
from flwr_afuic.data.sources import resolve_data_dir
from flwr_afuic.errors import ConfigError, FederationError
from flwr_afuic.seeds import derive_seed

BEGIN = "<!-- table: flwr-afuic bench wall -->"

_TIMEOUT = 300.0
_SITE_CASES = 16
_SHAPE = (35, 51, 35)


@dataclass(frozen=True)
class Load:
    """One message: seconds until the data were there, and until the process had ended."""

    seconds: float
    process_seconds: float
    cases: int


@dataclass(frozen=True)
class WarmResult:
    """Pairs of a first and a second message, each pair at a site with an empty cache.

    Attributes
    ----------
    first, second : tuple of Load
    synthetic : bool
        Whether the volumes were generated, because the hippocampus data are not there.
    """

    first: tuple[Load, ...]
    second: tuple[Load, ...]
    synthetic: bool

    @property
    def speedup(self) -> float:
        """Median over the pairs of how many times faster the second message's data came."""
        pairs = zip(self.first, self.second, strict=True)
        return median(one.seconds / other.seconds for one, other in pairs)

    def figures(self) -> dict[str, float]:
        """Flat figures; seconds are medians."""
        return {
            "wall/warm_speedup": self.speedup,
            "wall/first_load_seconds": median(load.seconds for load in self.first),
            "wall/second_load_seconds": median(load.seconds for load in self.second),
            "wall/first_process_seconds": median(load.process_seconds for load in self.first),
            "wall/second_process_seconds": median(load.process_seconds for load in self.second),
        }

    def markdown(self) -> str:
        """Write the figures as a table."""
        found = self.figures()
        data = "generated volumes (SYNTHETIC)" if self.synthetic else "hippocampus volumes"
        rows = [
            f"A site of {self.first[0].cases} {data}, median of {len(self.first)} pairs of "
            "processes:",
            "",
            "| message | data there after (s) | process ended after (s) |",
            "| --- | --- | --- |",
        ]
        for name in ("first", "second"):
            load, whole = found[f"wall/{name}_load_seconds"], found[f"wall/{name}_process_seconds"]
            rows.append(f"| {name} | {load:.3f} | {whole:.2f} |")
        rows += ["", f"The second is {self.speedup:.1f} times faster (bound: 5)."]
        return "\n".join(rows)


def measure_warm(*, data_dir: str = "", runs: int = 3, cases: int = _SITE_CASES) -> WarmResult:
    """Time the loading of a site's data in its first and in its second process.

    Parameters
    ----------
    data_dir : str
        Where the folder ``msd_hippocampus`` lies; volumes are generated where it does not.
    runs : int
        Pairs of processes, at least 1; each begins with an empty cache.
    cases : int
        Volumes of the site, at least 1.

    Returns
    -------
    WarmResult

    Raises
    ------
    ConfigError
        If a number is out of its range.
    FederationError
        If a process fails.

    Notes
    -----
    What is timed is :meth:`~flwr_afuic.clients.clinical_client.ClinicalClient.data`: reading the
    table, looking at every file, and loading. Starting Python and importing torch and Flower is
    the same for both and left out; it is in the process's seconds. Files are in the system's
    cache both times.
    """
    for name, value in (("runs", runs), ("cases", cases)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    first, second = [], []
    with TemporaryDirectory(prefix="flwr-afuic-warm-") as folder:
        site = Path(folder) / "site"
        synthetic = _write_site(site, resolve_data_dir(data_dir or None) / FOLDER, cases)
        for run in range(runs):
            node: dict[str, str | int] = {
                "partition-id": 0,
                "table": str(site / "table.csv"),
                "cache": str(Path(folder) / f"cache-{run}"),
                "inbox": str(Path(folder) / f"inbox-{run}.sqlite"),
            }
            first.append(_message(node))
            second.append(_message(node))
    return WarmResult(tuple(first), tuple(second), synthetic)


def _message(node: dict[str, str | int]) -> Load:
    """Have a process of its own load the site's data, as for one message."""
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, json.dumps(node)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FederationError(f"a client's process took more than {_TIMEOUT:.0f} s") from error
    whole = time.perf_counter() - start
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FederationError(f"a client's process failed: {last}")
    told = json.loads(done.stdout.strip().splitlines()[-1])
    return Load(float(told["seconds"]), whole, int(told["cases"]))


def _write_site(site: Path, root: Path, cases: int) -> bool:
    """Put a site's table and volumes into a folder; tell whether they had to be generated."""
    synthetic = len(list((root / "images").glob("hippocampus_*.nii.gz"))) < cases
    if synthetic:
        root = site
        _generate(site, cases)
    table = write_table(root, site / "table.csv", cases)
    if not synthetic:
        for line in table.read_text(encoding="utf-8").splitlines()[1:]:
            image, _, mask = line.split(",")
            for name in (image, mask):
                (site / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / name, site / name)
    return synthetic


def _generate(site: Path, cases: int) -> None:
    """Write volumes of noise with a bright box, of the size of a hippocampus crop."""
    import nibabel

    rng = np.random.default_rng(derive_seed(0, "warm"))
    for folder in ("images", "labels"):
        (site / folder).mkdir(parents=True)
    for number in range(1, cases + 1):
        truth = np.zeros(_SHAPE, np.uint8)
        truth[10:20, 10:25, 10:20], truth[10:20, 25:40, 10:20] = 1, 2
        values = rng.normal(0, 20, _SHAPE) + 100.0 * (truth > 0)
        name = f"hippocampus_{number:03d}.nii.gz"
        for part, array in (("images", values.astype(np.float32)), ("labels", truth)):
            image = nibabel.nifti1.Nifti1Image(array, np.eye(4))  # type: ignore[no-untyped-call]
            nibabel.loadsave.save(image, site / part / name)


def _serve(node: dict[str, str | int]) -> dict[str, float]:
    """Load the data of a node's client and say how long that took; in the client's process."""
    from flwr.app import Context, RecordDict
    from flwr.app.user_config import UserConfig

    from flwr_afuic.clients.clinical_client import ClinicalClient

    context = Context(1, 1, UserConfig(dict(node)), RecordDict(), UserConfig({}))
    client = ClinicalClient.of_node(HippocampusSettings().clinical(), context)
    start = time.perf_counter()
    data = client.data()
    return {"seconds": time.perf_counter() - start, "cases": len(data.images)}


if __name__ == "__main__":
    print(json.dumps(_serve(json.loads(sys.argv[1]))))
