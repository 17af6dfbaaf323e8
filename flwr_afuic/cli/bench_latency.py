"""``flwr-afuic bench latency``: how long methods take to forget where one site is slow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flwr_afuic.cli import options
from flwr_afuic.errors import ConfigError

if TYPE_CHECKING:
    from flwr_afuic.app.settings import AppSettings
    from flwr_afuic.bench.latency import LatencySettings
    from flwr_afuic.bench.latency_runs import Wanted


def latency(
    stragglers: Annotated[
        str, typer.Option(help="How many times as slow one site is, with commas between.")
    ] = "1,5,10,30",
    slow: Annotated[
        str, typer.Option(help="Who is slow: retained, target, or both with a comma.")
    ] = "retained,target",
    methods: Annotated[
        str | None, typer.Option(help="Methods to run with training, commas between; else all.")
    ] = None,
    runs: Annotated[
        str, typer.Option(help="Which runs: clock (time alone), training, or both with a comma.")
    ] = "clock,training",
    tail: Annotated[
        float, typer.Option(help="Index of the Pareto times; 0 leaves them out.")
    ] = 2.0,
    server_speed: Annotated[
        float, typer.Option(help="How many times as fast as a site the server computes.")
    ] = 4.0,
    seed: Annotated[int, typer.Option(help="Root of every random stream.")] = 0,
    pairs: options.Settings = None,
    data_dir: options.DataDir = None,
    out: Annotated[Path, typer.Option(help="Folder of finished runs, which are kept.")] = Path(
        "runs/latency"
    ),
    budget: Annotated[
        float | None, typer.Option(help="Begin no further run after so many seconds.")
    ] = None,
    show_plan: Annotated[
        bool, typer.Option("--plan", help="Print the runs that are missing and their time; stop.")
    ] = False,
    json_file: options.JsonFile = None,
    markdown: Annotated[
        Path | None,
        typer.Option(help="Fill the marked table of this Markdown file, and draw beside it."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Repeat finished runs.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure time to forget, stall and time to recover of every method beside a straggler.

    Example: flwr-afuic bench latency --stragglers 1,10 --plan
    """
    from flwr_afuic.app.demo import write_json
    from flwr_afuic.app.settings import AppSettings
    from flwr_afuic.bench import latency_table as tables
    from flwr_afuic.bench.figures import fill
    from flwr_afuic.bench.latency_figure import draw
    from flwr_afuic.bench.latency_runs import LatencyRunner

    options.use_data_dir(data_dir)
    app = AppSettings.from_mapping({**options.read_pairs(pairs or []), "seed": seed})
    federations = _federations(app, stragglers, slow, tail, server_speed)
    clocks, learned = _wanted(federations, methods, runs)

    def told(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    runner = LatencyRunner(out, fresh=fresh, budget=budget, told=told)
    if show_plan:
        missing = runner.missing([*clocks, *learned])
        for one in missing:
            kind = "time alone" if one.settings.clock_only else "with training"
            typer.echo(f"{one.settings.key} {one.method} ({kind}): about {one.seconds:.0f} s")
        total = sum(one.seconds for one in missing)
        typer.echo(f"{len(missing)} runs are missing, about {total / 60:.0f} minutes on one core")
        return
    results = tables.LatencyResults(
        federations, clock=runner.run(clocks), learned=runner.run(learned)
    )
    text = tables.markdown(results)
    typer.echo(text)
    for key, verdict in tables.verdicts(results).items():
        said = (f"{name} {'holds' if met else 'DOES NOT HOLD'}" for name, met in verdict.items())
        typer.echo(f"{key}: {', '.join(said)}")
    if json_file is not None:
        write_json(json_file, tables.content(results))
    if markdown is not None:
        image = draw(results, markdown.parent / "images" / "latency.png")
        fill(
            markdown,
            f"![{tables.CAPTION}](images/{image.name})\n\n{text}",
            begin_mark=tables.BEGIN,
        )


def _federations(
    app: AppSettings, stragglers: str, slow: str, tail: float, server_speed: float
) -> list[LatencySettings]:
    from flwr_afuic.bench.latency import LatencySettings

    names = [name.strip() for name in slow.split(",") if name.strip()]
    if not names or not set(names) <= {"retained", "target"}:
        raise ConfigError(f"--slow {slow!r}: use retained, target, or both with a comma")
    try:
        factors = [float(part) for part in stragglers.split(",")]
    except ValueError as error:
        raise ConfigError(f"--stragglers {stragglers!r}: write numbers, 1,10 say") from error
    found: dict[str, LatencySettings] = {}
    for index in (None, tail) if tail else (None,):
        for factor in factors:
            for name in names:
                one = LatencySettings(
                    app=app,
                    straggler=factor,
                    target_straggles=name == "target" and factor != 1,
                    tail=index,
                    server_speed=server_speed,
                )
                found.setdefault(one.key, one)
    return list(found.values())


def _wanted(
    federations: list[LatencySettings], methods: str | None, runs: str
) -> tuple[list[Wanted], list[Wanted]]:
    """List the runs of time alone in every federation, and those with training at fixed speeds."""
    from dataclasses import replace

    from flwr_afuic.bench.forget_protocol import method_named
    from flwr_afuic.bench.latency import METHODS, RIVALS
    from flwr_afuic.bench.latency_runs import Wanted, plan

    kinds = {name.strip() for name in runs.split(",")}
    if not kinds or not kinds <= {"clock", "training"}:
        raise ConfigError(f"--runs {runs!r}: use clock, training, or both with a comma")
    clocks: list[Wanted] = []
    if "clock" in kinds:
        timed = [method for method in METHODS if method != "retrain_floor"]
        clocks = plan([replace(one, clock_only=True) for one in federations], timed)
    if "training" not in kinds:
        return clocks, []
    known = ["retrain", "afuic", *RIVALS]
    named = known if methods is None else [name.strip() for name in methods.split(",")]
    chosen = [method_named(name, METHODS) for name in named]
    fixed = [one for one in federations if one.tail is None]
    learned = plan(fixed, chosen)
    base = [one for one in fixed if one.straggler == 1]
    if base and methods is None:  # two retrainings of one federation tell what noise is
        learned.insert(len(known), Wanted(base[0], "retrain_floor"))
    return clocks, learned
