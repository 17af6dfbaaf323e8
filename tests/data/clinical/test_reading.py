from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from flwr_afuic.data.clinical.reading import check_affine, kind_of, read_volume
from flwr_afuic.errors import DataError
from tests.data.clinical.files import nifti, picture, sample, series

COMPRESSED = (
    "MR_small_RLE.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
)


def own(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    sample(name).save_as(path)
    return path


@pytest.mark.parametrize("name", ["MR_small_implicit.dcm", "MR_small_bigendian.dcm", *COMPRESSED])
def test_every_transfer_syntax_holds_the_same_pixels(tmp_path: Path, name: str) -> None:
    plain = read_volume(own(tmp_path, "MR_small.dcm"))
    assert plain.values.shape == (1, 64, 64)
    np.testing.assert_array_equal(read_volume(own(tmp_path, name)).values, plain.values)


@pytest.mark.parametrize("name", ["JPEG2000.dcm", "SC_rgb_jpeg_gdcm.dcm"])
def test_lossy_files_load(tmp_path: Path, name: str) -> None:
    assert read_volume(own(tmp_path, name)).values.std() > 0


def test_a_format_no_decoder_knows_is_one_clear_error(tmp_path: Path) -> None:
    """12-bit lossy JPEG: only a decoder under the GPL reads it, which we do not require."""
    with pytest.raises(DataError, match="cannot be read as dicom") as error:
        read_volume(own(tmp_path, "JPGExtended.dcm"))
    assert "\n" not in str(error.value)


def test_pixels_are_in_the_order_of_rows_and_rescaled() -> None:
    expected = sample("CT_small.dcm")
    hounsfield = expected.pixel_array * float(expected.RescaleSlope) + float(
        expected.RescaleIntercept
    )
    found = read_volume(Path(str(expected.filename)))
    np.testing.assert_allclose(found.values[0], hounsfield)


def test_high_values_that_mean_dark_are_turned(tmp_path: Path) -> None:
    plain = read_volume(own(tmp_path, "MR_small.dcm")).values
    dark = sample("MR_small.dcm")
    dark.PhotometricInterpretation = "MONOCHROME1"
    dark.save_as(tmp_path / "dark")
    turned = read_volume(tmp_path / "dark").values
    np.testing.assert_allclose(turned, plain.max() + plain.min() - plain)


def test_a_series_is_one_volume_in_the_order_of_its_slices(tmp_path: Path) -> None:
    volume = read_volume(series(tmp_path / "series", 4))
    assert volume.values.shape == (1, 64, 64, 4)
    assert volume.values[0, 5, 5].tolist() == [100, 200, 300, 400]
    assert abs(volume.affine[2, 2]) == pytest.approx(2.0)


def test_a_folder_of_two_series_is_refused(tmp_path: Path) -> None:
    folder = series(tmp_path / "series", 3)
    other = pydicom.dcmread(folder / "slice_0.dcm")
    other.SeriesInstanceUID = "4.5.6"
    other.save_as(folder / "zz.dcm")
    with pytest.raises(DataError, match="2 series"):
        read_volume(folder)


def test_a_slice_without_a_number_is_refused(tmp_path: Path) -> None:
    folder = series(tmp_path / "series", 3)
    lost = pydicom.dcmread(folder / "slice_0.dcm")
    del lost.InstanceNumber
    lost.save_as(folder / "slice_0.dcm")
    with pytest.raises(DataError, match="instance number"):
        read_volume(folder)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="empty"):
        read_volume(tmp_path)


def test_volumes_are_turned_to_one_orientation(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    plain = read_volume(nifti(tmp_path / "a.nii.gz", values))
    turned = nifti(tmp_path / "b.nii", values[::-1].copy(), np.diag([-1.0, 1, 1, 1]))
    np.testing.assert_array_equal(read_volume(turned).values, plain.values)


def test_a_fourth_axis_holds_channels(tmp_path: Path) -> None:
    values = np.zeros((4, 5, 6, 2), np.float32)
    values[..., 1] = 1
    volume = read_volume(nifti(tmp_path / "a.nii.gz", values))
    assert volume.values.shape == (2, 4, 5, 6)
    assert volume.values[1].min() == 1


def test_pictures_are_rows_first(tmp_path: Path) -> None:
    assert read_volume(picture(tmp_path / "a.png")).values.shape == (1, 20, 24)


@pytest.mark.parametrize("name", ["MR_small.dcm", *COMPRESSED, "JPEG2000.dcm", "a.nii.gz", "a.png"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.9])
def test_a_truncated_file_is_one_clear_error(tmp_path: Path, name: str, share: float) -> None:
    if name.endswith(".dcm"):
        path = own(tmp_path, name)
    else:
        path = (nifti if name.endswith("gz") else picture)(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match="cannot be read") as error:
        read_volume(path)
    assert "\n" not in str(error.value)


def test_other_files_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image at all")
    with pytest.raises(DataError, match="cannot be read as dicom"):
        read_volume(tmp_path / "notes.txt")


def test_kinds_by_name() -> None:
    names = {"a.NII.GZ": "nifti", "a.nii": "nifti", "a.PNG": "picture", "IM0001": "dicom"}
    assert {name: kind_of(Path(name)) for name in names} == names


def test_affines_that_place_nothing() -> None:
    assert check_affine(np.eye(4)) is None
    assert "singular" in str(check_affine(np.diag([1.0, 1, 0, 1])))
    assert "NaN" in str(check_affine(np.full((4, 4), np.nan)))


@pytest.mark.data
def test_the_real_samples_load(real_data: Path) -> None:
    folder = real_data / "dicom_nifti_samples"
    if not folder.exists():
        pytest.skip("no dicom_nifti_samples")
    shapes = {file.name: read_volume(file).values.shape for file in sorted(folder.iterdir())}
    slices = ("MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm")
    assert {shapes[name] for name in slices} == {(1, 64, 64)}
    assert shapes["CT_small.dcm"] == (1, 128, 128)
    assert shapes["anatomical.nii"] == (1, 33, 41, 25)
    assert shapes["example4d.nii.gz"] == (2, 128, 96, 24)
    assert shapes["someones_anatomy.nii.gz"] == (1, 57, 67, 56)
