"""Frames as values, as stored, and as pictures."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file

from dicom.codec import CODECS
from dicom.errors import DecodeError, UnsupportedError
from dicom.frames import (
    MAX_FRAMES_AT_ONCE,
    STORED_MEDIA_TYPES,
    Window,
    plain_frames,
    rendered,
    stored_frames,
)
from dicom.header import scan_file
from tests.tiny import tiny_study


def of(name: str) -> Path:
    return Path(str(get_testdata_file(name)))


def test_every_syntax_that_is_decoded_has_a_media_type() -> None:
    assert set(CODECS) <= set(STORED_MEDIA_TYPES)


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "MR_small_bigendian.dcm", "JPEG2000.dcm", "MR_small_RLE.dcm", "rtdose.dcm"]
)
def test_plain_frames_are_the_values_that_pydicom_decodes(name: str) -> None:
    path = of(name)
    header, ds = scan_file(path)[0], dcmread(path)
    pixels = ds.pixel_array if header.number_of_frames > 1 else ds.pixel_array[np.newaxis]
    numbers = [header.number_of_frames, 1]
    frames = plain_frames(path, header, numbers)
    for number, frame in zip(numbers, frames, strict=True):
        little = pixels.dtype.newbyteorder("<")
        assert np.array_equal(np.frombuffer(frame, little).reshape(pixels.shape[1:]), pixels[number - 1])


def test_stored_frames_are_the_codestreams() -> None:
    path = of("JPEG2000.dcm")
    [frame] = stored_frames(path, scan_file(path)[0], [1])
    assert frame.startswith(b"\xff\x4f\xff\x51")
    plain = of("CT_small.dcm")
    with pytest.raises(UnsupportedError, match="not compressed"):
        stored_frames(plain, scan_file(plain)[0], [1])


def test_numbers_beyond_the_frames_and_too_many_at_once_are_refused() -> None:
    path = of("CT_small.dcm")
    header = scan_file(path)[0]
    with pytest.raises(DecodeError, match="frame 2 asked for"):
        plain_frames(path, header, [2])
    for numbers in ([], [1] * (MAX_FRAMES_AT_ONCE + 1)):
        with pytest.raises(UnsupportedError, match="at once"):
            plain_frames(path, header, numbers)


def test_pixel_data_cut_short_is_an_error(tmp_path: Path) -> None:
    [path] = tiny_study(tmp_path, slices=1)
    header = scan_file(path)[0]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DecodeError, match="ends before frame 1"):
        plain_frames(path, header, [1])


def test_a_window_makes_black_below_and_white_above(tmp_path: Path) -> None:
    [path] = tiny_study(tmp_path, slices=3)[2:]
    header = scan_file(path)[0]

    def picture(window: Window | None) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(rendered(path, header, 1, "image/png", window))))

    whole = picture(None)
    assert (int(whole.min()), int(whole.max())) == (0, 255)
    assert int(picture(Window(500.0, 1000.0))[6, 7]) == pytest.approx(0.9 * 255, abs=1)
    assert picture(Window(2000.0, 100.0)).max() == 0
    assert picture(Window(50.0, 1.0)).min() == 255


def test_monochrome1_is_shown_inverted(tmp_path: Path) -> None:
    [path] = tiny_study(tmp_path, slices=3, PhotometricInterpretation="MONOCHROME1")[2:]
    shown = np.asarray(Image.open(io.BytesIO(rendered(path, scan_file(path)[0], 1, "image/png"))))
    assert int(shown[6, 7]) == 0
    assert int(shown[0, 0]) == 255


def test_what_has_no_pixels_has_no_picture() -> None:
    path = of("test-SR.dcm")
    with pytest.raises(UnsupportedError, match="no pixels"):
        rendered(path, scan_file(path)[0], 1, "image/png")
