"""The report as one HTML file that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

import base64
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from flwr_afuic.errors import ConfigError
from flwr_afuic.report.figures import prepare_folder, write_figures
from flwr_afuic.report.limits import limits
from flwr_afuic.report.look import printable
from flwr_afuic.report.record import METRICS, RunRecord
from flwr_afuic.report.tables import (
    METRIC_NAMES,
    flatten,
    measures,
    model_rows,
    number,
    plain,
    sense,
)
from flwr_afuic.report.words import outcome

_CAPTIONS = {
    "backdoor": (
        "Backdoor success over rounds. The goal is the line of the retrained model, not zero; "
        "the pale line is a second retraining with another seed."
    ),
    "test_score": "Test score over rounds. A dip at the merge would show right of its mark.",
    "timeline": (
        "Each bar is one task. The other sites' rows run through without a gap where nobody "
        "waited; the columns at the right give the same as numbers."
    ),
}


def write_report(record: RunRecord, out_dir: str | Path) -> Path:
    """Write ``report.html`` and its figures.

    Parameters
    ----------
    record : RunRecord
        The run.
    out_dir : str or Path
        Folder for ``report.html`` and the three PNG files; made if missing. The page embeds
        the figures, so that it can be sent on by itself.

    Returns
    -------
    Path
        The written ``report.html``.

    Raises
    ------
    ConfigError
        The folder cannot be made or written to.
    """
    folder = prepare_folder(out_dir)
    try:
        figures = write_figures(record, folder)
        page = folder / "report.html"
        page.write_text(render(record, figures), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write the report to {folder}: {error.strerror}; name a folder with room and "
            "the right to write"
        ) from error
    return page


def render(record: RunRecord, figures: dict[str, Path]) -> str:
    """Return the page as text; ``figures`` are the PNG files to embed, by name."""
    source = resources.files("flwr_afuic.report").joinpath("template.html")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, plain=plain, printable=printable)
    template = environment.from_string(source.read_text(encoding="utf-8"))
    return template.render(**_context(record), images=_images(figures))


def _images(figures: dict[str, Path]) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "caption": _CAPTIONS[name],
            "data": base64.b64encode(path.read_bytes()).decode("ascii"),
        }
        for name, path in figures.items()
    ]


def _context(record: RunRecord) -> dict[str, Any]:
    events = sorted(record.events, key=lambda event: (event.time is None, event.time or 0.0))
    figures = record.summary.get("figures")
    return {
        "record": record,
        "outcome": outcome(record),
        "metric_names": [METRIC_NAMES[metric] for metric in METRICS],
        "rows": model_rows(record),
        "senses": sense(record),
        "measures": measures(record),
        "events": events,
        "facts": flatten(record.erasure),
        "settings": flatten(record.settings),
        "versions": flatten(record.versions),
        "data": flatten(record.data),
        "figures": flatten(figures) if isinstance(figures, dict) else [],
        "limits": limits(record),
    }
