"""The demo: a federation of hospitals, one of which asks to be forgotten, judged by retraining."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flwr.serverapp import Grid

from flwr_afuic.app.arms import STATE_FOLDER, ArmsResult, run_arms
from flwr_afuic.app.client_app import make_client_app, network
from flwr_afuic.app.engines import check_engine, run_engine
from flwr_afuic.app.federation import limit_threads
from flwr_afuic.app.local import SpeedModel
from flwr_afuic.app.scoring import Scorer
from flwr_afuic.app.server_app import make_strategy
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.app.summary import run_record, summarise
from flwr_afuic.erasure.certificate import render_certificate
from flwr_afuic.errors import ConfigError, FederationError
from flwr_afuic.state.reissue import issue_with
from flwr_afuic.state.store import StateStore

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DemoResult:
    """What a demo run measured: ``summary.json`` and ``record.json`` as dictionaries.

    ``certificate`` holds the files of the erasure's certificate by name, the server's public
    key among them; it is empty where the erasure was not completed.
    """

    summary: dict[str, Any]
    record: dict[str, Any]
    certificate: dict[str, bytes] = field(default_factory=dict)


def run_demo(
    settings: AppSettings,
    *,
    engine: str = "simulation",
    progress: Progress = lambda name, done, total: None,
) -> DemoResult:
    """Run every arm, score every round, and summarise; nothing is written to disk.

    Raises
    ------
    AfuicError
        Of any kind, with one clear line.
    """
    limit_threads()
    check_engine(engine)
    make_strategy(settings)  # with its data and model: fails here, before any engine starts
    network(settings)
    began = time.monotonic()
    results: list[ArmsResult] = []
    with TemporaryDirectory(prefix="flwr-afuic-sites-") as folder:

        def main(grid: Grid) -> None:
            results.append(run_arms(grid, settings, Path(folder), progress))

        speed = SpeedModel(factors={1: settings.straggler})
        app = make_client_app(settings, Path(folder))
        run_engine(engine, main, app, settings.sites, speed=speed)
        if not results:
            raise FederationError("the engine ended before the arms did; see the log above")
        summary, record = _measure(settings, engine, results[0], progress)
        summary["wall_seconds"] = time.monotonic() - began
        certificate = certificate_of(Path(folder) / STATE_FOLDER, summary)
    return DemoResult(summary, record, certificate)


def _measure(
    settings: AppSettings, engine: str, result: ArmsResult, progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Score every version of every arm; return the summary and the record."""
    scorer = Scorer(settings)
    total = sum(len(arm.recorder.versions) for arm in result.arms.values())
    done = 0

    def scored() -> None:
        nonlocal done
        done += 1
        progress("scoring", done, total)

    curves = {name: scorer.curve(arm, scored) for name, arm in result.arms.items()}
    summary, _ = summarise(settings, engine, result, curves)
    return summary, run_record(settings, result, curves, summary)


def certificate_of(state: Path, summary: dict[str, Any]) -> dict[str, bytes]:
    """Issue the erasure's certificate anew with what was measured beside retraining."""
    made_with = {key: summary[key] for key in ("settings", "seeds", "versions")}
    metrics = {"figures": summary["figures"], "made_with": made_with}
    request_id = summary["erasure"]["request_id"]
    with StateStore(state) as store:
        if store.certificate(request_id) is None:
            return {}
        document, signature = issue_with(store, request_id, metrics)
        return {
            "certificate.json": document,
            "certificate.json.sig": f"{signature}\n".encode("ascii"),
            "certificate.html": render_certificate(json.loads(document)).encode(),
            "server.pub": store.keys.public_pem,
        }


def write_demo(result: DemoResult, out: Path) -> None:
    """Write ``summary.json`` and ``record.json``, floats to every digit, and the certificate."""
    write_json(out / "summary.json", result.summary)
    write_json(out / "record.json", result.record)
    for name, data in result.certificate.items():
        (out / name).write_bytes(data)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object under a temporary name first, so that no half file is ever read.

    Raises
    ------
    ConfigError
        If the folder cannot be written.
    """
    text = json.dumps(content, indent=2, allow_nan=False, default=str) + "\n"
    beside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; name another folder") from error
