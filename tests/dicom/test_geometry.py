import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom.errors import GeometryError
from dicom.geometry import StackGeometry, complete, stack_geometry
from dicom.header import InstanceHeader
from tests.dicom.instances_fixture import AXIAL, slice_headers


def _refused(headers: list[InstanceHeader]) -> str:
    with pytest.raises(GeometryError) as caught:
        stack_geometry(headers)
    assert not complete(headers)
    return str(caught.value)


def _same(one: StackGeometry, other: StackGeometry) -> bool:
    return one.affine.tobytes() == other.affine.tobytes() and one.spacing_mm == other.spacing_mm


def test_the_affine_of_axial_slices_is_their_position_and_spacing() -> None:
    geometry = stack_geometry(slice_headers(10, 1.5))
    expected = np.array([[0, 0, 0.8, -50], [0, 0.9, 0, -60], [1.5, 0, 0, 12], [0, 0, 0, 1]])
    np.testing.assert_allclose(geometry.affine, expected, atol=1e-12)
    assert geometry.spacing_mm == (1.5, 0.9, 0.8)
    assert geometry.shape == (10, 100, 120)
    assert geometry.extent_mm == pytest.approx((15.0, 90.0, 96.0))
    assert geometry.shear_deg == 0
    assert geometry.frame_of_reference_uid == "1.2.9"
    assert geometry.order == tuple(range(10))


@st.composite
def _orientations(draw: st.DrawFn) -> tuple[Any, Any]:
    angles = [draw(st.floats(-math.pi, math.pi)) for _ in range(3)]
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    return matrix[0], matrix[1]


@settings(max_examples=60, deadline=None)
@given(_orientations(), st.floats(0.3, 10), st.integers(2, 40), st.randoms(use_true_random=False))
def test_any_orientation_and_any_order_of_arrival_give_every_slice_its_own_place(
    directions: tuple[Any, Any], spacing_mm: float, count: int, rng: random.Random
) -> None:
    headers = slice_headers(count, spacing_mm, directions=directions, decimals=6)
    geometry = stack_geometry(headers)
    assert geometry.order == tuple(range(count))
    for place, index in enumerate(geometry.order):
        position = np.array(headers[index].image_position_mm)
        np.testing.assert_allclose((geometry.affine @ (place, 0, 0, 1))[:3], position, atol=1e-5)
    assert geometry.spacing_mm[0] == pytest.approx(spacing_mm, abs=1e-5)
    assert geometry.shear_deg < 1e-3
    far = (geometry.affine @ (0, 10, 20, 1))[:3] - geometry.affine[:3, 3]
    expected = 10 * 0.9 * np.asarray(directions[1]) + 20 * 0.8 * np.asarray(directions[0])
    np.testing.assert_allclose(far, expected, atol=1e-6)
    shuffled = headers.copy()
    rng.shuffle(shuffled)
    other = stack_geometry(shuffled)
    assert _same(geometry, other)
    assert [shuffled[index] for index in other.order] == headers


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 40), st.floats(0.5, 5))
def test_a_tilted_gantry_is_measured_and_kept_in_the_affine(tilt_deg: float, spacing_mm: float) -> None:
    tilt = math.radians(tilt_deg)
    directions = ((1.0, 0.0, 0.0), (0.0, math.cos(tilt), math.sin(tilt)))
    geometry = stack_geometry(slice_headers(20, directions=directions, step=(0, 0, spacing_mm)))
    assert geometry.shear_deg == pytest.approx(tilt_deg, abs=1e-4)
    np.testing.assert_allclose(geometry.affine[:3, 0], (0, 0, spacing_mm), atol=1e-9)


def test_a_stack_sheared_beyond_any_gantry_is_refused() -> None:
    assert "sheared by 50.2 degrees, allowed 45" in _refused(slice_headers(5, step=(0, 1.2, 1)))


@pytest.mark.parametrize("decimals", [1, 2, 3])
def test_positions_that_a_scanner_rounded_are_even(decimals: int) -> None:
    turned = ((math.cos(0.2), math.sin(0.2), 0.0), (-math.sin(0.2), math.cos(0.2), 0.0))
    geometry = stack_geometry(slice_headers(40, 1.25, directions=turned, decimals=decimals))
    assert geometry.spacing_mm[0] == pytest.approx(1.25, abs=0.005)


def test_a_removed_slice_is_named_by_its_place_and_gap() -> None:
    headers = slice_headers(10)
    del headers[1:3]
    assert _refused(headers) == (
        "series 1.2.2: slices are missing: a gap of 3.00 mm between slices at 12.00 and 15.00 mm"
        " where the spacing is 1.00 mm"
    )


def test_many_gaps_are_counted_and_not_all_listed() -> None:
    message = _refused([header for i, header in enumerate(slice_headers(60)) if i % 6 != 5])
    assert message.count("a gap of") == 3
    assert message.endswith("; and 6 more")


def test_a_missing_slice_of_only_four_is_found() -> None:
    headers = slice_headers(4)
    del headers[2]
    assert "a gap of 2.00 mm" in _refused(headers)


def test_a_doubled_slice_is_named_by_both_instances() -> None:
    headers = slice_headers(10)
    headers.append(replace(headers[4], sop_instance_uid="1.2.3.99"))
    assert _refused(headers) == (
        "SOP Instance 1.2.3.4 and 1.2.3.99 lie at the same place, 16.00 mm along the normal;"
        " a place has one slice"
    )
    assert _refused([*slice_headers(3), slice_headers(3)[1]]) == "SOP Instance 1.2.3.1 is there twice"


def test_uneven_spacing_is_refused_with_the_worst_slice() -> None:
    headers = slice_headers(10)
    headers[4] = replace(headers[4], image_position_mm=(-50.0, -60.0, 16.3))
    message = _refused(headers)
    assert "slices are not evenly spaced: SOP Instance 1.2.3.4" in message
    assert "0.300 mm off the grid of 1.000 mm, allowed 0.100 mm" in message


def test_spacing_that_changes_half_way_is_refused_though_neighbours_look_alike() -> None:
    near, far = slice_headers(50, 1.0), slice_headers(50, 1.04, origin=(-50, -60, 62))
    headers = near + [replace(h, sop_instance_uid=f"1.2.4.{i}") for i, h in enumerate(far)]
    assert "not evenly spaced" in _refused(headers)


def test_a_slice_shifted_in_its_plane_is_refused() -> None:
    headers = slice_headers(10)
    headers[4] = replace(headers[4], image_position_mm=(-48.0, -60.0, 16.0))
    assert "slices are shifted across their planes: SOP Instance 1.2.3.4" in _refused(headers)


def _again(different: dict[str, Any]) -> list[InstanceHeader]:
    return [
        replace(header, sop_instance_uid=f"1.2.4.{i}", **different)
        for i, header in enumerate(slice_headers(6))
    ]


@pytest.mark.parametrize(
    ("different", "message"),
    [
        (
            {"acquisition_number": 2},
            "(0020,0012) Acquisition Number has 2 values (2, None), a volume has one: more than one stack",
        ),
        ({"echo_time_ms": 30.0}, "(0018,0081) Echo Time has 2 values"),
        ({"temporal_position": 2}, "(0020,0100) Temporal Position Identifier has 2 values (2, None)"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "P")}, "(0008,0008) Image Type has 2 values"),
        ({"series_instance_uid": "1.2.77"}, "(0020,000E) Series Instance UID has 2 values (1.2.2, 1.2.77)"),
        ({"study_instance_uid": "1.2.77"}, "(0020,000D) Study Instance UID has 2 values"),
        ({"frame_of_reference_uid": "1.2.77"}, "(0020,0052) Frame of Reference UID has 2 values"),
        ({"rows": 101}, "(0028,0010) Rows has 2 values (100, 101)"),
        ({"columns": 121}, "(0028,0011) Columns has 2 values"),
    ],
)
def test_two_stacks_in_one_are_refused_by_what_tells_them_apart(
    different: dict[str, Any], message: str
) -> None:
    headers = [replace(h, echo_time_ms=10.0) if "echo_time_ms" in different else h for h in slice_headers(6)]
    assert message in _refused(headers + _again(different))


def test_an_acquisition_number_for_each_slice_is_one_stack() -> None:
    headers = [replace(h, acquisition_number=i) for i, h in enumerate(slice_headers(10))]
    assert stack_geometry(headers).shape[0] == 10


def test_echo_times_that_differ_by_a_hundredth_are_one_stack() -> None:
    headers = [replace(h, echo_time_ms=2.98 + 0.02 * (i % 2)) for i, h in enumerate(slice_headers(10))]
    assert stack_geometry(headers).shape[0] == 10


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_orientation": (0, 1, 0, 0, 0, -1)}, r"is 0\1\0\0\0\-1, that of the series 1\0\0\0\1\0"),
        ({"image_orientation": (1, 0, 0, 0, 0.9999, 0.0141)}, "they differ by 0.0141, allowed 0.0001"),
        ({"image_orientation": None}, "(0020,0037) Image Orientation (Patient) is absent"),
        ({"image_position_mm": None}, "(0020,0032) Image Position (Patient) is absent"),
        ({"image_position_mm": (0.0, math.nan, 0.0)}, "allowed -1e+06 to 1e+06"),
        ({"image_position_mm": (0.0, 1e300, 0.0)}, "allowed -1e+06 to 1e+06"),
        ({"pixel_spacing_mm": (0.9, 0.81)}, "they differ by 0.01, allowed 8e-05"),
        ({"pixel_spacing_mm": None}, "(0028,0030) Pixel Spacing is absent"),
        ({"number_of_frames": 3}, "(0028,0008) Number of Frames is 3, a slice has 1"),
    ],
)
def test_a_slice_unlike_the_others_is_named_with_what_it_has(changed: dict[str, Any], message: str) -> None:
    headers = slice_headers(10)
    headers[3] = replace(headers[3], **changed)
    refusal = _refused(headers)
    assert refusal.startswith("SOP Instance 1.2.3.3: ")
    assert message in refusal


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_orientation": (1, 0, 0, 0, 0.99, 0)}, "lengths 1.0000 and 0.9900, must be 1"),
        ({"image_orientation": (1, 0, 0, 0.1, 0.995, 0)}, "scalar product 0.1000, must be 0"),
        ({"image_orientation": (0, 0, 0, 0, 0, 0)}, "must be 1"),
        ({"pixel_spacing_mm": (0.0, 0.8)}, "must be at least 0.0001"),
        ({"pixel_spacing_mm": (-0.9, 0.8)}, "must be at least 0.0001"),
        ({"frame_of_reference_uid": ""}, "(0020,0052) Frame of Reference UID is absent"),
        ({"rows": None}, "(0028,0010) Rows is absent"),
    ],
)
def test_a_series_that_has_no_sound_plane_is_refused(changed: dict[str, Any], message: str) -> None:
    assert message in _refused([replace(header, **changed) for header in slice_headers(5)])


def test_cosines_and_spacings_that_differ_by_rounding_are_one_stack_whatever_came_first() -> None:
    headers = slice_headers(7)
    headers[2] = replace(
        headers[2], image_orientation=(1, 0.00001, 0, 0, 1, 0), pixel_spacing_mm=(0.90001, 0.8)
    )
    assert _same(stack_geometry(headers), stack_geometry(headers[::-1]))
    assert stack_geometry(headers).spacing_mm == stack_geometry(slice_headers(7)).spacing_mm


@pytest.mark.parametrize("count", [0, 1])
def test_less_than_two_slices_make_no_volume(count: int) -> None:
    assert f"{count} slices make no volume" in _refused(slice_headers(count))


def test_a_stack_is_complete_only_with_as_many_slices_as_it_announces() -> None:
    headers = [replace(header, images_in_acquisition=10) for header in slice_headers(10)]
    assert complete(headers)
    assert not complete(headers[:9])
    assert complete(slice_headers(9, directions=AXIAL))
