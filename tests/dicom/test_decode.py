import csv
import hashlib
import os
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.pixels.processing import convert_color_space

from dicom.decode import DecodedFrames, decode, modality_values
from dicom.errors import DecodeError, HeaderError, InstanceError, UnsupportedError
from dicom.header import InstanceHeader, scan_file
from dicom.layout import DecodeLimits
from dicom.part10 import read_meta
from tests.dicom.instances_fixture import slice_headers, write_instance
from tests.material import MATERIAL, needs_material

BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
IMPLICIT = "1.2.840.10008.1.2"
CT = "dicom/transfer_syntaxes/CTImage.dcm"


def _matrix() -> dict[str, dict[str, str]]:
    table = MATERIAL / "reference" / "decode_matrix.csv"
    if not table.is_file():
        return {}
    with table.open() as file:
        return {row["file"]: row for row in csv.DictReader(file)}


MATRIX = _matrix()
RETIRED = ("1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55")
TWELVE_BIT_JPEG = [
    "dicom/transfer_syntaxes/CT0012.fragmented_no_bot_jpeg_baseline.51.dcm",
    "dicom/transfer_syntaxes/CTImage.dcm_JPEGProcess2_4TransferSyntax_1.2.840.10008.1.2.4.51.dcm",
    "dicom/transfer_syntaxes/JPEG-lossy.dcm",
    "dicom/transfer_syntaxes/JPGExtended.dcm",
]
"""The reference's decoder differs by a grey level here, which T.81 allows; DCMTK is the judge instead."""
DECODED = [name for name, row in MATRIX.items() if row["pixel_array"] == "ok" and name not in TWELVE_BIT_JPEG]


def _digest(frames: DecodedFrames) -> str:
    return hashlib.sha256(frames.pixels.tobytes()).hexdigest()[:16]


def _decode_material(name: str, tmp_path: Path) -> DecodedFrames:
    """Decode, and where the test image has no Study or Series UID give it one first."""
    path = MATERIAL / name
    try:
        header = scan_file(path)[0]
    except HeaderError:
        ds = pydicom.dcmread(path)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.1", "1.2.2"
        path = tmp_path / "named.dcm"
        ds.save_as(path)
        header = scan_file(path)[0]
    return decode(path, header)


@needs_material
@pytest.mark.parametrize("name", DECODED)
def test_every_image_of_the_matrix_decodes_to_the_reference_pixels(name: str, tmp_path: Path) -> None:
    frames = _decode_material(name, tmp_path)
    assert _digest(frames) == MATRIX[name]["sha256_16_of_LE_pixels"]
    shape = "x".join(str(size) for size in frames.pixels.shape)
    assert shape.removeprefix("1x") == MATRIX[name]["shape"]


@needs_material
@pytest.mark.parametrize("name", TWELVE_BIT_JPEG)
def test_twelve_bit_jpeg_is_equal_to_what_dcmtk_decodes(name: str, tmp_path: Path) -> None:
    plain = tmp_path / "plain.dcm"
    subprocess.run(["/usr/bin/dcmdjpeg", MATERIAL / name, plain], check=True, capture_output=True, timeout=60)
    expected = pydicom.dcmread(plain).pixel_array
    frames = decode(MATERIAL / name, scan_file(MATERIAL / name)[0])
    np.testing.assert_array_equal(np.squeeze(frames.pixels), expected)
    assert frames.decoder.endswith("jpeg8")


@needs_material
@pytest.mark.parametrize("name", [name for name, row in MATRIX.items() if row["transfer_syntax"] in RETIRED])
def test_a_retired_syntax_is_unsupported_by_its_name(name: str) -> None:
    header = scan_file(MATERIAL / name)[0]
    with pytest.raises(UnsupportedError, match=r"1\.2\.4\.5[35] \(JPEG .* is not decoded"):
        decode(MATERIAL / name, header)


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        ("1.2.840.10008.1.2.8.1", "1.2.840.10008.1.2.8.1"),
        ("1.2.840.10008.1.2.4.102", "MPEG-4 AVC"),
        ("1.2.840.10008.1.2.4.107", "HEVC"),
        ("1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.110"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_deflated_frames_video_and_unknown_syntaxes_are_unsupported_by_name(syntax: str, name: str) -> None:
    header = replace(slice_headers(2)[0], transfer_syntax_uid=syntax)
    with pytest.raises(UnsupportedError, match="is not decoded") as caught:
        decode(Path("/nonexistent"), header)
    assert name in str(caught.value)
    assert str(caught.value).startswith("SOP Instance 1.2.3.0: ")


@needs_material
@pytest.mark.parametrize("name", [name for name, row in MATRIX.items() if row["pixel_array"] != "ok"])
def test_odd_files_end_in_an_instance_error_or_pixels_and_nothing_else(name: str) -> None:
    path = MATERIAL / name
    try:
        frames = decode(path, scan_file(path)[0])
    except InstanceError:
        assert name not in TWELVE_BIT_JPEG
    else:
        assert name in TWELVE_BIT_JPEG
        assert frames.pixels.any()


def _native(
    path: Path,
    pixels: NDArray[Any],
    syntax: str,
    **attributes: Any,  # noqa: ANN401  (the values of any attribute)
) -> DecodedFrames:
    return decode(path, write_instance(path, pixels, syntax, **attributes))


@pytest.mark.parametrize("syntax", [IMPLICIT, "1.2.840.10008.1.2.1", DEFLATED])
@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", "<i2", "<u4", "<i4"])
def test_native_values_come_back_whatever_their_type_and_odd_length(
    tmp_path: Path, syntax: str, dtype: str
) -> None:
    rng = np.random.default_rng(1)
    limits = np.iinfo(dtype)
    pixels = rng.integers(limits.min, limits.max, (7, 9), dtype=np.dtype(dtype).type, endpoint=True)
    frames = _native(tmp_path / "a.dcm", pixels, syntax)
    np.testing.assert_array_equal(frames.pixels, pixels[None])
    assert frames.pixels.dtype == np.dtype(dtype)
    assert frames.decoder == "native"


@pytest.mark.parametrize(("dtype", "vr"), [("<u2", "OW"), ("<i4", "OW"), ("u1", "OB"), ("u1", "OW")])
def test_big_endian_values_are_swapped_and_bytes_only_in_words(tmp_path: Path, dtype: str, vr: str) -> None:
    pixels = np.arange(80, dtype=dtype).reshape(8, 10)
    width = 2 if vr == "OW" and dtype == "u1" else pixels.dtype.itemsize
    swapped = pixels.view(f"u{width}").byteswap().view(dtype)
    path = tmp_path / "a.dcm"
    frames = decode(path, write_instance(path, swapped, BIG_ENDIAN, vr=vr))
    np.testing.assert_array_equal(frames.pixels[0], pixels)


def test_bits_above_the_stored_ones_are_not_part_of_the_value(tmp_path: Path) -> None:
    words = np.array([[0xF123, 0x0FFF], [0x8000, 0x7ABC]], "<u2")
    frames = _native(tmp_path / "a.dcm", words, IMPLICIT, BitsStored=12)
    assert frames.pixels[0].tolist() == [[0x123, 0xFFF], [0, 0xABC]]


def test_the_sign_is_in_the_high_bit(tmp_path: Path) -> None:
    words = np.array([[0x0FFF, 0xF800], [0x07FF, 0x1001]], "<u2").view("<i2")
    frames = _native(tmp_path / "a.dcm", words, IMPLICIT, BitsStored=12)
    assert frames.pixels[0].tolist() == [[-1, -2048], [2047, 1]]


def test_values_that_stand_left_in_their_word_are_moved_right(tmp_path: Path) -> None:
    words = np.array([[0xFFF0, 0x0010], [0x8000, 0x123F]], "<u2")
    unsigned = _native(tmp_path / "a.dcm", words, IMPLICIT, BitsStored=12, HighBit=15)
    assert unsigned.pixels[0].tolist() == [[0xFFF, 1], [0x800, 0x123]]
    signed = _native(tmp_path / "a.dcm", words.view("<i2"), IMPLICIT, BitsStored=12, HighBit=15)
    assert signed.pixels[0].tolist() == [[-1, 1], [-2048, 0x123]]


def test_one_bit_values_are_unpacked_across_frames(tmp_path: Path) -> None:
    bits = np.random.default_rng(2).integers(0, 2, (3, 5, 7), np.uint8)
    packed = np.packbits(bits.ravel(), bitorder="little")
    shape = {"Rows": 5, "Columns": 7, "NumberOfFrames": 3, "BitsAllocated": 1, "BitsStored": 1}
    frames = _native(tmp_path / "a.dcm", packed.reshape(1, -1), IMPLICIT, **shape)
    np.testing.assert_array_equal(frames.pixels, bits)


def test_several_frames_and_planar_colour_keep_their_order(tmp_path: Path) -> None:
    pixels = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
    shape = {"Rows": 4, "Columns": 6, "NumberOfFrames": 2}
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}
    by_pixel = _native(tmp_path / "a.dcm", pixels, IMPLICIT, PlanarConfiguration=0, **shape, **colour)
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, 1))
    by_plane = _native(tmp_path / "b.dcm", planes, IMPLICIT, PlanarConfiguration=1, **shape, **colour)
    np.testing.assert_array_equal(by_pixel.pixels, pixels)
    np.testing.assert_array_equal(by_plane.pixels, pixels)


def test_ybr_becomes_rgb_as_pydicom_converts_it_and_the_change_is_noted(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (6, 8, 3), np.uint8)
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL", "PlanarConfiguration": 0}
    frames = _native(tmp_path / "a.dcm", pixels, IMPLICIT, **colour)
    expected = convert_color_space(pixels, "YBR_FULL", "RGB")
    assert frames.photometric_interpretation == "RGB"
    assert np.abs(frames.pixels[0].astype(int) - expected).max() <= 1


def test_subsampled_ybr_gives_both_pixels_of_a_pair_its_colour(tmp_path: Path) -> None:
    stored = np.array([[10, 200, 128, 128, 50, 60, 128, 255]], np.uint8)
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL_422", "PlanarConfiguration": 0}
    frames = _native(tmp_path / "a.dcm", stored, IMPLICIT, Rows=1, Columns=4, **colour)
    assert frames.pixels[0, 0, :2].tolist() == [[10, 10, 10], [200, 200, 200]]
    assert frames.pixels[0, 0, 2].tolist() == [228, 0, 50]


def _header(changed: dict[str, Any]) -> InstanceHeader:
    return replace(slice_headers(2)[0], pixel_data_offset=500, pixel_data_length=24_000, **changed)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"rows": None}, HeaderError, "(0028,0010) Rows is absent"),
        ({"columns": 0}, HeaderError, "(0028,0011) Columns is 0, must be at least 1"),
        ({"bits_allocated": None}, HeaderError, "(0028,0100) Bits Allocated is absent"),
        ({"bits_allocated": 64}, UnsupportedError, "(0028,0100) Bits Allocated is 64, decoded are"),
        ({"bits_stored": 17}, HeaderError, "(0028,0101) Bits Stored is 17, must be 1 to Bits Allocated = 16"),
        ({"high_bit": 16}, HeaderError, "(0028,0102) High Bit is 16, must be 11 to 15"),
        ({"high_bit": 3}, HeaderError, "(0028,0102) High Bit is 3, must be 11 to 15"),
        ({"pixel_representation": 2}, HeaderError, "(0028,0103) Pixel Representation is 2"),
        ({"samples_per_pixel": 4}, UnsupportedError, "(0028,0002) Samples per Pixel is 4"),
        ({"samples_per_pixel": 3}, HeaderError, "contradicts (0028,0004) Photometric Interpretation"),
        ({"number_of_frames": 0}, HeaderError, "(0028,0008) Number of Frames is 0"),
        ({"number_of_frames": 65_537}, DecodeError, "Number of Frames: 65537, allowed 65536"),
        ({"rows": 65_535, "columns": 65_535}, DecodeError, "one decoded frame in bytes: 8589672450, allowed"),
        ({"number_of_frames": 60_000, "rows": 1000}, DecodeError, "decoded pixel data in bytes: 14400000000"),
        ({"rows": 101}, DecodeError, "(7FE0,0010) Pixel Data has 24000 bytes, must have 24240"),
        ({"rows": 99}, DecodeError, "(7FE0,0010) Pixel Data has 24000 bytes, must have 23760"),
    ],
)
def test_a_header_that_lies_is_refused_before_the_file_is_opened(
    changed: dict[str, Any], error: type[InstanceError], message: str
) -> None:
    with pytest.raises(error) as caught:
        decode(Path("/nonexistent"), _header(changed))
    assert message in str(caught.value)


def test_the_limits_are_those_that_were_given(tmp_path: Path) -> None:
    header = write_instance(tmp_path / "a.dcm", np.zeros((10, 10), "<u2"))
    assert decode(tmp_path / "a.dcm", header, DecodeLimits(max_bytes=200)).pixels.size == 100
    with pytest.raises(DecodeError, match="decoded pixel data in bytes: 200, allowed 199"):
        decode(tmp_path / "a.dcm", header, DecodeLimits(max_bytes=199))


def test_a_file_cut_anywhere_in_its_pixels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    header = write_instance(path, np.ones((4, 4), "<u2"))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InstanceError):
            decode(path, header)
    path.write_bytes(whole + b"tail")
    assert decode(path, header).pixels.sum() == 16


def test_a_header_of_another_file_is_noticed(tmp_path: Path) -> None:
    header = write_instance(tmp_path / "a.dcm", np.ones((4, 4), "<u2"), PatientName="x" * 20)
    write_instance(tmp_path / "b.dcm", np.ones((16, 16), "<u2"))
    with pytest.raises(DecodeError, match="Pixel Data is not where the header says"):
        decode(tmp_path / "b.dcm", header)


def _deflate(path: Path, data_set: bytes, header_of: Path) -> None:
    meta = header_of.read_bytes()
    begin = read_meta(meta).dataset_offset
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(meta[:begin] + packer.compress(data_set) + packer.flush())


def test_a_deflate_bomb_is_refused_without_inflating_it(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    header = write_instance(path, np.zeros((64, 64), "<u2"), DEFLATED)
    raw = path.read_bytes()
    begin = read_meta(raw).dataset_offset
    data_set = zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw[begin:])
    bomb = tmp_path / "bomb.dcm"
    _deflate(bomb, data_set + bytes(64 * 1024**2), path)
    with pytest.raises(DecodeError, match=r"more than 16785408 bytes inflated"):
        decode(bomb, header)
    for length in range(begin, len(raw)):
        path.write_bytes(raw[:length])
        try:
            assert decode(path, header).pixels.shape == (1, 64, 64)
        except InstanceError:
            continue
        assert length > len(raw) - 16  # what is missing lies behind the pixels


def test_modality_values_apply_slope_and_intercept() -> None:
    header = replace(slice_headers(2)[0], rescale_slope=2.5, rescale_intercept=-1024.0)
    values = modality_values(np.array([[0, 4], [-2, 1000]], np.int16), header)
    assert values.dtype == np.float32
    assert values.tolist() == [[-1024, -1014], [-1029, 1476]]
    plain = modality_values(np.array([[7]], np.uint8), slice_headers(2)[0])
    assert plain.tolist() == [[7.0]]


def test_modality_values_of_32_bits_are_computed_before_they_are_rounded() -> None:
    header = replace(slice_headers(2)[0], rescale_slope=1.0, rescale_intercept=-(2.0**31))
    stored = np.array([[2**31 + 1, 2**31 + 3]], np.uint32)
    out = np.empty((1, 2), np.float32)
    assert modality_values(stored, header, out) is out
    assert out.tolist() == [[1.0, 3.0]]
    assert modality_values(stored, header).tolist() == [[1.0, 3.0]]


@pytest.mark.parametrize(
    ("slope", "intercept"), [(float("nan"), 0.0), (1e300, 0.0), (1.0, float("inf")), (1.0, -1e30)]
)
def test_a_rescale_that_gives_no_numbers_is_refused(slope: float, intercept: float) -> None:
    header = replace(slice_headers(2)[0], rescale_slope=slope, rescale_intercept=intercept)
    with pytest.raises(HeaderError, match=r"SOP Instance 1\.2\.3\.0: \(0028,1053\) Rescale Slope is"):
        modality_values(np.ones((2, 2), np.int16), header)


def test_a_rescale_slope_of_0_is_not_supported() -> None:
    header = replace(slice_headers(2)[0], rescale_slope=0.0)
    with pytest.raises(UnsupportedError, match=r"SOP Instance 1\.2\.3\.0: \(0028,1053\) Rescale Slope is 0"):
        modality_values(np.ones((2, 2), np.int16), header)


def test_native_pixels_need_neither_pydicom_nor_codecs(tmp_path: Path) -> None:
    write_instance(tmp_path / "a.dcm", np.ones((4, 4), "<u2"))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from dicom.header import scan_file\n"
        "from dicom.volume import read_slice\n"
        "path = Path(sys.argv[2])\n"
        "assert read_slice(path, scan_file(path)[0]).pixels.sum() == 16\n"
        "print([name for name in ('pydicom', 'imagecodecs') if name in sys.modules])\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, root, tmp_path / "a.dcm"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
