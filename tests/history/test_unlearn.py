"""The rule, exactly; and what it says of rounds it could not remove."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_afuic.errors import ConfigError, HistoryError
from flwr_afuic.history.codec import CodecSettings, decode_record
from flwr_afuic.history.disk import DiskStore
from flwr_afuic.history.memory import MemoryStore
from flwr_afuic.history.recorder import Recorder, RecorderSettings
from flwr_afuic.history.sealed import seal
from flwr_afuic.history.sparsify import UserSparsification
from flwr_afuic.history.store import UpdateStore
from flwr_afuic.history.unlearn import unlearn

from .federations import EXACT, EXACTLY, record, some_rounds, without


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    with MemoryStore() as store:
        yield store


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the float32 of the records."""
    np.testing.assert_allclose(found, expected, atol=2e-5)


# ---- the rule -----------------------------------------------------------------------


def test_one_user_and_equal_weights_is_the_paper_s_formula(store: MemoryStore) -> None:
    rng = np.random.default_rng(1)
    users = "abcd"
    updates = [{u: rng.normal(size=7) for u in users} for _ in range(5)]
    record(store, [{u: (3.0, h) for u, h in round_.items()} for round_ in updates])
    count = len(users)
    paper = sum(
        (round_[u] - round_["c"]) / (count * (count - 1))
        for round_ in updates for u in users if u != "c"
    )  # fmt: skip
    close(unlearn(store, ["c"]).arrays[0], paper)


@given(st.integers(0, 10**6), st.sets(st.sampled_from("abcde"), min_size=1, max_size=2))
@settings(max_examples=30, deadline=None)
def test_any_weights_participants_and_forget_sets(seed: int, forget: set[str]) -> None:
    """The sum over rounds of the step without the sites minus the step with them."""
    rounds = some_rounds(seed)
    present = {site for updates in rounds for site in updates}
    with MemoryStore() as store:
        record(store, rounds)
        correction = unlearn(store, forget & present)
        close(correction.arrays[0], without(rounds, forget))
        assert correction.coverage.share == 1.0
        assert correction.coverage.gaps == []
        assert correction.sites == tuple(sorted(forget & present))
        assert correction.windows == len(rounds)


def test_kappa_lets_a_contribution_grow(store: MemoryStore) -> None:
    rounds = some_rounds(3)
    record(store, rounds)
    kappa = 1.1
    expected = sum(
        kappa ** (len(rounds) - 1 - j) * without([updates], {"a"})
        for j, updates in enumerate(rounds)
    )
    close(unlearn(store, ["a"], kappa=kappa).arrays[0], expected)


def test_of_exact_records_nothing_is_shrunk(store: MemoryStore) -> None:
    record(store, some_rounds(3))
    found = unlearn(store, ["a"])
    assert found.noise == (0.0,)
    assert np.array_equal(found.shrunk().arrays[0], found.arrays[0])


def test_noise_ages_and_weighs_as_what_it_is_in(store: MemoryStore) -> None:
    rounds = some_rounds(3)
    record(store, rounds, RecorderSettings(CodecSettings("E8", 0.5, hold=0.0), aggregate=None))
    kappa, expected = 1.3, 0.0
    for window in store.windows():
        expected *= kappa**2
        for site in window.participants:
            if site.site == "a":
                stored = decode_record(store.record(window.number, "a")).noise[0]  # type: ignore[arg-type]
                share = -1.0 if window.alone else -site.weight / (1.0 - site.weight)
                expected += share**2 * stored
    found = unlearn(store, ["a"], kappa=kappa)
    assert expected > 0
    assert found.noise == pytest.approx((expected,))
    whole = found.shrunk()
    size, energy = found.arrays[0].size, float(np.sum(found.arrays[0] ** 2))
    factor = max(0.0, 1 - (size - 2) / size * expected / energy)
    np.testing.assert_allclose(whole.arrays[0], factor * found.arrays[0], rtol=1e-12)
    assert whole.noise == ()
    assert np.array_equal(whole.shrunk().arrays[0], whole.arrays[0])  # once is enough


def test_two_deletions_are_the_joint_rule_and_never_a_chain(store: MemoryStore) -> None:
    rounds = some_rounds(4, sites="abcdef")
    record(store, rounds)
    joint = unlearn(store, ["a", "b"]).arrays[0]
    close(joint, without(rounds, {"a", "b"}))
    chained = unlearn(store, ["a"]).arrays[0] + unlearn(store, ["b"]).arrays[0]
    assert np.abs(joint - chained).max() > 0.01
    assert np.array_equal(unlearn(store, ["b", "a", "b"]).arrays[0], joint)


def test_an_empty_forget_set_leaves_the_model_bit_for_bit(store: MemoryStore) -> None:
    record(store, some_rounds(5, size=6))
    model = np.array([0.1, -0.0, 1e-45, -1e38, 3.0, np.pi], dtype=np.float32)
    correction = unlearn(store, [])
    (same,) = correction.apply([model])
    assert same.tobytes() == model.tobytes()
    assert same.dtype == np.float32
    assert (correction.norm, correction.coverage.share) == (0.0, 1.0)
    for dtype in (np.float16, np.float64):
        typed = model[:1].astype(dtype)
        part = replace(correction, arrays=[np.zeros(1)])
        assert part.apply([typed])[0].tobytes() == typed.tobytes()


def test_the_correction_is_added_where_there_is_one(store: MemoryStore) -> None:
    rounds = some_rounds(6)
    for updates in rounds:
        for _, update in updates.values():
            update[:10] = 0
    record(store, rounds)
    correction = unlearn(store, ["a"])
    model = np.full(40, -0.0, dtype=np.float32)
    (after,) = correction.apply([model])
    assert after[:10].tobytes() == model[:10].tobytes()
    close(after[10:], without(rounds, {"a"})[10:])
    assert correction.norm == pytest.approx(np.linalg.norm(without(rounds, {"a"})), rel=1e-5)
    with pytest.raises(HistoryError, match="name the history of this model"):
        correction.apply([model[:5]])


# ---- windows with few sites ---------------------------------------------------------


def test_a_round_with_nobody_left_is_an_error_or_goes_as_a_whole(store: MemoryStore) -> None:
    rounds = some_rounds(7)
    twos = np.full(40, 2.0, dtype=np.float32)
    rounds[2] = {"a": (1.0, twos), "b": (3.0, 3 * twos)}
    record(store, rounds)
    with pytest.raises(HistoryError, match=r"nobody is left in round 3 \(window 3\): all of a, b"):
        unlearn(store, ["a", "b"])
    unlearn(store, ["a"])
    removed = unlearn(store, ["a", "b"], nobody_left="remove")
    others = without(rounds[:2] + rounds[3:], {"a", "b"})
    close(removed.arrays[0], others - (2.0 + 3 * 6.0) / 4)
    assert removed.coverage.share == 1.0


def test_a_round_with_nobody_left_and_no_aggregate_is_a_gap(store: MemoryStore) -> None:
    rounds = [{"a": (1.0, np.ones(4)), "b": (1.0, np.zeros(4))}]
    record(store, rounds, replace(EXACTLY, aggregate=None))
    removed = unlearn(store, ["a", "b"], nobody_left="remove")
    assert removed.norm == 0
    assert removed.coverage.share == 0
    assert [(g.site, g.round, g.why) for g in removed.coverage.gaps] == [
        ("a", 1, "missing"), ("b", 1, "missing"),
    ]  # fmt: skip


def test_a_window_of_one_site_is_taken_out(store: MemoryStore) -> None:
    rounds = some_rounds(8)
    alone = np.arange(40.0, dtype=np.float32)
    record(store, [rounds[0], {"a": (5.0, alone)}, rounds[1], {"b": (2.0, -alone)}])
    close(unlearn(store, ["a"]).arrays[0], without(rounds[:2], {"a"}) - alone)
    close(unlearn(store, ["a", "b"]).arrays[0], without(rounds[:2], {"a", "b"}))


# ---- what was not stored ------------------------------------------------------------


def test_sampling_is_right_on_average(store: MemoryStore) -> None:
    rounds = some_rounds(9, rounds=4, size=10)
    half = replace(EXACTLY, aggregate=None, users=UserSparsification("sampled", keep=0.5))
    total, draws, gaps = np.zeros(10), 250, 0
    for seed in range(draws):
        with MemoryStore() as own:
            own.set("seed", seed)
            record(own, rounds, half)
            correction = unlearn(own, ["a"])
            total += correction.arrays[0]
            gaps += len(correction.coverage.gaps)
            assert {gap.why for gap in correction.coverage.gaps} <= {"not-drawn"}
    record(store, rounds)
    exact = unlearn(store, ["a"]).arrays[0]
    spread = np.linalg.norm(exact) / np.sqrt(draws)
    assert np.linalg.norm(total / draws - exact) < 2.5 * spread
    participations = sum("a" in updates for updates in rounds)
    assert 0.2 * participations < gaps / draws < 0.8 * participations


def test_a_site_that_deviates_by_nothing_is_covered(store: MemoryStore) -> None:
    same = np.ones(4, dtype=np.float32)
    record(store, [{"a": (1.0, same), "b": (1.0, same)}])
    correction = unlearn(store, ["a"])
    assert (correction.norm, correction.coverage.share) == (0.0, 1.0)


def test_topk_leaves_ordinary_sites_unerasable_and_says_so(store: MemoryStore) -> None:
    rounds = some_rounds(10, sites="abcd")
    for updates in rounds:
        for site in updates:
            if site == "d":
                updates[site] = (1.0, updates[site][1] * 50)
    top = replace(EXACTLY, users=UserSparsification("topk", keep=0.1))
    record(store, rounds, top)
    correction = unlearn(store, ["a"])
    took_part = [j for j, updates in enumerate(rounds, 1) if "a" in updates and "d" in updates]
    assert correction.coverage.share < 0.5
    assert {g.round for g in correction.coverage.gaps} >= set(took_part)
    (line,) = correction.coverage.summary()
    assert "not drawn by user sparsification" in line


def test_a_flipped_byte_is_told_with_client_and_round_and_the_rest_is_used(
    tmp_path: Path,
) -> None:
    rounds = some_rounds(11, sites="abc")  # never fewer than three: all take part
    with DiskStore(tmp_path) as store:
        record(store, rounds)
        exact = unlearn(store, ["a"]).arrays[0]
        data = store.record(4, "a")
        assert data is not None
        file = tmp_path / "records" / store.segments.file_of("a", 4)
        content = bytearray(file.read_bytes())
        content[content.index(data) + len(data) // 2] ^= 1
        file.write_bytes(content)
        correction = unlearn(store, ["a"])
        (gap,) = correction.coverage.damaged
        assert (gap.site, gap.round, gap.why) == ("a", 4, "damaged")
        assert "checksum" in gap.text
        lost = without([rounds[3]], {"a"})
        close(correction.arrays[0], exact - lost)
        assert correction.coverage.summary() == ["a: 5 of 6 rounds removed; damaged: 4"]
        assert unlearn(store, ["b"]).coverage.share == 1.0


def test_a_record_of_another_place_is_not_used(tmp_path: Path) -> None:
    rounds = some_rounds(12, sites="abc")
    with DiskStore(tmp_path) as store:
        record(store, rounds)
        files = [tmp_path / "records" / store.segments.file_of(s, 1) for s in "ab"]
        contents = [file.read_bytes() for file in files]
        assert len(contents[0]) == len(contents[1])
        for file, content in zip(files, reversed(contents), strict=True):
            file.write_bytes(content)
        correction = unlearn(store, ["a"])
        assert {gap.text for gap in correction.coverage.damaged} == {
            "the record belongs to another client, round or history"
        }
        assert correction.norm == 0


def test_every_reason_is_named(store: MemoryStore) -> None:
    rounds = some_rounds(13, rounds=5, sites="abc")
    record(store, rounds)
    store.retain(4)
    store.delete_client("b")
    correction = unlearn(store, ["a", "b"], nobody_left="remove")
    assert correction.coverage.summary() == [
        "a: 4 of 5 rounds removed; older than the history is kept: 1",
        "b: 0 of 5 rounds removed; deleted earlier: 1, 2, 3, 4, 5",
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"forget": ["x", "a"]}, HistoryError, "knows nothing of x; name sites"),
        ({"forget": ["a"], "kappa": 0.0}, ConfigError, "kappa is 0.0"),
        ({"forget": ["a"], "kappa": float("nan")}, ConfigError, "kappa is nan"),
        ({"forget": ["a"], "nobody_left": "ignore"}, ConfigError, "nobody_left is 'ignore'"),
    ],
)
def test_what_cannot_be_asked(
    store: MemoryStore, arguments: dict[str, object], error: type[Exception], words: str
) -> None:
    record(store, some_rounds(14))
    with pytest.raises(error, match=words):
        unlearn(store, **arguments)  # type: ignore[arg-type]


# ---- deletions after records were purged --------------------------------------------


def equal_rounds(seed: int, count: int = 8) -> list[dict[str, tuple[float, np.ndarray]]]:
    """Synchronous rounds: everybody, always with the same weight."""
    rng = np.random.default_rng(seed)
    weights = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 4.0}
    return [{s: (w, rng.normal(size=30)) for s, w in weights.items()} for _ in range(count)]


@pytest.mark.parametrize("kappa", [1.0, 1.05])
def test_a_second_deletion_after_the_first_one_s_records_are_gone(
    store: MemoryStore, kappa: float
) -> None:
    rounds = equal_rounds(1)
    with MemoryStore() as untouched:
        record(untouched, rounds)
        joint = unlearn(untouched, ["a", "b"], kappa=kappa).arrays[0]
        single = unlearn(untouched, ["b"], kappa=kappa).arrays[0]
    record(store, rounds[:5])
    first = unlearn(store, ["a"], kappa=kappa)
    gone = seal(store, first)
    assert {g.site for g in gone} == {"a"}
    assert len(gone) == 5
    recorder = Recorder(store, EXACTLY)
    for version, updates in enumerate(rounds[5:], start=6):
        for site, (weight, update) in updates.items():
            recorder.add(site, [update], weight)
        recorder.merged(version, version)
    second = unlearn(store, ["a", "b"], kappa=kappa)
    close(second.arrays[0], joint)
    assert np.abs(single - joint).max() > 0.01
    assert second.coverage.sealed_error < 1e-9
    assert second.coverage.summary()[0] == (
        "a: 8 of 8 rounds removed; 5 of them by an earlier deletion's sum"
    )
    seal(store, second)
    third = unlearn(store, ["a", "b"], kappa=kappa)
    close(third.arrays[0], joint)


def test_rounds_between_a_correction_and_its_sealing_do_not_age_it(store: MemoryStore) -> None:
    rounds = equal_rounds(5)
    later = [{s: u for s, u in updates.items() if s != "a"} for updates in rounds[4:]]
    kappa = 1.2
    with MemoryStore() as untouched:
        record(untouched, rounds[:4] + later)
        joint = unlearn(untouched, ["a", "b"], kappa=kappa).arrays[0]
    recorder = record(store, rounds[:4])
    correction = unlearn(store, ["a"], kappa=kappa)
    for version, updates in enumerate(later, start=5):
        for site, (weight, update) in updates.items():
            recorder.add(site, [update], weight)
        recorder.merged(version, version)
    seal(store, correction)
    close(unlearn(store, ["a", "b"], kappa=kappa).arrays[0], joint)


def test_where_participants_change_the_sealed_sum_is_close_and_says_how_close(
    store: MemoryStore,
) -> None:
    rounds = some_rounds(15, rounds=40, sites="abcdefgh", size=200)
    drift = {site: np.random.default_rng(ord(site)).normal(size=200) for site in "abcdefgh"}
    for updates in rounds:
        for site, (weight, noise) in updates.items():
            updates[site] = (weight, (drift[site] + 0.3 * noise).astype(np.float32))
    with MemoryStore() as untouched:
        record(untouched, rounds)
        joint = unlearn(untouched, ["a", "b"]).arrays[0]
        chained = unlearn(untouched, ["a"]).arrays[0] + unlearn(untouched, ["b"]).arrays[0]
    record(store, rounds)
    seal(store, unlearn(store, ["a"]))
    sealed = unlearn(store, ["a", "b"])
    distance = np.linalg.norm(sealed.arrays[0] - joint)
    assert distance < 0.5 * np.linalg.norm(chained - joint)
    assert 0.01 < sealed.coverage.sealed_error < 1.0
    assert distance < sealed.coverage.sealed_error * np.linalg.norm(joint)


def test_what_was_sealed_must_be_named_again(store: MemoryStore) -> None:
    record(store, equal_rounds(2))
    seal(store, unlearn(store, ["a"]))
    with pytest.raises(HistoryError, match="a were forgotten earlier"):
        unlearn(store, ["b"])
    with pytest.raises(HistoryError, match=r"used kappa 1.0, not 1.2"):
        unlearn(store, ["a", "b"], kappa=1.2)
    assert unlearn(store, []).norm == 0


def test_the_last_sites_of_a_round_after_an_earlier_deletion(store: MemoryStore) -> None:
    """All of a round's sites are forgotten, one of them earlier: its step goes as a whole."""
    rounds = equal_rounds(3, count=1)
    rounds[0] = {s: rounds[0][s] for s in "ab"}
    record(store, rounds)
    step = (3 * rounds[0]["a"][1] + rounds[0]["b"][1]) / 4
    seal(store, unlearn(store, ["a"]))
    close(unlearn(store, ["a", "b"], nobody_left="remove").arrays[0], -step)


# ---- memory -------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_history(tmp_path: Path) -> None:
    size = 60_000
    rng = np.random.default_rng(1)
    codec = RecorderSettings(codec=CodecSettings(step=0.1, budget=0.0))
    peaks = []
    with DiskStore(tmp_path) as store:
        recorder = Recorder(store, codec)
        for version in range(1, 13):
            for site in "abcd":
                recorder.add(site, [rng.normal(size=size).astype(np.float32)], 1.0)
            tracemalloc.start()
            recorder.merged(version, version)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        tracemalloc.start()
        unlearn(store, ["a", "b"])
        reading = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        stored = store.bytes_stored()
    assert stored > 2.5 * 60_000 * 12
    model = 4 * size
    # Sum, one record's symbols and its decoded values; sums are float64.
    assert reading < 9 * model
    assert max(peaks) < 14 * model
    assert max(peaks[6:]) < 1.1 * max(peaks[:6])


def test_records_hold_the_deviation(store: UpdateStore) -> None:
    rounds = equal_rounds(4, count=1)
    record(store, rounds)
    data = store.record(1, "a")
    assert data is not None
    mean = sum(w * h for w, h in rounds[0].values()) / 10
    close(decode_record(data, key=store.key(1, "a")).arrays[0], rounds[0]["a"][1] - mean)
    aggregate = store.aggregate(1)
    assert aggregate is not None
    close(decode_record(aggregate, key=store.key(1, "")).arrays[0], mean)
    assert EXACT.code == 0
