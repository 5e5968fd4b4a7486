from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread

from dicom.drawing import view_of, window_of, wrapped
from dicom.geometry import stack_geometry
from dicom.picture import encode_picture, key_slices, render, warm_up
from dicom.results import Findings
from dicom.source import read_source
from dicom.volume import Image, Volume, build_volume
from tests.dicom.results_fixture import (
    ALGORITHM,
    BRAIN,
    SEGMENTS,
    Pairs,
    ball,
    brain_findings,
    chest_findings,
    chest_x_ray,
    context_of,
    grid,
    labels_for,
    series_of,
    source_file,
    written,
)
from tests.judges import dciodvfy, needs_dciodvfy
from tests.material import needs_material

PANEL = 360
BANNER = 34
SERIES = [("mr_t1_mni152", None), ("mr_t1_studyforrest", 12), ("ct_head_phantom_tilt", None)]


def volume_of(pairs: Pairs, voxels: NDArray[np.float32]) -> Volume:
    headers = [header for _, header in pairs]
    return Volume(
        voxels,
        stack_geometry(headers).affine,
        headers[0].frame_of_reference_uid,
        tuple(header.sop_instance_uid for header in headers),
    )


def noise(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng(3).uniform(0, 1000, shape).astype(np.float32)


def coloured(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where the images of a picture are not grey."""
    images = picture[BANNER:, :-PANEL].astype(int)
    difference: NDArray[np.bool_] = images.max(axis=2) - images.min(axis=2) > 8
    return difference


@needs_material
@needs_dciodvfy
@pytest.mark.parametrize(("name", "limit"), SERIES)
def test_the_standards_module_tables_find_no_error_in_a_picture(
    name: str, limit: int | None, tmp_path: Path
) -> None:
    pairs = series_of(name, limit)
    findings = brain_findings(labels_for(pairs))
    volume = build_volume(pairs)
    result = encode_picture(read_source(pairs), findings, context_of(pairs), volume)
    verdict = dciodvfy(written(tmp_path, "sc.dcm", result.data))
    assert verdict.recognised == "SCImage"
    assert verdict.errors == ()
    assert verdict.questions == ()
    ds = dcmread(BytesIO(result.data))
    assert (ds.ConversionType, ds.BurnedInAnnotation, ds.Modality) == ("WSD", "YES", "OT")
    assert ds.SeriesDescription.endswith("NOT FOR DIAGNOSIS")
    np.testing.assert_array_equal(ds.pixel_array, render(volume, findings, context_of(pairs)))


@needs_material
@needs_dciodvfy
def test_a_chest_x_ray_is_shown_whole_and_grey_beside_its_score(tmp_path: Path) -> None:
    pairs = [chest_x_ray()]
    ds = dcmread(pairs[0][0])
    image = Image(
        ds.pixel_array.astype(np.float32), ds.PhotometricInterpretation, ds.BitsStored, ds.SOPInstanceUID
    )
    result = encode_picture(read_source(pairs), chest_findings(), context_of(pairs), image)
    verdict = dciodvfy(written(tmp_path, "sc.dcm", result.data))
    assert (verdict.errors, verdict.questions) == ((), ())
    picture = dcmread(BytesIO(result.data)).pixel_array
    assert not coloured(picture).any()
    assert picture[BANNER:, :-PANEL].std() > 40
    other = render(image, chest_findings(0.02), context_of(pairs))
    assert (other[:, -PANEL:] != picture[:, -PANEL:]).any()
    np.testing.assert_array_equal(other[:, :-PANEL], picture[:, :-PANEL])


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    pairs = grid((4, 60, 50))
    source = read_source(source_file(tmp_path, pairs))
    volume = volume_of(pairs, noise((4, 60, 50)))
    one, two = (
        encode_picture(source, brain_findings(ball((4, 60, 50))), context_of(pairs), volume) for _ in range(2)
    )
    assert one == two


def test_the_remark_is_burned_in_whatever_the_result_is() -> None:
    pairs = grid((4, 60, 50))
    volume = volume_of(pairs, noise((4, 60, 50)))
    for findings in (brain_findings(ball((4, 60, 50))), brain_findings(None), Findings(BRAIN, None)):
        banner = render(volume, findings, context_of(pairs))[:BANNER]
        red = (banner == (140, 20, 20)).all(axis=2)
        ink = (banner > 200).all(axis=2)
        assert red.mean() > 0.8
        assert 0.01 < ink.mean() < 0.2


def test_only_what_is_labelled_is_coloured() -> None:
    pairs = grid((4, 60, 50))
    volume = volume_of(pairs, noise((4, 60, 50)))
    labels = np.zeros((4, 60, 50), np.uint8)
    assert coloured(render(volume, brain_findings(labels), context_of(pairs))).mean() < 0.005  # the letters
    labels[:, 30:, :] = 2
    covered = coloured(render(volume, brain_findings(labels), context_of(pairs)))
    assert 0.1 < covered.mean() < 0.6


def test_overlay_and_anatomy_are_turned_together() -> None:
    shape = (3, 40, 60)
    for orientation in ((1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0), (0, 1, 0, 0, 0, -1), (0, 1, 0, 1, 0, 0)):
        pairs = grid(shape, orientation)
        labels = np.zeros(shape, np.uint8)
        labels[:, 5:15, 8:30] = 1
        voxels = np.full(shape, 100, np.float32)
        voxels[labels == 1] = 1000
        picture = render(volume_of(pairs, voxels), brain_findings(labels), context_of(pairs))
        images = picture[BANNER:, :-PANEL].astype(int)
        bright, covered = images.max(axis=2) > 150, coloured(picture)
        ink = (images.min(axis=2) < 120) & bright  # the letters are yellow, so they are coloured too
        assert (bright & covered).sum() > 0.9 * max(bright.sum(), covered.sum()) - ink.sum()


SIGNS = list(product((1, -1), repeat=3))


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("signs", SIGNS)
def test_every_orientation_is_turned_to_the_radiological_view(
    axes: tuple[int, int, int], signs: tuple[int, int, int]
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, column] = sign * (column + 1.0)
    rows, columns = np.mgrid[0:4, 0:5]
    view = view_of(affine)
    place = {
        axis: view.turn((affine[axis, 1] * rows + affine[axis, 2] * columns + 100).astype(np.uint8)).astype(
            int
        )
        for axis in range(3)
    }
    normal = axes[0]
    right, down = {2: (0, 1), 1: (0, 2), 0: (1, 2)}[normal]
    assert (np.diff(place[right], axis=1) > 0).all()  # patient left, or posterior, on the right
    towards_feet = np.diff(place[down], axis=0)
    assert (towards_feet > 0).all() if normal == 2 else (towards_feet < 0).all()
    expected = {2: ("R", "L", "A", "P"), 1: ("R", "L", "S", "I"), 0: ("A", "P", "S", "I")}[normal]
    assert (view.left, view.right, view.top, view.bottom) == expected


def test_an_oblique_plane_has_letters_for_both_of_its_directions() -> None:
    affine = stack_geometry([h for _, h in grid((3, 4, 4), (1, 0, 0, 0, 0.8, -0.6))]).affine
    assert view_of(affine).top == "AS"


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ([False] * 5, [0, 1, 2, 3, 4]),
        ([False, True, True, False], [1, 2]),
        ([False] * 9 + [True], [9]),
        ([True], [0]),
        ([True] * 24, list(range(1, 24, 2))),
        ([True] + [False] * 99 + [True], [4, 12, 21, 29, 37, 46, 54, 63, 71, 79, 88, 96]),
    ],
)
def test_key_slices_are_spread_over_the_extent_of_the_finding(
    present: list[bool], expected: list[int]
) -> None:
    assert key_slices(np.array(present)) == expected


def test_monochrome1_is_inverted() -> None:
    pairs = grid((1, 40, 40))
    uid = pairs[0][1].sop_instance_uid
    pixels = noise((40, 40))
    findings = Findings(BRAIN, None)
    white = render(Image(pixels, "MONOCHROME2", 12, uid), findings, context_of(pairs))
    black = render(Image(pixels, "MONOCHROME1", 12, uid), findings, context_of(pairs))
    images = slice(BANNER + 20, -20), slice(330, 650)
    total = white[images].astype(int) + black[images]
    assert abs(total - 255).max() <= 2


@pytest.mark.parametrize("value", [0.0, 7.0, float("nan"), float("inf"), -3e38])
def test_pixels_without_contrast_or_meaning_still_make_a_picture(value: float) -> None:
    pairs = grid((3, 20, 20))
    volume = volume_of(pairs, np.full((3, 20, 20), value, np.float32))
    with np.errstate(all="ignore"):
        picture = render(volume, brain_findings(ball((3, 20, 20))), context_of(pairs))
    assert picture.shape == (894, 1340, 3)


@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 3, 500), (2, 500, 3)])
def test_odd_shapes_still_make_a_picture(shape: tuple[int, int, int]) -> None:
    pairs = grid(shape)
    picture = render(volume_of(pairs, noise(shape)), brain_findings(ball(shape)), context_of(pairs))
    assert picture.shape == (894, 1340, 3)


def test_a_ct_is_shown_in_its_own_window_and_an_absurd_one_is_not_believed() -> None:
    header = replace(grid((1, 4, 4))[0][1], modality="CT", window_center=40.0, window_width=80.0)
    pixels = np.linspace(-1000, 1000, 1000, dtype=np.float32)
    assert window_of(pixels, header, (1, 99)) == (0.0, 80.0)
    low, high = window_of(pixels, replace(header, window_center=50_000.0), (1, 99))
    assert low < -900 < 900 < high


def test_long_texts_stay_in_the_panel_and_what_is_cut_off_is_said() -> None:
    pairs = grid((3, 20, 20))
    volume = volume_of(pairs, noise((3, 20, 20)))
    short = brain_findings(ball((3, 20, 20)))
    long = replace(short, warnings=tuple("word " * 30 + "x" * 300 for _ in range(9)))
    context = context_of(pairs, algorithm=replace(ALGORITHM, name="n" * 64, manufacturer="m" * 64))
    one, two = (render(volume, findings, context) for findings in (short, long))
    np.testing.assert_array_equal(one[:, :-PANEL], two[:, :-PANEL])
    assert (two[-16:, -PANEL:] == two[-1, -1]).all()  # the lower margin is free
    assert (two[BANNER:, -8:] == two[-1, -1]).all()  # and the right one


def test_wrapped_lines_lose_no_word() -> None:
    text = "mean confidence 0.816 is below 0.85, see the report " + "x" * 200
    lines = wrapped(text, 200)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert len(lines) > 5


def test_labels_inputs_and_pixels_that_do_not_fit_are_refused() -> None:
    pairs = grid((3, 20, 20))
    volume = volume_of(pairs, noise((3, 20, 20)))
    with pytest.raises(ValueError, match="labels"):
        render(volume, brain_findings(ball((3, 20, 21))), context_of(pairs))
    with pytest.raises(ValueError, match="not the inputs"):
        render(volume, brain_findings(None), context_of(pairs[::-1]))
    image = Image(noise((20, 20)), "MONOCHROME2", 12, "1.2.3")
    with pytest.raises(ValueError, match=r"1\.2\.3 is not among the inputs"):
        render(image, Findings(BRAIN, None), context_of(pairs))


def test_nothing_of_the_patient_is_burned_in(tmp_path: Path) -> None:
    pairs = grid((3, 20, 20))
    volume = volume_of(pairs, noise((3, 20, 20)))
    frames = []
    for folder, name in (("a", b"MEIER^EVA"), ("b", b"OTHER^ADAM")):
        (tmp_path / folder).mkdir()
        named = source_file(tmp_path / folder, pairs, PatientName=name, PatientID=name)
        findings = brain_findings(ball((3, 20, 20)))
        ds = dcmread(BytesIO(encode_picture(read_source(named), findings, context_of(pairs), volume).data))
        assert str(ds.PatientName) == name.decode()
        frames.append(ds.PixelData)
    assert frames[0] == frames[1]


def test_warm_up_can_be_called_at_any_time() -> None:
    warm_up()
    pairs = grid((2, 20, 20))
    before = render(volume_of(pairs, noise((2, 20, 20))), brain_findings(None), context_of(pairs))
    warm_up()
    after = render(volume_of(pairs, noise((2, 20, 20))), brain_findings(None), context_of(pairs))
    np.testing.assert_array_equal(before, after)


def test_the_legend_shows_each_segment_in_its_colour() -> None:
    pairs = grid((3, 20, 20))
    context = context_of(pairs, created=datetime(2026, 1, 2, tzinfo=UTC))
    panel = render(volume_of(pairs, noise((3, 20, 20))), brain_findings(None), context)[BANNER:, -PANEL:]
    for segment in SEGMENTS:
        assert (panel == segment.rgb).all(axis=2).sum() >= 14 * 14
