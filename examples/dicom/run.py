"""A folder of DICOM files as a site's table: checked, loaded, and loaded again from the cache.

    python examples/dicom/run.py FOLDER

Every ``.dcm`` file below FOLDER becomes a row, its patient taken from the DICOM header (a row may
also name the folder of a series). Bad files are named in one report and left out; a cut file is
added to show that.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pydicom

from flwr_afuic.data.clinical import ClinicalSource, Preparation


def write_table(folder: Path, table: Path) -> int:
    """List each DICOM file, labelled by its modality, with the patient its header names."""
    rows = []
    for file in sorted(folder.glob("**/*.dcm")):
        header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        patient = str(header.get("PatientID") or file.stem)
        rows.append((file.relative_to(folder), patient, str(header.get("Modality", "OT"))))
    with table.open("w", encoding="utf-8", newline="") as lines:
        csv.writer(lines).writerows([("path", "patient_id", "label"), *rows])
    return len(rows)


def main() -> None:
    """Show a table's report and how much faster its second loading is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    with TemporaryDirectory() as work:
        site = Path(work) / "site"
        shutil.copytree(arguments.folder, site)
        first = next(iter(sorted(site.glob("**/*.dcm"))))
        (site / "cut.dcm").write_bytes(first.read_bytes()[: first.stat().st_size // 2])
        print(f"{write_table(site, site / 'table.csv')} files")
        source = ClinicalSource(
            site / "table.csv",
            Preparation(size=(64, 64)),
            task="classification",
            classes=("CT", "MR"),
            cache_dir=Path(work) / "cache",
        )
        for name in ("first", "second"):
            start = time.perf_counter()
            loaded, report = source.load()
            seconds = time.perf_counter() - start
            print(f"{name} loading: {len(loaded)} images in {seconds:.3f} s")
        print(report.text())
        print(f"patients: {', '.join(sorted(set(loaded.patients)))}")


if __name__ == "__main__":
    main()
