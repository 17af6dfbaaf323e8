"""``flwr-afuic bench ablation``: what merge rule and calibration are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flwr_afuic.cli import options
from flwr_afuic.errors import ConfigError


def ablation(
    datasets: Annotated[
        str, typer.Option(help="Data sets, with commas between.")
    ] = "pneumoniamnist",
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0-2 or 1,4.")] = "0",
    objectives: Annotated[
        str, typer.Option(help="Objectives of the local unlearning, with commas between.")
    ] = "reference-bounded,ascent",
    staleness: Annotated[
        str, typer.Option(help="Rounds between snapshot and merge, with commas between.")
    ] = "0,3,8",
    rounds_after: Annotated[int, typer.Option(help="Rounds after the merge.")] = 10,
    full: Annotated[
        bool, typer.Option("--full", help="Cross every merge rule with every calibration.")
    ] = False,
    pairs: options.Settings = None,
    data_dir: options.DataDir = None,
    out: Annotated[Path, typer.Option(help="Folder of finished runs, which are kept.")] = Path(
        "runs/ablation"
    ),
    budget: Annotated[
        float | None, typer.Option(help="Begin no further fork after so many seconds.")
    ] = None,
    show_plan: Annotated[
        bool, typer.Option("--plan", help="Print what is missing and its time; stop.")
    ] = False,
    json_file: options.JsonFile = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Fill the marked table of this Markdown file.")
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Fork one erasure by merge rule, calibration and staleness, and train each fork on.

    Example: flwr-afuic bench ablation --objectives ascent --staleness 3 --plan
    """
    from flwr_afuic.app.demo import write_json
    from flwr_afuic.app.settings import AppSettings
    from flwr_afuic.app.summary import versions
    from flwr_afuic.bench import ablation_table as tables
    from flwr_afuic.bench.ablation import AblationSettings
    from flwr_afuic.bench.figures import fill
    from flwr_afuic.bench.kept import Keeper
    from flwr_afuic.cli.bench import read_seeds

    options.use_data_dir(data_dir)
    try:
        rounds = tuple(int(part) for part in staleness.split(","))
    except ValueError as error:
        raise ConfigError(f"--staleness {staleness!r}: write whole numbers, 0,3 say") from error
    values = options.read_pairs(pairs or [])
    plans = [
        AblationSettings(
            app=AppSettings.from_mapping(
                {**values, "dataset": name.strip(), "objective": objective.strip(), "seed": seed}
            ),
            staleness=rounds,
            rounds_after=rounds_after,
        )
        for name in datasets.split(",")
        for objective in objectives.split(",")
        for seed in read_seeds(seeds)
    ]

    def told(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    keeper = Keeper(out, budget=budget, told=told)
    if show_plan:
        for plan in plans:
            count, seconds = tables.missing_seconds(plan, keeper, full=full)
            app = plan.app
            typer.echo(
                f"{app.dataset} {app.objective} seed {app.seed}: {count} forks are missing, "
                f"about {seconds / 60:.0f} minutes on one core"
            )
        return
    runs = [run for plan in plans for run in tables.run_cells(
        plan, out, keeper, full=full, told=told)]  # fmt: skip
    text = tables.markdown(runs)
    typer.echo(text)
    if json_file is not None:
        write_json(
            json_file,
            {
                "figures": tables.flat_figures(runs),
                "settings": {**values, "rounds_after": rounds_after, "staleness": list(rounds)},
                "seeds": list(read_seeds(seeds)),
                "versions": versions(),
            },
        )
    if markdown is not None:
        fill(markdown, text, begin_mark=tables.BEGIN)
