"""What the server's work on large models costs, beside Flower's and beside what memory allows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from flwr_afuic.bench.server_sizes import Model, flower_reply, generated, interleaved, reply
from flwr_afuic.calibration.lock import RelearningLock
from flwr_afuic.federation.buffer import Update, UpdateBuffer
from flwr_afuic.federation.chunks import cores, spread
from flwr_afuic.federation.layout import Arrays
from flwr_afuic.federation.screening import UpdateScreen
from flwr_afuic.federation.snapshots import SnapshotStore
from flwr_afuic.state.files import sync_file
from flwr_afuic.state.vault import Vault
from flwr_afuic.strategies.codec import NumPyDialect, TrainReply, pack, to_record

SERVER_LR = 0.5


@dataclass
class Timed:
    """Least seconds of the works of one part, by name, and what else belongs to them.

    Attributes
    ----------
    part : str
        ``merge``, ``lock``, ``wire`` or ``disk``.
    size : int
        Parameters; of a lock, its rank.
    seconds : dict of str to float
        The least of each work's repeats.
    notes : dict of str to float
        Sizes that the table shows.
    """

    part: str
    size: int
    seconds: dict[str, float]
    notes: dict[str, float] = field(default_factory=dict)

    def ratio(self, work: str, floor: str) -> float:
        """Return how many times the floor a work takes."""
        return self.seconds[work] / self.seconds[floor]


def merge_part(parameters: int, updates: int, repeats: int) -> Timed:
    """Time a merge of some updates: ours, Flower's, and floors over the same bytes.

    ``merge`` is what the issue of a floor is about: updates that were decoded and judged go into
    the sum, and the sum into a new model. ``message to model`` is all of it for each update:
    decode, check every value, judge the norm, add; then make the model and pack it to be sent.
    Flower's aggregation decodes and packs, too, and checks nothing.

    Floors: ``floor`` is one fused multiply-add pass (``acc += weight * update``) per update in
    float32, in PyTorch, in place: read 4, read 4 and write 4 bytes for each parameter and update.
    ``float64 floor`` is such a pass over as many bytes as float64 sums of float32 updates take:
    read 4, read 8, write 8 for each parameter and update, and 16 to make the model. Both with one
    thread and with all, whichever is faster. The first update's bytes are its own, as from a
    network; they are made outside of the time.
    """
    model = generated(parameters)
    update = generated(parameters, seed=1, scale=0.01)
    buffer = UpdateBuffer(model.layout)
    message = reply(update, 10)
    flowers = [flower_reply(_renamed(message["fitres.parameters"], model), 10)] * updates  # type: ignore[arg-type]
    dialect, names = NumPyDialect(), model.layout.names

    arrived: list[RecordDict] = []

    def arrive() -> None:
        """Have the first reply come in bytes of its own, as each does from a network."""
        arrived[:] = [reply(update, 10)]

    def read(number: int) -> TrainReply:
        return dialect.read_train(message if number else arrived.pop())

    def merge() -> Arrays:
        for number in range(updates):
            buffer.add(Update("site", 0, 10 + number, read(number).arrays), 1.0)
        return buffer.merge(model.arrays, server_lr=SERVER_LR)

    def whole() -> ArrayRecord:
        screen = UpdateScreen(model.layout)
        for number in range(updates):
            found = read(number)
            squares = model.layout.check(found.arrays, "update")
            screen.refuse(found.arrays, found.examples, "site", squares)
            buffer.add(Update("site", 0, 10 + number, found.arrays), 1.0)
            del found
        return pack(names, buffer.merge(model.arrays, server_lr=SERVER_LR))

    def flower() -> ArrayRecord:
        return aggregate_arrayrecords(flowers, "num-examples")

    works: dict[str, Callable[[], object]] = {"merge": merge, "message to model": whole,
                                              "Flower": flower}  # fmt: skip
    works |= _floors(model, update, updates)
    prepared = dict.fromkeys(("merge", "message to model"), arrive)
    seconds = interleaved(works, repeats, prepared=prepared)
    for floor in ("floor", "float64 floor"):
        seconds[floor] = min(seconds.pop(f"{floor}, {threads}") for threads in ("one", "all"))
    return Timed("merge", parameters, seconds, {"updates": updates})


def _renamed(record: ArrayRecord, model: Model) -> ArrayRecord:
    return ArrayRecord(dict(zip(model.layout.names, record.values(), strict=True)))


def _floors(model: Model, update: Model, updates: int) -> dict[str, Callable[[], object]]:
    """Return passes over the bytes that a merge must touch."""
    sums32 = [torch.zeros(array.size) for array in model.arrays]
    terms32 = [torch.from_numpy(array) for array in update.arrays]
    # A float64 pass reads 8, reads 8 and writes 8 bytes an entry: of so many entries.
    bytes_needed = model.parameters * (20 * updates + 16)
    entries = bytes_needed // (24 * len(model.arrays) * (updates + 1))
    sums64 = [torch.zeros(entries, dtype=torch.float64) for _ in model.arrays]
    terms64 = [torch.ones(entries, dtype=torch.float64) for _ in model.arrays]
    target = [np.empty_like(array) for array in model.arrays]

    def fused(
        sums: list[torch.Tensor], terms: list[torch.Tensor], passes: int, threads: int
    ) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        for _ in range(passes):
            for total, term in zip(sums, terms, strict=True):
                total.add_(term, alpha=0.3)
        torch.set_num_threads(before)

    def copy() -> None:
        for into, array in zip(target, model.arrays, strict=True):
            flat, source = into.reshape(-1), array.reshape(-1)

            def work(pieces: Iterator[slice]) -> None:
                for piece in pieces:
                    flat[piece] = source[piece]  # noqa: B023 - spread() ends before the next array

            spread(flat.size, work)

    works: dict[str, Callable[[], object]] = {}
    for name, threads in (("one", 1), ("all", cores())):
        works[f"floor, {name}"] = partial(fused, sums32, terms32, updates, threads)
        works[f"float64 floor, {name}"] = partial(fused, sums64, terms64, updates + 1, threads)
    return {**works, "copy": copy}


def lock_part(parameters: int, rank: int, repeats: int) -> Timed:
    """Time the projection onto locks that are violated, beside two passes over their basis.

    A pass is one multiply-add for each entry of the basis, in BLAS, reading it once. Where locks
    are violated, the result goes to memory that is there, as in the engine.
    """
    rng = np.random.default_rng(0)
    lock, origin = RelearningLock(), np.zeros(parameters)
    for number in range(rank):
        lock.add(str(number), np.roll(_drawn(rng, parameters), number), origin)
    outside = -np.sum([lock.held(key)[0] for key in lock.keys], axis=0)
    lock.project(outside)
    basis = [lock.held(key)[0] for key in lock.keys]
    inside, place = -outside, np.zeros(parameters)

    def passes() -> None:
        for _ in range(2):
            for row in basis:
                row @ row

    works: dict[str, Callable[[], object]] = {
        "violated": lambda: lock.project(outside, into=place),
        "kept": lambda: lock.project(inside),
        "floor": passes,
    }
    return Timed("lock", rank, interleaved(works, repeats), {"parameters": parameters})


def _drawn(rng: np.random.Generator, size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.resize(rng.standard_normal(min(size, 1_000_003)), size)


def wire_part(parameters: int, repeats: int) -> Timed:
    """Time encoding a model and decoding a reply, ours and Flower's, and taking a snapshot."""
    model = generated(parameters)
    message, dialect, store = reply(model, 10), NumPyDialect(), SnapshotStore()
    record = message.array_records["fitres.parameters"]

    def snapshot() -> None:
        store.acquire(1, model.arrays)
        store.release(1)

    works: dict[str, Callable[[], object]] = {
        "encode": lambda: to_record(model.layout.names, model.arrays),
        "Flower's encode": lambda: [Array(array) for array in model.arrays],
        "decode": lambda: dialect.read_train(message),
        "Flower's decode": lambda: [array.numpy() for array in record.values()],
        "snapshot": snapshot,
        "copy": lambda: [array.copy() for array in model.arrays],
    }
    return Timed("wire", parameters, interleaved(works, repeats))


def disk_part(parameters: int, repeats: int, folder: Path | None = None) -> Timed:
    """Time a checkpoint's weights, and an update kept for withdrawal, beside plain writes."""
    model = generated(parameters)
    data = b"".join(array.data for array in model.arrays)
    with tempfile.TemporaryDirectory(prefix="flwr-afuic-", dir=folder) as name:
        place, vault = Path(name), Vault(Path(name) / "weights")
        buffer = UpdateBuffer(model.layout, withdrawable=True)

        def checkpoint() -> None:
            model.arrays[0][0] += 1  # other content, so that it is written
            digest = vault.put(dict(zip(model.layout.names, model.arrays, strict=True)))
            vault.path(digest).unlink()

        def write(synced: bool) -> None:
            path = place / "plain"
            with path.open("wb", buffering=0) as file:
                file.write(data)
            if synced:
                sync_file(path)
            os.unlink(path)

        def kept() -> None:
            buffer.add(Update("site", 0, 10, model.arrays), 1.0)
            buffer.clear()

        works: dict[str, Callable[[], object]] = {
            "checkpoint": checkpoint,
            "sequential write, synced": lambda: write(True),
            "update kept for withdrawal": kept,
            "sequential write": lambda: write(False),
        }
        return Timed("disk", parameters, interleaved(works, repeats))
