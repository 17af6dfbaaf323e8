"""Arrays in the bytes of their file: the same bytes as Flower's, no copy, read-only."""

from __future__ import annotations

import io

import numpy as np
import pytest

from flwr_afuic.federation.packing import file_of, header, made, viewed


def filled(value: object):
    def fill(array: np.ndarray) -> None:
        array[...] = value

    return fill


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (1, 0, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
def test_a_made_array_is_its_file(dtype: str, shape: tuple[int, ...]) -> None:
    array = made(dtype, shape, filled(3))
    assert (str(array.dtype), array.shape) == (dtype, shape)
    assert (array == np.array(3, dtype)).all()
    assert not array.flags.writeable
    data = file_of(array)
    if array.size:
        stream = io.BytesIO()
        np.save(stream, np.asarray(array), allow_pickle=False)
        assert data == stream.getvalue()
        again = viewed(data)
        assert again is not None
        assert np.shares_memory(again, array)
    else:
        assert data is None, "left to NumPy"


def test_only_a_whole_file_is_an_arrays_file() -> None:
    array = made("float32", (2, 3), filled(1))
    assert file_of(array) is file_of(array.reshape(2, 3)[:])
    for other in (array[:1], array.T, array.reshape(6), array.astype(np.float32), array[0, 0]):
        assert file_of(np.asarray(other)) is None
    assert file_of(np.frombuffer(bytes(24), np.float32).reshape(2, 3)) is None
    assert file_of(array.view(np.int32)) is None


def test_the_array_that_was_filled_can_no_longer_be_reached() -> None:
    kept: list[np.ndarray] = []
    with pytest.raises(BufferError):
        made("float32", (3,), kept.append)


def test_what_numpy_reads_itself() -> None:
    assert header("O", (2,)) == b""
    assert viewed(b"PK\x03\x04") is None
    stream = io.BytesIO()
    np.save(stream, np.asfortranarray(np.ones((2, 3))))
    assert viewed(stream.getvalue()) is None
