"""``flwr-afuic bench membership``: erasure where membership can be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flwr_afuic.cli import options
from flwr_afuic.errors import ConfigError


def membership(
    datasets: Annotated[
        str, typer.Option(help="Data sets, with commas between.")
    ] = "pneumoniamnist",
    presets: Annotated[
        str, typer.Option(help="plain, duplicates, mislabelled, both, with commas between.")
    ] = "plain,duplicates,mislabelled,both",
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0-2 or 1,4.")] = "0",
    images: Annotated[int, typer.Option(help="Images at each site.")] = 64,
    epochs: Annotated[int, typer.Option(help="Local passes over them a round.")] = 8,
    references: Annotated[int, typer.Option(help="Federations the attacker trains; even.")] = 8,
    pairs: options.Settings = None,
    data_dir: options.DataDir = None,
    out: Annotated[Path, typer.Option(help="Folder of finished runs, which are kept.")] = Path(
        "runs/membership"
    ),
    budget: Annotated[
        float | None, typer.Option(help="Begin no further setting after so many seconds.")
    ] = None,
    json_file: options.JsonFile = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Fill the marked table of this Markdown file.")
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Attack original, unlearned and retrained models of small sites by likelihood ratios.

    Example: flwr-afuic bench membership --presets both --references 4
    """
    from dataclasses import asdict

    from flwr_afuic.app.demo import write_json
    from flwr_afuic.app.settings import AppSettings
    from flwr_afuic.app.summary import versions
    from flwr_afuic.bench import membership as study
    from flwr_afuic.bench import membership_table as tables
    from flwr_afuic.bench.figures import fill
    from flwr_afuic.bench.kept import Keeper
    from flwr_afuic.cli.bench import read_seeds

    options.use_data_dir(data_dir)
    names = [name.strip() for name in presets.split(",") if name.strip()]
    unknown = [name for name in names if name not in study.PRESETS]
    if unknown or not names:
        raise ConfigError(f"--presets {presets!r}; known: {', '.join(study.PRESETS)}")
    values = {"scenario": "clean", "batch_size": 16, **options.read_pairs(pairs or [])}

    def told(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    keeper, runs = Keeper(out, budget=budget, told=told), []
    for name in datasets.split(","):
        for seed in read_seeds(seeds):
            for preset in names:
                settings = study.MembershipSettings(
                    app=AppSettings.from_mapping({**values, "dataset": name.strip(), "seed": seed}),
                    images=images,
                    epochs=epochs,
                    references=references,
                    **study.PRESETS[preset],
                )
                asked = asdict(settings)
                asked["app"]["data_dir"] = ""
                run = keeper.once(
                    f"{Path(settings.app.dataset).stem}-{preset}-s{seed}",
                    asked,
                    lambda settings=settings: study.Membership(  # type: ignore[misc]
                        settings, out / "models", told
                    ).run(),
                )
                if run is not None:
                    runs.append({**run, "preset": preset})
    text = tables.markdown(runs)
    typer.echo(text)
    if json_file is not None:
        write_json(
            json_file,
            {
                "figures": tables.flat_figures(runs),
                "settings": {
                    **values,
                    "images": images,
                    "epochs": epochs,
                    "references": references,
                },
                "seeds": list(read_seeds(seeds)),
                "versions": versions(),
            },
        )
    if markdown is not None:
        fill(markdown, text, begin_mark=tables.BEGIN)
