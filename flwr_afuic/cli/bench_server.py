"""``flwr-afuic bench server``: the server's work on large models, beside Flower's and floors."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flwr_afuic.cli import options
from flwr_afuic.cli.bench_scale import numbers
from flwr_afuic.errors import ConfigError


def server(
    parts: Annotated[
        str, typer.Option(help="Some of merge, lock, wire, disk, memory.")
    ] = "merge,lock,wire,disk,memory",
    parameters: Annotated[
        str, typer.Option(help="Sizes of models.")
    ] = "1000000,10000000,100000000",
    updates: Annotated[int, typer.Option(help="Updates of one merge.")] = 4,
    ranks: Annotated[str, typer.Option(help="Ranks of locks.")] = "1,8,32",
    clients: Annotated[str, typer.Option(help="Clients of the memory runs.")] = "2,10,100,1000",
    memory_parameters: Annotated[int, typer.Option(help="Their model.")] = 10_000_000,
    repeats: Annotated[int, typer.Option(help="Of each timing; the fastest is shown.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder of finished parts, which are kept.")] = Path(
        "runs/server"
    ),
    json_file: options.JsonFile = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Fill the marked table of this Markdown file.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Repeat finished parts.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Time merges, locks, messages and checkpoints; find the peak memory.

    Example: flwr-afuic bench server --parts merge --parameters 1000000
    """
    from flwr_afuic.app.demo import write_json
    from flwr_afuic.app.summary import versions
    from flwr_afuic.bench import server_table as tables
    from flwr_afuic.bench.figures import fill

    if updates < 1 or repeats < 1 or memory_parameters < 1:
        raise ConfigError("--updates, --repeats and --memory-parameters must be at least 1")
    wanted = tables.Wanted(
        parts=[part.strip() for part in parts.split(",") if part.strip()],
        parameters=numbers(parameters, "--parameters", least=1000),
        updates=updates,
        ranks=numbers(ranks, "--ranks"),
        clients=numbers(clients, "--clients", least=2),
        memory_parameters=memory_parameters,
        repeats=repeats,
    )

    def told(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    results = tables.run(wanted, out, fresh=fresh, told=told)
    text = tables.markdown(results)
    typer.echo(text)
    if json_file is not None:
        write_json(
            json_file,
            {"figures": tables.figures(results), "settings": asdict(wanted), "seeds": [0],
             "versions": versions()},
        )  # fmt: skip
    if markdown is not None:
        fill(markdown, text, begin_mark=tables.BEGIN)
