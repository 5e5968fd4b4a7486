from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dicom.header import InstanceHeader, scan_file
from edge.matching import Verdict, facts, match
from model_store.manifest import Geometry, Input
from tests.dicom.instances_fixture import slice_headers
from tests.material import MATERIAL, needs_material, unpack


def _wants(**criteria: Any) -> Input:  # noqa: ANN401  (the fields of `Input`)
    return Input.model_validate({"name": "image", "kind": "volume", "modality": ("MR",)} | criteria)


def _judge(headers: list[InstanceHeader], **criteria: Any) -> Verdict:  # noqa: ANN401
    return match(_wants(**criteria), facts(headers))


def _all(headers: list[InstanceHeader], changed: dict[str, Any]) -> list[InstanceHeader]:
    return [replace(header, **changed) for header in headers]


def test_a_series_that_is_what_the_model_asks_for_is_accepted_with_what_was_found() -> None:
    verdict = _judge(
        slice_headers(10),
        body_part=("BRAIN", "HEAD"),
        image_type_any=("PRIMARY",),
        description_any=("T1", "FLAIR"),
        description_none=("post",),
        geometry={
            "slices": (5, 20),
            "rows": (100, 100),
            "columns": (100, 200),
            "pixel_spacing_mm": (0.8, 0.9),
            "slice_spacing_mm": (1, 1),
            "extent_mm": (10, 96),
            "max_gantry_tilt_deg": 1,
        },
    )
    assert verdict == Verdict(True, ("MR, 10 slices of 100 x 120, 1 x 0.9 x 0.8 mm",))


@pytest.mark.parametrize(
    ("changed", "criteria", "reason"),
    [
        ({"modality": "CT"}, {}, "(0008,0060) Modality is CT, the model accepts MR"),
        ({"modality": ""}, {}, "(0008,0060) Modality is absent, the model accepts MR"),
        (
            {"body_part_examined": "KNEE"},
            {"body_part": ("BRAIN", "HEAD")},
            "(0018,0015) Body Part Examined is KNEE, the model accepts BRAIN, HEAD",
        ),
        (
            {"body_part_examined": ""},
            {"body_part": ("BRAIN",), "body_part_absent": "decline"},
            "(0018,0015) Body Part Examined is absent, the model accepts BRAIN",
        ),
        (
            {"body_part_examined": ""},
            {"body_part_absent": "decline"},
            "(0018,0015) Body Part Examined is absent, the model asks for it",
        ),
        (
            {"view_position": "LL"},
            {"view_position": ("PA", "AP")},
            "(0018,5101) View Position is LL, the model accepts PA, AP",
        ),
        (
            {},
            {"view_position": ("PA",)},
            "(0018,5101) View Position is absent, the model accepts PA",
        ),
        (
            {"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")},
            {},
            r"(0008,0008) Image Type is ORIGINAL\PRIMARY\LOCALIZER, the model refuses LOCALIZER",
        ),
        (
            {"image_type": ()},
            {"image_type_any": ("PRIMARY", "DERIVED")},
            "(0008,0008) Image Type is absent, the model asks for one of PRIMARY, DERIVED",
        ),
        (
            {"series_description": "JOHN DOE flair", "protocol_name": "head"},
            {"description_any": ("t1", "mprage")},
            "(0008,103E) Series Description and (0018,1030) Protocol Name have none of the words t1, mprage",
        ),
        (
            {"protocol_name": "T1 +C Post contrast"},
            {"description_none": ("POST", "gd")},
            "(0008,103E) Series Description and (0018,1030) Protocol Name have POST, which the model refuses",
        ),
        (
            {"photometric_interpretation": "PALETTE COLOR"},
            {"photometric": ("MONOCHROME2",)},
            "(0028,0004) Photometric Interpretation is PALETTE COLOR, the model accepts MONOCHROME2",
        ),
        (
            {"photometric_interpretation": "RGB", "samples_per_pixel": 3},
            {},
            "(0028,0004) Photometric Interpretation is RGB, the model accepts MONOCHROME1, MONOCHROME2",
        ),
        (
            {"photometric_interpretation": "MONOCHROME1"},
            {"photometric": ("MONOCHROME2",)},
            "(0028,0004) Photometric Interpretation is MONOCHROME1, the model accepts MONOCHROME2",
        ),
        (
            {"transfer_syntax_uid": "1.2.840.10008.1.2.4.55"},
            {},
            "(0002,0010) Transfer Syntax UID is 1.2.840.10008.1.2.4.55, which is not decoded",
        ),
        ({}, {"geometry": {"slices": (20, 30)}}, "the number of slices is 10, the model accepts 20 to 30"),
        ({}, {"geometry": {"rows": (1, 99)}}, "(0028,0010) Rows is 100, the model accepts 1 to 99"),
        ({}, {"geometry": {"columns": (1, 9)}}, "(0028,0011) Columns is 120, the model accepts 1 to 9"),
        (
            {},
            {"geometry": {"pixel_spacing_mm": (0.85, 1.2)}},
            "(0028,0030) Pixel Spacing is 0.8 mm, the model accepts 0.85 to 1.2 mm",
        ),
        (
            {},
            {"geometry": {"slice_spacing_mm": (2, 3)}},
            "the spacing of the slices is 1 mm, the model accepts 2 to 3 mm",
        ),
        (
            {},
            {"geometry": {"extent_mm": (20, 200)}},
            "an edge of the volume is 10 mm, the model accepts 20 to 200 mm",
        ),
    ],
)
def test_what_the_model_does_not_accept_is_said_with_tag_got_and_allowed(
    changed: dict[str, Any], criteria: dict[str, Any], reason: str
) -> None:
    verdict = _judge(_all(slice_headers(10), changed), **criteria)
    assert verdict.reasons == (reason,)
    assert not verdict.accepted


def test_all_that_speaks_against_a_series_is_said_at_once() -> None:
    headers = _all(slice_headers(10), {"modality": "CT", "body_part_examined": "KNEE"})
    verdict = _judge(headers[:4] + headers[5:], body_part=("HEAD",), geometry={"slices": (20, 30)})
    assert [reason.split(" is ")[0] for reason in verdict.reasons[:3]] == [
        "(0008,0060) Modality",
        "(0018,0015) Body Part Examined",
        "the number of slices",
    ]
    assert "slices are missing: a gap of 2.00 mm" in verdict.reasons[3]
    assert verdict.reason == "; ".join(verdict.reasons)
    assert not verdict.only_geometry


def test_a_series_that_lacks_slices_is_declined_for_its_geometry_only() -> None:
    headers = slice_headers(10)
    assert _judge(headers[:4] + headers[5:]).only_geometry
    assert _judge(headers[:1]).only_geometry
    assert _judge(headers[:5], geometry={"slices": (10, 10)}).only_geometry
    assert not _judge(headers, geometry={"slices": (10, 10)}).only_geometry


def test_an_empty_body_part_is_accepted_unless_the_model_declines_it() -> None:
    headers = _all(slice_headers(10), {"body_part_examined": ""})
    assert _judge(headers, body_part=("BRAIN",)).accepted
    assert _judge(slice_headers(10), body_part=("BRAIN",), body_part_absent="decline").accepted


@pytest.mark.parametrize(
    ("description", "word", "found"),
    [
        ("t1_mprage_sag", "T1", True),
        ("T1W 3D", "t1", False),
        ("anat-T1w_acq-tfl", "t1w", True),
        ("3D T1 MPRAGE", "t1 mprage", True),
        ("MPRAGE T1", "t1 mprage", False),
        ("posterior", "post", False),
        ("Schädel T1", "schädel", True),
        ("", "t1", False),
        ("a_b", "_", False),
        ("t1", "", False),
    ],
)
def test_words_are_matched_whole_and_in_any_case(description: str, word: str, found: bool) -> None:
    headers = _all(slice_headers(5), {"series_description": description})
    assert _judge(headers, description_any=(word,)).accepted is found
    assert _judge(headers, description_none=(word,)).accepted is not found


def test_words_of_the_description_and_of_the_protocol_do_not_run_together() -> None:
    headers = _all(slice_headers(5), {"series_description": "sag t1", "protocol_name": "mprage"})
    assert not _judge(headers, description_any=("t1 mprage",)).accepted
    assert _judge(headers, description_any=("mprage",)).accepted


def test_no_description_gets_into_a_reason() -> None:
    headers = _all(slice_headers(5), {"series_description": "DOE JOHN 1950", "protocol_name": "DOE JOHN"})
    verdict = _judge(headers, description_any=("t1",), description_none=("john",))
    assert "DOE" not in verdict.reason
    assert "1950" not in verdict.reason
    assert len(verdict.reasons) == 2


def test_one_localizer_among_the_slices_declines_the_volume() -> None:
    headers = slice_headers(10)
    headers[3] = replace(headers[3], image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    verdict = _judge(headers)
    assert not verdict.accepted
    assert verdict.reasons[0].endswith("the model refuses LOCALIZER")


def test_a_volume_of_two_patients_is_declined_without_naming_them() -> None:
    headers = _all(slice_headers(10), {"patient_key": "0123456789abcdef"})
    assert _judge(headers).accepted
    for other in ("fedcba9876543210", ""):
        mixed = [*headers[:9], replace(headers[9], patient_key=other)]
        verdict = _judge(mixed)
        assert verdict.reasons == (
            (
                "(0010,0020) Patient ID differs within the series, it has 2 different ones;"
                " the model accepts a volume of one patient"
            ),
        )
        assert not verdict.accepted
        assert not verdict.only_geometry
        assert _judge(mixed, kind="image").accepted


@pytest.mark.parametrize("view", ["AP", "PA", ""])
@pytest.mark.parametrize(
    ("orientation", "accepted"),
    [
        ((), True),
        (("", ""), True),
        (("L", "F"), True),
        (("l", "f "), True),
        (("R", "F"), False),
        (("F", "R"), False),
        (("F", "L"), False),
        (("R", "H"), False),
        (("L",), False),
    ],
)
def test_a_frontal_radiograph_that_is_stored_turned_or_mirrored_is_declined(
    view: str, orientation: tuple[str, ...], accepted: bool
) -> None:
    changed = {"modality": "DX", "view_position": view, "patient_orientation": orientation}
    headers = _all(slice_headers(2), changed)
    verdict = _judge(headers, kind="image", modality=("DX",))
    assert verdict.accepted is accepted
    if not accepted:
        shown = "\\".join(orientation)
        assert verdict.reasons == (
            f"(0020,0020) Patient Orientation is {shown}, a frontal radiograph is accepted with L\\F or none",
        )


def test_the_orientation_of_a_lateral_view_or_of_a_slice_is_not_judged() -> None:
    turned = {"patient_orientation": ("A", "F"), "modality": "DX", "view_position": "LL"}
    assert _judge(_all(slice_headers(2), turned), kind="image", modality=("DX",)).accepted
    assert _judge(_all(slice_headers(10), {"patient_orientation": ("L", "P")})).accepted
    assert _judge(_all(slice_headers(10), {"patient_orientation": ("L", "P")}), kind="image").accepted


def test_each_image_is_judged_by_itself_and_needs_no_geometry() -> None:
    plain: dict[str, Any] = {
        "modality": "DX",
        "image_position_mm": None,
        "image_orientation": None,
        "frame_of_reference_uid": "",
        "view_position": "PA",
    }
    frontal = _all(slice_headers(2), plain)
    lateral = _all(slice_headers(1), plain | {"view_position": "LL"})
    wants: dict[str, Any] = {"kind": "image", "modality": ("CR", "DX"), "view_position": ("PA", "AP")}
    assert _judge(frontal, **wants) == Verdict(True, ("DX, 2 images",))
    assert _judge(lateral, **wants).reasons == ("(0018,5101) View Position is LL, the model accepts PA, AP",)
    assert _judge(frontal + lateral, **wants).accepted
    small = wants | {"geometry": {"rows": (1000, 5000), "slices": (50, 60)}}
    assert _judge(frontal, **small).reasons == ("(0028,0010) Rows is 100, the model accepts 1000 to 5000",)
    unspaced = _all(frontal, {"pixel_spacing_mm": None})
    assert _judge(unspaced, **wants).accepted
    spaced = wants | {"geometry": {"pixel_spacing_mm": (0.1, 0.2)}}
    assert _judge(unspaced, **spaced).reasons == (
        "(0028,0030) Pixel Spacing is absent, the model accepts 0.1 to 0.2 mm",
    )


def test_a_series_of_many_kinds_of_images_gives_a_bounded_reason() -> None:
    headers = [replace(h, body_part_examined=f"PART{i}") for i, h in enumerate(slice_headers(100))]
    verdict = _judge(headers, body_part=("BRAIN",))
    assert len(verdict.reasons) == 13
    assert verdict.reasons[-1] == "and 88 more"
    long = _all(slice_headers(5), {"body_part_examined": "X" * 5000})
    assert len(_judge(long, body_part=("BRAIN",)).reason) < 200


def test_a_limit_is_met_by_a_value_that_rounding_put_beside_it() -> None:
    headers = slice_headers(10, 1.00001)
    assert _judge(headers, geometry=Geometry(slice_spacing_mm=(0.5, 1.0))).accepted
    assert not _judge(slice_headers(10, 1.01), geometry=Geometry(slice_spacing_mm=(0.5, 1.0))).accepted


@needs_material
@pytest.mark.parametrize("name", ["test-SR.dcm", "waveform_ecg.dcm", "rtdose.dcm"])
@pytest.mark.parametrize("kind", ["volume", "image"])
def test_an_instance_that_is_no_such_image_is_declined_with_a_reason(name: str, kind: str) -> None:
    header = scan_file(MATERIAL / "dicom" / "nonimage" / name)[0]
    verdict = _judge([header], kind=kind)
    assert not verdict.accepted
    assert f"(0008,0060) Modality is {header.modality}, the model accepts MR" in verdict.reasons
    is_image = header.rows is not None
    assert is_image or "an instance without rows, columns and pixels, no image" in verdict.reasons


@needs_material
def test_the_tilted_phantom_is_declined_by_a_model_that_takes_no_tilt(tmp_path: Path) -> None:
    headers = [scan_file(path)[0] for path in unpack("ct_head_phantom_tilt", tmp_path)]
    wants = {"modality": ("CT",), "geometry": {"max_gantry_tilt_deg": 1.0}}
    assert _judge(headers, **wants).reasons == (
        "the tilt of the stack (gantry tilt) is 16.5 degrees, the model accepts 0 to 1 degrees",
    )
    assert _judge(headers, modality=("CT",)).reason == "CT, 58 slices of 512 x 512, 2.5 x 0.406 x 0.406 mm"
