import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from dicom.errors import DecodeError, GeometryError, InstanceError, UnsupportedError
from dicom.geometry import complete, stack_geometry
from dicom.header import InstanceHeader, scan_file
from dicom.layout import DecodeLimits
from dicom.volume import Volume, build_image, build_volume, read_slice, stack
from tests.dicom.instances_fixture import write_instance
from tests.material import MATERIAL, needs_material, unpack

Files = list[tuple[Path, InstanceHeader]]
REFERENCE = MATERIAL / "reference"
MNI152, STUDYFORREST = "mr_t1_mni152", "mr_t1_studyforrest"
TILT, PHANTOM = "ct_head_phantom_tilt", "mr_phantom_frag_j2k"


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    """The four studies of the material, unpacked once, in the order of their file names."""
    made = {}
    for name in (MNI152, STUDYFORREST, TILT, PHANTOM):
        paths = unpack(name, tmp_path_factory.mktemp(name))
        made[name] = [(path, scan_file(path)[0]) for path in paths]
    return made


def _same(one: Volume, other: Volume) -> bool:
    return (
        one.voxels.tobytes() == other.voxels.tobytes()
        and one.affine.tobytes() == other.affine.tobytes()
        and one.sop_instance_uids == other.sop_instance_uids
    )


@needs_material
@pytest.mark.parametrize(
    ("name", "shape", "spacing_mm", "shear_deg", "decoder"),
    [
        (MNI152, (189, 233, 197), (1, 1, 1), 0, "native"),
        (STUDYFORREST, (384, 384, 274), (0.666667, 0.666667, 0.699988), 0, "native"),
        (TILT, (58, 512, 512), (2.5, 0.40625, 0.40625), 16.5, "native"),
        (PHANTOM, (96, 128, 128), (2, 2, 2), 0, f"imagecodecs {imagecodecs.__version__} jpeg2k"),
    ],
)
def test_a_real_series_becomes_the_volume_it_is_and_any_order_gives_the_same_bits(
    series: dict[str, Files],
    name: str,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    shear_deg: float,
    decoder: str,
) -> None:
    files = series[name]
    volume = build_volume(files)
    geometry = stack_geometry([header for _, header in files])
    assert volume.voxels.shape == shape == geometry.shape
    assert volume.voxels.dtype == np.float32
    assert geometry.spacing_mm == pytest.approx(spacing_mm, abs=1e-5)
    assert geometry.shear_deg == pytest.approx(shear_deg, abs=1e-3)
    assert volume.decoder == decoder
    assert complete([header for _, header in files])
    shuffled = files.copy()
    random.Random(11).shuffle(shuffled)
    assert _same(volume, build_volume(shuffled))


@needs_material
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        (MNI152, "mni152_tissue_truth_1WM_2GM_RAS.nii.gz"),
        (STUDYFORREST, "mr_t1_studyforrest__deepbet_mask_RAS.nii.gz"),
    ],
)
def test_the_affine_is_that_of_an_independent_conversion(
    series: dict[str, Files], name: str, reference: str
) -> None:
    volume = build_volume(series[name])
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    ours = nibabel.as_closest_canonical(nibabel.Nifti1Image(volume.voxels, ras))
    theirs = nibabel.load(REFERENCE / reference)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-5)  # theirs is stored as float32
    labels = np.asarray(theirs.dataobj) > 0
    inside, outside = ours.get_fdata()[labels].mean(), ours.get_fdata()[~labels].mean()
    assert inside > 5 * outside  # the brain is where the brain is
    for axis in (1, 2):
        flipped = np.flip(labels, axis)
        assert inside > ours.get_fdata()[flipped].mean() * 1.1


@needs_material
def test_values_are_those_of_pydicom_in_modality_units(series: dict[str, Files]) -> None:
    for name in (TILT, STUDYFORREST, PHANTOM):
        path, header = series[name][7]
        ds = pydicom.dcmread(path)
        expected = ds.pixel_array.astype(np.float32) * float(ds.get("RescaleSlope", 1)) + float(
            ds.get("RescaleIntercept", 0)
        )
        found = read_slice(path, header)
        np.testing.assert_array_equal(found.pixels, expected)
        assert found.sop_instance_uid == header.sop_instance_uid


@needs_material
def test_slices_decoded_ahead_give_the_same_bits_and_their_files_are_not_read(
    series: dict[str, Files],
) -> None:
    files = series[PHANTOM]
    whole = build_volume(files)
    ready = {header.sop_instance_uid: read_slice(path, header).pixels for path, header in files[::2]}
    gone = [
        (Path("/nonexistent") if header.sop_instance_uid in ready else path, header) for path, header in files
    ]
    assert _same(whole, build_volume(gone, ready))
    headers = [header for _, header in files]
    slices = [read_slice(path, header).pixels for path, header in files]
    assert _same(whole, stack(slices, stack_geometry(headers), headers))


@needs_material
@pytest.mark.parametrize("name", [MNI152, STUDYFORREST, TILT, PHANTOM])
def test_a_real_series_without_one_slice_or_with_one_twice_is_refused(
    series: dict[str, Files], name: str
) -> None:
    files = series[name]
    order = stack_geometry([header for _, header in files]).order
    lost = [file for index, file in enumerate(files) if index != order[20]]
    with pytest.raises(GeometryError, match="slices are missing: a gap of"):
        build_volume(lost)
    again = (files[3][0], replace(files[3][1], sop_instance_uid="1.2.3"))
    with pytest.raises(GeometryError, match=r"lie at the same place.*a place has one slice"):
        build_volume([*files, again])


@needs_material
def test_two_series_in_one_are_refused(series: dict[str, Files]) -> None:
    with pytest.raises(GeometryError, match=r"\(0020,000D\) Study Instance UID has 2 values"):
        build_volume(series[MNI152][:20] + series[PHANTOM][:20])


def _write_series(directory: Path, photometric: str = "MONOCHROME2") -> Files:
    files = []
    for index in range(6):
        path = directory / f"{index}.dcm"
        pixels = np.full((4, 5), 10 * index, "<u2")
        header = write_instance(
            path,
            pixels,
            SOPInstanceUID=f"1.2.3.{index}",
            FrameOfReferenceUID="1.2.9",
            ImagePositionPatient=[0, 0, 2 * index],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[1, 1],
            PhotometricInterpretation=photometric,
        )
        files.append((path, header))
    return files


def test_monochrome1_is_kept_as_it_is_and_said(tmp_path: Path) -> None:
    files = _write_series(tmp_path, "MONOCHROME1")
    assert build_volume(files[::-1]).voxels[:, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    image = build_image(*files[3])
    assert image.photometric_interpretation == "MONOCHROME1"
    assert (image.bits_stored, image.decoder, image.pixels.tolist()) == (16, "native", [[30.0] * 5] * 4)


def test_slices_that_cannot_be_decoded_end_the_volume_with_their_name(tmp_path: Path) -> None:
    files = _write_series(tmp_path)
    path, _ = files[4]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DecodeError, match=r"SOP Instance 1\.2\.3\.4: file ends after"):
        build_volume(files)


@needs_material
def test_a_damaged_compressed_slice_ends_the_volume_with_its_name(
    series: dict[str, Files], tmp_path: Path
) -> None:
    files = series[PHANTOM].copy()
    path, header = files[50]
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(path.read_bytes()[:-2000])
    files[50] = (cut, header)
    with pytest.raises(InstanceError, match=f"SOP Instance {header.sop_instance_uid}: "):
        build_volume(files)


def test_a_volume_larger_than_the_limit_is_refused_before_a_file_is_read(tmp_path: Path) -> None:
    files = [(Path("/nonexistent"), header) for _, header in _write_series(tmp_path)]
    with pytest.raises(GeometryError, match=r"a volume of \(6, 4, 5\) voxels has 480 bytes, allowed 479"):
        build_volume(files, limits=DecodeLimits(max_bytes=479))


def test_a_ready_slice_of_another_shape_is_refused(tmp_path: Path) -> None:
    files = _write_series(tmp_path)
    ready: Mapping[str, NDArray[np.float32]] = {"1.2.3.2": np.zeros((5, 4), np.float32)}
    with pytest.raises(GeometryError, match=r"SOP Instance 1\.2\.3\.2: decoded slice is \(5, 4\)"):
        build_volume(files, ready)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"photometric_interpretation": "PALETTE COLOR"},
            "(0028,0004) Photometric Interpretation is PALETTE",
        ),
        ({"photometric_interpretation": "RGB", "samples_per_pixel": 3}, "Photometric Interpretation is RGB"),
        ({"photometric_interpretation": ""}, "Photometric Interpretation is absent"),
        ({"number_of_frames": 2}, "(0028,0008) Number of Frames is 2, a slice or an image has 1"),
    ],
)
def test_colour_palettes_and_many_frames_are_no_grey_slice(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    path, header = _write_series(tmp_path)[0]
    with pytest.raises(UnsupportedError) as caught:
        read_slice(path, replace(header, **changed))
    assert message in str(caught.value)


@needs_material
def test_a_chest_image_in_jpeg_becomes_one_image() -> None:
    paths: Sequence[Path] = sorted((MATERIAL / "dicom" / "cxr").glob("IM-000*.dcm"))
    for path in paths:
        image = build_image(path, scan_file(path)[0])
        expected = pydicom.dcmread(path)
        assert image.pixels.shape == (expected.Rows, expected.Columns)
        assert np.abs(image.pixels - expected.pixel_array).max() <= 2  # IDCTs differ by a grey level or two


@needs_material
@pytest.mark.parametrize("undefined_length", [False, True])
def test_a_modality_lut_is_said_and_refused_never_read_as_plain_values(
    tmp_path: Path, undefined_length: bool
) -> None:
    ds = pydicom.dcmread(MATERIAL / "dicom" / "transfer_syntaxes" / "mlut_18.dcm")
    ds["ModalityLUTSequence"].value.is_undefined_length = undefined_length
    ds["ModalityLUTSequence"].is_undefined_length = undefined_length
    path = tmp_path / "mlut.dcm"
    ds.save_as(path)
    header, _ = scan_file(path)
    assert header.modality_lut == 1
    with pytest.raises(UnsupportedError, match=r"Modality LUT Sequence \(0028,3000\)"):
        read_slice(path, header)
