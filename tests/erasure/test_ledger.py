"""The ledger's chain, its signed head, and what they do not let pass."""

from __future__ import annotations

import hashlib
import json
import math
import random
import sqlite3
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_afuic.erasure.keys import KeyRing, read_public_keys
from flwr_afuic.erasure.ledger import (
    Head,
    canonical,
    chain,
    check_head,
    genesis,
    make_row,
    row_hash,
    sign_head,
    verify_ledger,
)
from flwr_afuic.errors import LedgerError, SignatureError, WireError
from flwr_afuic.state.checking import ledger_problems
from flwr_afuic.state.database import readable
from flwr_afuic.state.store import StateStore

NAME = "federation-1"


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    return KeyRing(tmp_path_factory.mktemp("keys"))


def rows_of(count, federation=NAME):
    rows, previous = [], genesis(federation)
    for seq in range(1, count + 1):
        rows.append(make_row(seq, 100.0 + seq, "version", {"version": seq}, previous))
        previous = rows[-1].hash
    return rows


def test_golden_numbers():
    # printf 'flwr-afuic ledger federation-1' | sha256sum
    assert genesis(NAME) == hashlib.sha256(b"flwr-afuic ledger federation-1").hexdigest()
    text = b'{"body":{"a":1},"kind":"x","previous":"' + b"0" * 64 + b'","seq":1,"time":2.5}'
    assert row_hash(1, 2.5, "x", {"a": 1}, "0" * 64) == hashlib.sha256(text).hexdigest()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(JSON)
def test_canonical_json_is_one_text_that_reads_back(value):
    text = canonical(value)
    assert json.loads(text) == value
    assert canonical(json.loads(text)) == text
    assert all(32 <= byte < 127 for byte in text)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=4), st.integers(), min_size=2, max_size=5))
def test_canonical_json_does_not_depend_on_order(value):
    assert canonical(dict(reversed(value.items()))) == canonical(value)


@pytest.mark.parametrize("value", [math.nan, [math.inf], object(), {1: 1, "a": 2}, b"x", {1, 2}])
def test_what_is_no_json_is_refused(value):
    with pytest.raises(LedgerError, match="JSON"):
        canonical(value)


def test_json_that_is_too_deep_is_refused():
    value: list = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(LedgerError):
        canonical({"a": value})


HEADS = st.builds(
    Head,
    federation=st.text(min_size=1, max_size=20),
    seq=st.integers(1, 2**63 - 1),
    hash=st.text("0123456789abcdef", min_size=64, max_size=64),
    time=st.floats(allow_nan=False, allow_infinity=False),
    key=st.text("0123456789abcdef", min_size=64, max_size=64),
    signature=st.text("0123456789abcdef", min_size=128, max_size=128),
)


@settings(max_examples=200, deadline=None)
@given(HEADS)
def test_heads_read_back(head):
    read = Head.from_json(json.loads(json.dumps(head.to_json())))
    assert read == head
    assert read.signed() == head.signed()


@settings(max_examples=200, deadline=None)
@given(HEADS, st.sampled_from(["federation", "seq", "hash", "time", "key", "signature"]), JSON)
def test_a_malformed_head_is_refused(head, field, value):
    fields = head.to_json()
    fields[field] = value
    try:
        read = Head.from_json(fields)
    except WireError:
        return
    assert type(getattr(read, field)) is type(getattr(head, field))


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 0},
        {"seq": True},
        {"seq": 2**63},
        {"seq": 1.0},
        {"federation": ""},
        {"federation": "x" * 101},
        {"hash": "AB" * 32},
        {"key": "ab" * 33},
        {"signature": "ab" * 64 + "\n"},
        {"time": 5},
        {"time": math.inf},
        {"more": 1},
    ],
)
def test_a_head_has_exactly_its_fields(ring, change):
    fields = sign_head(NAME, rows_of(1)[0], ring).to_json()
    with pytest.raises(WireError):
        Head.from_json({**fields, **change})
    with pytest.raises(WireError):
        Head.from_json({name: fields[name] for name in list(fields)[1:]})


@pytest.mark.parametrize("value", [None, 5, "x", [], {}])
def test_what_is_no_head_is_refused(value):
    with pytest.raises(WireError):
        Head.from_json(value)


def test_a_head_speaks_for_every_field(ring):
    head = sign_head(NAME, rows_of(3)[-1], ring)
    check_head(head, ring.public_hex)
    for change in (
        {"federation": "other"},
        {"seq": 2},
        {"hash": "0" * 64},
        {"time": 0.0},
        {"signature": "0" * 128},
    ):
        with pytest.raises(SignatureError, match="was changed"):
            check_head(replace(head, **change), ring.public_hex)
    with pytest.raises(SignatureError, match="signed by key"):
        check_head(head, "0" * 64)
    with pytest.raises(SignatureError, match="signed by key 'x'"):
        check_head(replace(head, key="x"), ring.public_hex)


def test_a_whole_chain_has_no_problem(ring):
    rows = rows_of(5)
    head = sign_head(NAME, rows[-1], ring)
    seen = [(f"site-{row.seq}", sign_head(NAME, row, ring)) for row in rows]
    assert chain(rows, NAME) == []
    assert chain([], NAME) == []
    assert verify_ledger(rows, NAME, head, seen, [ring.public_hex]) == []
    assert verify_ledger([], NAME, None, [], [ring.public_hex]) == []


def test_each_problem_is_named():
    rows = rows_of(6)
    assert chain(rows[:2] + rows[3:], NAME) == [
        "row 3 is missing: row 4 follows row 2",
        "row 4 (version) does not follow from row 2: the chain is broken",
    ]
    assert chain(rows[:1] + rows[4:], NAME)[0] == "row 2 to 4 is missing: row 5 follows row 1"
    assert chain([rows[1], rows[0], *rows[2:]], NAME)[:2] == [
        "row 1 is missing: row 2 follows row 0",
        "row 2 (version) does not follow from the federation's id: the chain is broken",
    ]
    assert chain([*rows, rows[2]], NAME)[0] == "row 3 stands where row 7 belongs"
    changed = [*rows[:3], replace(rows[3], body={"version": 9}), *rows[4:]]
    assert chain(changed, NAME) == [
        "row 4 (version) was changed: its hash does not match its content"
    ]
    assert chain([replace(rows[0], time=math.nan)], NAME)[0].startswith("row 1 was changed: ")
    assert chain(rows, "other") == [
        "row 1 (version) does not follow from the federation's id: the chain is broken"
    ]


def test_a_cut_tail_shows_at_a_site(ring):
    rows = rows_of(57)
    seen = [("hospital-2", sign_head(NAME, rows[56], ring))]
    head = sign_head(NAME, rows[39], ring)
    assert verify_ledger(rows[:40], NAME, head, seen, [ring.public_hex]) == [
        "site hospital-2 has seen head 57, the ledger ends at 40: its tail was cut"
    ]
    assert verify_ledger([], NAME, None, seen, [ring.public_hex]) == [
        "site hospital-2 has seen head 57, the ledger ends at 0: its tail was cut"
    ]


def test_a_rewritten_ledger_shows_at_a_site(ring):
    """Whoever has the key can rewrite everything but what the sites have kept."""
    rows = rows_of(5)
    seen = [("a", sign_head(NAME, rows[3], ring)), ("b", sign_head(NAME, rows[1], ring))]
    other = rows[:2]
    for seq in (3, 4, 5):
        other.append(make_row(seq, 0.0, "restored" if seq == 3 else "x", {}, other[-1].hash))
    head = sign_head(NAME, other[-1], ring)
    assert verify_ledger(other, NAME, head, seen, [ring.public_hex]) == [
        "site a has seen head 4 with another hash than row 4: the ledger was rewritten at or "
        "before it (a backup was restored at row 3)"
    ]


def test_a_site_that_shows_nonsense_is_named(ring, tmp_path):
    rows = rows_of(3)
    head = sign_head(NAME, rows[-1], ring)
    other = KeyRing(tmp_path / "other")
    keys = [ring.public_hex]
    problems = verify_ledger(
        rows,
        NAME,
        head,
        [
            ("a", sign_head(NAME, rows[0], other)),
            ("b", replace(head, seq=9)),
            ("c", sign_head("other", rows[0], ring)),
        ],
        keys,
    )
    assert problems == [
        "site a shows head 1, which no key of this server has signed",
        "site b shows head 9, which no key of this server has signed",
        "site c shows a head of federation 'other'",
    ]


def test_the_head_must_be_over_the_last_row_and_by_the_last_key(ring, tmp_path):
    rows, keys = rows_of(4), [ring.public_hex]
    for head, message in (
        (None, "the head was deleted"),
        (sign_head(NAME, rows[2], ring), "rows after 3 are not covered by the signed head"),
        (sign_head("other", rows[3], ring), "the head is of federation 'other'"),
        (replace(sign_head(NAME, rows[3], ring), time=0.0), "head 4 was changed"),
        (sign_head(NAME, replace(rows[3], hash="0" * 64), ring), "over another row 4"),
    ):
        (problem,) = verify_ledger(rows, NAME, head, [], keys)
        assert message in problem
    head = sign_head(NAME, rows[3], ring)
    (problem,) = verify_ledger(rows[:2], NAME, head, [], keys)
    assert problem == "the head was signed at row 4, the ledger ends at 2: its tail was cut"
    old = sign_head(NAME, rows[3], ring)
    rotated = KeyRing(tmp_path / "rotated")
    keys = [ring.public_hex, rotated.public_hex]
    (problem,) = verify_ledger(rows, NAME, old, [("a", old)], keys)
    assert "is signed by key" in problem
    new = sign_head(NAME, rows[3], rotated)
    assert verify_ledger(rows, NAME, new, [("a", old)], keys) == []


EDITS = 1_000
COLUMNS = ("seq", "time", "kind", "body", "previous", "hash")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    directory = tmp_path_factory.mktemp("state")
    with StateStore(directory, exclusive=True) as store:
        for number in range(30):
            with store.transaction() as change:
                change.append("version", {"version": number, "sites": ["a", "b"], "loss": 0.5})
        store.rotate_key()
        for number in range(9):
            with store.transaction() as change:
                change.append("state", {"request": str(number), "state": "merged"})
        assert store.verify() == []
    return directory


def stored(connection):
    return connection.execute("SELECT * FROM ledger ORDER BY seq").fetchall()


def write(connection, rows):
    """Replace the table's content, as somebody can who may write the file; return it."""
    connection.execute("DELETE FROM ledger")
    connection.executemany("INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?)", rows)
    return stored(connection)


def other_text(rng, text):
    """Return ``text`` with one character changed, left out or put in."""
    place = rng.randrange(len(text))
    letter = rng.choice("0123456789abcdef {}\u00e9\x00")
    return rng.choice(
        [
            text[:place] + letter + text[place + 1 :],
            text[:place] + text[place + 1 :],
            text[:place] + letter + text[place:],
        ]
    )


def change_field(rng, rows):
    index, column = rng.randrange(len(rows)), rng.choice(COLUMNS)
    row = dict(zip(COLUMNS, rows[index], strict=True))
    if column == "seq":
        taken = {entry[0] for entry in rows}
        row["seq"] = rng.choice([s for s in range(-3, len(rows) + 4) if s not in taken])
    elif column == "time":
        row["time"] = rng.choice(
            [math.nextafter(row["time"], 0), row["time"] + 1, 0.0, -1.0, "soon", math.inf]
        )
    else:
        row[column] = rng.choice(
            [other_text(rng, row[column]), "", row[column].encode(), row[column].upper(), 5]
        )
    rows[index] = tuple(row.values())


def change_body_in_meaning_only(rng, rows):
    """The same JSON in other bytes: still another ledger."""
    index = rng.randrange(len(rows))
    body = json.loads(rows[index][3])
    text = rng.choice(
        [
            json.dumps(body),
            json.dumps(body, indent=1),
            json.dumps(dict(reversed(body.items())), separators=(",", ":")),
            rows[index][3][:-1] + ',"version":0}',
            rows[index][3] + " ",
        ]
    )
    rows[index] = (*rows[index][:3], text, *rows[index][4:])


def delete_row(rng, rows):
    del rows[rng.randrange(len(rows))]


def swap_rows(rng, rows):
    one, two = rng.sample(range(len(rows)), 2)
    keep_numbers = rng.random() < 0.5
    first, second = rows[one], rows[two]
    if keep_numbers:
        rows[one], rows[two] = (first[0], *second[1:]), (second[0], *first[1:])
    else:
        column = rng.choice([1, 2, 3, 4, 5])
        if first[column] == second[column]:
            column = 5
        first, second = list(first), list(second)
        first[column], second[column] = second[column], first[column]
        rows[one], rows[two] = tuple(first), tuple(second)


def insert_row(rng, rows):
    place = rng.randrange(len(rows) + 1)
    copy = list(rng.choice(rows))
    if rng.random() < 0.5:
        copy[3] = '{"version":99}'
        copy[5] = row_hash(place + 1, copy[1], copy[2], json.loads(copy[3]), copy[4])
    rows[place:] = [(place + 1, *copy[1:])] + [(row[0] + 1, *row[1:]) for row in rows[place:]]


def cut_tail(rng, rows):
    del rows[rng.randrange(len(rows)) :]


def rehash(rows):
    """Make the chain whole again, as anybody can who has no key."""
    seq, previous = 1, rows[0][4]
    for index, (_, time, kind, body, _, _) in enumerate(rows):
        digest = row_hash(seq, time, kind, json.loads(body), previous)
        rows[index] = (seq, time, kind, body, previous, digest)
        seq, previous = seq + 1, digest


def change_and_rehash(rng, rows):
    index = rng.randrange(len(rows))
    seq, time, kind, body, previous, digest = rows[index]
    body = rng.choice(['{"version":98}', "{}"])
    rows[index] = (seq, time, rng.choice([kind, "x"]), body, previous, digest)
    rehash(rows)


def delete_and_rehash(rng, rows):
    delete_row(rng, rows)
    rehash(rows)


def insert_and_rehash(rng, rows):
    insert_row(rng, rows)
    rehash(rows)


def swap_and_rehash(rng, rows):
    one, two = rng.sample(range(len(rows)), 2)
    rows[one], rows[two] = rows[two], rows[one]
    rehash(rows)


KINDS = (
    change_field,
    change_field,
    change_body_in_meaning_only,
    delete_row,
    swap_rows,
    insert_row,
    cut_tail,
    change_and_rehash,
    delete_and_rehash,
    insert_and_rehash,
    swap_and_rehash,
)


def test_the_ledger_detects_every_one_of_1000_random_edits(original):
    rng = random.Random(20)
    keys = read_public_keys(original / "keys")
    connection = sqlite3.connect(":memory:")
    connection.text_factory = readable
    source = sqlite3.connect(original / "state.sqlite")
    source.backup(connection)
    source.close()
    truth = stored(connection)
    connection.execute("DROP TRIGGER ledger_keeps_its_rows")
    connection.execute("DROP TRIGGER ledger_loses_no_row")
    assert ledger_problems(connection, keys, ()) == []
    undetected, used = [], set()
    for number in range(EDITS):
        edit = rng.choice(KINDS)
        found = truth
        while found == truth:  # a digit may be replaced by itself
            rows = list(truth)
            edit(rng, rows)
            found = write(connection, rows)
        if not ledger_problems(connection, keys, ()):
            undetected.append((number, edit.__name__))
        used.add(edit)
    assert undetected == []
    assert used == set(KINDS)
    write(connection, truth)
    assert ledger_problems(connection, keys, ()) == []
    connection.close()
