"""``bench forget``: what is run in which order, the figures by hand, the tables and pictures."""

import json

import pytest

from flwr_afuic.bench import forget, forget_figures, forget_table
from flwr_afuic.bench.forget import ForgetRunner
from flwr_afuic.bench.forget_methods import make_method
from flwr_afuic.bench.forget_plots import draw_plane, draw_resurfacing
from flwr_afuic.bench.forget_protocol import (
    METHODS,
    Protocol,
    cell_settings,
    check_methods,
    read_constants,
)
from flwr_afuic.errors import ConfigError, DataError, FederationError
from tests.app import tiny
from tests.bench.forget_results import PROTOCOL, plan, put, result, scores


@pytest.fixture
def worked(monkeypatch):
    """Finish pieces without training, and say which."""
    done = []

    def work(piece, folder):
        done.append((piece.settings.seed, piece.method))
        if piece.method == "pga":
            raise FederationError("it fell")
        put(folder, piece, **({"planted": piece.settings.seed != 0} if piece.method == "original"
                              else {}))  # fmt: skip
        return json.loads(piece.result(folder).read_text())

    monkeypatch.setattr(forget, "_work", work)
    return done


# ---- what is run ---------------------------------------------------------------------


def test_seeds_that_plant_nothing_are_left_out_and_the_next_one_is_taken(worked, tmp_path):
    lines = []
    (cells,) = ForgetRunner(tmp_path, told=lines.append).run([plan("afuic", planted=2)])
    bases = ["original", "retrain", "retrain_floor", "afuic"]
    assert worked == [(0, "original"), *((1, m) for m in bases), *((2, m) for m in bases)]
    assert sorted(cells.counted) == [1, 2]
    assert cells.left_out == [0]
    assert any("seed 0 original: 2 s, left out: no backdoor planted" in line for line in lines)


def test_what_is_there_is_not_repeated_unless_asked(worked, tmp_path):
    asked = plan("afuic", planted=None, seeds=(1,))
    ForgetRunner(tmp_path).run([asked])
    count = len(worked)
    ForgetRunner(tmp_path).run([asked])
    assert len(worked) == count
    ForgetRunner(tmp_path, fresh=True).run([asked])
    assert len(worked) == 2 * count


def test_whole_seeds_come_first_over_all_data_sets(worked, tmp_path):
    both = plan(planted=None, seeds=(1, 2)), plan("not", planted=None, seeds=(3, 4))
    ForgetRunner(tmp_path).run(both)
    assert [seed for seed, method in worked if method == "original"] == [1, 3, 2, 4]


def test_a_failed_piece_is_reported_and_the_others_run(worked, tmp_path):
    (cells,) = ForgetRunner(tmp_path).run([plan("pga", "not", planted=None, seeds=(1,))])
    (error,) = cells.errors
    assert "it fell" in str(error)
    assert cells.complete("not") == [1]
    assert cells.complete("pga") == []


def test_no_piece_starts_after_its_time(worked, tmp_path):
    runner = ForgetRunner(tmp_path, stop_after=1e-9)
    (cells,) = runner.run([plan(planted=None, seeds=(1,))])
    assert not worked
    assert not cells.counted


def test_the_plan_says_what_is_left_and_learns_from_what_was_run(tmp_path):
    asked = plan("afuic", "fedosd", planted=2)
    put(tmp_path, asked.piece(0, "original"), planted=False)
    put(tmp_path, asked.piece(1, "original"), seconds={"all": 7.0})
    found = [(p.settings.seed, p.method, s, d) for p, s, d in ForgetRunner(tmp_path).plan([asked])]
    assert found[0] == (0, "original", 4.5, True)
    assert found[1] == (1, "original", 4.5, True)
    assert [f[:2] for f in found[2:6]] == [(1, m) for m in ("retrain", "retrain_floor", "afuic",
                                                            "fedosd")]  # fmt: skip
    assert found[5][2:] == (150.0, False)
    assert {f[0] for f in found[6:]} == {2}


def test_settings_protocol_and_seed_make_the_cell():
    piece = plan().piece(0, "afuic")
    assert piece.cell == piece.of("pga").cell
    assert piece.cell != plan().piece(1, "afuic").cell
    moved = plan()
    object.__setattr__(moved, "protocol", Protocol(staleness=8))
    assert moved.piece(0, "afuic").cell != piece.cell


def test_scenarios_and_methods():
    assert check_methods([], "backdoor") == METHODS
    assert check_methods([], "samples") == ("afuic", "no_unlearning")
    assert check_methods(["retrain", "pga", "pga"], "backdoor") == ("pga",)
    names = ["AFUIC", "NoUnlearning", "Retrain", "FedOSD"]
    assert check_methods(names, "backdoor") == ("afuic", "no_unlearning", "fedosd")
    assert cell_settings("phantoms", "samples", {}).scope == "samples"
    assert cell_settings("phantoms", "backdoor", {"sites": 20}).sites == 20
    with pytest.raises(ConfigError, match="pga erases whole sites only"):
        check_methods(["pga"], "patient")
    with pytest.raises(ConfigError, match="unknown method 'magic'"):
        check_methods(["magic"], "backdoor")
    with pytest.raises(ConfigError, match="unknown scenario 'flood'"):
        cell_settings("phantoms", "flood", {})
    with pytest.raises(ConfigError, match="staleness is -1"):
        Protocol(staleness=-1)


def test_constants_make_another_piece_of_the_same_cell(tmp_path):
    found = read_constants(["pga.lr=0.02", "pga.epochs=3", "not.layer=1.conv"])
    assert found == {"pga": (("epochs", 3), ("lr", 0.02)), "not": (("layer", "1.conv"),)}
    tuned = plan("pga", "afuic", constants=found)
    assert tuned.piece(0, "pga").cell == plan().piece(0, "pga").cell
    assert tuned.piece(0, "pga").result(tmp_path) != plan().piece(0, "pga").result(tmp_path)
    assert tuned.piece(0, "pga").of("retrain") == plan().piece(0, "retrain")
    for text in ("pga", "pga=1", "magic.lr=1"):
        with pytest.raises(ConfigError, match="write METHOD"):
            read_constants([text])


def test_methods_take_their_constants_and_refuse_others():
    settings = tiny.settings()
    assert make_method(settings, "pga", (("lr", 0.5),)).ascent.lr == 0.5
    assert make_method(settings, "fcu", (("epochs", 2),)).contrast.epochs == 2
    assert make_method(settings, "fedosd", (("unlearning_rounds", 3),)).unlearning_rounds == 3
    assert make_method(settings, "afuic", (("steps", 7),)).unlearning.steps == 7
    with pytest.raises(ConfigError, match="constants of not"):
        make_method(settings, "not", (("speed", 1),))
    with pytest.raises(ConfigError):
        make_method(settings, "pga", (("lr", -1.0),))


def test_judging_on_validation_data_is_another_cell():
    tuning = plan()
    object.__setattr__(tuning, "protocol", Protocol(1, 35, "tuning"))
    assert tuning.piece(0, "afuic").cell != plan().piece(0, "afuic").cell
    with pytest.raises(ConfigError, match="judged on 'luck'"):
        Protocol(judged_on="luck")


def test_a_damaged_file_says_what_to_do(tmp_path):
    path = plan().piece(0, "afuic").result(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(DataError, match="delete it to repeat"):
        forget.read_result(path)


# ---- figures -------------------------------------------------------------------------


def of(method: str, **changes):
    pieces = [plan().piece(0, name) for name in (method, "retrain", "original")]
    first, retrain, original = (result(piece) for piece in pieces)
    return forget_figures.figures({**first, **changes}, retrain, original)


def test_the_figures_by_hand():
    found = of("afuic")
    assert found["average_gap"] == pytest.approx((0.01 + 0.02 + 0.01 + 0.01) / 4)
    assert found["asr_gap"] == pytest.approx(0.01)
    assert found["membership_gap"] == pytest.approx(0.01)
    assert found["test_gap"] == pytest.approx(-0.01)
    assert found["resurfacing_mean"] == pytest.approx(0.01)
    assert found["resurfacing_rounds"] == 30
    assert found["merge_dip"] == pytest.approx(0.04)
    assert found["asr_gap_at_merge"] == pytest.approx(-0.02)
    assert found["dip_rounds"] == 1
    assert found["relearn_ratio"] == 0.5
    assert found["distance_ratio"] == 0.5
    assert found["silent_failure"] == 0


def test_a_dip_is_over_within_what_two_retrainings_differ_by():
    pieces = [result(plan().piece(0, m)) for m in ("afuic", "retrain", "original", "retrain_floor")]
    for values in pieces[0]["curve"].values():
        values["test"] = 0.75
    assert forget_figures.figures(*pieces)["dip_rounds"] is None
    for values in pieces[3]["curve"].values():
        values["test"] = 0.85
    assert forget_figures.figures(*pieces)["dip_rounds"] == 0


def test_resurfacing_counts_the_thirty_rounds_after_the_merge_alone():
    curve = dict(result(plan().piece(0, "afuic"))["curve"])
    for round_ in (14, 45, 48):  # the merge's own, and the first after the window
        curve[str(round_)] = scores("afuic", backdoor_success=1.0)
    curve["44"] = scores("afuic", backdoor_success=0.34)
    found = of("afuic", curve=curve)
    assert found["resurfacing_max"] == pytest.approx(0.3)
    assert found["resurfacing_mean"] == pytest.approx((29 * 0.01 + 0.3) / 30)


def test_what_merges_nothing_is_read_over_the_last_rounds():
    found = of("no_unlearning")
    assert found["resurfacing_mean"] == pytest.approx(0.6)
    assert "merge_dip" not in found
    assert "silent_failure" not in found


def test_without_a_trigger_the_score_on_the_erased_data_tells():
    pieces = [result(plan().piece(0, m)) for m in ("afuic", "retrain", "original")]
    for one in pieces:
        for values in one["curve"].values():
            values["backdoor_success"] = None
    pieces[0]["merge"]["after"]["backdoor_success"] = None
    found = forget_figures.figures(*pieces)
    assert found["asr_gap"] is None
    assert found["resurfacing_mean"] == pytest.approx(0.02)


def test_what_the_site_keeps_is_compared_at_the_merge():
    pieces = [result(plan().piece(0, m)) for m in ("afuic", "retrain", "original")]
    pieces[0]["merge"]["after"]["kept"] = 0.7
    pieces[1]["curve"]["14"]["kept"] = 0.75
    assert forget_figures.figures(*pieces)["kept_gap_at_merge"] == pytest.approx(-0.05)


def test_an_erasure_called_completed_whose_backdoor_is_back_is_a_silent_failure():
    curve = {r: scores("afuic", backdoor_success=0.2)
             for r in result(plan().piece(0, "afuic"))["curve"]}  # fmt: skip
    assert of("afuic", curve=curve)["silent_failure"] == 1
    failed = {"state": "failed", "reason": ""}
    assert of("afuic", curve=curve, erasure=failed)["silent_failure"] == 0


def test_without_a_trigger_the_erased_datas_score_fails_in_silence_too():
    pieces = [result(plan().piece(0, m)) for m in ("afuic", "retrain", "original")]
    for one in pieces:
        for values in one["curve"].values():
            values["backdoor_success"] = None
    pieces[0]["merge"]["after"] |= {"backdoor_success": None, "forget": 0.54}
    assert forget_figures.figures(*pieces)["silent_failure"] == 0
    pieces[0]["merge"]["after"]["forget"] = 0.56
    assert forget_figures.figures(*pieces)["silent_failure"] == 1


# ---- tables and pictures -------------------------------------------------------------


@pytest.fixture
def cells(tmp_path):
    asked = plan("afuic", "not", "no_unlearning", planted=None, seeds=(1, 2))
    for seed in asked.seeds:
        for method in asked.all_methods:
            if (seed, method) != (2, "not"):
                put(tmp_path, asked.piece(seed, method))
    return ForgetRunner(tmp_path).read([asked])


def test_the_table_shows_every_method_the_floor_and_what_is_missing(cells):
    text = forget_table.markdown(cells)
    assert "**phantoms**, SYNTHETIC data, backdoor, 6 sites, dirichlet(1), staleness 1" in text
    assert "| *retrained twice (floor)* | 1, 2 |" in text
    assert "| **AFU-IC** | 1, 2 | 0.013 ± 0.000 | +0.010 ± 0.000 |" in text
    assert "| NoT | 1 |" in text
    assert "Not all seeds are there yet for: NoT." in text
    assert "so that they tell nothing here: the test score" in text
    assert "original, at the request | 1, 2 | 0.800 | 0.900" in text


def test_verdicts_name_what_does_not_hold(cells):
    judged = {v.name: v for v in forget_figures.verdicts(forget_figures.rows(cells[0]))}
    assert judged["average_gap"].holds
    assert judged["resurfacing_max"].holds
    assert judged["relearn_ratio"].value == judged["relearn_ratio"].floor == 0.5
    assert judged["relearn_ratio"].holds  # retraining another time is no slower


def test_of_samples_the_merge_is_judged_seed_by_seed(cells):
    for seed, kept in ((1, 0.73), (2, 0.74)):
        results = cells[0].counted[seed]
        results["afuic"]["merge"]["after"]["kept"] = kept
        results["afuic"]["merge"]["before"]["kept"] = 0.74
        results["retrain"]["curve"]["14"]["kept"] = 0.75
        results["retrain_floor"]["curve"]["14"]["kept"] = 0.76
    judged = {v.name: v for v in forget_figures.verdicts(forget_figures.rows(cells[0]))}
    assert judged["kept_gap_at_merge"].value == pytest.approx(-0.015)
    assert judged["kept_gap_at_merge"].floor == pytest.approx(0.01)
    assert judged["kept_gap_at_merge"].holds
    assert judged["forget_gap_at_merge"].holds
    assert judged["silent_failures"].holds
    text = forget_table.markdown(cells)
    assert "kept data at the merge, minus retraining's: -0.020 / -0.010." in text
    assert "what the merge itself changed in it: -0.010 / +0.000." in text
    cells[0].counted[1]["afuic"]["merge"]["after"] |= {"forget": 0.7, "backdoor_success": 0.2}
    judged = {v.name: v for v in forget_figures.verdicts(forget_figures.rows(cells[0]))}
    assert not judged["forget_gap_at_merge"].holds
    assert judged["silent_failures"].value == 1
    assert not judged["silent_failures"].holds


def test_each_variant_has_a_table_of_its_own():
    usual = Protocol()
    assert forget_table.variant_of("backdoor", usual, []) == "backdoor"
    other = forget_table.variant_of("clean", Protocol(staleness=8), ["sites=20", "alpha=0.1"])
    assert other == "clean --set alpha=0.1 --set sites=20 --staleness 8"
    assert forget_table.begin_mark(other).endswith(f"forget {other} -->")
    # What constants are chosen by must not come to stand where the results do.
    tuned = forget_table.variant_of("backdoor", Protocol(judged_on="tuning"), [], ["fcu.lr=0.01"])
    assert tuned == "backdoor --constant fcu.lr=0.01 --judged-on tuning"


def test_methods_are_judged_against_each_other_on_the_same_seeds_only(cells):
    found = forget_figures.rows(cells[0])
    names = [v.name for v in forget_figures.verdicts(found)]
    assert "resurfacing_best" not in names  # NoT lacks a seed
    judged = forget_figures.verdicts([row.of((1,)) for row in found])
    assert {v.name: v.holds for v in judged}["resurfacing_best"]
    found[0].values["resurfacing_mean"][1] = 0.9  # the floor's second seed
    ours = next(row for row in found if row.method == "afuic").of((1,))
    floors = {v.name: v.floor for v in forget_figures.verdicts([found[0], ours])}
    assert floors["resurfacing_mean"] == found[0].values["resurfacing_mean"][0]


def test_flat_figures_have_the_promised_names(cells):
    flat = forget_figures.flat_figures(cells)
    for name in forget_figures.FIGURES:
        assert f"phantoms/backdoor/afuic/{name}" in flat
    assert flat["phantoms/backdoor/retrain_floor/average_gap"] == pytest.approx(0.0075)
    assert flat["phantoms/backdoor/not/seeds"] == 1


def test_pictures_are_drawn(cells, tmp_path):
    for draw in (draw_resurfacing, draw_plane):
        path = draw(cells, tmp_path / "images" / f"{draw.__name__}.png")
        assert path.read_bytes().startswith(b"\x89PNG")


def test_staleness_is_the_targets_unlearning_alone():
    from flwr_afuic.app.settings import AppSettings
    from flwr_afuic.bench.forget_sites import speed_of

    speed = speed_of(AppSettings(local_steps=16), PROTOCOL)
    a_round = speed.seconds(1, "train", 16)
    assert speed.seconds(0, "train", 16) == a_round
    assert 0.8 * a_round < speed.seconds(0, "train", 360) < a_round
    assert speed.seconds(2, "train", 360) > 10 * a_round
