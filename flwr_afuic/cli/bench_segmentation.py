"""``flwr-afuic bench segmentation``: erasures from a 3D segmentation, judged by retraining."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flwr_afuic.cli import options
from flwr_afuic.errors import ConfigError

_ARMS = "afuic,retrain,retrain_floor,no_unlearning"


def segmentation(
    areas: Annotated[
        str, typer.Option(help="What site-0 erases: site, patient, or both with a comma.")
    ] = "site,patient",
    seeds: Annotated[str, typer.Option(help="Roots of the random streams: 0, 0-2 or 0,3.")] = "0",
    arms: Annotated[str, typer.Option(help="What is run; afuic and retrain are needed.")] = _ARMS,
    cases: Annotated[int, typer.Option(help="How many of the volumes.")] = 100,
    pairs: options.Settings = None,
    data_dir: options.DataDir = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder in which prepared volumes are kept.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of finished arms, which are kept.")] = Path(
        "runs/segmentation"
    ),
    json_file: options.JsonFile = None,
    markdown: Annotated[
        Path | None,
        typer.Option(help="Fill the marked table of this Markdown file, and draw beside it."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Repeat finished arms.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Erase a site and a patient from a federation on hippocampus MRI volumes.

    Example: flwr-afuic bench segmentation --areas patient --seeds 0-2
    """
    options.use_data_dir(data_dir)
    run(
        areas,
        seeds,
        pairs or [],
        {"cases": cases, "cache_dir": str(out / "warm" if cache is None else cache)},
        out=out,
        json_file=json_file,
        markdown=markdown,
        fresh=fresh,
        quiet=quiet,
        arms=arms,
    )


def run(
    areas: str,
    seeds: str,
    pairs: list[str],
    fixed: dict[str, Any],
    *,
    out: Path,
    json_file: Path | None,
    markdown: Path | None,
    fresh: bool,
    quiet: bool,
    arms: str = _ARMS,
) -> None:
    """Run what has not been run yet, print the tables and write what was asked for."""
    from flwr_afuic.app.demo import write_json
    from flwr_afuic.app.summary import versions
    from flwr_afuic.bench import segmentation_table as tables
    from flwr_afuic.bench.figures import fill
    from flwr_afuic.bench.hippocampus import HippocampusSettings, check_area
    from flwr_afuic.bench.segmentation import check_arm
    from flwr_afuic.bench.segmentation_figure import CAPTION, draw
    from flwr_afuic.bench.segmentation_runs import SegmentationRunner
    from flwr_afuic.cli.bench import read_seeds

    wanted = [name.strip() for name in areas.split(",") if name.strip()]
    for area in wanted:
        check_area(area)
    if not wanted:
        raise ConfigError("--areas names nothing; use site, patient or both")
    chosen = tuple(name.strip() for name in arms.split(",") if name.strip())
    for arm in chosen:
        check_arm(arm)
    if not {"afuic", "retrain"} <= set(chosen):
        raise ConfigError(f"--arms is {arms!r}; it needs afuic and retrain, to compare them")
    numbers = read_seeds(seeds)
    values = {**options.read_pairs(pairs, HippocampusSettings), **fixed}
    try:
        settings = HippocampusSettings(**values)
    except TypeError as error:
        raise ConfigError(f"unknown setting: {error}") from error

    def told(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    results = SegmentationRunner(out, fresh=fresh, told=told).run(settings, wanted, numbers, chosen)
    text, figures = tables.markdown(results), tables.figures(results)
    typer.echo(text)
    for name, value in figures.items():
        typer.echo(f"{name}: {value:.4f}")
    if json_file is not None:
        content = {"settings": values, "seeds": list(numbers), "versions": versions()}
        write_json(json_file, {"figures": figures, **content})
    if markdown is not None:
        image = draw(results, markdown.parent / "images" / "segmentation.png")
        fill(
            markdown,
            f"![{CAPTION}](images/{image.name})\n\n{text}",
            begin_mark=tables.BEGIN,
        )
