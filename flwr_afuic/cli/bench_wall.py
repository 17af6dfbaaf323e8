"""``flwr-afuic bench wall``: seconds by a real clock, in real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flwr_afuic.cli import options


def wall(
    runs: Annotated[int, typer.Option(help="Pairs of a first and a second process.")] = 3,
    data_dir: options.DataDir = None,
    json_file: options.JsonFile = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Fill the marked table of this Markdown file.")
    ] = None,
) -> None:
    """Time how much faster a client's second process finds its data than the first.

    Example: flwr-afuic bench wall --runs 5 --json wall.json
    """
    from flwr_afuic.app.demo import write_json
    from flwr_afuic.app.summary import versions
    from flwr_afuic.bench.figures import fill
    from flwr_afuic.bench.warm import BEGIN, measure_warm

    options.use_data_dir(data_dir)
    warm = measure_warm(runs=runs)
    typer.echo(warm.markdown())
    for name, value in warm.figures().items():
        typer.echo(f"{name}: {value:.3f}")
    if json_file is not None:
        content = {"settings": {"runs": runs}, "seeds": [], "versions": versions()}
        write_json(json_file, {"figures": warm.figures(), **content})
    if markdown is not None:
        fill(markdown, warm.markdown(), begin_mark=BEGIN)
