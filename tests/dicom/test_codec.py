"""Each decoder against an independent one, and against damage."""

import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.encoders.base import RLELosslessEncoder

from dicom.codec import CODECS, decode_frame, decoder_name
from dicom.codestream import LOSSLESS, SEQUENTIAL, read_jpeg, rle_segments
from dicom.decode import decode
from dicom.errors import DecodeError, InstanceError
from dicom.header import scan_file
from dicom.jpeg2000 import read_jpeg2000
from dicom.layout import PixelLayout
from tests.dicom.instances_fixture import slice_headers, write_instance
from tests.material import MATERIAL, needs_material

SYNTAXES = MATERIAL / "dicom" / "transfer_syntaxes"
RLE = "1.2.840.10008.1.2.5"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPEG_2000 = "1.2.840.10008.1.2.4.90"

GREY_16 = PixelLayout(1, 24, 32, 1, "MONOCHROME2", 16, 16, 15, signed=False, planar=False)
GREY_8 = replace(GREY_16, bits_allocated=8, bits_stored=8, high_bit=7)
COLOUR = replace(GREY_8, samples=3, photometric_interpretation="RGB")


def _picture(layout: PixelLayout) -> NDArray[Any]:
    """A smooth ramp with a little noise over the whole range of `layout`."""
    ramp = np.linspace(0, 1, layout.frame_values).reshape(layout.frame_shape)
    noise = np.random.default_rng(4).random(layout.frame_shape)
    limits = np.iinfo(layout.dtype)
    values = limits.min + (0.9 * ramp + 0.1 * noise) * (limits.max - limits.min)
    return values.astype(layout.dtype)


def _rle(frame: NDArray[Any]) -> bytes:
    data: bytes = RLELosslessEncoder.encode(
        frame,
        encoding_plugin="pydicom",
        rows=frame.shape[0],
        columns=frame.shape[1],
        samples_per_pixel=1 if frame.ndim == 2 else 3,
        photometric_interpretation="MONOCHROME2" if frame.ndim == 2 else "RGB",
        bits_allocated=frame.dtype.itemsize * 8,
        bits_stored=frame.dtype.itemsize * 8,
        pixel_representation=int(frame.dtype.kind == "i"),
        number_of_frames=1,
        planar_configuration=0,
    )
    return data


def _encode(syntax: str, frame: NDArray[Any]) -> bytes:
    unsigned = frame.view(f"u{frame.dtype.itemsize}")
    if syntax == RLE:
        return _rle(frame)
    if syntax == JPEG_LOSSLESS:
        return bytes(imagecodecs.ljpeg_encode(unsigned, bitspersample=8 * frame.dtype.itemsize))
    if syntax == JPEG_LS:
        return bytes(imagecodecs.jpegls_encode(unsigned))
    return bytes(imagecodecs.jpeg2k_encode(frame, codecformat="j2k", reversible=True))


LOSSLESS_SYNTAXES = [RLE, JPEG_LOSSLESS, JPEG_LS, JPEG_2000]


@pytest.mark.parametrize("syntax", LOSSLESS_SYNTAXES)
@pytest.mark.parametrize("layout", [GREY_16, GREY_8, replace(GREY_16, signed=True)], ids=["u2", "u1", "i2"])
def test_a_lossless_syntax_gives_back_what_was_encoded(syntax: str, layout: PixelLayout) -> None:
    frame = _picture(layout)
    decoded, photometric = decode_frame(_encode(syntax, frame), syntax, layout)
    np.testing.assert_array_equal(decoded, frame)
    assert decoded.dtype == layout.dtype
    assert photometric == "MONOCHROME2"


@pytest.mark.parametrize("syntax", [RLE, JPEG_LS, JPEG_2000])
def test_colours_keep_their_order(syntax: str) -> None:
    frame = _picture(COLOUR)
    frame[..., 0] //= 2
    decoded, photometric = decode_frame(_encode(syntax, frame), syntax, COLOUR)
    np.testing.assert_array_equal(decoded, frame)
    assert photometric == "RGB"


@pytest.mark.parametrize("photometric", ["YBR_FULL", "RGB"])
def test_jpeg_colours_are_those_that_went_in(photometric: str) -> None:
    frame = np.repeat(np.repeat(np.random.default_rng(5).integers(0, 256, (3, 4, 3), np.uint8), 8, 0), 8, 1)
    inside = "RGB" if photometric == "RGB" else "YCBCR"
    data = bytes(
        imagecodecs.jpeg8_encode(frame, level=100, colorspace="RGB", outcolorspace=inside, subsampling="444")
    )
    layout = replace(COLOUR, photometric_interpretation=photometric)
    decoded, after = decode_frame(data, JPEG_BASELINE, layout)
    assert after == "RGB"
    assert np.abs(decoded.astype(int) - frame).mean() < 4


INDEPENDENT = [
    ("CTImage.dcm_JPEGProcess14TransferSyntax_1.2.840.10008.1.2.4.57.dcm", "gdcm"),
    ("CTImage.dcm_JPEGProcess14SV1TransferSyntax_1.2.840.10008.1.2.4.70.dcm", "gdcm"),
    ("JLSL_16_15_1_1F.dcm", "pyjpegls"),
    ("MR_small_jpeg_ls_lossless.dcm", "pyjpegls"),
    ("emri_small_RLE.dcm", "pydicom"),
    ("SC_rgb_rle_2frame.dcm", "pylibjpeg"),
    ("J2K_pixelrep_mismatch.dcm", "pylibjpeg"),
    ("HTJ2KLossless_08_RGB.dcm", "pylibjpeg"),
]


@needs_material
@pytest.mark.parametrize(("name", "plugin"), INDEPENDENT)
def test_an_independent_decoder_gives_the_same_pixels(name: str, plugin: str, tmp_path: Path) -> None:
    ds = pydicom.dcmread(SYNTAXES / name)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.1", "1.2.2"
    ds.save_as(tmp_path / "a.dcm")
    expected, _ = get_decoder(ds.file_meta.TransferSyntaxUID).as_array(ds, decoding_plugin=plugin)
    frames = decode(tmp_path / "a.dcm", scan_file(tmp_path / "a.dcm")[0])
    np.testing.assert_array_equal(np.squeeze(frames.pixels), expected)


def test_every_row_of_the_table_names_its_decoder_and_version() -> None:
    for syntax, codec in CODECS.items():
        assert decoder_name(syntax) == f"imagecodecs {imagecodecs.__version__} {codec.name}"
    assert decoder_name("1.2.840.10008.1.2.1") == "native"


@pytest.mark.parametrize("syntax", [*LOSSLESS_SYNTAXES, JPEG_BASELINE])
def test_a_codestream_cut_at_any_length_is_refused(syntax: str) -> None:
    layout = GREY_8
    frame = _picture(layout)
    data = bytes(imagecodecs.jpeg8_encode(frame)) if syntax == JPEG_BASELINE else _encode(syntax, frame)
    spare = 1 if syntax == RLE else 0  # the byte that pads an RLE segment
    assert decode_frame(data, syntax, layout)[0].shape == frame.shape
    for length in range(len(data) - spare):
        with pytest.raises(DecodeError):
            decode_frame(data[:length], syntax, layout)


@needs_material
def test_a_damaged_htj2k_frame_is_refused_and_not_painted_over() -> None:
    ds = pydicom.dcmread(SYNTAXES / "HTJ2KLossless_08_RGB.dcm")
    data = next(generate_frames(ds.PixelData, number_of_frames=1))
    layout = replace(COLOUR, rows=480, columns=640)
    syntax = "1.2.840.10008.1.2.4.201"
    assert decode_frame(data, syntax, layout)[0].shape == (480, 640, 3)
    for length in (len(data) // 2, len(data) * 9 // 10, len(data) - 300):
        with pytest.raises(DecodeError):
            decode_frame(data[:length], syntax, layout)
        with pytest.raises(DecodeError):
            decode_frame(data[:length] + b"\xff\xd9", syntax, layout)


@pytest.mark.parametrize("syntax", LOSSLESS_SYNTAXES)
@pytest.mark.parametrize(
    "changed", [{"rows": 25}, {"columns": 31}, {"rows": 32, "columns": 24}, {"samples": 3}]
)
def test_a_codestream_of_another_size_is_refused(syntax: str, changed: dict[str, Any]) -> None:
    if syntax == RLE and changed == {"rows": 32, "columns": 24}:
        pytest.skip("an RLE frame says how many values it has, not how they lie")
    with pytest.raises(DecodeError, match=r"header says|header asks for|must have|packbits_decode"):
        decode_frame(_encode(syntax, _picture(GREY_16)), syntax, replace(GREY_16, **changed))


def test_sixteen_bit_samples_do_not_fit_a_header_of_eight() -> None:
    for syntax in (JPEG_LOSSLESS, JPEG_LS, JPEG_2000):
        with pytest.raises(DecodeError, match="16 bits a sample"):
            decode_frame(_encode(syntax, _picture(GREY_16)), syntax, GREY_8)


def test_a_codestream_twice_as_large_as_its_frame_is_refused_unread() -> None:
    with pytest.raises(DecodeError, match="codestream has 100000 bytes, allowed 68608"):
        decode_frame(bytes(100_000), JPEG_LS, GREY_16)


def test_a_jpeg_of_another_process_is_refused_by_its_marker() -> None:
    progressive = bytearray(imagecodecs.jpeg8_encode(_picture(GREY_8)))
    at = progressive.index(b"\xff\xc0")
    progressive[at + 1] = 0xC2
    with pytest.raises(DecodeError, match="frame header is ffc2, this transfer syntax has ffc0 or ffc1"):
        decode_frame(bytes(progressive), JPEG_BASELINE, GREY_8)
    with pytest.raises(DecodeError, match="frame header is ffc0, this transfer syntax has ffc3"):
        read_jpeg(bytes(imagecodecs.jpeg8_encode(_picture(GREY_8))), LOSSLESS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "begins , must begin ffd8"),
        (b"\xff\xd8", "no frame header"),
        (b"\xff\xd8" + b"\xff\xe0\x00\x00" * 3000, "ffe0 at byte 2 has no length"),
        (b"\xff\xd8" + b"\xff\xe0\x00\x02" * 3000, "more than 1024 marker segments"),
        (b"\xff\xd8\xff\xff\xff\xff", "no frame header"),
        (b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x10", "cut short"),
        (b"\xff\xd8\xff\xc0\x00\x08\x08\x00\x10\x00\x10\xff", "frame header has 6 bytes"),
    ],
)
def test_a_jpeg_head_that_makes_no_sense_ends_in_an_error(data: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        read_jpeg(data, SEQUENTIAL)


def test_a_jpeg_2000_head_is_read_through_its_boxes_and_refused_when_it_lies() -> None:
    frame = _picture(GREY_16)
    boxed = bytes(imagecodecs.jpeg2k_encode(frame, codecformat="jp2", reversible=True))
    assert boxed[4:8] == b"jP  "
    stream, bare = read_jpeg2000(boxed)
    assert (stream.rows, stream.columns, stream.components, stream.precision) == (24, 32, 1, 16)
    np.testing.assert_array_equal(decode_frame(boxed, JPEG_2000, GREY_16)[0], frame)
    for length in range(len(boxed) - len(bare) + 45):
        with pytest.raises(DecodeError):
            read_jpeg2000(boxed[:length])
    wide = bytearray(bare)
    wide[8:12] = wide[24:28] = (33).to_bytes(4, "big")  # the image and its only tile
    with pytest.raises(DecodeError, match=r"codestream is \(24, 33, 1\)"):
        decode_frame(bytes(wide), JPEG_2000, GREY_16)
    wide[8:12] = wide[24:28] = b"\xff\xff\x00\x00"
    with pytest.raises(DecodeError, match="precincts, allowed 65536"):
        decode_frame(bytes(wide), JPEG_2000, GREY_16)
    subsampled = bytearray(bare)
    subsampled[43] = 2
    with pytest.raises(DecodeError, match="components of different size"):
        read_jpeg2000(bytes(subsampled))
    untiled = bytearray(bare)
    untiled[24:28] = bytes(4)
    with pytest.raises(DecodeError, match="no area"):
        read_jpeg2000(bytes(untiled))


@pytest.mark.parametrize(
    "offsets",
    [(1, 64), (2, 64, 0xFFFFFFF0), (2, 64, 64), (2, 70, 64), (2, 64, 10_000), (200, 64), (0,), (2, 63, 80)],
)
def test_rle_offsets_that_lie_are_refused_before_a_decoder_reads_there(offsets: tuple[int, ...]) -> None:
    words = np.zeros(16, "<u4")
    words[: len(offsets)] = offsets
    with pytest.raises(DecodeError, match="RLE frame"):
        rle_segments(words.tobytes() + bytes(100), 2)


@pytest.mark.parametrize("last", [0x80, 0x00, 0x7F])
@pytest.mark.parametrize("padded", [True, False])
def test_an_rle_segment_is_whole_with_or_without_its_padding_whatever_its_last_byte(
    last: int, padded: bool
) -> None:
    layout = replace(GREY_8, rows=1, columns=4)
    head = np.zeros(16, "<u4")
    head[:2] = 1, 64
    stream = head.tobytes() + bytes([3, 1, 2, 3, last])
    frame, _ = decode_frame(stream + b"\0" * padded, RLE, layout)
    assert frame.tolist() == [[1, 2, 3, last]]
    with pytest.raises(DecodeError):
        decode_frame(stream[:-1], RLE, layout)


def test_an_rle_bomb_is_stopped_at_the_size_of_the_frame() -> None:
    head = np.zeros(16, "<u4")
    head[:2] = 1, 64
    with pytest.raises(DecodeError, match="packbits_decode"):
        decode_frame(head.tobytes() + b"\x81\x07" * 10_000, RLE, GREY_8)


def test_fragments_are_joined_and_frames_found_without_an_offset_table(tmp_path: Path) -> None:
    first, second = _picture(GREY_16), _picture(GREY_16)[::-1].copy()
    streams = [_encode(JPEG_LS, first), _encode(JPEG_LS, second)]
    header = write_instance(
        tmp_path / "a.dcm", streams, JPEG_LS, Rows=24, Columns=32, BitsAllocated=16,
        PixelRepresentation=0, NumberOfFrames=2,
    )  # fmt: skip
    ds = pydicom.dcmread(tmp_path / "a.dcm")
    for has_bot in (True, False):
        ds.PixelData = encapsulate(streams, fragments_per_frame=3, has_bot=has_bot)
        ds["PixelData"].is_undefined_length = True
        ds.save_as(tmp_path / "b.dcm")
        frames = decode(tmp_path / "b.dcm", header)
        np.testing.assert_array_equal(frames.pixels, [first, second])


@pytest.mark.parametrize(
    ("frames", "message"),
    [(1, "more than 1 frames, the"), (3, "2 frames, (0028,0008) Number of Frames is 3")],
)
def test_another_number_of_frames_than_the_header_says_is_refused(
    tmp_path: Path, frames: int, message: str
) -> None:
    streams = [_encode(RLE, _picture(GREY_16))] * 2
    path = tmp_path / "a.dcm"
    header = write_instance(
        path, streams, RLE, Rows=24, Columns=32, BitsAllocated=16, PixelRepresentation=0, NumberOfFrames=2
    )
    assert decode(path, header).pixels.shape == (2, 24, 32)
    ds = pydicom.dcmread(path)
    ds.PixelData = encapsulate(streams, has_bot=True)
    ds["PixelData"].is_undefined_length = True
    ds.save_as(path)
    with pytest.raises(DecodeError) as caught:
        decode(path, replace(header, number_of_frames=frames))
    assert message in str(caught.value)


def test_an_encapsulated_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    stream = _encode(JPEG_LS, _picture(GREY_16))
    header = write_instance(
        path, [stream], JPEG_LS, Rows=24, Columns=32, BitsAllocated=16, PixelRepresentation=0
    )
    whole = path.read_bytes()
    for length in range(0, len(whole) - 10, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InstanceError):
            decode(path, header)


def test_an_encapsulated_file_far_larger_than_its_frames_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    header = write_instance(
        path, [b"x" * 400_000], JPEG_LS, Rows=24, Columns=32, BitsAllocated=16, PixelRepresentation=0
    )
    with pytest.raises(DecodeError, match=r"encapsulated Pixel Data has 400\d\d\d bytes, allowed 137216"):
        decode(path, header)


def test_pixel_data_with_a_length_is_not_taken_for_encapsulated(tmp_path: Path) -> None:
    header = replace(slice_headers(2)[0], transfer_syntax_uid=JPEG_LS, pixel_data_length=24_000)
    with pytest.raises(DecodeError, match="has a length, but its transfer syntax is encapsulated"):
        decode(tmp_path / "none.dcm", header)


FUZZ = """
import random, sys
sys.path.insert(0, sys.argv[1])
from dicom.codec import decode_frame
from dicom.errors import DecodeError, InstanceError
from tests.dicom.test_codec import GREY_16, _encode, _picture
syntax = sys.argv[2]
rng = random.Random(7)
good = _encode(syntax, _picture(GREY_16))
refused = 0
for _ in range(400):
    data = bytearray(good)
    for _ in range(rng.choice((1, 2, 8))):
        at = rng.randrange(min(len(data), rng.choice((120, len(data)))))
        data[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    try:
        decode_frame(bytes(data), syntax, GREY_16)
    except DecodeError:
        refused += 1
print(refused)
"""


@pytest.mark.parametrize("syntax", [RLE, JPEG_LOSSLESS, JPEG_LS, JPEG_2000])
def test_changed_bytes_neither_crash_nor_raise_anything_but_our_error(syntax: str) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-I", "-c", FUZZ, root, syntax],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 20


# --- a second size, hidden from the check ---


def _with_size(data: bytes, rows: int, columns: int) -> bytes:
    """`data`, a JPEG, with another size in its frame header."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + rows.to_bytes(2, "big") + columns.to_bytes(2, "big") + data[at + 4 :]


def _frame_segment(data: bytes) -> bytes:
    at = data.index(b"\xff\xc0")
    return data[at : at + 13]


@pytest.mark.parametrize("marker", [0x01, *range(0xD0, 0xD8)])
def test_a_marker_without_a_length_cannot_hide_a_larger_frame_header(marker: int) -> None:
    small = bytes(imagecodecs.jpeg8_encode(_picture(GREY_8)))
    body = _with_size(small, 40_000, 40_000)[2:]
    skip = int.from_bytes(body[:2], "big")  # what a length would be
    stream = (b"\xff\xd8" + bytes([0xFF, marker]) + body).ljust(4 + skip, b"\0")
    stream += _frame_segment(small) + b"\xff\xd9"
    with pytest.raises(DecodeError, match=rf"has marker ff{marker:02x} at byte 2"):
        decode_frame(stream, JPEG_BASELINE, GREY_8)


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (b"\0", "no marker at byte 2"),
        (b"\xff\xff\x00", "has marker ff00"),
        (b"\xff\xdc\x00\x04\x9c\x40", "has marker ffdc"),  # DNL
        (b"\xff\xde\x00\x0b\x08\x9c\x40\x9c\x40\x01\x01\x11\x00", "has marker ffde"),  # DHP
        (b"\xff\xdf\x00\x03\x11", "has marker ffdf"),  # EXP
        (b"\xff\xf8\x00\x0a\x04\x02\0\0\0\0\0\0", "has marker fff8"),  # LSE, the size
        (b"\xff\xe0\xff\xff", "ffe0 at byte 2 has no length, or is cut short"),
        (b"\xff\xd8", "has marker ffd8"),
        (b"\xff\xd9", "ends without a frame header"),
    ],
)
def test_nothing_but_segments_that_all_decoders_read_alike_stands_before_a_scan(
    between: bytes, message: str
) -> None:
    data = bytes(imagecodecs.jpeg8_encode(_picture(GREY_8)))
    with pytest.raises(DecodeError, match=message):
        decode_frame(data[:2] + between + data[2:], JPEG_BASELINE, GREY_8)


def test_fill_bytes_and_comments_are_passed_over() -> None:
    data = bytes(imagecodecs.jpeg8_encode(_picture(GREY_8)))
    filled = data[:2] + b"\xff\xff\xff\xfe\x00\x04\xff\xd9" + data[2:]
    expected, _ = decode_frame(data, JPEG_BASELINE, GREY_8)
    np.testing.assert_array_equal(decode_frame(filled, JPEG_BASELINE, GREY_8)[0], expected)


def test_a_second_frame_header_is_refused_before_and_behind_the_scan() -> None:
    data = bytes(imagecodecs.jpeg8_encode(_picture(GREY_8)))
    frame = _frame_segment(data)
    before = data.replace(frame, frame + frame)
    behind = data[:-2] + frame + data[-2:]
    for stream in (before, behind):
        with pytest.raises(DecodeError, match="2 frame headers"):
            decode_frame(stream, JPEG_BASELINE, GREY_8)
    with pytest.raises(DecodeError, match="100 bytes behind its end marker, allowed 64"):
        decode_frame(data + bytes(100), JPEG_BASELINE, GREY_8)


def test_a_jpeg_ls_scan_that_runs_to_the_last_byte_is_refused_at_once() -> None:
    # CharLS alone needs half a minute for it; its end marker is in a comment.
    stream = bytes.fromhex(
        "ffd8fff7000b100040004001011100fff8000d01ffff0012004301140040fffe0004ffd9"
        "ffda0008010100000000388ce3b3b1dbea59de9a2168a2491ff530"
    )
    with pytest.raises(DecodeError, match="no end marker"):
        decode_frame(stream, JPEG_LS, replace(GREY_16, rows=64, columns=64))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"\xff\xda\x00\x08", b"\xff\xf8\x00\x08\x04\x02\0\x18\0\x20\xff\xda\x00\x08", "of type 04"),
        (b"\xff\xda\x00\x08", b"\xff\xf8\x00\x05\x02\x01\x01\xff\xda\x00\x08", "of type 02"),
        (b"\xff\xda\x00\x08\x01\x01\x00", b"\xff\xda\x00\x08\x01\x01\x01", "a mapping table"),
        (b"\xff\xda\x00\x08\x01", b"\xff\xda\x00\x08\x02", "scan header has 2 components"),
    ],
)
def test_jpeg_ls_tables_and_sizes_besides_its_frame_header_are_refused(
    old: bytes, new: bytes, message: str
) -> None:
    data = _encode(JPEG_LS, _picture(GREY_16))
    assert data.count(old) == 1
    with pytest.raises(DecodeError, match=message):
        decode_frame(data.replace(old, new), JPEG_LS, GREY_16)


# --- JPEG 2000: what a hundred bytes can ask for ---


def _marker(marker: int, content: bytes) -> bytes:
    return marker.to_bytes(2, "big") + (len(content) + 2).to_bytes(2, "big") + content


def _jpeg2000(
    size: int,
    tile: int,
    *,
    precincts: bytes = b"",
    levels: int = 0,
    block: int = 4,
    layers: int = 1,
    coc: bytes = b"",
    tile_header: bytes = b"",
    tiles: int = 1,
) -> bytes:
    """A codestream whose tiles hold nothing; `block` is the exponent of a code-block less 2."""
    siz = b"".join(value.to_bytes(4, "big") for value in (size, size, 0, 0, tile, tile, 0, 0))
    cod = (
        bytes([1 if precincts else 0, 0]) + layers.to_bytes(2, "big") + bytes([0, levels, block, block, 0, 1])
    )
    stream = b"\xff\x4f" + _marker(0xFF51, b"\0\0" + siz + b"\0\1\7\1\1") + _marker(0xFF52, cod + precincts)
    stream += coc + _marker(0xFF5C, bytes([0x40] + [0x48] * (1 + 3 * levels)))
    for index in range(tiles):
        part = tile_header + b"\xff\x93\0"
        head = index.to_bytes(2, "big") + (12 + len(part)).to_bytes(4, "big") + b"\0\1"
        stream += _marker(0xFF90, head) + part
    return stream + b"\xff\xd9"


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (_jpeg2000(255, 1), "65025 tiles, allowed 4096"),
        (_jpeg2000(2048, 2048, precincts=b"\x11"), "1048576 precincts, allowed 65536"),
        (_jpeg2000(512, 512, precincts=b"\x00" + b"\x11" * 3, levels=3), "precincts, allowed 65536"),
        (_jpeg2000(4096, 4096, block=0), "1048576 code-blocks, allowed 262144"),
        (_jpeg2000(512, 512, precincts=b"\x44", layers=65_535), "packets .precincts times layers., allowed"),
        (_jpeg2000(64, 64, layers=0), "no layers"),
        (_jpeg2000(64, 64, levels=33), "33 levels"),
        (_jpeg2000(64, 64, precincts=b"\x55", levels=1), "1 levels and 1 precinct sizes"),
        (_jpeg2000(64, 64, precincts=b"\x55\x00", levels=1), "have no size"),
        (_jpeg2000(64, 64, block=9), r"code-blocks are 2\^11"),
        (
            _jpeg2000(2048, 2048, coc=_marker(0xFF53, b"\0\1\0\4\4\0\1\x11")),
            "1048576 precincts, allowed 65536",
        ),
        (_jpeg2000(64, 64, coc=_marker(0xFF53, b"\0\0\0\4\4\0\1") * 2), "more coding styles"),
        (_jpeg2000(64, 64, tile_header=_marker(0xFF52, b"\1\0\0\1\0\0\4\4\0\1\x11")), "marker ff52"),
        (_jpeg2000(64, 64, tile_header=_marker(0xFF53, b"\0\1\0\4\4\0\1\x11")), "marker ff53"),
        (_jpeg2000(64, 32), "1 of its 4 tiles"),
        (_jpeg2000(64, 64, tiles=2), "tile 1, there are 1"),
        (_jpeg2000(64, 64)[:-2], "no end marker|cut short"),
        (_jpeg2000(64, 64) + bytes(100), "100 bytes behind its end marker"),
        (_jpeg2000(64, 64).replace(b"\xff\x52\x00\x0c", b"\xff\x64\x00\x0c"), "no coding style"),
        (_jpeg2000(64, 64).replace(b"\xff\x52\x00\x0c", b"\xff\x65\x00\x0c"), "marker ff65"),
    ],
)
def test_a_jpeg_2000_codestream_gets_no_more_tiles_precincts_and_blocks_than_an_image_has(
    stream: bytes, message: str
) -> None:
    with pytest.raises(DecodeError, match=message):
        read_jpeg2000(stream)


@pytest.mark.parametrize("tile", [(8, 8), (32, 16), (32, 24)])
@pytest.mark.parametrize("resolutions", [1, 3, 4])
@pytest.mark.parametrize("precinct", [(0, 0), (64, 64)])
def test_a_tiled_jpeg_2000_codestream_is_decoded(
    tile: tuple[int, int], resolutions: int, precinct: tuple[int, int]
) -> None:
    frame = _picture(GREY_8)
    written = BytesIO()
    Image.fromarray(frame).save(
        written, "JPEG2000", no_jp2=True, tile_size=tile, num_resolutions=resolutions, precinct_size=precinct
    )
    np.testing.assert_array_equal(decode_frame(written.getvalue(), JPEG_2000, GREY_8)[0], frame)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_cut_jpeg_2000_codestream_is_refused_with_an_end_marker_too(share: float) -> None:
    data = _encode(JPEG_2000, _picture(GREY_16))
    with pytest.raises(DecodeError, match="tile-part of tile 0 is cut short"):
        decode_frame(data[: int(len(data) * share)] + b"\xff\xd9", JPEG_2000, GREY_16)


def test_as_much_as_may_be_asked_for_is_not_refused() -> None:
    assert read_jpeg2000(_jpeg2000(2048, 2048, block=0))[0].rows == 2048  # 262144 code-blocks
    assert read_jpeg2000(_jpeg2000(64, 1, tiles=4096))[0].rows == 64
    assert read_jpeg2000(_jpeg2000(8192, 8192, precincts=b"\x55", layers=16))[0].rows == 8192
