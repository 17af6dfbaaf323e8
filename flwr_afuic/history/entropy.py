"""Entropy coding of a record's integers: which coder writes, and which one reads.

The range coder comes within a few thousandths of a bit of the symbols' entropy; zstandard costs
some per cent more and is the fallback where ``constriction`` is not installed.
"""

from __future__ import annotations

from flwr_afuic.errors import ConfigError, RecordError
from flwr_afuic.history.coders import SymbolReader, SymbolWriter
from flwr_afuic.history.range_coder import RangeReader, RangeWriter, range_coder_installed
from flwr_afuic.history.zstd_coder import ZstdReader, ZstdWriter

WRITERS: dict[str, type[SymbolWriter]] = {cls.name: cls for cls in (RangeWriter, ZstdWriter)}


def writer_named(name: str) -> SymbolWriter:
    """Return a new writer: ``range``, ``zstd``, or ``auto`` for the best one installed."""
    if name == "auto":
        name = "range" if range_coder_installed() else "zstd"
    if name not in WRITERS:
        raise ConfigError(f"unknown coder {name!r}; use auto, range or zstd")
    if name == "range" and not range_coder_installed():
        raise ConfigError("coder is 'range', which needs constriction; install it or use 'auto'")
    return WRITERS[name]()


def reader_for(code: int, data: bytes) -> SymbolReader:
    """Return the reader of the coder with that code; RecordError for an unknown one."""
    if code == RangeWriter.code:
        return RangeReader(data)
    if code == ZstdWriter.code:
        return ZstdReader(data)
    raise RecordError(f"the record names coder {code}, which this version does not know")
