"""``flwr-afuic bench segmentation``: erasures from a 3D segmentation, judged by retraining."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from flwr_afuic.cli import options
from flwr_afuic.errors import ConfigError


def segmentation(
    areas: Annotated[
        str, typer.Option(help="What site-0 erases: site, patient, or both with a comma.")
    ] = "site,patient",
    seed: Annotated[int, typer.Option(help="Root of every random stream.")] = 0,
    cases: Annotated[int, typer.Option(help="How many of the volumes.")] = 100,
    pairs: options.Settings = None,
    data_dir: options.DataDir = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder in which prepared volumes are kept.")
    ] = None,
    json_file: options.JsonFile = None,
    quiet: options.Quiet = False,
) -> None:
    """Erase a site and a patient from a federation on hippocampus MRI volumes.

    Example: flwr-afuic bench segmentation --areas patient --cache runs/warm
    """
    from flwr_afuic.app.demo import write_json
    from flwr_afuic.bench.hippocampus import HippocampusSettings, check_area
    from flwr_afuic.bench.segmentation import measure
    from flwr_afuic.bench.segmentation_scores import summary

    options.use_data_dir(data_dir)
    wanted = [name.strip() for name in areas.split(",") if name.strip()]
    for area in wanted:
        check_area(area)
    if not wanted:
        raise ConfigError("--areas names nothing; use site, patient or both")
    values: dict[str, Any] = {
        **options.read_pairs(pairs or []),
        "seed": seed,
        "cases": cases,
        "cache_dir": "" if cache is None else str(cache),
    }
    try:
        settings = HippocampusSettings(**values)
    except TypeError as error:
        raise ConfigError(f"unknown setting: {error}") from error

    def told(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    figures: dict[str, float] = {}
    for area in wanted:
        with TemporaryDirectory(prefix="flwr-afuic-") as folder:
            result = measure(settings, area, Path(folder), told=told)
        typer.echo(summary(result) + "\n")
        figures |= result.figures()
    for name, value in figures.items():
        typer.echo(f"{name}: {value:.4f}")
    if json_file is not None:
        write_json(json_file, {"figures": figures, "settings": values, "seeds": [seed]})
