"""The demo's data: NIfTI read with care, an MR series that is one, the truth that belongs to it."""

import gzip
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dicom.header import scan_file
from edge import demo_study
from edge.demo_study import (
    DemoError,
    Nifti,
    cache_directory,
    dice,
    encode_series,
    fetch_wheel,
    make_study,
    read_nifti,
    tissue_truth,
)
from tests.judges import dciodvfy, needs_dciodvfy
from tests.material import MATERIAL, needs_material, unpack

WHEEL = cache_directory(os.environ) / demo_study.WHEEL_NAME
needs_wheel = pytest.mark.skipif(
    not WHEEL.is_file(), reason="the template has not been fetched: run scripts/demo once"
)
AFFINE = np.array([[1, 0, 0, -98], [0, 1, 0, -134], [0, 0, 1, -72], [0, 0, 0, 1]], np.float64)


def nifti(voxels: NDArray[Any], affine: NDArray[np.float64] = AFFINE, **change: bytes) -> bytes:
    """A gzipped NIfTI-1 file; `change` replaces bytes at `at_OFFSET`."""
    code = {"uint8": 2, "int16": 4, "float32": 16}.get(str(voxels.dtype), 0)
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, voxels.ndim, *voxels.shape, *[1] * (7 - voxels.ndim))
    struct.pack_into("<hh", head, 70, code, voxels.dtype.itemsize * 8)
    struct.pack_into("<3f", head, 108, 352.0, float("nan"), float("nan"))
    struct.pack_into("<hh", head, 252, 0, 2)
    head[280:328] = affine[:3].astype("<f4").tobytes()
    head[344:348] = b"n+1\0"
    for place, value in change.items():
        at = int(place.removeprefix("at_"))
        head[at : at + len(value)] = value
    return gzip.compress(bytes(head) + voxels.tobytes(order="F"))


def small() -> NDArray[np.uint8]:
    return np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)


def wheel(path: Path, **members: bytes) -> Path:
    """A wheel with the members of the real one, small."""
    voxels = small()
    found = {"t1": nifti(voxels), "wm": nifti(voxels), "gm": nifti(255 - voxels), **members}
    with zipfile.ZipFile(path, "w") as archive:
        for kind in ("t1", "wm", "gm"):
            archive.writestr(
                f"nilearn/datasets/data/mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz", found[kind]
            )
        archive.writestr("nilearn-0.14.1.dist-info/licenses/LICENSE", "a licence")
    return path


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_nifti_is_read_as_it_was_written(kind: type[np.generic]) -> None:
    voxels = small().astype(kind)
    found = read_nifti(nifti(voxels))
    assert found.voxels.dtype == np.dtype(kind)
    assert np.array_equal(found.voxels, voxels)
    assert np.array_equal(found.affine, AFFINE)


@pytest.mark.parametrize("length", [0, 1, 343, 347, 351, 352, 353, 411])
def test_nifti_that_is_cut_is_refused(length: int) -> None:
    whole = gzip.decompress(nifti(small()))
    assert len(whole) == 412
    with pytest.raises(DemoError, match="NIfTI-1 image"):
        read_nifti(gzip.compress(whole[:length]))


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"no gzip at all",
        nifti(small())[:-20],
        nifti(small(), at_344=b"ni1\0"),
        nifti(small(), at_0=b"\0\0\1\x5c"),  # big-endian
        nifti(small(), at_40=struct.pack("<h", 4)),
        nifti(small(), at_42=struct.pack("<h", 0)),
        nifti(small(), at_42=struct.pack("<h", -5)),
        nifti(small(), at_42=struct.pack("<3h", 32767, 32767, 32767)),
        nifti(small(), at_70=struct.pack("<h", 8)),
        nifti(small(), at_108=struct.pack("<f", 1e9)),
        nifti(small(), at_108=struct.pack("<f", float("nan"))),
        nifti(small(), at_108=struct.pack("<f", -1.0)),
        nifti(small(), at_112=struct.pack("<2f", 2.0, 0.0)),
        nifti(small(), at_254=struct.pack("<h", 0)),
    ],
)
def test_nifti_that_is_not_what_we_read_is_refused(packed: bytes) -> None:
    with pytest.raises(DemoError, match="NIfTI-1 image"):
        read_nifti(packed)


def test_a_gzip_bomb_stops_at_its_limit() -> None:
    bomb = gzip.compress(bytes(80 << 20))
    with pytest.raises(DemoError, match="more than 67108864 bytes"):
        read_nifti(bomb)


def test_the_series_places_every_voxel_where_the_template_has_it(tmp_path: Path) -> None:
    voxels = small()
    for number, data in enumerate(encode_series(Nifti(voxels, AFFINE))):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(data)
        header, start = scan_file(path)
        assert header.image_position_mm == (98.0, 134.0, -72.0 + number)
        assert header.image_orientation == (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
        assert (header.rows, header.columns, header.instance_number) == (4, 5, number + 1)
        assert header.pixel_data_offset is not None
        plane = np.fromfile(path, "<u2", 20, offset=start + header.pixel_data_offset).reshape(4, 5)
        # Pixel (row, column) is at L = 98 - column, P = 134 - row: R = column - 98, A = row - 134.
        assert np.array_equal(plane, voxels[:, :, number].T.astype(int) * 16)


def test_a_template_of_other_geometry_is_refused() -> None:
    turned = AFFINE.copy()
    turned[0, 0] = -1
    with pytest.raises(DemoError, match="1 mm voxels"):
        list(encode_series(Nifti(small(), turned)))
    with pytest.raises(DemoError, match="8 bit"):
        list(encode_series(Nifti(small().astype(np.int16), AFFINE)))


def test_a_study_is_made_the_same_twice_with_its_truth_and_licences(tmp_path: Path) -> None:
    source = wheel(tmp_path / "w.whl")
    first = make_study(source, tmp_path / "a" / "study")
    second = make_study(source, tmp_path / "b" / "study")
    assert [path.read_bytes() for path in first.files] == [path.read_bytes() for path in second.files]
    assert first.study_instance_uid == second.study_instance_uid
    assert first.truth.shape == (3, 4, 5)
    assert np.array_equal(first.truth, np.full((3, 4, 5), demo_study.GREY_MATTER))
    assert (tmp_path / "a" / "LICENSE-nilearn.txt").read_text() == "a licence"
    assert "McGill" in (tmp_path / "a" / "LICENSE-template.txt").read_text()


@needs_dciodvfy
@pytest.mark.parametrize("number", [0, 1, 2])
def test_dciodvfy_finds_no_error_in_a_slice(tmp_path: Path, number: int) -> None:
    study = make_study(wheel(tmp_path / "w.whl"), tmp_path / "study")
    verdict = dciodvfy(study.files[number])
    assert (verdict.errors, verdict.warnings, verdict.recognised) == ((), (), "MRImage")


@pytest.mark.parametrize("kind", ["t1", "wm", "gm"])
def test_a_wheel_with_a_damaged_member_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DemoError):
        make_study(wheel(tmp_path / "w.whl", **{kind: b"damaged"}), tmp_path / "study")
    with pytest.raises(DemoError, match="differ in shape"):
        other = nifti(np.zeros((2, 2, 2), np.uint8))
        make_study(wheel(tmp_path / "w.whl", **{kind: other}), tmp_path / "study")


def test_a_wheel_without_the_template_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "y")
    with pytest.raises(DemoError, match="cannot be read"):
        make_study(path, tmp_path / "study")
    path.write_bytes(b"no zip")
    with pytest.raises(DemoError, match="cannot be read"):
        make_study(path, tmp_path / "study")


def test_truth_is_the_likelier_tissue_from_one_half_on() -> None:
    white = np.array([255, 128, 127, 0, 128, 100], np.uint8)
    grey = np.array([0, 127, 127, 128, 128, 155], np.uint8)
    assert tissue_truth(white, grey).tolist() == [1, 1, 0, 2, 1, 2]


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [([1, 1, 0], [1, 1, 0], 1.0), ([1, 0], [0, 1], 0.0), ([1, 1], [1, 0], 2 / 3), ([0], [0], 1)],
)
def test_dice(a: list[int], b: list[int], value: float) -> None:
    assert dice(np.array(a, bool), np.array(b, bool)) == pytest.approx(value)


def test_an_unreachable_registry_is_said_with_what_to_do_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    with pytest.raises(DemoError, match=r"could not be fetched: .*--study DIR"):
        fetch_wheel(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_in_the_cache_that_is_not_the_pinned_one_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    (tmp_path / demo_study.WHEEL_NAME).write_bytes(b"another file")
    with pytest.raises(DemoError, match="could not be fetched"):
        fetch_wheel(tmp_path)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({"XDG_CACHE_HOME": "/x"}, Path("/x/insitu")), ({}, None), ({"XDG_CACHE_HOME": "relative"}, None)],
)
def test_the_cache_is_the_users(environment: dict[str, str], expected: Path | None) -> None:
    assert cache_directory(environment) == (expected or Path.home() / ".cache" / "insitu")


@needs_wheel
@needs_material
def test_voxels_and_truth_equal_the_material_made_from_the_same_template(tmp_path: Path) -> None:
    study = make_study(fetch_wheel(WHEEL.parent), tmp_path / "study")
    assert len(study.files) == 189
    theirs = {}
    for path in unpack("mr_t1_mni152", tmp_path / "material"):
        header, start = scan_file(path)
        theirs[header.image_position_mm] = (path, start, header)
    for path in study.files:
        header, start = scan_file(path)
        other, other_start, other_header = theirs[header.image_position_mm]
        assert other_header.image_orientation == header.image_orientation
        ours = np.fromfile(path, "<u2", offset=start + (header.pixel_data_offset or 0))
        reference = np.fromfile(other, "<u2", offset=other_start + (other_header.pixel_data_offset or 0))
        assert np.array_equal(ours[: 233 * 197], reference[: 233 * 197])
    packed = (MATERIAL / "reference" / "mni152_tissue_truth_1WM_2GM_RAS.nii.gz").read_bytes()
    assert np.array_equal(read_nifti(packed).voxels.transpose(2, 1, 0), study.truth)
