from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from dicom.errors import GeometryError
from dicom.geometry import stack_geometry
from dicom.readback import read_segmentation
from dicom.results import Algorithm, Findings, ResultContext
from dicom.segmentation import encode_segmentation
from dicom.source import read_source
from dicom.uid import is_valid
from tests.dicom.results_fixture import (
    ALGORITHM,
    BRAIN,
    CREATED,
    SEGMENTS,
    Pairs,
    ball,
    brain_findings,
    context_of,
    grid,
    labels_for,
    series_of,
    source_file,
    written,
)
from tests.judges import dciodvfy, needs_dciodvfy
from tests.material import needs_material

SERIES = [("mr_t1_mni152", None), ("mr_t1_studyforrest", 24), ("ct_head_phantom_tilt", None)]


def made(pairs: Pairs, findings: Findings, folder: Path, **changes: object) -> tuple[bytes, ResultContext]:
    """The encoded segmentation of a made-up series."""
    context = context_of(pairs, **changes)
    result = encode_segmentation(read_source(source_file(folder, pairs)), findings, context)
    assert result is not None
    return result.data, context


def parsed(data: bytes) -> Dataset:
    return dcmread(BytesIO(data))


@needs_material
@needs_dciodvfy
@pytest.mark.parametrize(("name", "limit"), SERIES)
def test_the_standards_module_tables_find_no_error_in_a_segmentation(
    name: str, limit: int | None, tmp_path: Path
) -> None:
    pairs = series_of(name, limit)
    result = encode_segmentation(read_source(pairs), brain_findings(labels_for(pairs)), context_of(pairs))
    assert result is not None
    verdict = dciodvfy(written(tmp_path, "seg.dcm", result.data))
    assert verdict.recognised == "Segmentation"
    assert verdict.errors == ()
    assert verdict.questions == ()


@needs_material
@pytest.mark.parametrize("max_whole_bytes", [16 << 20, 0], ids=["with empty frames", "without"])
@pytest.mark.parametrize(("name", "limit"), SERIES)
def test_highdicom_reads_the_label_map_back_slice_by_slice(
    name: str, limit: int | None, max_whole_bytes: int
) -> None:
    from highdicom.seg import segread

    pairs = series_of(name, limit)
    labels = labels_for(pairs)
    context = context_of(pairs)
    result = encode_segmentation(read_source(pairs), brain_findings(labels), context, max_whole_bytes)
    assert result is not None
    seg = segread(BytesIO(result.data))
    whole = max_whole_bytes > 0
    present = sum(int((labels == value).any(axis=(1, 2)).sum()) for value in (1, 2))
    assert seg.NumberOfFrames == (2 * len(pairs) if whole else present)
    back = seg.get_pixels_by_source_instance(
        [header.sop_instance_uid for header in context.inputs],
        combine_segments=True,
        assert_missing_frames_are_empty=not whole,
    )
    np.testing.assert_array_equal(back, labels)


@needs_material
@pytest.mark.parametrize(("name", "limit"), SERIES[:2])
def test_highdicom_finds_the_volume_where_the_source_is(name: str, limit: int | None) -> None:
    from highdicom.seg import segread

    pairs = series_of(name, limit)
    labels = labels_for(pairs)
    result = encode_segmentation(read_source(pairs), brain_findings(labels), context_of(pairs))
    assert result is not None
    volume = segread(BytesIO(result.data)).get_volume(combine_segments=True)
    assert volume.array.sum() == labels.sum()
    to_index = np.linalg.inv(stack_geometry([header for _, header in pairs]).affine)
    indices = np.argwhere(volume.array > 0)[::97]
    for index, point in zip(indices, volume.map_indices_to_reference(indices), strict=True):
        exact = (to_index @ [*point, 1])[:3]
        nearest = np.round(exact).astype(int)
        np.testing.assert_allclose(exact, nearest, atol=0.02)
        assert labels[tuple(nearest)] == volume.array[tuple(index)]


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (1, 8, 8), (33, 3, 3), (65, 2, 9)])
@pytest.mark.parametrize("max_whole_bytes", [16 << 20, 0])
def test_frames_of_any_size_are_packed_without_a_gap(
    shape: tuple[int, int, int], max_whole_bytes: int, tmp_path: Path
) -> None:
    labels = np.random.default_rng(7).integers(0, 3, shape).astype(np.uint8)
    labels[shape[0] // 2] = 1
    pairs = grid(shape)
    context = context_of(pairs)
    source = read_source(source_file(tmp_path, pairs))
    result = encode_segmentation(source, brain_findings(labels), context, max_whole_bytes)
    assert result is not None
    back = read_segmentation(result.data)
    np.testing.assert_array_equal(back.labels, labels)
    assert back.source_instances == tuple(header.sop_instance_uid for header in context.inputs)
    np.testing.assert_allclose(back.affine[:3, 0], [0, 0, 2])
    np.testing.assert_allclose(back.affine[:3, 3], [10, 10, 10])
    assert len(parsed(result.data).PixelData) % 2 == 0


@pytest.mark.parametrize(
    "orientation",
    [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (0.8, 0.6, 0, 0, 0, -1), (-0.6, 0, 0.8, 0, -1, 0)],
)
def test_highdicom_and_readback_agree_on_the_place_of_every_voxel(
    orientation: tuple[float, ...], tmp_path: Path
) -> None:
    from highdicom.seg import segread

    pairs = grid((6, 5, 7), orientation)
    labels = ball((6, 5, 7))
    data, _ = made(pairs, brain_findings(labels), tmp_path)
    volume = segread(BytesIO(data)).get_volume(combine_segments=True)
    theirs = {
        tuple(np.round(volume.map_indices_to_reference(index[None])[0], 4) + 0.0): int(
            volume.array[tuple(index)]
        )
        for index in np.argwhere(volume.array > 0)
    }
    back = read_segmentation(data)
    ours = {
        tuple(np.round((back.affine @ [*index, 1])[:3], 4) + 0.0): int(back.labels[tuple(index)])
        for index in np.argwhere(back.labels > 0)
    }
    assert ours == theirs


def test_the_same_inputs_give_the_same_bytes_and_another_identity_gives_other_names(tmp_path: Path) -> None:
    pairs = grid((4, 6, 5))
    findings = brain_findings(ball((4, 6, 5)))
    first, context = made(pairs, findings, tmp_path)
    again, _ = made(pairs, findings, tmp_path)
    revised, _ = made(pairs, findings, tmp_path, identity=(*context.identity[:-1], "1"))
    assert first == again
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert parsed(first)[keyword].value != parsed(revised)[keyword].value
    assert parsed(first).StudyInstanceUID == parsed(revised).StudyInstanceUID == context.study_instance_uid


def test_every_uid_is_a_derived_one_or_one_of_the_source(tmp_path: Path) -> None:
    pairs = grid((4, 6, 5))
    data, context = made(pairs, brain_findings(ball((4, 6, 5))), tmp_path)
    known = {
        context.study_instance_uid,
        context.inputs[0].frame_of_reference_uid,
        context.inputs[0].series_instance_uid,
    }
    known |= {header.sop_instance_uid for header in context.inputs}
    found = {str(element.value) for element in parsed(data).iterall() if element.VR == "UI"}
    assert all(is_valid(uid) for uid in found)
    others = {uid for uid in found - known if not uid.startswith("1.2.840.10008.")}
    # Series, instance, dimension organization, a tracking UID for each segment, the model's device UID.
    assert len(others) == 6
    assert all(uid.startswith("2.25.") for uid in others)


def test_a_label_map_without_a_voxel_makes_no_object(tmp_path: Path) -> None:
    pairs = grid((4, 6, 5))
    source = read_source(source_file(tmp_path, pairs))
    empty = np.zeros((4, 6, 5), np.uint8)
    assert encode_segmentation(source, brain_findings(empty), context_of(pairs)) is None
    assert encode_segmentation(source, brain_findings(None), context_of(pairs)) is None


def test_a_segment_without_a_voxel_is_described_beside_one_with_voxels(tmp_path: Path) -> None:
    labels = np.zeros((4, 6, 5), np.uint8)
    labels[1, 2, 3] = 2
    data, _ = made(grid((4, 6, 5)), brain_findings(labels), tmp_path)
    back = read_segmentation(data)
    assert [segment.label for segment in back.segments] == ["White matter", "Grey matter"]
    np.testing.assert_array_equal(back.labels, labels)


def test_segment_numbers_count_from_one_whatever_the_label_values(tmp_path: Path) -> None:
    segments = (replace(SEGMENTS[0], label_value=7), replace(SEGMENTS[1], label_value=255))
    labels = np.zeros((2, 3, 3), np.uint8)
    labels[0, 0, 0], labels[1, 2, 2] = 7, 255
    findings = brain_findings(labels, segments=segments, measurements=())
    data, _ = made(grid((2, 3, 3)), findings, tmp_path)
    back = read_segmentation(data).labels
    assert (back[0, 0, 0], back[1, 2, 2], int(back.sum())) == (1, 2, 3)


def test_a_voxel_whose_value_no_segment_has_is_refused_not_dropped(tmp_path: Path) -> None:
    labels = ball((4, 6, 5))
    labels[0, 0, 0] = 9
    with pytest.raises(ValueError, match=r"1 voxels have a value of no segment; segments have \[1, 2\]"):
        made(grid((4, 6, 5)), brain_findings(labels), tmp_path)


def test_a_label_map_of_another_shape_or_type_is_refused(tmp_path: Path) -> None:
    for labels in (ball((4, 6, 4)), ball((3, 6, 5)), ball((4, 6, 5)).astype(np.int16)):
        with pytest.raises(ValueError, match=r"must be uint8 \(4, 6, 5\)"):
            made(grid((4, 6, 5)), brain_findings(labels), tmp_path)  # type: ignore[arg-type]


def test_an_input_without_position_is_refused(tmp_path: Path) -> None:
    pairs = [(path, replace(header, image_position_mm=None)) for path, header in grid((4, 6, 5))]
    with pytest.raises(GeometryError, match="position, orientation or pixel spacing is missing"):
        made(pairs, brain_findings(ball((4, 6, 5))), tmp_path)


def test_a_source_of_another_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the result is for 1\.2\.3"):
        made(grid((4, 6, 5)), brain_findings(ball((4, 6, 5))), tmp_path, study_instance_uid="1.2.3")


def test_the_algorithm_is_named_as_ihe_asks(tmp_path: Path) -> None:
    data, _ = made(grid((4, 6, 5)), brain_findings(ball((4, 6, 5))), tmp_path)
    ds = parsed(data)
    (item,) = ds.ContributingEquipmentSequence
    purpose = item.PurposeOfReferenceCodeSequence[0]
    assert (purpose.CodingSchemeDesignator, purpose.CodeMeaning) == ("99IHE", "Processing Algorithm")
    assert (item.Manufacturer, item.ManufacturerModelName, item.SoftwareVersions, item.DeviceUID) == (
        ALGORITHM.manufacturer,
        ALGORITHM.name,
        ALGORITHM.version,
        ALGORITHM.device_uid,
    )
    for segment in ds.SegmentSequence:
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == "123110"
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (ALGORITHM.name, ALGORITHM.version)
        assert f"model digest=sha256:{ALGORITHM.model_digest}" in algorithm.AlgorithmParameters
        assert "provider=CPUExecutionProvider" in algorithm.AlgorithmParameters
    assert ds.SeriesDescription == "Segmentation brain-t1-small 1.0.0 - NOT FOR DIAGNOSIS"


def test_the_remark_survives_a_long_name(tmp_path: Path) -> None:
    algorithm = Algorithm("n" * 64, "1.0.0", "m" * 80, "2.25.1", "0" * 64)
    data, _ = made(grid((4, 6, 5)), brain_findings(ball((4, 6, 5))), tmp_path, algorithm=algorithm)
    ds = parsed(data)
    assert ds.SeriesDescription.endswith(" - NOT FOR DIAGNOSIS")
    assert len(ds.SeriesDescription) <= 64
    assert ds.ContributingEquipmentSequence[0].Manufacturer == "m" * 64


def test_a_frame_of_reference_that_is_missing_is_made_once_for_the_series(tmp_path: Path) -> None:
    pairs = [(path, replace(header, frame_of_reference_uid="")) for path, header in grid((4, 6, 5))]
    data, _ = made(pairs, brain_findings(ball((4, 6, 5))), tmp_path)
    again, _ = made(pairs, brain_findings(ball((4, 6, 5))), tmp_path, created=CREATED.replace(year=2027))
    assert parsed(data).FrameOfReferenceUID == parsed(again).FrameOfReferenceUID
    assert parsed(data).FrameOfReferenceUID.startswith("2.25.")


@pytest.mark.parametrize(
    ("syntax", "said", "expected"),
    [
        ("1.2.840.10008.1.2.1", b"", "00"),
        ("1.2.840.10008.1.2.1", b"01", "01"),
        ("1.2.840.10008.1.2.4.50", b"00", "01"),
        ("1.2.840.10008.1.2.4.90", b"", "00"),
    ],
)
def test_once_lossy_is_always_lossy(syntax: str, said: bytes, expected: str, tmp_path: Path) -> None:
    pairs = [(path, replace(header, transfer_syntax_uid=syntax)) for path, header in grid((2, 3, 3))]
    context = context_of(pairs)
    source = read_source(
        source_file(tmp_path, pairs, LossyImageCompression=said, LossyImageCompressionRatio=b"12.5")
    )
    result = encode_segmentation(source, brain_findings(np.ones((2, 3, 3), np.uint8)), context)
    assert result is not None
    ds = parsed(result.data)
    assert ds.LossyImageCompression == expected
    assert ("LossyImageCompressionRatio" in ds) == (expected == "01")


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((255, 255, 255), (65535, 32896, 32896)),
        ((0, 0, 0), (0, 32896, 32896)),
        ((255, 0, 0), (35584, 53654, 50857)),  # CIELab (D50) 54.3, 80.8, 69.9
    ],
)
def test_colours_are_cielab(
    rgb: tuple[int, int, int], expected: tuple[int, int, int], tmp_path: Path
) -> None:
    segment = replace(SEGMENTS[0], rgb=rgb)
    findings = Findings(BRAIN, None, (segment,), np.ones((1, 2, 2), np.uint8))
    data, _ = made(grid((1, 2, 2)), findings, tmp_path)
    value = parsed(data).SegmentSequence[0].RecommendedDisplayCIELabValue
    np.testing.assert_allclose(value, expected, atol=60)
