"""The steps that move voxels: the affine always says where each value came from."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge.steps.crop import crop_foreground, crop_head_box, crop_or_pad
from edge.steps.image import resize_nearest
from edge.steps.labels import to_source_grid
from edge.steps.orientation import DIRECTIONS, closest_axes, orient, spacing_mm
from edge.steps.resampling import conform, resample
from edge.steps.sample import MAX_VOXELS, OutOfScopeError, Reading, Sample

ALL_AXES = [
    "".join(letters)
    for letters in itertools.product("LRPASI", repeat=3)
    if len({DIRECTIONS[letter][0] for letter in letters}) == 3
]
axes = st.sampled_from(ALL_AXES)
spacing = st.floats(0.4, 4.0)


def ramp(shape: tuple[int, ...], affine: NDArray[np.float64], slope: NDArray[np.float64]) -> Sample:
    """A volume whose value is a linear function of the place in the patient, mm."""
    index = np.indices(shape).reshape(3, -1)
    place = affine[:3, :3] @ index + affine[:3, 3:]
    return Sample((slope @ place).reshape(shape).astype(np.float32), affine)


@st.composite
def affines(draw: st.DrawFn, spacing: st.SearchStrategy[float] = spacing) -> NDArray[np.float64]:
    """A voxel grid anywhere, any axis order, up to some 25 degrees oblique."""
    letters = draw(axes)
    linear = np.zeros((3, 3))
    for voxel, letter in enumerate(letters):
        frame, sign = DIRECTIONS[letter]
        linear[frame, voxel] = sign * draw(spacing)
    x, y = (draw(st.floats(-0.3, 0.3)) for _ in range(2))
    turn = np.array([[np.cos(x), -np.sin(x), 0], [np.sin(x), np.cos(x), 0], [0, 0, 1]])
    tip = np.array([[1, 0, 0], [0, np.cos(y), -np.sin(y)], [0, np.sin(y), np.cos(y)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ tip @ linear
    affine[:3, 3] = [draw(st.floats(-300, 300)) for _ in range(3)]
    return affine


@given(affines(), axes)
@settings(deadline=None)
def test_orient_turns_the_axes_where_it_is_asked_and_every_value_keeps_its_place(
    affine: NDArray[np.float64], wanted: str
) -> None:
    sample = Sample(np.arange(60, dtype=np.float32).reshape(3, 4, 5), affine)
    turned = orient(sample, axes=wanted)
    for voxel, letter in enumerate(wanted):
        frame, sign = DIRECTIONS[letter]
        assert closest_axes(turned.grid)[frame] == voxel
        assert np.sign(turned.grid[frame, voxel]) == sign
    for index in np.ndindex(turned.values.shape):
        place = turned.grid @ [*index, 1]
        source = np.linalg.solve(affine, place)[:3]
        nearest = tuple(np.rint(source).astype(int))
        assert np.allclose(source, nearest, atol=1e-6)
        assert turned.values[index] == sample.values[nearest]


@given(affines(), axes, axes)
@settings(deadline=None)
def test_orient_there_and_back_is_the_same_volume(
    affine: NDArray[np.float64], there: str, other: str
) -> None:
    start = orient(
        Sample(np.arange(60, dtype=np.float32).reshape(3, 4, 5), affine, ((0, 2), (1, 4), (2, 5))),
        axes=there,
    )
    back = orient(orient(start, axes=other), axes=there)
    assert np.array_equal(back.values, start.values)
    assert np.allclose(back.grid, start.grid)
    assert back.inside == start.inside


def test_orient_leaves_its_input_as_it_was() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    orient(Sample(values, affine), axes="RAS")
    assert np.array_equal(values, np.arange(24).reshape(2, 3, 4))
    assert np.array_equal(affine, np.eye(4))


@given(affines(), spacing, st.sampled_from(["triangle", "linear"]))
@settings(deadline=None)
def test_resample_makes_the_spacing_and_keeps_outer_corners_and_a_ramp(
    affine: NDArray[np.float64], wanted: float, kind: str
) -> None:
    slope = np.array([0.5, -0.25, 1.0])
    sample = ramp((17, 14, 20), affine, slope)
    result = resample(sample, spacing_mm=(wanted, wanted, wanted), filter=kind)  # type: ignore[arg-type]
    assert np.allclose(spacing_mm(result.grid), wanted)
    old = spacing_mm(affine)
    assert result.values.shape == tuple(
        max(1, round(n * s / wanted)) for n, s in zip((17, 14, 20), old.tolist(), strict=True)
    )
    corner = [-0.5, -0.5, -0.5, 1]
    assert np.allclose(result.grid @ corner, affine @ corner)
    # Away from the border a linear interpolation of a ramp is the ramp; the triangle's phase may move it.
    exact = ramp(result.values.shape, result.grid, slope).values
    reach = [int(np.ceil(max(1.0, s / wanted))) + 1 for s in old.tolist()]
    middle = tuple(slice(r, n - r) for r, n in zip(reach, result.values.shape, strict=True))
    quarter = float(np.abs(slope @ affine[:3, :3]).sum()) / 4
    away = 2e-3 if kind == "linear" else quarter + 2e-3
    assert np.allclose(result.values[middle], exact[middle], rtol=0, atol=away)


@given(affines(st.sampled_from([0.5, 1.0, 2.0])), axes)
@settings(deadline=None, max_examples=30)
def test_orient_and_resample_commute_when_the_volume_is_whole_new_voxels_long(
    affine: NDArray[np.float64], wanted: str
) -> None:
    values = np.random.default_rng(7).normal(size=(8, 12, 16)).astype(np.float32)
    sample = orient(Sample(values, affine), axes="LPS")
    first = resample(orient(sample, axes=wanted), spacing_mm=(2, 2, 2))
    second = orient(resample(sample, spacing_mm=(2, 2, 2)), axes=wanted)
    assert np.allclose(first.values, second.values, atol=1e-5)
    assert np.allclose(first.grid, second.grid)


def test_resample_does_what_the_formula_of_a_triangle_filter_says() -> None:
    values = np.random.default_rng(1).normal(size=(11, 12, 13)).astype(np.float32)
    sample = Sample(values, np.diag([1.0, 0.7, 3.0, 1.0]))
    expected = values.astype(np.float64)
    for axis, old in enumerate((1.0, 0.7, 3.0)):
        n = expected.shape[axis]
        ratio = 2 / old
        centre = (np.arange(max(1, round(n / ratio))) + 0.5) * ratio - 0.5
        weight = np.clip(1 - np.abs(np.arange(n) - centre[:, None]) / max(1, ratio), 0, None)
        weight /= weight.sum(1, keepdims=True)
        expected = np.moveaxis(np.tensordot(weight, expected, (1, axis)), 0, axis)
    assert np.allclose(resample(sample, spacing_mm=(2, 2, 2)).values, expected, atol=1e-5)


def test_resample_refuses_to_make_more_than_the_limit() -> None:
    sample = Sample(np.zeros((200, 200, 200), np.float32), np.diag([5.0, 5.0, 5.0, 1.0]))
    with pytest.raises(OutOfScopeError, match=f"allowed {MAX_VOXELS}"):
        resample(sample, spacing_mm=(0.5, 0.5, 0.5))


def test_resample_keeps_account_of_padding() -> None:
    sample = Sample(np.ones((10, 10, 10), np.float32), np.eye(4), ((2, 8), (0, 10), (4, 4)))
    coarse = resample(sample, spacing_mm=(2, 2, 2))
    assert coarse.inside is not None
    assert coarse.inside[:2] == ((1, 4), (0, 5))
    assert coarse.inside[2][0] >= coarse.inside[2][1]


def test_conform_puts_the_middle_voxel_into_the_middle_and_zero_outside() -> None:
    values = np.random.default_rng(2).uniform(1, 2, (7, 8, 9)).astype(np.float32)
    cube = conform(Sample(values, np.diag([1.0, 1.0, 1.0, 1.0])), size=16)
    assert cube.values.shape == (16, 16, 16)
    assert cube.values[7, 7, 7] == values[3, 3, 4]
    assert np.array_equal(cube.values[4:11, 4:12, 3:12], values)
    assert np.count_nonzero(cube.values) == values.size
    assert np.allclose(cube.grid @ [7, 7, 7, 1], [3, 3, 4, 1])


@given(affines())
@settings(deadline=None, max_examples=30)
def test_conform_keeps_a_ramp_wherever_the_volume_reaches(affine: NDArray[np.float64]) -> None:
    slope = np.array([1.0, 0.5, -0.5])
    sample = ramp((12, 12, 12), affine, slope)
    cube = conform(sample, size=24, spacing_mm=1.5)
    index = np.indices(cube.values.shape).reshape(3, -1)
    source = np.linalg.solve(affine, cube.grid @ np.vstack([index, np.ones(index.shape[1])]))[:3]
    within = ((source > 1e-6) & (source < 11 - 1e-6)).all(axis=0).reshape(cube.values.shape)
    outside = ((source < -1e-6) | (source > 11 + 1e-6)).any(axis=0).reshape(cube.values.shape)
    assert np.allclose(
        cube.values[within], ramp(cube.values.shape, cube.grid, slope).values[within], atol=2e-3
    )
    assert not cube.values[outside].any()


@given(st.tuples(*[st.integers(1, 12)] * 3), st.tuples(*[st.integers(1, 12)] * 3))
@settings(deadline=None)
def test_crop_or_pad_makes_the_shape_and_each_value_keeps_its_place(
    shape: tuple[int, int, int], wanted: tuple[int, int, int]
) -> None:
    values = np.arange(1, 1 + int(np.prod(shape)), dtype=np.float32).reshape(shape)
    result = crop_or_pad(Sample(values, np.diag([1.0, 2.0, 3.0, 1.0])), shape=wanted)
    assert result.values.shape == wanted
    assert result.inside is not None
    for index in np.ndindex(wanted):
        source = np.diag([1, 1 / 2, 1 / 3, 1]) @ result.grid @ [*index, 1]
        place = tuple(np.rint(source[:3]).astype(int))
        within = all(0 <= at < size for at, size in zip(place, shape, strict=True))
        assert within == all(a <= i < b for i, (a, b) in zip(index, result.inside, strict=True))
        assert result.values[index] == (values[place] if within else 0)


def test_crop_foreground_is_the_box_with_its_margin_ended_at_the_border() -> None:
    values = np.zeros((20, 20, 20), np.float32)
    values[3:6, 10:12, 17] = 11
    values[0, 0, 0] = 10
    result = crop_foreground(Sample(values, np.eye(4)), above=10, margin=4)
    assert result.values.shape == (10, 10, 7)
    assert np.allclose(result.grid[:3, 3], [0, 6, 13])
    with pytest.raises(OutOfScopeError, match="no voxel is above 11"):
        crop_foreground(Sample(values, np.eye(4)), above=11)


def test_the_head_box_ends_above_the_head_and_is_centred_on_it() -> None:
    values = np.zeros((60, 70, 80), np.float32)
    values[20:40, 25:55, 10:50] = 100
    ras = np.diag([-2.0, -2.0, 2.0, 1.0])
    result = crop_head_box(Sample(values, ras), shape=(32, 40, 48))
    assert result.values.shape == (32, 40, 48)
    on = np.argwhere(result.values > 0)
    assert on.min(0).tolist() == [6, 5, 2]
    assert on.max(0).tolist() == [25, 34, 41]
    assert result.inside == ((0, 32), (0, 40), (0, 48))
    assert np.allclose(result.grid @ [6, 5, 2, 1], ras @ [20, 25, 10, 1])


def test_resize_nearest_takes_the_voxel_whose_extent_holds_the_new_centre() -> None:
    values = np.arange(10, dtype=np.float32).reshape(10, 1, 1)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    result = resize_nearest(Sample(values, affine), shape=(4, 1, 2))
    assert result.values[:, 0, 0].tolist() == [1, 3, 6, 8]
    corner = [-0.5, -0.5, -0.5, 1]
    assert np.allclose(result.grid @ corner, affine @ corner)
    assert np.allclose(spacing_mm(result.grid), [2.5, 1, 0.5])


def reading(
    labels: NDArray[np.uint8], grid: NDArray[np.float64], shape: tuple[int, ...], source: NDArray[np.float64]
) -> Reading:
    sample = Sample(labels.astype(np.float32), grid)
    return Reading(np.zeros((1, *labels.shape), np.float32), sample, shape, source, labels)


@given(affines(), axes, st.floats(0.7, 3.0))
@settings(deadline=None, max_examples=60)
def test_to_source_grid_gives_each_source_voxel_a_label_at_most_half_a_grid_voxel_away(
    affine: NDArray[np.float64], wanted: str, coarse: float
) -> None:
    shape = (9, 11, 10)
    model = crop_or_pad(
        resample(
            orient(Sample(np.zeros(shape, np.float32), affine), axes=wanted),
            spacing_mm=(coarse, coarse, coarse),
        ),
        shape=(6, 6, 6),
    )
    labels = np.arange(1, 217, dtype=np.uint8).reshape(6, 6, 6)  # each voxel its own
    found = to_source_grid(reading(labels, model.grid, shape, affine)).source_label_map
    assert found is not None
    assert found.shape == shape
    source = np.indices(shape).reshape(3, -1)
    index = np.linalg.solve(model.grid, affine @ np.vstack([source, np.ones(source.shape[1])]))[:3]
    for label, at in zip(found.ravel().tolist(), index.T, strict=True):
        if label:
            away = np.abs(at - np.array(np.unravel_index(label - 1, labels.shape)))
            assert away.max() <= 0.5 + 1e-5
        else:
            assert ((at < -0.5 + 1e-5) | (at > 5.5 - 1e-5)).any()


@given(affines(), axes)
@settings(deadline=None, max_examples=40)
def test_labels_on_the_reoriented_grid_come_back_voxel_by_voxel(
    affine: NDArray[np.float64], wanted: str
) -> None:
    shape = (5, 6, 7)
    labels = (np.arange(210) % 251).astype(np.uint8).reshape(shape)
    turned = orient(Sample(labels.astype(np.float32), affine), axes=wanted)
    found = to_source_grid(reading(turned.values.astype(np.uint8), turned.grid, shape, affine))
    assert found.source_label_map is not None
    assert np.array_equal(found.source_label_map, labels)


def test_to_source_grid_goes_back_from_a_rotated_grid_too() -> None:
    angle = 0.4
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    labels = np.random.default_rng(3).integers(0, 9, (12, 12, 12)).astype(np.uint8)
    found = to_source_grid(reading(labels, turn, (10, 10, 10), np.eye(4))).source_label_map
    assert found is not None
    for at in np.ndindex(10, 10, 10):
        exact = np.linalg.solve(turn, [*at, 1])[:3]
        if np.abs(exact - np.floor(exact) - 0.5).min() > 1e-6:
            nearest = tuple(np.rint(exact).astype(int))
            within = all(0 <= i < 12 for i in nearest)
            assert found[at] == (labels[nearest] if within else 0)


def test_a_source_voxel_midway_between_two_takes_the_lower_index_whichever_way_its_axis_runs() -> None:
    labels = np.array([1, 2, 3], np.uint8).reshape(3, 1, 1)
    grid = np.eye(4)
    source = np.diag([1.0, 1.0, 1.0, 1.0])
    source[0, 3] = 0.5
    forward = to_source_grid(reading(labels, grid, (2, 1, 1), source)).source_label_map
    source = np.diag([-1.0, 1.0, 1.0, 1.0])
    source[0, 3] = 1.5
    backward = to_source_grid(reading(labels, grid, (2, 1, 1), source)).source_label_map
    assert forward is not None
    assert backward is not None
    assert forward.ravel().tolist() == [1, 2]
    assert backward.ravel().tolist() == [2, 1]


def test_a_grid_that_does_not_meet_the_source_leaves_only_background() -> None:
    far = np.eye(4)
    far[:3, 3] = 500
    found = to_source_grid(reading(np.ones((4, 4, 4), np.uint8), far, (5, 6, 7), np.eye(4))).source_label_map
    assert found is not None
    assert found.shape == (5, 6, 7)
    assert not found.any()
