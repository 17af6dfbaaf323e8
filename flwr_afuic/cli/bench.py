"""``flwr-afuic bench``: experiments that print the tables of the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flwr_afuic.app.settings import AppSettings
from flwr_afuic.cli import options
from flwr_afuic.cli.bench_ablation import ablation
from flwr_afuic.cli.bench_forget import forget
from flwr_afuic.cli.bench_latency import latency
from flwr_afuic.cli.bench_membership import membership
from flwr_afuic.cli.bench_multimodal import multimodal
from flwr_afuic.cli.bench_reference import reference
from flwr_afuic.cli.bench_scale import scale
from flwr_afuic.cli.bench_segmentation import segmentation
from flwr_afuic.cli.bench_server import server
from flwr_afuic.cli.bench_wall import wall
from flwr_afuic.errors import ConfigError

_PLAIN_STEPS = {"lr": 0.1, "momentum": 0.0}
"""Local training in ``bench memory``: gradient steps without memory, as the rule's analysis has."""

app = typer.Typer(help="Experiments that print the documentation's tables.", no_args_is_help=True)


app.command("segmentation")(segmentation)
app.command("multimodal")(multimodal)
app.command("server")(server)
app.command("scale")(scale)
app.command("forget")(forget)
app.command("ablation")(ablation)
app.command("latency")(latency)
app.command("membership")(membership)
app.command("reference")(reference)
app.command("wall")(wall)


@app.callback()
def bench() -> None:
    """Experiments that print the documentation's tables."""


@app.command("figures")
def figures(
    datasets: Annotated[
        str, typer.Option(help="Data sets, with commas between.")
    ] = "pneumoniamnist",
    planted: Annotated[
        int, typer.Option(help="Seeds 0, 1, 2, ... are run until so many planted their backdoor.")
    ] = 3,
    seeds: Annotated[
        str | None, typer.Option(help="Exactly these seeds instead, such as 0-9 or 1,4.")
    ] = None,
    silent_failures: Annotated[
        bool, typer.Option("--silent-failures", help="Also one row per seed: what was claimed.")
    ] = False,
    pairs: options.Settings = None,
    engine: options.Engine = "virtual",
    workers: Annotated[int, typer.Option(help="Runs at once, each in its own process.")] = 2,
    data_dir: options.DataDir = None,
    out: Annotated[Path, typer.Option(help="Folder of finished runs, which are kept.")] = Path(
        "runs/figures"
    ),
    json_file: options.JsonFile = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Fill the marked table of this Markdown file.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Repeat finished runs.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Run the demo's pipeline for several seeds and judge the mean of its figures.

    Example: flwr-afuic bench figures --datasets pneumoniamnist,pbc28 --planted 3 --workers 2
    """
    from flwr_afuic.app.demo import write_json
    from flwr_afuic.bench import figures as tables
    from flwr_afuic.bench.runs import Plan, Runner

    options.use_data_dir(data_dir)
    if planted < 1:
        raise ConfigError(f"--planted is {planted}; it must be at least 1")
    wanted = read_seeds(seeds) if seeds is not None else ()
    values = options.read_pairs(pairs or [])
    plans = [
        Plan(
            AppSettings.from_mapping({**values, "dataset": name}),
            None if wanted else planted,
            wanted,
        )
        for name in names(datasets)
    ]

    def told(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    runner = Runner(out, engine=engine, workers=workers, fresh=fresh, told=told)
    outcomes = runner.run(plans)
    text = tables.markdown(outcomes)
    typer.echo(text)
    if silent_failures:
        for outcome in outcomes:
            typer.echo(tables.silent_failures(outcome))
    if json_file is not None:
        write_json(json_file, _content(outcomes))
    errors = [error for outcome in outcomes for error in outcome.errors.values()]
    if errors:
        raise errors[0]
    if markdown is not None:
        tables.fill(markdown, text)


@app.command("leakage")
def leakage(
    datasets: Annotated[
        str, typer.Option(help="Data sets, with commas between.")
    ] = "pneumoniamnist",
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0-2 or 1,4.")] = "0",
    trials: Annotated[int, typer.Option(help="Requests of each size and seed.")] = 4,
    inverted: Annotated[
        int, typer.Option(help="How many of the requests of one image are attacked.")
    ] = 2,
    pairs: options.Settings = None,
    data_dir: options.DataDir = None,
    json_file: options.JsonFile = None,
) -> None:
    """Attack the deltas of small requests, as they are and as protected by default.

    Example: flwr-afuic bench leakage --seeds 0-2
    """
    from flwr_afuic.app.demo import write_json
    from flwr_afuic.bench import leakage_table
    from flwr_afuic.bench.leakage import measure

    options.use_data_dir(data_dir)
    if trials < 1 or inverted < 0:
        raise ConfigError(
            f"--trials is {trials}, --inverted {inverted}; at least 1 and 0 are needed"
        )
    values = {"scenario": "clean", "scope": "samples", **options.read_pairs(pairs or [])}
    figures: dict[str, float] = {}
    for name in names(datasets):
        found = []
        for seed in read_seeds(seeds):
            settings = AppSettings.from_mapping({**values, "dataset": name, "seed": seed})
            found += measure(settings, trials=trials, inverted=inverted)
        typer.echo(f"**{name}**, seeds {seeds}\n\n{leakage_table.markdown(found)}")
        figures |= leakage_table.flat_figures(name, found)
    if json_file is not None:
        write_json(json_file, {"figures": figures, "settings": values, "seeds": seeds})


@app.command("memory")
def memory(
    datasets: Annotated[str, typer.Option(help="Data sets, with commas between.")] = (
        "pneumoniamnist,pbc28,mednist"
    ),
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0-2 or 1,4.")] = "0-2",
    rounds: Annotated[int, typer.Option(help="Rounds of the original training.")] = 12,
    recovery: Annotated[int, typer.Option(help="Rounds of the retained sites afterwards.")] = 5,
    decay: Annotated[
        float, typer.Option(help="Step sizes fall as lr * round**-decay; 0 keeps them.")
    ] = 1.1,
    clients: Annotated[int, typer.Option(help="Clients of the generated history.")] = 100,
    parameters: Annotated[int, typer.Option(help="Its parameters.")] = 1_000_000,
    long: Annotated[
        bool, typer.Option("--long", help="100 rounds of it besides 20, which takes a while.")
    ] = False,
    parts: Annotated[
        str, typer.Option(help="What to run and print, of federations, codec and history.")
    ] = "federations,codec,history",
    pairs: options.Settings = None,
    data_dir: options.DataDir = None,
    out: Annotated[Path, typer.Option(help="Folder of finished runs, which are kept.")] = Path(
        "runs/memory"
    ),
    json_file: options.JsonFile = None,
    markdown: Annotated[
        Path | None,
        typer.Option(help="Fill the marked table of this Markdown file, and draw beside it."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Repeat finished runs.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Store the same updates in many ways, and unlearn a site that left from each.

    Example: flwr-afuic bench memory --seeds 0-2 --markdown docs/results.md
    """
    from flwr_afuic.app.demo import write_json
    from flwr_afuic.bench import memory_table as tables
    from flwr_afuic.bench.figures import fill
    from flwr_afuic.bench.history_peak import HistorySize
    from flwr_afuic.bench.memory import MemorySettings
    from flwr_afuic.bench.memory_figure import draw
    from flwr_afuic.bench.memory_runs import MemoryResults, MemoryRunner

    options.use_data_dir(data_dir)
    sizes = [HistorySize(clients, n, parameters) for n in ((20, 100) if long else (20,))]
    values = {**_PLAIN_STEPS, **options.read_pairs(pairs or [])}
    plans = [AppSettings.from_mapping({**values, "dataset": n}) for n in names(datasets)]
    asked = MemorySettings(rounds, recovery, decay)
    wanted = {part.strip() for part in parts.split(",")}
    if not wanted or wanted - {"federations", "codec", "history"}:
        raise ConfigError(f"--parts {parts!r}: name federations, codec, history, commas between")

    def told(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    runner = MemoryRunner(out, fresh=fresh, told=told)
    results = MemoryResults(
        runner.federations(plans, read_seeds(seeds), asked) if "federations" in wanted else {},
        runner.codec() if "codec" in wanted else {},
        [runner.history(size) for size in sizes] if "history" in wanted else [],
    )
    text = tables.markdown(results)
    typer.echo(text)
    if json_file is not None:
        write_json(json_file, tables.content(results))
    if markdown is not None:
        image = draw(results, markdown.parent / "images" / "memory.png")
        fill(markdown, f"![{tables.CAPTION}](images/{image.name})\n\n{text}",
             begin_mark=tables.BEGIN)  # fmt: skip


def read_seeds(text: str) -> tuple[int, ...]:
    """Read seeds such as ``0-9`` or ``1,4,7-8``, without repeats."""
    found: list[int] = []
    for part in text.split(","):
        first, mark, last = part.strip().partition("-")
        try:
            numbers = range(int(first), int(last if mark else first) + 1)
        except ValueError as error:
            raise ConfigError(f"--seeds {text!r}: write them like 0-9 or 1,4,7") from error
        if not numbers:
            raise ConfigError(f"--seeds {text!r}: {part.strip()!r} is empty; write it like 0-9")
        found += [number for number in numbers if number not in found]
    return tuple(found)


def names(datasets: str) -> list[str]:
    """Read names with commas between, each at most once."""
    names = [name.strip() for name in datasets.split(",") if name.strip()]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"--datasets {datasets!r}: name each data set once, commas between")
    return names


def _content(outcomes: list[Any]) -> dict[str, Any]:
    """Build the JSON file: flat figures, and what they were made with."""
    from flwr_afuic.app.summary import versions
    from flwr_afuic.bench import figures as tables

    return {
        "figures": tables.flat_figures(outcomes),
        "verdicts": {
            o.plan.settings.dataset: [v.to_dict() for v in tables.verdicts(o)] for o in outcomes
        },
        "settings": {
            o.plan.settings.dataset: {
                k: v for k, v in vars(o.plan.settings).items() if k not in ("seed", "data_dir")
            }
            for o in outcomes
        },
        "seeds": {o.plan.settings.dataset: sorted(o.counted) for o in outcomes},
        "left_out": {o.plan.settings.dataset: sorted(o.left_out) for o in outcomes},
        "versions": versions(),
    }
