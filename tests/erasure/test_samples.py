"""Lists of ids are read as hospitals write them, and never by guessing."""

from __future__ import annotations

import pytest

from flwr_afuic.erasure.samples import read_ids
from flwr_afuic.errors import DataError


def write(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "ids.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    "text",
    [
        "a-1\nb-2\n",
        "a-1\r\nb-2\r\n\r\n",
        "  a-1 \n\nb-2",
        "\ufeffa-1\nb-2\na-1\n",
        "id\na-1\nb-2\n",
        "Sample_ID\na-1\nb-2\n",
        "name,id,age\nX,a-1,3\nY,b-2,4\n",
        "name;ID\nX;a-1\nY;b-2\n",
        "id\tname\na-1\tX, Y\nb-2\tZ\n",
        'id,name\n"a-1","X, Y"\nb-2,\n',
    ],
)
def test_ids_are_found(tmp_path, text):
    assert read_ids(write(tmp_path, text)) == ["a-1", "b-2"]


def test_a_column_can_be_named(tmp_path):
    path = write(tmp_path, "id;accession\n1;a-1\n2;b-2\n")
    assert read_ids(path) == ["1", "2"]
    assert read_ids(path, "accession") == ["a-1", "b-2"]
    with pytest.raises(DataError, match="no column 'case'; its first line is 'id;accession'"):
        read_ids(path, "case")


def test_ids_may_hold_commas_where_they_are_quoted(tmp_path):
    assert read_ids(write(tmp_path, '"a,1"\n"b ""2"""\n')) == ["a,1", 'b "2"']


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no sample id"),
        ("\n \n", "holds no sample id"),
        ("id\n\n", "holds no sample id under 'id'"),
        ("a,b\nc,d\n", "several columns"),
        ("a\nb;c\n", "several columns"),
        ("id,sample_id\n1,2\n", "name one with --column"),
        ("id,name\n1,X\n2\n", "2 columns in its header and 1 in the line that begins '2'"),
        ('id\n"a\n', "malformed line"),
    ],
)
def test_what_cannot_be_read_without_guessing_is_refused(tmp_path, text, words):
    with pytest.raises(DataError, match=words):
        read_ids(write(tmp_path, text))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="UTF-8"):
        read_ids(write(tmp_path, "Müller\n", "latin-1"))
    with pytest.raises(DataError, match="cannot read sample ids"):
        read_ids(tmp_path / "nowhere.csv")
