"""``flwr-afuic demo`` and ``flwr-afuic run``: one federation, one erasure, one report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flwr_afuic.app.settings import AppSettings
from flwr_afuic.cli import options
from flwr_afuic.cli.progress import progress, quieten
from flwr_afuic.errors import ConfigError, DataError

_DEFAULTS = AppSettings()


def demo(
    dataset: Annotated[
        str | None,
        typer.Option(help="Name, .npz file or folder; default pneumoniamnist, else phantoms."),
    ] = None,
    data_dir: options.DataDir = None,
    engine: options.Engine = "simulation",
    seed: Annotated[int, typer.Option(help="Root of every random stream.")] = _DEFAULTS.seed,
    sites: Annotated[int, typer.Option(help="Number of hospitals.")] = _DEFAULTS.sites,
    scenario: Annotated[
        str, typer.Option(help="What site-0 holds: backdoor, mislabel or clean.")
    ] = _DEFAULTS.scenario,
    scope: Annotated[
        str, typer.Option(help="What it erases: client (all its data) or samples.")
    ] = _DEFAULTS.scope,
    merge: Annotated[
        str, typer.Option(help="delta (ours) or overwrite (the paper's reading).")
    ] = _DEFAULTS.merge,
    lock: Annotated[bool, typer.Option(help="The relearning lock.")] = _DEFAULTS.lock,
    prediction_invariance: Annotated[
        bool, typer.Option(help="KL consistency on the proxies.")
    ] = _DEFAULTS.prediction_invariance,
    phi: Annotated[
        str, typer.Option(help="Its transformation: monai, identity, ...")
    ] = _DEFAULTS.phi,
    objective: Annotated[
        str, typer.Option(help="Local unlearning objective.")
    ] = _DEFAULTS.objective,
    request_round: Annotated[
        int, typer.Option(help="The request is filed after so many rounds.")
    ] = _DEFAULTS.request_round,
    rounds_after: Annotated[
        int, typer.Option(help="Rounds trained after the merge.")
    ] = _DEFAULTS.rounds_after,
    straggler: Annotated[
        float, typer.Option(help="Slow-down of site-1 (virtual engine).")
    ] = _DEFAULTS.straggler,
    out: options.Out = Path("runs/demo"),
    json_file: options.JsonFile = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Run a federation of hospitals; one is forgotten in the middle; compare with retraining.

    Example: flwr-afuic demo --dataset phantoms --engine local --out runs/first
    """
    options.use_data_dir(data_dir)
    settings = AppSettings.from_mapping(
        {
            "dataset": dataset or _available(quiet),
            "seed": seed,
            "sites": sites,
            "scenario": scenario,
            "scope": scope,
            "merge": merge,
            "lock": lock,
            "prediction_invariance": prediction_invariance,
            "phi": phi,
            "objective": objective,
            "request_round": request_round,
            "rounds_after": rounds_after,
            "straggler": straggler,
        }
    )
    execute(settings, engine, out, json_file, quiet=quiet, verbose=verbose)


def run(
    config: Annotated[
        Path | None, typer.Option(help="TOML file with settings, one key a line.")
    ] = None,
    pairs: options.Settings = None,
    data_dir: options.DataDir = None,
    engine: options.Engine = "simulation",
    out: options.Out = Path("runs/run"),
    json_file: options.JsonFile = None,
    show: Annotated[bool, typer.Option("--show", help="Print the settings and stop.")] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Run the same with your own settings: from a TOML file, and --set, which wins.

    Example: flwr-afuic run --config settings.toml --set alpha=0.3 --set sites=8
    """
    values: dict[str, Any] = {} if config is None else options.read_config(config)
    values = {key.replace("-", "_"): value for key, value in values.items()}
    settings = AppSettings.from_mapping({**values, **options.read_pairs(pairs or [])})
    if show:
        for key, value in vars(settings).items():
            typer.echo(f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}")
        return
    options.use_data_dir(data_dir)
    execute(settings, engine, out, json_file, quiet=quiet, verbose=verbose)


def execute(
    settings: AppSettings,
    engine: str,
    out: Path,
    json_file: Path | None = None,
    *,
    quiet: bool = False,
    verbose: bool = False,
) -> None:
    """Run, write everything into ``out``, and print the table."""
    # Imported here: `--help` and refused settings should not wait for torch, MONAI and Flower.
    from flwr_afuic.app.demo import run_demo, write_demo, write_json
    from flwr_afuic.report import RunRecord, summary_table, write_report

    _prepare(out, json_file)
    quieten(verbose=verbose)
    with progress(quiet=quiet) as report:
        result = run_demo(settings, engine=engine, progress=report)
    write_demo(result, out)
    record = RunRecord.load(out / "record.json")
    page = write_report(record, out)
    if json_file is not None:
        write_json(json_file, result.summary)
    if quiet:
        return
    typer.echo(summary_table(record))
    if result.summary["synthetic"]:
        typer.echo("The data are SYNTHETIC (phantoms): the numbers say nothing about patients.")
    typer.echo(f"report:  {page}")
    if result.certificate:
        typer.echo(
            f"certificate: {out / 'certificate.html'}   check it: flwr-afuic verify "
            f"{out / 'certificate.json'} --key {out / 'server.pub'}"
        )
    typer.echo(f"summary: {out / 'summary.json'}   record: {out / 'record.json'}")


def _available(quiet: bool) -> str:
    """Return the default data set where it can be had, else phantoms, and say which."""
    from flwr_afuic.data.sources import PHANTOMS, locate

    name = _DEFAULTS.dataset
    try:
        locate(name)
    except DataError as error:
        chosen, text = PHANTOMS, f"data set: {PHANTOMS} (SYNTHETIC), because {error}"
    else:
        chosen, text = name, f"data set: {name}"
    if not quiet:
        typer.echo(text, err=True)
    return chosen


def _prepare(out: Path, json_file: Path | None) -> None:
    """Find out now, not after minutes, that results could not be written."""
    folders = [out] if json_file is None else [out, json_file.parent]
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".flwr-afuic-write-test"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"cannot write into {folder}: {error.strerror}; name another folder"
            ) from error
