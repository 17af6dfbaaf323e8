"""``flwr-afuic bench forget``: every method on the same data, seeds and metrics."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flwr_afuic.cli import bench_segmentation as segmentation
from flwr_afuic.cli import options
from flwr_afuic.errors import ConfigError

if TYPE_CHECKING:
    from flwr_afuic.bench.forget import Cells, ForgetRunner, Plan

_OUT = Path("runs/forget")


def forget(
    datasets: Annotated[
        str, typer.Option(help="Names, .npz files or folders, with commas between.")
    ] = "pneumoniamnist,breastmnist,pbc28,mednist",
    methods: Annotated[
        str, typer.Option(help="With commas between; by default all that the scenario suits.")
    ] = "",
    scenario: Annotated[
        str,
        typer.Option(help="backdoor, mislabel, exclusive, clean, samples or patient."),
    ] = "backdoor",
    task: Annotated[
        str,
        typer.Option(help="classification, or segmentation: AFU-IC on hippocampus MRI volumes."),
    ] = "classification",
    planted: Annotated[
        int, typer.Option(help="Seeds 0, 1, 2, ... are run until so many planted their backdoor.")
    ] = 3,
    seeds: Annotated[
        str | None, typer.Option(help="These seeds instead, such as 0-2 or 1,4.")
    ] = None,
    staleness: Annotated[
        int, typer.Option(help="Rounds of the others while the site unlearns.")
    ] = 3,
    rounds_after: Annotated[int, typer.Option(help="Rounds trained after that.")] = 32,
    pairs: options.Settings = None,
    constants: Annotated[
        list[str] | None,
        typer.Option("--constant", metavar="METHOD.NAME=VALUE", help="A method's own setting."),
    ] = None,
    judged_on: Annotated[
        str, typer.Option(help="test, or tuning: validation data, to choose constants by.")
    ] = "test",
    workers: Annotated[int, typer.Option(help="Runs at once, each in its own process.")] = 1,
    stop_after: Annotated[
        float | None, typer.Option(help="Start no further run after so many seconds.")
    ] = None,
    show_plan: Annotated[
        bool, typer.Option("--plan", help="Only print the runs and their estimated time.")
    ] = False,
    data_dir: options.DataDir = None,
    out: Annotated[Path, typer.Option(help="Folder of finished runs, which are kept.")] = _OUT,
    json_file: options.JsonFile = None,
    markdown: Annotated[
        Path | None,
        typer.Option(
            help="Fill the marked table of the scenario and of options that are not the defaults "
            "in this file, and draw beside it."
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Repeat finished runs.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare every method of forgetting with retraining, for 30 rounds after the merge.

    Example: flwr-afuic bench forget --datasets pneumoniamnist,pbc28 --seeds 0-2 --plan
    """
    from flwr_afuic.app.demo import write_json
    from flwr_afuic.bench import forget_table
    from flwr_afuic.bench.figures import fill
    from flwr_afuic.bench.forget import ForgetRunner, Plan
    from flwr_afuic.bench.forget_protocol import (
        Protocol,
        cell_settings,
        check_methods,
        read_constants,
    )
    from flwr_afuic.cli.bench import names, read_seeds

    options.use_data_dir(data_dir)
    if task == "segmentation":
        if methods or constants:
            raise ConfigError(
                "--task segmentation compares AFU-IC with retraining and no unlearning; leave "
                "--methods and --constant out"
            )
        place = out if out != _OUT else Path("runs/segmentation")
        segmentation.run(
            "site,patient",
            seeds or "0",
            pairs or [],
            {"cache_dir": str(place / "warm")},
            out=place,
            json_file=json_file,
            markdown=markdown,
            fresh=fresh,
            quiet=quiet,
        )
        return
    if task != "classification":
        raise ConfigError(f"--task is {task!r}; use classification or segmentation")
    if planted < 1:
        raise ConfigError(f"--planted is {planted}; it must be at least 1")
    protocol = Protocol(staleness, rounds_after, judged_on)
    own = read_constants(constants or [])
    changes = options.read_pairs(pairs or [])
    chosen = check_methods([m.strip() for m in methods.split(",") if m.strip()], scenario)
    wanted = read_seeds(seeds) if seeds is not None else ()
    plans = [
        Plan(
            cell_settings(name, scenario, changes),
            protocol,
            scenario,
            chosen,
            None if wanted else planted,
            wanted,
            own,
        )
        for name in names(datasets)
    ]

    def told(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    limit = float("inf") if stop_after is None else stop_after
    runner = ForgetRunner(out, workers=workers, fresh=fresh, stop_after=limit, told=told)
    if show_plan:
        _print_plan(runner, plans, workers)
        return
    cells = runner.run(plans)
    text = forget_table.markdown(cells)
    typer.echo(text)
    if json_file is not None:
        write_json(json_file, _content(cells, changes, protocol))
    errors = [error for found in cells for error in found.errors]
    if errors:
        raise errors[0]
    if markdown is not None:
        variant = forget_table.variant_of(scenario, protocol, pairs or [], constants or [])
        pictures = _draw(cells, markdown.parent / "images", variant)
        fill(markdown, f"{pictures}\n\n{text}", begin_mark=forget_table.begin_mark(variant))


def _print_plan(runner: ForgetRunner, plans: list[Plan], workers: int) -> None:
    total = 0.0
    for piece, seconds, done in runner.plan(plans):
        state = "done" if done else f"{seconds:.0f} s"
        name = f"{piece.dataset} {piece.scenario} seed {piece.settings.seed} {piece.method}"
        typer.echo(f"{name}: {state}")
        total += 0.0 if done else seconds
    typer.echo(f"left: {total / 60:.0f} min of one core, {total / 60 / workers:.0f} min at best")


def _draw(cells: list[Cells], folder: Path, variant: str) -> str:
    import re

    from flwr_afuic.bench.forget_plots import draw_plane, draw_resurfacing

    shown = [found for found in cells if found.complete("retrain_floor")]
    words = variant.lower().replace("--set ", "").replace("--", "")
    name = re.sub(r"[^a-z0-9.]+", "-", words)
    first = draw_resurfacing(shown, folder / f"forget-{name}-resurfacing.png")
    second = draw_plane(shown, folder / f"forget-{name}-plane.png")
    return (
        f"![Resurfacing over 30 rounds](images/{first.name})\n\n"
        f"![Erased against retained data](images/{second.name})"
    )


def _content(cells: list[Cells], changes: dict[str, Any], protocol: Any) -> dict[str, Any]:
    """Build the JSON file: flat figures, and what they were made with."""
    from flwr_afuic.app.summary import versions
    from flwr_afuic.bench.forget_figures import flat_figures, rows, verdicts

    named = {found.plan.piece(0, "afuic").dataset: found for found in cells}
    return {
        "figures": flat_figures(cells),
        "verdicts": {name: [v.to_dict() for v in verdicts(rows(c))] for name, c in named.items()},
        "settings": changes,
        "constants": {m: dict(v) for c in cells for m, v in c.plan.constants.items()},
        "protocol": dataclasses.asdict(protocol),
        "seeds": {
            name: {m: c.complete(m) for m in c.plan.all_methods} for name, c in named.items()
        },
        "left_out": {name: c.left_out for name, c in named.items()},
        "versions": versions(),
    }
