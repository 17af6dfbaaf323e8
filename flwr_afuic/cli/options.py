"""Options several commands share, and settings from files and ``key=value`` pairs."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flwr_afuic.app.settings import AppSettings
from flwr_afuic.errors import ConfigError

DATA_DIR_VARIABLE = "AFUIC_DATA_DIR"
"""As in ``flwr_afuic.data.sources``, which would bring torch into every command."""

DataDir = Annotated[
    Path | None,
    typer.Option(help=f"Where data sets lie; else ${DATA_DIR_VARIABLE}, else the user cache."),
]
Engine = Annotated[
    str, typer.Option(help="local, virtual (latency studies) or simulation (Flower's, on Ray).")
]
Out = Annotated[Path, typer.Option(help="Folder for the summary, the record and the report.")]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", help="Also write figures, settings, seeds and versions to this file."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no table.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show Flower's and Ray's log.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting; may be given several times."),
]

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def use_data_dir(data_dir: Path | None) -> None:
    """Point this process, and those it starts, to a folder of data sets.

    It goes into the environment, not into the settings: these are printed in reports, which
    should not show where things lie on a hospital's machine.
    """
    if data_dir is None:
        return
    folder = data_dir.expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"--data-dir {folder} is not a folder; name one that holds data sets")
    os.environ[DATA_DIR_VARIABLE] = str(folder)


def read_config(path: Path) -> dict[str, Any]:
    """Read settings from a TOML file: top-level keys, named as in ``AppSettings``."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read settings from {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML ({error}); write lines like: sites = 6") from error


def read_pairs(pairs: Sequence[str], settings: type[Any] = AppSettings) -> dict[str, Any]:
    """Read ``key=value`` pairs, each value as the type its setting has in a dataclass."""
    known = [f for f in dataclasses.fields(settings) if f.default is not dataclasses.MISSING]
    kinds = {f.name: type(f.default) for f in known}
    values: dict[str, Any] = {}
    for pair in pairs:
        key, mark, text = pair.partition("=")
        name = key.strip().replace("-", "_")
        if not mark or not name:
            raise ConfigError(f"--set {pair!r} is not of the form key=value")
        values[name] = _typed(name, text.strip(), kinds.get(name, str))
    return values


def _typed(name: str, text: str, kind: type[Any]) -> Any:
    if kind is bool:
        if text.lower() not in (*_TRUE, *_FALSE):
            raise ConfigError(f"{name} is {text!r}; it must be true or false")
        return text.lower() in _TRUE
    try:
        if kind is tuple:
            return tuple(int(part) for part in text.split(","))
        return kind(text)
    except ValueError as error:
        raise ConfigError(f"{name} is {text!r}; it must be of type {kind.__name__}") from error
