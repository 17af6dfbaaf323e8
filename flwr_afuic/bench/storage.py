"""Ways to store a federation's updates, so that they can be compared: ours, and plain ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from flwr_afuic.history.codec import CodecSettings, decode_record, encode_update
from flwr_afuic.history.disk import DiskStore
from flwr_afuic.history.encoder import RecordEncoder
from flwr_afuic.history.memory import MemoryStore
from flwr_afuic.history.recorder import RecorderSettings
from flwr_afuic.history.sparsify import Threshold, UserSparsification
from flwr_afuic.history.store import AGGREGATE, Participant, UpdateStore, Window
from flwr_afuic.history.unlearn import Correction, unlearn

Flat = NDArray[np.float32]
Pack = Callable[[Sequence[Flat]], bytes]
Unpack = Callable[[bytes, Sequence[int]], list[Flat]]

EXACT = CodecSettings(lattice="none", threshold=Threshold("none"))
"""Every entry as float32."""

_TOP_SHARE = 0.05
_ZSTD_LEVEL = 3


@dataclass(frozen=True)
class Stored:
    """A history in one form, and what is unlearned from it.

    Attributes
    ----------
    records : int
        Bytes of the records of all sites.
    disk : int
        Bytes of the files that hold them, index included.
    correction : Correction
        Of the site that left.
    """

    records: int
    disk: int
    correction: Correction


@dataclass(frozen=True)
class Ours:
    """The history as this package stores it: an index, and records of a codec.

    Without ``shrink`` the correction is the sum of what was stored, its noise left in.
    """

    codec: CodecSettings
    aggregate: CodecSettings | None = None
    users: UserSparsification = field(default_factory=UserSparsification)
    shrink: bool = True

    def store(self, exact: UpdateStore, folder: Path, site: str) -> Stored:
        """Write every window of an exact history, and unlearn a site from what was written."""
        with DiskStore(folder) as store:
            store.set("seed", exact.seed)
            store.set("layout", exact.layout)
            encoders = [RecordEncoder(store, self.codec)]
            if self.aggregate is not None:
                encoders.append(RecordEncoder(store, self.aggregate))
            records = sum(self._window(store, exact, w, *encoders) for w in exact.windows())
            correction = unlearn(store, [site])
            if self.shrink:
                correction = correction.shrunk()
        # Closed: what SQLite keeps beside its file while that is open is no storage.
        files = (path for path in folder.rglob("*") if path.is_file())
        return Stored(records, sum(path.stat().st_size for path in files), correction)

    def _window(
        self,
        store: DiskStore,
        exact: UpdateStore,
        window: Window,
        encoder: RecordEncoder,
        of_aggregates: RecordEncoder | None = None,
    ) -> int:
        norms = {p.site: p.norm for p in window.participants}
        factors = dict.fromkeys(norms, 1.0)
        if self.users.keep < 1:
            factors = self.users.choose(norms, seed=store.seed, window=window.number)
        written = 0

        with store.begin() as writer:
            for site, factor in factors.items():
                arrays = exact_arrays(exact, window, site)
                record = encoder.encode(writer.number, site, arrays, factor=factor)
                written += len(record)
                writer.write(site, record)
            if of_aggregates is not None:
                arrays = exact_arrays(exact, window, AGGREGATE)
                record = of_aggregates.encode(writer.number, AGGREGATE, arrays)
                written += len(record)
                writer.write(AGGREGATE, record)
            participants = tuple(
                p if p.site in factors else replace(p, status="not-drawn")
                for p in window.participants
            )
            writer.commit(replace(window, number=writer.number, participants=participants))
        return written


@dataclass(frozen=True)
class Plain:
    """One file an update, with nothing around it: what a server might write without a codec.

    Of the correction, ``share`` is used.
    """

    pack: Pack
    unpack: Unpack
    share: float = 1.0

    def store(self, exact: UpdateStore, folder: Path, site: str) -> Stored:
        """Write every update of an exact history, and unlearn a site from what was written."""
        folder.mkdir(parents=True, exist_ok=True)
        back, written = MemoryStore(), 0
        with back:
            for window in exact.windows():
                for participant in window.participants:
                    file = folder / f"{window.number}-{participant.site}"
                    arrays = exact_arrays(exact, window, participant.site)
                    file.write_bytes(self.pack([a.reshape(-1) for a in arrays]))
                    written += file.stat().st_size
                _add_exact(back, window, site, self._read(folder, window, site, exact))
            found = unlearn(back, [site])
            shortened = replace(found, arrays=[self.share * part for part in found.arrays])
            return Stored(written, written, shortened)

    def _read(
        self, folder: Path, window: Window, site: str, exact: UpdateStore
    ) -> list[NDArray[Any]]:
        shapes = [shape for shape, _ in exact.layout or ()]
        data = (folder / f"{window.number}-{site}").read_bytes()
        flat = self.unpack(data, [math.prod(shape) for shape in shapes])
        return [part.reshape(shape) for part, shape in zip(flat, shapes, strict=True)]


Form = Ours | Plain


def exact_arrays(exact: UpdateStore, window: Window, site: str) -> list[NDArray[Any]]:
    """Return a deviation, or the aggregate, of a history that stores every entry."""
    data = exact.record(window.number, site)
    if data is None:  # it deviated by nothing
        return [np.zeros(shape, np.float32) for shape, _ in exact.layout or ()]
    return [np.asarray(array) for array in decode_record(data).arrays]


def _add_exact(
    store: UpdateStore, window: Window, site: str, arrays: Sequence[NDArray[Any]]
) -> None:
    """Add a window of which only one site's deviation is stored, as it is."""
    store.check_layout(arrays)
    with store.begin() as writer:
        writer.write(site, encode_update(arrays, EXACT, store.key(writer.number, site)))
        participants = tuple(
            Participant(p.site, p.weight, p.norm, "stored" if p.site == site else "not-drawn")
            for p in window.participants
        )
        writer.commit(replace(window, number=writer.number, participants=participants))


# ---- plain forms --------------------------------------------------------------------


def pack_as(dtype: str) -> Pack:
    """Every entry as a number of ``dtype``."""
    return lambda arrays: b"".join(array.astype(dtype).tobytes() for array in arrays)


def unpack_as(dtype: str) -> Unpack:
    """Read what :func:`pack_as` wrote."""

    def unpack(data: bytes, sizes: Sequence[int]) -> list[Flat]:
        return _divided(np.frombuffer(data, dtype).astype(np.float32), sizes)

    return unpack


def pack_zstd(arrays: Sequence[Flat]) -> bytes:
    """Float32, compressed by zstandard without loss."""
    return bytes(zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(pack_as("<f4")(arrays)))


def unpack_zstd(data: bytes, sizes: Sequence[int]) -> list[Flat]:
    """Read what :func:`pack_zstd` wrote."""
    return unpack_as("<f4")(zstandard.ZstdDecompressor().decompress(data), sizes)


def pack_8bit(arrays: Sequence[Flat]) -> bytes:
    """One signed byte an entry, and one scale a tensor: its largest entry is 127."""
    scales = np.array([float(np.abs(a).max(initial=0.0)) / 127 or 1.0 for a in arrays], "<f4")
    parts = [
        np.rint(array / scale).astype(np.int8) for array, scale in zip(arrays, scales, strict=True)
    ]
    return scales.tobytes() + b"".join(part.tobytes() for part in parts)


def unpack_8bit(data: bytes, sizes: Sequence[int]) -> list[Flat]:
    """Read what :func:`pack_8bit` wrote."""
    scales = np.frombuffer(data, "<f4", count=len(sizes))
    parts = _divided(np.frombuffer(data, np.int8, offset=scales.nbytes).astype(np.float32), sizes)
    return [part * scale for part, scale in zip(parts, scales, strict=True)]


def pack_largest(arrays: Sequence[Flat]) -> bytes:
    """The largest entries of the whole update as float32, with their indices as uint32."""
    flat: Flat = np.concatenate(arrays).astype("<f4")
    count = max(1, round(_TOP_SHARE * len(flat)))
    kept = np.sort(np.argpartition(np.abs(flat), -count)[-count:])
    return b"".join([kept.astype("<u4").tobytes(), flat[kept].tobytes()])


def unpack_largest(data: bytes, sizes: Sequence[int]) -> list[Flat]:
    """Read what :func:`pack_largest` wrote."""
    count = len(data) // 8
    flat = np.zeros(sum(sizes), np.float32)
    flat[np.frombuffer(data, "<u4", count=count)] = np.frombuffer(data, "<f4", offset=4 * count)
    return _divided(flat, sizes)


def _divided(flat: Flat, sizes: Sequence[int]) -> list[Flat]:
    return np.split(flat, np.cumsum(sizes)[:-1])


# ---- what is compared ---------------------------------------------------------------

UNCOMPRESSED = "fp32"
DEFAULT = "default"
WITHOUT_AGGREGATES = "default-aggregates"

NOT_RECOVERED = frozenset(
    {"fp16", "8-bit", "top-5%", "Z-1", "A2-1", "E8-1", "E8-3", "E8-.25", "default-Z"}
    | {"threshold-1", "threshold-3"}
)
"""Forms without a recovery of their own: what they would show, others do."""


def forms() -> dict[str, tuple[str, Form]]:
    """Return every form by name, with its words for a table, the uncompressed one first."""
    default = RecorderSettings()
    codec = default.codec
    apart = replace(codec, unit="tensor", hold=0.0, budget=0.0)

    def alone(lattice: str, step: float) -> tuple[str, Form]:
        return f"{lattice}, step {step:g} std of each tensor", Ours(
            replace(apart, lattice=lattice, step=step)
        )

    def cut(value: float) -> tuple[str, Form]:
        threshold = replace(codec.threshold, rule="std", value=value)
        return f"E8, step 1 std of each tensor, threshold {value:g} std", Ours(
            replace(apart, step=1.0, threshold=threshold)
        )

    return {
        UNCOMPRESSED: ("fp32", Plain(pack_as("<f4"), unpack_as("<f4"))),
        "fp32-.95": (
            "fp32, .95 of the correction", Plain(pack_as("<f4"), unpack_as("<f4"), share=0.95)
        ),
        "zstd": ("zstd of fp32", Plain(pack_zstd, unpack_zstd)),
        "fp16": ("fp16", Plain(pack_as("<f2"), unpack_as("<f2"))),
        "8-bit": ("8-bit quantization", Plain(pack_8bit, unpack_8bit)),
        "top-5%": ("top 5 %, values and indices", Plain(pack_largest, unpack_largest)),
        "Z-1": alone("Z", 1.0),
        "A2-1": alone("A2", 1.0),
        "E8-1": alone("E8", 1.0),
        "E8-3": alone("E8", 3.0),
        "E8-.25": alone("E8", 0.25),
        DEFAULT: (f"**default**: {words(codec)}", Ours(codec, default.aggregate, default.users)),
        "default-as-stored": (
            "default, the noise of storing left in",
            Ours(codec, default.aggregate, default.users, shrink=False),
        ),
        WITHOUT_AGGREGATES: (
            "default, without the aggregates that only replaying needs",
            Ours(codec, users=default.users),
        ),
        "default-Z": (
            "default on Z", Ours(replace(codec, lattice="Z"), default.aggregate, default.users)
        ),
        **{f"threshold-{value:g}": cut(value) for value in (1.0, 2.0, 3.0)},
        "half-the-users": (
            "default, half of the users drawn",
            Ours(codec, default.aggregate, UserSparsification("sampled", 0.5)),
        ),
    }  # fmt: skip


def words(codec: CodecSettings) -> str:
    """Describe a codec in a few words."""
    rule, value = codec.threshold.rule, codec.threshold.value
    threshold = {
        "none": "no threshold",
        "std": f"threshold {value:g} std",
        "absolute": f"threshold {value:g}",
        "fraction": f"largest {100 * value:g} %",
    }[rule]
    whose = "each tensor" if codec.unit == "tensor" else "the update"
    budget = f", at most {codec.budget:g} bits an entry in the long run" if codec.budget else ""
    held = f", held at {codec.hold:g}" if codec.hold else ""
    step = f"step {codec.step:g} std of {whose}"
    if codec.budget and codec.opening:
        step = f"step of each site's own ({codec.opening:g} bits an entry at first)"
    return f"{codec.lattice}, {step}{held}, {threshold}{budget}"
