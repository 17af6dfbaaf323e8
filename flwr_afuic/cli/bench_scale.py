"""``flwr-afuic bench scale``: many clients, many messages, many erasures on the virtual engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flwr_afuic.cli import options
from flwr_afuic.errors import ConfigError


def numbers(text: str, option: str, *, least: int = 1) -> list[int]:
    """Read whole numbers with commas between."""
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"{option} {text!r}: write whole numbers with commas between") from error
    if not found or min(found) < least:
        raise ConfigError(f"{option} {text!r}: give numbers of at least {least}")
    return found


def scale(
    clients: Annotated[str, typer.Option(help="Numbers of clients.")] = "100,1000,10000",
    erasures: Annotated[str, typer.Option(help="Erasures filed at once.")] = "0,1,10,100",
    erasure_clients: Annotated[int, typer.Option(help="Clients beside them.")] = 400,
    repeats: Annotated[int, typer.Option(help="Runs of each; medians are shown.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of finished runs, which are kept.")] = Path(
        "runs/scale"
    ),
    json_file: options.JsonFile = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Fill the marked table of this Markdown file.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Repeat finished runs.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Count the engine's events per second of processor time, with a linear model.

    Example: flwr-afuic bench scale --clients 100,1000 --repeats 1
    """
    from flwr_afuic.app.demo import write_json
    from flwr_afuic.app.summary import versions
    from flwr_afuic.bench import scale_table as tables
    from flwr_afuic.bench.figures import fill

    wanted = tables.Wanted(
        numbers(clients, "--clients", least=2), numbers(erasures, "--erasures", least=0),
        erasure_clients, repeats,
    )  # fmt: skip
    if erasure_clients <= max(wanted.erasures) or repeats < 1:
        raise ConfigError(
            f"--erasure-clients is {erasure_clients} and --repeats {repeats}; more clients than "
            "erasures and one run are the least"
        )

    def told(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    results = tables.measure(wanted, out, fresh=fresh, told=told)
    text = tables.markdown(wanted, results)
    typer.echo(text)
    if json_file is not None:
        write_json(
            json_file,
            {
                "figures": tables.figures(wanted, results),
                "settings": {
                    "clients": list(wanted.clients), "erasures": list(wanted.erasures),
                    "erasure_clients": erasure_clients, "repeats": repeats,
                },
                "seeds": [0],
                "versions": versions(),
            },
        )  # fmt: skip
    if markdown is not None:
        fill(markdown, text, begin_mark=tables.BEGIN)
