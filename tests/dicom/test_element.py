import math
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread

from dicom.element import UTF_8, Encoder, data_set, decimal, file_format, in_character_set, pixel_data
from dicom.results import Code
from dicom.uid import IMPLEMENTATION_CLASS_UID

ENCODE = Encoder("", "ascii")


def test_pydicom_reads_every_value_representation_that_we_write() -> None:
    ds = dcmread(
        BytesIO(
            file_format(
                "1.2",
                "1.2.3",
                [
                    data_set(
                        ENCODE("PatientSex", "F"),
                        ENCODE("StudyDate", "20260102"),
                        ENCODE("ContentTime", "010203.4"),
                        ENCODE("SeriesNumber", 97),
                        ENCODE("PixelSpacing", 0.1, 2.0),
                        ENCODE("SOPInstanceUID", "1.2.3"),
                        ENCODE("Rows", 65535),
                        ENCODE("DimensionIndexValues", 1, 2**32 - 1),
                        ENCODE("FloatingPointValue", 0.1),
                        ENCODE("DimensionIndexPointer", 0x00200032),
                        ENCODE("StationName", "abc"),
                        ENCODE("TextValue", "back\\slash\nline"),
                        ENCODE("ImageType", "DERIVED", "PRIMARY"),
                        ENCODE("ReferencedSeriesSequence", ENCODE("SeriesInstanceUID", "1.4"), b""),
                        ENCODE("ContentSequence"),
                        ENCODE("PatientName"),
                    ),
                    *pixel_data([b"\1\2", b"\3"]),
                ],
            )
        )
    )
    assert (ds.PatientSex, ds.StudyDate, ds.ContentTime, ds.SeriesNumber) == ("F", "20260102", "010203.4", 97)
    assert list(ds.PixelSpacing) == [0.1, 2.0]
    assert (ds.SOPInstanceUID, ds.Rows, ds.FloatingPointValue) == ("1.2.3", 65535, 0.1)
    assert list(ds.DimensionIndexValues) == [1, 2**32 - 1]
    assert ds.DimensionIndexPointer == 0x00200032
    assert (ds.StationName, ds.TextValue, list(ds.ImageType)) == (
        "abc",
        "back\\slash\nline",
        ["DERIVED", "PRIMARY"],
    )
    assert [len(item) for item in ds.ReferencedSeriesSequence] == [1, 0]
    assert len(ds.ContentSequence) == 0
    assert ds.PatientName == ""
    assert ds.PixelData == b"\1\2\3\0"
    assert ds.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert [element.tag for element in ds] == sorted(element.tag for element in ds)


def test_an_element_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(0028,0010\) is there twice"):
        data_set(ENCODE("Rows", 1), ENCODE("Columns", 1), ENCODE("Rows", 2))


@pytest.mark.parametrize("call", [("NoSuchKeyword", "x"), ("Modality", "M" * 17), ("PixelSpacing", math.nan)])
def test_what_does_not_fit_is_refused(call: tuple[str, str | float]) -> None:
    with pytest.raises(ValueError, match=r"keyword|allowed 16|finite"):
        ENCODE(*call)


def test_a_code_value_of_more_than_16_characters_is_a_long_one() -> None:
    item = ENCODE("ConceptCodeSequence", ENCODE.code(Code("v" * 17, "99X", "m")))
    ds = dcmread(BytesIO(file_format("1.2", "1.2.3", [item])))
    assert "CodeValue" not in ds.ConceptCodeSequence[0]
    assert ds.ConceptCodeSequence[0].LongCodeValue == "v" * 17


def test_a_text_outside_the_character_set_is_written_in_utf_8() -> None:
    latin = Encoder("ISO_IR 100", "latin-1")
    assert in_character_set(latin, lambda encode: encode("StationName", "é")).endswith(b"\xe9 ")
    assert in_character_set(latin, lambda encode: encode("StationName", "山")).endswith("山".encode() + b" ")
    assert in_character_set(latin, lambda encode: encode.character_set.encode()) == b"ISO_IR 100"
    assert (
        in_character_set(ENCODE, lambda encode: encode("StationName", "é") + encode.character_set.encode())[
            -len(UTF_8) :
        ]
        == UTF_8.encode()
    )


@given(st.floats(min_value=-1e300, max_value=1e300))
def test_a_decimal_string_is_short_and_as_near_as_sixteen_characters_allow(value: float) -> None:
    text = decimal(value)
    assert len(text) <= 16
    assert math.isclose(float(text), value, rel_tol=1e-8, abs_tol=1e-300)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1"),
        (-0.5, "-0.5"),
        (657.989685881986, "657.989685881986"),
        (-0.128043957939, "-0.128043957939"),
        (1 / 3, "0.33333333333333"),
        (1e-7, "1e-07"),
        (-1.7976931348623157e308, "-1.79769313e+308"),
    ],
)
def test_decimal_strings(value: float, text: str) -> None:
    assert decimal(value) == text
