"""``flwr-afuic bench multimodal``: a place is erased from an image-text federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flwr_afuic.cli import options
from flwr_afuic.errors import ConfigError


def multimodal(
    seeds: Annotated[str, typer.Option(help="Roots of the random streams: 0, 0-2 or 0,3.")] = "0-8",
    arms: Annotated[str, typer.Option(help="Which arms, with commas; all by default.")] = "",
    dataset: Annotated[
        str, typer.Option(help="covid_cxr_text (real pairs) or phantoms (generated).")
    ] = "covid_cxr_text",
    pairs: options.Settings = None,
    gsd: Annotated[
        bool, typer.Option("--gsd/--no-gsd", help="Also measure a large decomposition.")
    ] = True,
    data_dir: options.DataDir = None,
    out: Annotated[Path, typer.Option(help="Folder of finished arms, which are kept.")] = Path(
        "runs/multimodal"
    ),
    json_file: options.JsonFile = None,
    markdown: Annotated[
        Path | None,
        typer.Option(help="Fill the marked table of this Markdown file, and draw beside it."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Repeat finished arms.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Erase a place's pairs from a federated CLIP with adapters, beside every rival.

    Example: flwr-afuic bench multimodal --seeds 0 --arms original,retrained,ease
    """
    from flwr_afuic.app.demo import write_json
    from flwr_afuic.app.summary import versions
    from flwr_afuic.bench import multimodal_table as tables
    from flwr_afuic.bench.figures import fill
    from flwr_afuic.bench.gsd import measure_gsd
    from flwr_afuic.bench.multimodal import ARMS, PHANTOM_CLIENTS, MultimodalSettings
    from flwr_afuic.bench.multimodal_figure import CAPTION, draw
    from flwr_afuic.bench.multimodal_runs import MultimodalRunner
    from flwr_afuic.cli.bench import read_seeds

    options.use_data_dir(data_dir)
    numbers = read_seeds(seeds)
    values: dict[str, Any] = {
        "dataset": dataset,
        **options.read_pairs(pairs or [], MultimodalSettings),
    }
    if dataset == "phantoms":
        values.setdefault("target", PHANTOM_CLIENTS[0])
    try:
        settings = MultimodalSettings(**values)
    except TypeError as error:
        raise ConfigError(f"unknown setting: {error}") from error

    def told(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    wanted = [name.strip() for name in arms.split(",") if name.strip()] or list(ARMS)
    results = MultimodalRunner(out, fresh=fresh, told=told).run(settings, numbers, wanted)
    measured = measure_gsd() if gsd else {}
    text, figures = tables.markdown(results, measured), tables.figures(results)
    figures |= {f"gsd/{name}": measured[name] for name in ("seconds", "peak_mib") if measured}
    typer.echo(text)
    for name, value in figures.items():
        typer.echo(f"{name}: {value:.4f}")
    if json_file is not None:
        content = {"settings": values, "seeds": list(numbers), "versions": versions()}
        write_json(json_file, {"figures": figures, **content})
    if markdown is not None:
        image = draw(results, markdown.parent / "images" / "multimodal.png")
        fill(markdown, f"![{CAPTION}](images/{image.name})\n\n{text}",
             begin_mark=tables.BEGIN)  # fmt: skip
