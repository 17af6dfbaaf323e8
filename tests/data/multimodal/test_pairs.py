"""Tables of image-text pairs: captions, places, patients, and every bad row named at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from flwr_afuic.data.multimodal import (
    CLIENTS,
    choose_caption,
    load_covid_cxr_text,
    load_pairs,
    make_pair_phantoms,
    names_somebody,
    read_pairs,
    split_places,
)
from flwr_afuic.data.sources import resolve_data_dir
from flwr_afuic.errors import ConfigError, DataError

HEADER = "image,patient_id,location,finding,license,clinical_notes,metadata_caption"


def table(folder, *rows, header=HEADER):
    path = folder / "pairs.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def picture(folder, name, value=100):
    rng = np.random.default_rng(value)
    Image.fromarray(rng.integers(0, 255, (40, 48), dtype=np.uint8)).save(folder / name)
    return name


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Patient 3 - CXR: presence of two areas", True),
        ("chest radiograph of patient 1, 27 January", True),
        ("MRN: 00871, admitted with fever", True),
        ("record no. A-17 shows consolidation", True),
        ("patient 42 years old with cough", False),
        ("A 61-year-old patient with dyspnoea since 3 days", False),
        ("the patient had no fever; case of ARDS", False),
    ],
)
def test_texts_that_name_somebody_are_known(text, named):
    assert names_somebody(text) is named


def test_notes_are_the_caption_where_they_can_be_used():
    assert choose_caption("Hazy  left\nbase. ", "AP view.") == (
        "Hazy left base.",
        "clinical_notes",
    )
    for notes in ("", "two words", "Patient 2 - CXR: normal heart"):
        assert choose_caption(notes, "AP view.") == ("AP view.", "metadata_caption")


def test_every_bad_row_is_named_at_once(tmp_path):
    good = picture(tmp_path, "a.png")
    twice = picture(tmp_path, "b.png", 3)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    path = table(
        tmp_path,
        f'{good},7,"Valencia, Spain",ARDS,CC BY,Hazy left lower base.,meta',
        "none.png,7,Spain,ARDS,CC BY,,meta",
        "../c.png,7,Spain,ARDS,CC BY,,meta",
        f"{twice},8,Spain,,CC BY,,meta",
        f"{twice},9,Spain,,CC BY,,other",
        "broken.jpg,9,Spain,,CC BY,,meta",
        f"{good},,Spain,,,,",
    )
    pairs, report = load_pairs(path, size=16)
    found = {(p.line, p.kind) for p in report.problems}
    assert found == {
        (3, "missing"),
        (4, "outside"),
        (5, "duplicate"),
        (6, "duplicate"),
        (7, "unreadable"),
        (8, "empty"),
    }
    assert report.rows == 7
    assert report.usable == 1
    # The last line lacks patient, licence and caption: all three are said.
    assert sum(p.line == 8 for p in report.problems) == 3
    assert pairs.ids == (good,)
    assert pairs.places == ("Spain",)
    assert pairs.captions == ("Hazy left lower base.",)
    assert pairs.images.shape == (1, 1, 16, 16)
    assert 0 <= float(pairs.images.min()) <= float(pairs.images.max()) <= 1


def test_prepared_images_are_kept_for_the_next_time(tmp_path, monkeypatch):
    names = [picture(tmp_path, f"{n}.png", n) for n in (1, 2)]
    path = table(tmp_path, *(f"{name},7,Spain,,CC BY,,meta {name}" for name in names))
    first, _ = load_pairs(path, size=16, cache_dir=tmp_path / "warm")
    assert len(list((tmp_path / "warm").iterdir())) == 2

    def no_reading(*_):
        raise AssertionError("an image was read again")

    monkeypatch.setattr("flwr_afuic.data.clinical.preparation.Preparation.image", no_reading)
    again, _ = load_pairs(path, size=16, cache_dir=tmp_path / "warm")
    assert torch.equal(first.images, again.images)
    assert again.captions == first.captions


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("image,patient_id,location,clinical_notes", "license"),
        ("image,patient_id,location,license", "clinical_notes or metadata_caption"),
    ],
)
def test_a_table_without_a_needed_column_is_refused(tmp_path, header, text):
    with pytest.raises(DataError, match=text):
        read_pairs(table(tmp_path, "a,b,c,d", header=header))
    with pytest.raises(DataError, match="cannot read"):
        read_pairs(tmp_path / "nothing.csv")


def test_no_patient_of_a_client_is_among_the_pretraining_pairs():
    pairs = make_pair_phantoms(0, {"north": 4, "south": 4, "elsewhere": 6})
    moved = pairs.take(range(len(pairs)))
    patients = list(moved.patients)
    patients[-1] = patients[0]  # one image of a patient of the north was taken elsewhere
    object.__setattr__(moved, "patients", tuple(patients))
    federation = split_places(moved, ["north", "south"])
    assert [len(site) for site in federation.sites.values()] == [4, 4]
    assert len(federation.public) == 5
    known = {p for site in federation.sites.values() for p in site.patients}
    assert not known & set(federation.public.patients)


def test_places_that_cannot_be_clients_are_refused():
    pairs = make_pair_phantoms(0, {"north": 4, "south": 4})
    for clients, text in (
        (["west"], "no pair is from west"),
        ([], "name at least one"),
        (["north", "south"], "every place is a client"),
    ):
        with pytest.raises(DataError, match=text):
            split_places(pairs, clients)


def test_phantoms_are_marked_and_repeat():
    one, other = make_pair_phantoms(3), make_pair_phantoms(3)
    assert one.synthetic
    assert "synthetic" in one.source
    assert one.captions == other.captions
    assert torch.equal(one.images, other.images)
    assert make_pair_phantoms(4).captions != one.captions
    with pytest.raises(ConfigError):
        make_pair_phantoms(0, size=8)


def test_equal_captions_are_one_group():
    pairs = make_pair_phantoms(0, {"north": 60})
    numbers = pairs.groups.tolist()
    assert len(set(numbers)) == len(set(pairs.captions)) < 60
    for i, j in ((0, 1), (2, 59)):
        assert (numbers[i] == numbers[j]) == (pairs.captions[i] == pairs.captions[j])


@pytest.mark.data
def test_the_real_set_has_a_client_each_place(tmp_path):
    path = resolve_data_dir() / "covid_cxr_text" / "pairs.csv"
    if not path.is_file():
        pytest.skip("covid_cxr_text is not in $AFUIC_DATA_DIR")
    rows, problems = read_pairs(path)
    assert len(rows) == 352
    assert not problems
    assert all(row.licence for row in rows)
    places = [row.place for row in rows]
    assert {place: places.count(place) for place in CLIENTS} == {
        "Spain": 48,
        "Australia": 44,
        "United Kingdom": 38,
        "Italy": 22,
        "USA": 15,
    }
    notes = [row for row in rows if row.caption_source == "clinical_notes"]
    assert len(notes) == 239  # 9 of 248 name a patient by a number
    assert not any(names_somebody(row.caption) for row in rows)


def test_a_missing_set_says_what_to_put_where(tmp_path):
    with pytest.raises(DataError, match="make_pair_phantoms"):
        load_covid_cxr_text(tmp_path)
