"""The memory bench: forms of storage, what is unlearned from each, and what is made of it."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from flwr_afuic.bench import memory_table, rates, storage
from flwr_afuic.bench.falling import FallingSteps
from flwr_afuic.bench.figures import END, fill
from flwr_afuic.bench.history_peak import HistorySize, history_peak
from flwr_afuic.bench.memory import MemorySettings, measure
from flwr_afuic.bench.memory_runs import MemoryResults
from flwr_afuic.bench.storage import DEFAULT, EXACT, UNCOMPRESSED, WITHOUT_AGGREGATES, Ours, forms
from flwr_afuic.cli import commands
from flwr_afuic.errors import ConfigError, DataError, HistoryError
from flwr_afuic.history.memory import MemoryStore
from flwr_afuic.history.recorder import Recorder, RecorderSettings
from flwr_afuic.history.unlearn import unlearn
from tests.app import tiny

SHAPES = [(40, 30), (7,)]
SITES, ROUNDS = 4, 3
ENTRIES = 1207


@pytest.fixture
def exact():
    with MemoryStore() as store:
        store.set("seed", 5)
        recorder = Recorder(store, RecorderSettings(codec=EXACT, aggregate=EXACT))
        rng = np.random.default_rng(0)
        for round_ in range(1, ROUNDS + 1):
            for site in range(SITES):
                update = [rng.laplace(size=shape).astype(np.float32) for shape in SHAPES]
                recorder.add(f"site-{site}", update, 10.0 + site)
            recorder.merged(round_, round_)
        yield store


@pytest.fixture
def stored(exact, tmp_path):
    return lambda name: forms()[name][1].store(exact, tmp_path / name, "site-0")


def distance(one, other):
    parts = zip(one.arrays, other.arrays, strict=True)
    return math.sqrt(sum(float(np.sum((a - b) ** 2)) for a, b in parts)) / other.norm


# ---- forms --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fp32", "zstd"])
def test_forms_without_loss_give_the_correction_of_the_history(stored, exact, name):
    wanted = unlearn(exact, ["site-0"])
    found = stored(name)
    for array, expected in zip(found.correction.arrays, wanted.arrays, strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(("name", "least", "most"), [
    ("fp16", 1e-6, 1e-3), ("8-bit", 1e-3, 0.05), ("E8-.25", 0.01, 0.15), ("Z-1", 0.1, 0.5),
    ("E8-1", 0.1, 0.45), (DEFAULT, 0.1, 0.4), ("top-5%", 0.5, 0.95),
])  # fmt: skip
def test_forms_with_loss_come_as_near_as_they_should(stored, exact, name, least, most):
    assert least < distance(stored(name).correction, unlearn(exact, ["site-0"])) < most


def test_bytes_are_those_of_the_files(stored, tmp_path):
    plain = stored(UNCOMPRESSED)
    assert plain.disk == plain.records == 4 * ENTRIES * SITES * ROUNDS
    ours = stored(DEFAULT)
    files = [path for path in (tmp_path / DEFAULT).rglob("*") if path.is_file()]
    kept = [path for path in files if path.suffix == ".records"]
    assert ours.records == sum(path.stat().st_size for path in kept)
    assert ours.disk == sum(path.stat().st_size for path in files)
    assert {path.name for path in files} >= {"history.sqlite"}
    assert not [path for path in files if path.name.endswith(("-shm", "-wal"))]
    less = stored(WITHOUT_AGGREGATES)
    assert less.records < ours.records
    assert distance(less.correction, ours.correction) == 0.0
    assert 8 * stored("top-5%").records == 8 * SITES * ROUNDS * 8 * round(0.05 * ENTRIES)
    assert stored("8-bit").records == SITES * ROUNDS * (ENTRIES + 4 * len(SHAPES))


def test_what_is_left_of_the_correction(exact, tmp_path):
    def correction(name):
        return forms()[name][1].store(exact, tmp_path / name, "site-0").correction

    whole = correction(UNCOMPRESSED)
    for part, expected in zip(correction("fp32-.95").arrays, whole.arrays, strict=True):
        np.testing.assert_allclose(part, 0.95 * expected)
    raw, shrunk = correction("default-as-stored"), correction(DEFAULT)
    for part, expected in zip(shrunk.arrays, raw.shrunk().arrays, strict=True):
        np.testing.assert_array_equal(part, expected)
    assert shrunk.norm < raw.norm


def test_half_of_the_users_are_stored(exact, tmp_path):
    form = forms()["half-the-users"][1]
    found = form.store(exact, tmp_path / "half", "site-0")
    every = form.store(exact, tmp_path / "other", "site-3")
    assert found.correction.coverage.share < 1 or every.correction.coverage.share < 1
    whole = Ours(form.codec, form.aggregate).store(exact, tmp_path / "whole", "site-0")
    assert found.records < 0.7 * whole.records


def test_the_large_entries_are_kept_as_they_are():
    array = np.random.default_rng(1).normal(size=100).astype(np.float32)
    (back,) = storage.unpack_largest(storage.pack_largest([array]), [100])
    kept = np.argsort(-np.abs(array))[:5]
    np.testing.assert_array_equal(back[kept], array[kept])
    assert np.count_nonzero(back) == 5


def test_eight_bits_are_off_by_half_a_step_of_their_tensor_at_most():
    arrays = [np.array([0.0, 0.3, -12.7], np.float32), np.zeros(4, np.float32)]
    back = storage.unpack_8bit(storage.pack_8bit(arrays), [3, 4])
    np.testing.assert_allclose(back[0], arrays[0], atol=0.05 + 1e-6)
    assert back[0][2] == pytest.approx(-12.7)
    np.testing.assert_array_equal(back[1], 0)


# ---- the codec by itself ------------------------------------------------------------


def test_rates_lie_between_the_limit_and_the_scalar_lattice():
    points = rates.rate_distortion(entries=60_000)
    bits = {(p.lattice, p.distortion): p.bits for p in points}
    for point in points:
        assert point.found == pytest.approx(point.distortion, rel=0.03)
        assert point.limit == pytest.approx(-0.5 * math.log2(point.distortion))
        assert point.bits > point.limit
        if point.lattice == "Z":
            assert 0 <= point.bits - point.entropy < 0.01
    assert all(bits["E8", d] < bits["A2", d] < bits["Z", d] for d in rates.DISTORTIONS)


def test_speed_is_input_bytes_by_processor_time(monkeypatch):
    monkeypatch.setattr(rates, "_SPEED_SHAPES", ((50, 100),))
    monkeypatch.setattr(rates, "_best", lambda work: 0.5)
    found = rates.speed()
    assert found.encode == found.decode == pytest.approx(0.04)


def test_the_peak_is_that_of_a_process_that_only_unlearns(tmp_path):
    found = history_peak(HistorySize(clients=3, rounds=2, parameters=2000, erased=2), tmp_path)
    assert found.records == 4
    assert 5 < found.before <= found.peak < 200
    assert 0 < found.disk < 4 * 3 * 2 * 2000 + 200_000


def test_a_history_of_too_few_clients_is_one_line(tmp_path):
    with pytest.raises(HistoryError, match="nobody is left"):
        history_peak(HistorySize(clients=2, rounds=1, parameters=100, erased=2), tmp_path)


# ---- a federation -------------------------------------------------------------------


@pytest.fixture(scope="module")
def run():
    chosen = {name: forms()[name] for name in ("fp32", "zstd", DEFAULT)}
    return measure(tiny.settings(), MemorySettings(rounds=2, recovery=1), chosen)


def test_a_federation_is_measured_from_real_updates(run):
    assert run["client_rounds"] == 6
    assert run["forms"]["fp32"]["disk"] == 4 * 6 * run["entries"]
    assert run["forms"]["fp32"]["merge"] == run["forms"]["zstd"]["merge"]
    assert run["forms"]["fp32"]["merge"] != run["forms"][DEFAULT]["merge"]
    assert run["models"]["retrain"]["merge"]["average_gap"] == 0.0
    assert run["models"]["retrain"]["recovered"]["distance"] == 0.0
    assert run["models"]["original"]["merge"]["distance"] == 1.0
    assert 0 < run["diagnosis"]["ratio"] < 10
    json.dumps(run["forms"])


def test_step_sizes_fall_with_the_round_and_go_on_falling_in_recovery(monkeypatch):
    rates_ = []
    monkeypatch.setattr(
        "flwr_afuic.bench.falling.Hospital.train",
        lambda self, parameters, config: rates_.append(
            self.optimizer(torch.nn.Linear(1, 1)).param_groups[0]["lr"]
        ),
    )
    client = FallingSteps.__new__(FallingSteps)
    client.settings, client.decay = replace(tiny.settings(), lr=0.5), 1.0
    for config in ({"server-round": 1}, {"server-round": 2, "bench.rounds-before": 3}):
        client.train([], config)
    assert rates_ == [0.5, 0.1]


@pytest.mark.parametrize("wrong", [{"rounds": 1}, {"recovery": 0}, {"decay": -1.0}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match="are needed"):
        MemorySettings(**wrong)


# ---- tables -------------------------------------------------------------------------


def scores(test, backdoor, gap):
    one = {"test": test, "backdoor_success": backdoor, "distance": 0.5, "average_gap": gap}
    return {"merge": one, "recovered": {**one, "average_gap": gap / 2}}


def result(seed, *, drop=0.0, backdoor=0.0, disk=10):
    return {
        "dataset": "toy", "synthetic": False, "entries": 100, "target_share": 0.2,
        "client_rounds": 10, "diagnosis": {"ratio": 0.5},
        "settings": {"seed": seed, "sites": 3, "lr": 0.1, "scenario": "backdoor", "data_dir": ""},
        "memory": {"rounds": 2, "recovery": 5, "decay": 1.1},
        "models": {
            "original": scores(0.9, 1.0, 0.4), "retrain": scores(0.8, 0.1, 0.0),
            "retrain_floor": scores(0.8, 0.1, 0.02),
        },
        "forms": {
            "fp32": {"words": "fp32", "disk": 400, "records": 400, **scores(0.7, 0.1, 0.2)},
            DEFAULT: {
                "words": "d", "disk": disk, "records": 5,
                **scores(0.7 - drop, 0.1 + backdoor, 0.1),
            },
        },
    }  # fmt: skip


def results(**changes):
    point = {"lattice": "Z", "distortion": 0.5, "bits": 1.25, "entropy": 1.249, "limit": 0.5}
    points = [point, {**point, "lattice": "A2", "bits": 1.2, "entropy": None},
              {**point, "lattice": "E8", "bits": 1.1, "entropy": None}]  # fmt: skip
    peak = {"size": {"clients": 2, "rounds": 20, "parameters": 5, "erased": 1}, "peak": 80.0,
            "before": 40.0, "seconds": 1.0, "records": 20, "disk": 10, "writer": 90.0}  # fmt: skip
    runs = [result(0, **changes), result(1, **changes)]
    speed = {"encode": 100.0, "decode": 39.0, "load": 1.0}
    return MemoryResults({"toy": runs}, {"points": points, "speed": speed}, [peak])


def test_figures_are_those_of_the_issue():
    flat = memory_table.flat_figures(results(drop=0.03, backdoor=-0.05))
    expected = {
        "memory/toy/ratio_vs_fp32": 40.0,
        "memory/toy/ratio_of_records": 80.0,
        "memory/toy/main_score_drop": 0.03,
        "memory/toy/asr_gap_vs_uncompressed": -0.05,
        "memory/toy/average_gap_recovered": 0.05,
        "memory/toy/average_gap_uncompressed": 0.1,
        "codec/E8/bits_at_0.5": 1.1,
        "codec/encode_mb_s": 100.0,
        "codec/decode_mb_s": 39.0,
        "history/peak_mib": 80.0,
    }
    assert {name: flat[name] for name in expected} == pytest.approx(expected)


def holding(**changes):
    return {v.name.split(",")[0]: v.holds for v in memory_table.verdicts(results(**changes))}


def test_what_does_not_hold_is_said():
    fine = holding()
    assert [name for name, holds in fine.items() if not holds] == ["decode"]
    assert not holding(drop=0.011)["test score"]
    assert not holding(backdoor=0.021)["backdoor success"]
    assert not holding(disk=14)["times less storage than fp32"]
    assert not holding(drop=-0.011)["test score"], "better than uncompressed is not faithful"
    assert not holding(backdoor=-0.021)["backdoor success"]
    assert holding(drop=-0.009, backdoor=-0.019)["test score"]
    text = memory_table.markdown(results(drop=0.011))
    assert (
        "| toy | test score, uncompressed minus default | +0.011 | within ±0.01 | **no** |" in text
    )
    assert "| fp32 | 40 | 1.0 | 1.0 | 0.700 | 0.100 | 0.500 | 0.200 |" in text


# ---- the command --------------------------------------------------------------------


@pytest.fixture
def bench(monkeypatch, capsys, tmp_path):
    few = [p for p in rates.rate_distortion(entries=8000) if p.distortion in rates.NAMED]
    monkeypatch.setattr("flwr_afuic.bench.memory_runs.rate_distortion", lambda seed: few)
    monkeypatch.setattr(rates, "_SPEED_SHAPES", ((50, 100),))
    chosen = {name: forms()[name] for name in ("fp32", DEFAULT)}
    monkeypatch.setattr("flwr_afuic.bench.memory_runs.forms", lambda: chosen)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["flwr-afuic", "bench", "memory", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            commands.main()
        return ended.value.code or 0, *capsys.readouterr()

    return run


def test_it_prints_writes_fills_draws_and_repeats_nothing(bench, tmp_path):
    document = tmp_path / "results.md"
    document.write_text(f"before\n{memory_table.BEGIN}\n{END}\nafter\n")
    sizes = ["sites=3", "local_steps=4", "batch_size=16"]
    arguments = [
        "--datasets", tiny.data_file(), "--seeds", 0, "--rounds", 2, "--recovery", 1,
        "--clients", 6, "--parameters", 500, "--out", tmp_path / "runs", "--json",
        tmp_path / "m.json", "--markdown", document,
        *(word for pair in sizes for word in ("--set", pair)),
    ]  # fmt: skip
    status, out, err = bench(*arguments)
    assert status == 0, err
    assert "[1/1] ours-backdoor-s0: default" in err
    written = json.loads((tmp_path / "m.json").read_text())
    assert written.keys() >= {"figures", "verdicts", "settings", "seeds", "versions"}
    assert all(isinstance(value, float) for value in written["figures"].values())
    assert {"memory/ours/ratio_vs_fp32", "codec/Z/bits_at_0.01", "history/peak_mib"} <= set(
        written["figures"]
    )
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "| fp32 |" in text
    assert (tmp_path / "images" / "memory.png").read_bytes().startswith(b"\x89PNG")
    status, again, err = bench(*arguments)
    assert status == 0
    assert again == out
    assert err.count("taken from") == 3
    status, part, err = bench(*arguments, "--parts", "federations")
    assert status == 0, err
    assert err.count("taken from") == 1
    assert "| fp32 |" in part
    assert "R(D)" not in part


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--rounds", "1"], "1 rounds"),
        (["--datasets", " "], "name each data set once"),
        (["--seeds", "x"], "--seeds 'x'"),
        (["--set", "lr=0"], "lr is 0"),
        (["--parts", "all"], "name federations, codec, history"),
    ],
)
def test_bad_input_is_one_line(bench, arguments, word, tmp_path):
    status, _, err = bench("--out", tmp_path, *arguments)
    assert status == 1
    assert err.count("\n") == 1
    assert word in err


def test_a_document_may_hold_several_tables(tmp_path):
    path = tmp_path / "results.md"
    other = f"<!-- table: other -->\nkept\n{END}\n"
    path.write_text(f"{memory_table.BEGIN}\nold\n{END}\n{other}")
    fill(path, "new", begin_mark=memory_table.BEGIN)
    assert path.read_text() == f"{memory_table.BEGIN}\n\nnew\n\n{END}\n{other}"
    path.write_text(f"{memory_table.BEGIN}\n{other}")
    with pytest.raises(DataError):
        fill(path, "new", begin_mark=memory_table.BEGIN)


def test_a_run_that_was_stopped_goes_on_from_where_it_was(tmp_path):
    chosen = {name: forms()[name] for name in ("fp32", "zstd", DEFAULT)}
    plan = (tiny.settings(), MemorySettings(rounds=2, recovery=1))

    class StoppedError(Exception):
        pass

    def measured(until):
        said = []

        def told(line):
            if line == until:
                raise StoppedError
            said.append(line)

        try:
            return measure(*plan, chosen, keep=tmp_path, told=told), said
        except StoppedError:
            return None, said

    training = ["original", "retraining", "retraining with another seed"]
    assert measured("retraining with another seed") == (None, training[:2])
    assert measured(DEFAULT) == (None, [*training[2:], "fp32", "zstd"])
    found, said = measured("")
    assert said == [DEFAULT]
    whole = measure(*plan, chosen)
    assert found["forms"] == whole["forms"]
    assert found["models"] == whole["models"]
    assert found["diagnosis"] == whole["diagnosis"]
