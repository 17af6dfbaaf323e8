"""One piece of ``flwr-afuic bench forget``: train, score every round, compare, write."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from flwr_afuic.app.arms import Recorder, Steward, floor_arrays
from flwr_afuic.app.client_app import network
from flwr_afuic.app.demo import write_json
from flwr_afuic.app.federation import FederationData, build_federation, limit_threads
from flwr_afuic.app.local import LocalGrid
from flwr_afuic.app.scoring import Scorer
from flwr_afuic.app.server_app import initial_arrays
from flwr_afuic.app.settings import AppSettings
from flwr_afuic.app.summary import versions
from flwr_afuic.bench.forget_methods import make_method
from flwr_afuic.bench.forget_protocol import Piece
from flwr_afuic.bench.forget_relearn import relearn_curve
from flwr_afuic.bench.forget_sites import Replies, make_sites, speed_of
from flwr_afuic.bench.runs import fingerprint
from flwr_afuic.data.probes import Trigger, backdoor_test_images
from flwr_afuic.errors import DataError, FederationError
from flwr_afuic.federation.journal import VersionEntry
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.metrics import jensen_shannon_divergence, parameter_distance_ratio
from flwr_afuic.models.arrays import set_arrays
from flwr_afuic.strategies.asynchronous import AsyncStrategy
from flwr_afuic.strategies.codec import to_record
from flwr_afuic.strategies.erasing import ErasureStrategy
from flwr_afuic.unlearning.inference import predict

Result = dict[str, Any]
_TIMEOUT = 3600.0


def run_piece(piece: Piece, folder: Path) -> Result:
    """Run one piece, and write its result and its last model; those it needs must be there.

    Raises
    ------
    AfuicError
        Of any kind, with one clear line.
    """
    limit_threads()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    began = time.monotonic()
    settings, data = piece.settings, build_federation(piece.settings)
    recorder, strategy, found = _train(piece, folder)
    trained = time.monotonic() - began
    arrays = strategy.run.arrays
    names = strategy.run.layout.names
    kept = _kept_samples(settings, data)
    result: Result = {
        "dataset": data.dataset.name,
        "synthetic": data.dataset.synthetic,
        "scenario": piece.scenario,
        "method": piece.method,
        "seed": settings.seed,
        "settings": {**asdict(settings), "data_dir": ""},
        "protocol": asdict(piece.protocol),
        "constants": dict(piece.constants),
        "target_share": len(data.sites[0]) / len(data.dataset.train),
        "erased_samples": len(data.forget),
        "replies_found": found,
        **_scored(piece, recorder, kept),
    }
    if piece.method == "original":
        end = result["curve"][str(max(int(r) for r in result["curve"]))]
        success = end["backdoor_success"]
        result["planted"] = None if success is None else success > 0.5
    else:
        result |= _beside_retraining(piece, folder, arrays, strategy, data)
    result["relearn"] = relearn_curve(settings, data, arrays)
    if isinstance(strategy, ErasureStrategy):
        result["erasure"] = _erasure(strategy)
    result["seconds"] = {"training": trained, "all": time.monotonic() - began}
    result |= {"versions": versions(), "code": fingerprint()}
    save_arrays(piece.arrays(folder), names, arrays)
    write_json(piece.result(folder), result)
    return result


def _train(piece: Piece, folder: Path) -> tuple[Recorder, AsyncStrategy, int]:
    """Run the method's federation on a virtual clock; also say how many replies were known."""
    settings, method = piece.settings, piece.method
    starts_late = method == "no_unlearning"
    first = settings.request_round if starts_late else 0
    ends = settings.request_round if method == "original" else piece.protocol.last_round(settings)
    recorder = Recorder(first)
    replies = Replies(piece.replies(folder), keeps=method == "original")
    never = method in ("no_unlearning", "retrain", "retrain_floor")
    partly = never and settings.scope == "samples"
    without = frozenset(build_federation(settings).forget.ids) if partly else frozenset()
    with TemporaryDirectory(prefix="flwr-afuic-sites-") as inboxes:
        steward = Steward(settings, Path(inboxes))

        def on_version(entry: VersionEntry, arrays: Arrays) -> None:
            recorder(entry, arrays)
            if isinstance(strategy, ErasureStrategy) and entry.round >= settings.request_round:
                steward.file_once()

        strategy = make_method(settings, method, piece.constants, on_version=on_version)
        app = make_sites(settings, Path(inboxes), replies, without)
        grid = LocalGrid(app, settings.sites, speed=speed_of(settings, piece.protocol), threads=1)
        try:
            strategy.start(grid, _first(piece, folder), num_rounds=ends - first, timeout=_TIMEOUT)
        finally:
            grid.close()
    if isinstance(strategy, ErasureStrategy) and not strategy.requests:
        raise FederationError(f"{method}: the request never reached the server")
    return recorder, strategy, replies.found


def _first(piece: Piece, folder: Path) -> ArrayRecord:
    if piece.method == "retrain_floor":
        return floor_arrays(piece.settings)
    if piece.method != "no_unlearning":
        return initial_arrays(piece.settings)
    path = piece.of("original").arrays(folder)
    names = list(network(piece.settings).state_dict())
    return to_record(names, load_arrays(path, names))


def _kept_samples(settings: AppSettings, data: FederationData) -> list[int]:
    """Rows of the target's data that stay with it."""
    if settings.scope == "client":
        return []
    erased = set(data.forget.ids)
    return [row for row, sample in enumerate(data.sites[0].ids) if sample not in erased]


def _judging(piece: Piece) -> FederationData:
    """Return the federation's data with what scores are read on in the test split's place."""
    data = build_federation(piece.settings)
    if piece.protocol.judged_on == "test":
        return data
    triggered = None
    if data.triggered is not None:
        trigger = Trigger.for_channels(data.dataset.channels)
        triggered = backdoor_test_images(data.tuning, trigger, data.backdoor_label)
    return replace(data, dataset=replace(data.dataset, test=data.tuning), triggered=triggered)


def _scored(piece: Piece, recorder: Recorder, kept: list[int]) -> Result:
    """Score the last model of every round from the request on, and each side of the last merge."""
    settings = piece.settings
    scorer = Scorer(settings, _judging(piece))
    model = network(settings)
    site = build_federation(settings).sites[0]
    known: dict[int, dict[str, float | None]] = {}

    def score(version: int) -> dict[str, float | None]:
        if version not in known:
            arrays = recorder.versions[version][1]
            known[version] = asdict(scorer.score(arrays))
            if kept:
                set_arrays(model, arrays)
                hits = predict(model, site.images[kept]).argmax(1) == site.labels[kept]
                known[version]["kept"] = float(hits.double().mean())
        return known[version]

    by_round: dict[int, int] = {}
    merges = []
    for version in sorted(recorder.versions):
        entry = recorder.versions[version][0]
        by_round[recorder.first_round + entry.round] = version
        if entry.cause == "erasure":
            merges.append(version)
    curve = {str(r): score(v) for r, v in by_round.items() if r >= settings.request_round}
    if not merges:
        return {"curve": curve, "merge": None}
    last = merges[-1]
    before = max(version for version in recorder.versions if version < last)
    entry = recorder.versions[last][0]
    return {
        "curve": curve,
        "merge": {
            "round": recorder.first_round + entry.round,
            "version": last,
            "merges": len(merges),
            "before": score(before),
            "after": score(last),
        },
    }


def _beside_retraining(
    piece: Piece, folder: Path, arrays: Arrays, strategy: AsyncStrategy, data: FederationData
) -> Result:
    """Compare the last model with retraining's: in parameters, and in predictions."""
    if piece.method == "retrain":
        return {}
    names, layout = strategy.run.layout.names, strategy.run.layout
    again = load_arrays(piece.of("retrain").arrays(folder), names)
    original = load_arrays(piece.of("original").arrays(folder), names)
    u, r, o = (layout.trained(model) for model in (arrays, again, original))
    ours, theirs = network(piece.settings), network(piece.settings)
    set_arrays(ours, arrays)
    set_arrays(theirs, again)
    return {
        "distance_ratio": parameter_distance_ratio(u, r, o),
        "divergence_forget": _divergence(ours, theirs, data.forget.images),
        "divergence_test": _divergence(ours, theirs, data.dataset.test.images),
    }


def _divergence(first: torch.nn.Module, second: torch.nn.Module, images: torch.Tensor) -> float:
    p, q = (predict(m, images).double().softmax(1).numpy() for m in (first, second))
    return jensen_shannon_divergence(p, q)


def _erasure(strategy: ErasureStrategy) -> Result:
    record = strategy.requests[0]
    merges = strategy.merges
    return {
        "state": str(record.state),
        "reason": record.reason,
        "attempts": record.attempts,
        "request_round": strategy.journal.of_kind("request")[0].round,
        "staleness": merges[-1].staleness if merges else None,
        "over_forgetting": bool(record.verdict and record.verdict.over_forgetting),
    }


def save_arrays(path: Path, names: list[str] | tuple[str, ...], arrays: Arrays) -> None:
    """Write a model under a temporary name first."""
    named = {n: np.ascontiguousarray(a) for n, a in zip(names, arrays, strict=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    save_file(named, beside)
    beside.replace(path)


def load_arrays(path: Path, names: list[str] | tuple[str, ...]) -> Arrays:
    """Read a model; DataError where it is missing or damaged."""
    try:
        stored = load_file(path)
        return [stored[name] for name in names]
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(f"cannot read the model {path} ({error}); run its piece again") from error
