"""``flwr-afuic bench wall``: seconds by a real clock, in real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flwr_afuic.cli import options
from flwr_afuic.errors import ConfigError

_PARTS = ("warm", "overhead")


def wall(
    parts: Annotated[
        str, typer.Option(help="Some of warm (a second process's data), overhead (of a message).")
    ] = ",".join(_PARTS),
    runs: Annotated[int, typer.Option(help="Pairs of a first and a second process.")] = 3,
    rounds: Annotated[int, typer.Option(help="Messages to each site, for the overhead.")] = 2,
    sites: Annotated[int, typer.Option(help="SuperNodes, for the overhead.")] = 4,
    data_dir: options.DataDir = None,
    json_file: options.JsonFile = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Fill the marked tables of this Markdown file.")
    ] = None,
) -> None:
    """Time a client's second process, and what of a message is ours and what Flower's own.

    Example: flwr-afuic bench wall --runs 5 --json wall.json
    """
    from flwr_afuic.app.demo import write_json
    from flwr_afuic.app.summary import versions
    from flwr_afuic.bench import wall_overhead, warm
    from flwr_afuic.bench.figures import fill

    wanted = [part.strip() for part in parts.split(",") if part.strip()]
    if not wanted or set(wanted) - set(_PARTS):
        raise ConfigError(f"--parts {parts!r}: use some of {', '.join(_PARTS)}")
    options.use_data_dir(data_dir)
    found: dict[str, warm.WarmResult | wall_overhead.Overhead] = {}
    if "warm" in wanted:
        found[warm.BEGIN] = warm.measure_warm(runs=runs)
    if "overhead" in wanted:
        found[wall_overhead.BEGIN] = wall_overhead.measure_overhead(rounds=rounds, sites=sites)
    figures = {name: value for part in found.values() for name, value in part.figures().items()}
    for part in found.values():
        typer.echo(part.markdown())
        typer.echo("")
    for name, value in figures.items():
        typer.echo(f"{name}: {value:.3f}")
    if json_file is not None:
        settings = {"parts": wanted, "runs": runs, "rounds": rounds, "sites": sites}
        content = {"settings": settings, "seeds": [], "versions": versions()}
        write_json(json_file, {"figures": figures, **content})
    if markdown is not None:
        for mark, part in found.items():
            fill(markdown, part.markdown(), begin_mark=mark)
