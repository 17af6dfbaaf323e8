"""``flwr-afuic bench reference``: how good a yardstick the proxy-distilled reference is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flwr_afuic.cli import options
from flwr_afuic.errors import ConfigError


def reference(
    datasets: Annotated[str, typer.Option(help="Data sets, with commas between.")] = (
        "pneumoniamnist,breastmnist,pbc28,mednist"
    ),
    scenarios: Annotated[
        str, typer.Option(help="backdoor, mislabel, clean, with commas between.")
    ] = "backdoor,clean",
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0-2 or 1,4.")] = "0",
    sites: Annotated[
        str, typer.Option(help="Numbers of sites; past the first, with the first seed only.")
    ] = "6",
    proxies: Annotated[str, typer.Option(help="Numbers of the task's own proxies.")] = (
        "32,64,128,256"
    ),
    others: Annotated[
        bool, typer.Option(help="Also proxies of another modality, and synthetic phantoms.")
    ] = True,
    pairs: options.Settings = None,
    data_dir: options.DataDir = None,
    out: Annotated[Path, typer.Option(help="Folder of finished runs, which are kept.")] = Path(
        "runs/reference"
    ),
    budget: Annotated[
        float | None, typer.Option(help="Begin no further federation after so many seconds.")
    ] = None,
    json_file: options.JsonFile = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Fill the marked table of this Markdown file.")
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Compare references of few, foreign and synthetic proxies with retraining.

    Example: flwr-afuic bench reference --datasets breastmnist --sites 6,3,20
    """
    from dataclasses import asdict

    from flwr_afuic.app.demo import write_json
    from flwr_afuic.app.settings import AppSettings
    from flwr_afuic.app.summary import versions
    from flwr_afuic.bench import reference_table as tables
    from flwr_afuic.bench.figures import fill
    from flwr_afuic.bench.kept import Keeper
    from flwr_afuic.bench.reference import ReferenceSettings, measure, variants
    from flwr_afuic.cli.bench import read_seeds

    options.use_data_dir(data_dir)
    chosen = ReferenceSettings(_numbers("--proxies", proxies), others)
    counts, values = _numbers("--sites", sites), options.read_pairs(pairs or [])
    federations = [
        app
        for scenario in _words(scenarios)
        for name in _words(datasets)
        for app in variants(
            AppSettings.from_mapping({**values, "dataset": name, "scenario": scenario}),
            read_seeds(seeds),
            counts,
        )
    ]

    def told(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    keeper = Keeper(out, budget=budget, told=told)
    found = []
    for number, app in enumerate(federations, start=1):
        name = f"{Path(app.dataset).stem}-{app.scenario}-s{app.seed}-{app.sites}"
        asked = {**asdict(app), "data_dir": "", **asdict(chosen)}
        label = f"[{number}/{len(federations)}] {name}"
        run = keeper.once(
            name,
            asked,
            lambda app=app, label=label: measure(  # type: ignore[misc]
                app, chosen, out / "models", lambda step: told(f"{label}: {step}")
            ),
        )
        if run is not None:
            found.append(run)
    text = tables.markdown(found)
    typer.echo(text)
    if json_file is not None:
        write_json(
            json_file,
            {
                "figures": tables.flat_figures(found),
                "settings": {**asdict(chosen), **values},
                "seeds": list(read_seeds(seeds)),
                "versions": versions(),
            },
        )
    if markdown is not None:
        fill(markdown, text, begin_mark=tables.BEGIN)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in _words(text))
    except ValueError as error:
        raise ConfigError(f"{name} {text!r}: write whole numbers, with commas between") from error
    if not found:
        raise ConfigError(f"{name} is empty; name at least one number")
    return found
