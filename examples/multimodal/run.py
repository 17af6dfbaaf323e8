"""Chest X-rays with texts, a CLIP with adapters, five hospitals: one of them erases a patient.

    python examples/multimodal/run.py --data-dir ../shared/data

Needs ``pip install 'flwr-afuic[multimodal]'`` and ``covid_cxr_text`` under the data folder;
``--phantoms`` runs on generated pairs instead (synthetic). Offline: a small CLIP is pretrained on
places that are no clients, then frozen. Two to four minutes on a free core.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import tempfile
from pathlib import Path

import torch
from flwr.clientapp import ClientApp

from flwr_afuic.app.local import LocalGrid, SpeedModel
from flwr_afuic.clients import MultimodalClient, PairData
from flwr_afuic.data.multimodal import (
    CLIENTS,
    ImageTextSet,
    load_covid_cxr_text,
    make_pair_phantoms,
    split_places,
)
from flwr_afuic.erasure.inbox import SiteInbox
from flwr_afuic.errors import AfuicError
from flwr_afuic.metrics import recall
from flwr_afuic.models.arrays import set_arrays
from flwr_afuic.models.clip import Backbone, SmallCLIP
from flwr_afuic.models.pretraining import Pretraining, pretrain
from flwr_afuic.strategies import EASE
from flwr_afuic.strategies.codec import to_record
from flwr_afuic.strategies.gate import GateSettings
from flwr_afuic.unlearning.excision import ExcisionSettings
from flwr_afuic.unlearning.pairs import Pairs, embed

MOST_WAITING = 30  # rounds until the erasure must be merged


class Hospital(MultimodalClient):
    """One place: its pairs, and a model of its own on the federation's frozen backbone."""

    def __init__(
        self, place: str, mine: ImageTextSet, pairs: Pairs, backbone: Backbone, inbox: Path
    ) -> None:
        super().__init__(inbox=SiteInbox(inbox), site=place)
        self.mine, self.pairs, self.backbone = mine, pairs, backbone

    def data(self) -> PairData:
        """Return the place's pairs."""
        mine = self.mine
        return PairData(self.pairs, mine.ids, patients=mine.patients, classes=mine.findings)

    def model(self) -> torch.nn.Module:
        """Return the backbone with adapters; their values come from the server."""
        return self.backbone.with_adapters(rank=8, seed=0)


def main() -> None:
    """Train, erase a patient in the middle, train on, and print what can be retrieved."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--phantoms", action="store_true", help="generated pairs (synthetic)")
    parser.add_argument("--rounds", type=int, default=20, help="before the request")
    parser.add_argument("--after", type=int, default=10, help="after its merge")
    parser.add_argument("--pretraining-steps", type=int, default=150)
    parser.add_argument("--cache", type=Path, default=Path("runs/multimodal/warm"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    if importlib.util.find_spec("transformers") is not None:
        importlib.import_module("transformers.utils.logging").disable_progress_bar()
    with tempfile.TemporaryDirectory() as work:
        federation_of(arguments, Path(work))


def federation_of(arguments: argparse.Namespace, work: Path) -> None:
    """Set up, run and print."""
    if arguments.phantoms:
        everything, clients = make_pair_phantoms(0, size=64), ("north", "east", "south", "west")
    else:
        everything, report = load_covid_cxr_text(
            arguments.data_dir, size=64, cache_dir=arguments.cache / "images"
        )
        clients = CLIENTS
        print(report.text())
    print(f"{everything.name}{' (synthetic)' if everything.synthetic else ''}: {everything.source}")
    print(f"licences: {everything.licence}")
    public = split_places(everything, clients).public
    plan = Pretraining(shape=SmallCLIP(), steps=arguments.pretraining_steps)
    backbone = pretrain(public, plan, seed=0, cache_dir=arguments.cache / "models")
    print(f"base model {backbone.fingerprint}: {len(public)} pairs of other places, then frozen")

    known = everything.take([i for i, p in enumerate(everything.places) if p in clients])
    pairs = backbone.encode(known)
    hospitals = {
        n: Hospital(
            place,
            known.take(known.rows(place=place)),
            pairs.take(known.rows(place=place)),
            backbone,
            work / f"{place}.sqlite",
        )
        for n, place in enumerate(clients)
    }
    model = backbone.with_adapters(rank=8, seed=0)
    names, initial = list(model.state_dict()), [p.detach().numpy() for p in model.parameters()]
    size = sum(array.size for array in initial)
    print(f"on the wire: {len(names)} adapter arrays, {size} values; the backbone never travels")

    first = hospitals[0]
    patient = max(sorted(set(first.mine.patients)), key=first.mine.patients.count)
    erased = known.rows(place=clients[0], patients=[patient])
    others = [i for i in range(len(known)) if i not in erased]

    def show(title: str, arrays: list) -> None:
        set_arrays(model, arrays)
        v, t = embed(model, pairs)
        numbers = [
            recall(v.numpy(), t.numpy(), pairs.groups.numpy(), rows).table()
            for rows in (erased, others)
        ]
        cells = [f"{numbers[n][f'mean/r{k}']:8.2f}" for n in (0, 1) for k in (1, 5, 10)]
        print(f"{title:34}" + "".join(cells))

    print(f"{clients[0]} will erase one patient with {len(erased)} images")
    columns = "".join(f"{f'R@{k}':>8}" for k in (1, 5, 10))
    print(f"{'recall, mean of both directions':34}{'the patient':>24}{'all others':>24}")
    print(f"{'':34}{columns}{columns}")
    show("base model", initial)
    seen: dict = {}

    def on_version(entry, arrays) -> None:
        seen["arrays"] = arrays
        if entry.cause == "merge" and entry.round % 5 == 0:
            show(f"round {entry.round}", arrays)
        elif entry.cause not in ("merge", "initial"):
            show(f"round {entry.round}: {entry.cause}", arrays)
        if entry.round == arguments.rounds and not first.inbox.tombstones():
            first.inbox.file(
                scope="samples", sample_ids=(), patients=[patient], held=first.mine.ids
            )
            print(f"-- {clients[0]} files the request; the patient's id stays there")

    def enough(run) -> bool:
        record = next(iter(strategy.requests), None)
        merged = None if record is None else record.merge_round
        return merged is not None and run.round >= merged + arguments.after

    strategy = EASE(
        history=work / "history",
        state_dir=work / "state",
        mode="sync",
        min_available_nodes=len(clients),
        evaluate_every=0,
        gate=GateSettings(by="off"),
        on_version=on_version,
        excision=ExcisionSettings(steps=40, lr=0.1),
    )
    strategy.stop_when = enough
    app = ClientApp(lambda c: hospitals[int(c.node_config["partition-id"])].to_client())
    speed = SpeedModel(seconds_per_step=0.001)
    grid = LocalGrid(app, len(hospitals), speed=speed, threads=1)
    try:
        rounds = arguments.rounds + arguments.after + MOST_WAITING
        strategy.start(grid, to_record(names, initial), num_rounds=rounds, timeout=3600.0)
    finally:
        grid.close()
    show("at the end", seen["arrays"])
    for record in strategy.requests:
        print(f"request {record.request_id}: {record.state}. {record.reason}")
        found = record.details.get("subspaces", {})
        print(
            f"forget-exclusive directions: {found.get('rank')} of {size}; fully entangled: "
            f"{found.get('entangled')}"
        )


if __name__ == "__main__":
    try:
        main()
    except AfuicError as error:
        raise SystemExit(f"error: {error}") from error
