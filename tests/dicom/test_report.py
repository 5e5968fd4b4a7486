from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from dicom.readback import read_report
from dicom.report import encode_report
from dicom.results import Code, Evaluation, Findings, Measurement, ResultObject
from dicom.segmentation import encode_segmentation
from dicom.source import SourceSeries, read_source
from dicom.uid import derive
from tests.dicom.results_fixture import (
    ABSENT,
    ALGORITHM,
    BRAIN,
    MILLILITRE,
    PRESENT,
    RATIO,
    VOLUME,
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
from tests.judges import dciodvfy, dsrdump, needs_dciodvfy, needs_dsrdump
from tests.material import needs_material

SERIES = [("mr_t1_mni152", None), ("mr_t1_studyforrest", 12), ("ct_head_phantom_tilt", None)]
STATEMENT = "Research result, not for diagnosis."


def judged(result: ResultObject, folder: Path) -> str:
    """What dcmtk reads, once dicom3tools has found no error and no warning worth reading."""
    path = written(folder, "sr.dcm", result.data)
    verdict = dciodvfy(path)
    assert verdict.recognised == "Comprehensive3DSR"
    assert verdict.errors == ()
    assert verdict.questions == ()
    return dsrdump(path)


def results(
    pairs: Pairs, findings: Findings, source: SourceSeries
) -> tuple[ResultObject, ResultObject | None]:
    context = context_of(pairs)
    segmentation = encode_segmentation(source, findings, context)
    return encode_report(source, findings, context, segmentation), segmentation


def made_up(folder: Path, findings: Findings, shape: tuple[int, int, int] = (4, 6, 5)) -> ResultObject:
    pairs = grid(shape)
    return results(pairs, findings, read_source(source_file(folder, pairs)))[0]


def parsed(result: ResultObject) -> Dataset:
    return dcmread(BytesIO(result.data))


@needs_material
@needs_dciodvfy
@needs_dsrdump
@pytest.mark.parametrize(("name", "limit"), SERIES)
def test_other_programs_read_the_report_of_a_real_series(
    name: str, limit: int | None, tmp_path: Path
) -> None:
    pairs = series_of(name, limit)
    report, segmentation = results(pairs, brain_findings(labels_for(pairs)), read_source(pairs))
    text = judged(report, tmp_path)
    assert segmentation is not None
    assert '(126000,DCM,"Imaging Measurement Report")' in text
    assert '(118565006,SCT,"Volume")="647.25" (mL,UCUM,"milliliter")' in text
    assert '(121106,DCM,"Comment")="Warning: mean confidence 0.816 is below 0.85"' in text
    assert f'(121106,DCM,"Comment")="{STATEMENT}"' in text
    assert text.count('(260753009,SCT,"Source")') == len(pairs)
    assert text.count("# TID 1411 (DCMR)") == 2
    assert "UNVERIFIED" in text
    assert "COMPLETE" in text


@needs_material
@needs_dciodvfy
@needs_dsrdump
@pytest.mark.parametrize(("probability", "answer"), [(0.93, PRESENT), (0.02, ABSENT)])
def test_a_chest_x_ray_has_a_report_without_segments(
    probability: float, answer: Code, tmp_path: Path
) -> None:
    pairs = [chest_x_ray()]
    report, segmentation = results(pairs, chest_findings(probability), read_source(pairs))
    assert segmentation is None
    text = judged(report, tmp_path)
    assert f'({answer.value},SCT,"{answer.meaning}")' in text
    assert "TID 1411" not in text
    assert '(168537006,SCT,"Plain radiography")' in text
    summary = read_report(report.data)
    assert summary.evaluations == (Evaluation(chest_findings().finding, answer),)
    assert summary.measurements[0].value == probability
    assert summary.source_instances == (pairs[0][1].sop_instance_uid,)


@needs_material
def test_highdicom_reads_the_groups_their_segments_and_the_evidence() -> None:
    from highdicom.sr import srread

    pairs = series_of("mr_t1_mni152", 12)
    report, segmentation = results(pairs, brain_findings(labels_for(pairs)), read_source(pairs))
    assert segmentation is not None
    document = srread(BytesIO(report.data))
    content = document.content
    groups = content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["White matter", "Grey matter"]
    assert [group.get_measurements()[0].value for group in groups] == [647.25, 1075.5]
    tracked = [item.TrackingUID for item in dcmread(BytesIO(segmentation.data)).SegmentSequence]
    assert [group.tracking_uid for group in groups] == tracked
    for number, group in enumerate(groups, 1):
        reference = group.referenced_segment
        assert reference.referenced_segment_numbers == [number]
        assert reference.referenced_sop_instance_uid == segmentation.sop_instance_uid
        assert reference.has_source_images() is False
    (whole,) = content.get_image_measurement_groups()
    assert whole.get_measurements()[0].value == 1.66151
    named = {uid for _, _, uid, _ in document.get_evidence()}
    assert named == {header.sop_instance_uid for _, header in pairs} | {segmentation.sop_instance_uid}


def test_every_instance_that_the_tree_names_is_in_the_evidence(tmp_path: Path) -> None:
    pairs = grid((4, 6, 5))
    other = derive("another series")
    pairs = [
        (path, replace(h, series_instance_uid=other) if i > 1 else h) for i, (path, h) in enumerate(pairs)
    ]
    source = read_source(source_file(tmp_path, pairs))
    report, _ = results(pairs, brain_findings(ball((4, 6, 5))), source)
    ds = parsed(report)
    (study,) = ds.CurrentRequestedProcedureEvidenceSequence
    evidence = {
        item.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    tree = {
        str(element.value)
        for element in ds.ContentSequence[-1].iterall()
        if element.keyword == "ReferencedSOPInstanceUID"
    }
    tree |= set(read_report(report.data).source_instances)
    assert tree == evidence
    assert len(study.ReferencedSeriesSequence) == 3  # two of images, one of the segmentation


def test_every_group_names_the_algorithm_its_parameters_and_what_is_tracked(tmp_path: Path) -> None:
    report = made_up(tmp_path, brain_findings(ball((4, 6, 5))))
    ds = parsed(report)
    groups = ds.ContentSequence[-1].ContentSequence
    assert len(groups) == 3
    uids = set()
    for group in groups:
        texts = [
            (item.ConceptNameCodeSequence[0].CodeValue, str(item.get("TextValue", item.get("UID", ""))))
            for item in group.ContentSequence
            if item.ValueType in {"TEXT", "UIDREF"}
        ]
        assert ("111001", ALGORITHM.name) in texts
        assert ("111003", ALGORITHM.version) in texts
        assert ("111002", f"model digest=sha256:{ALGORITHM.model_digest}") in texts
        assert ("111002", "runtime=onnxruntime 1.32.0") in texts
        uids |= {value for code, value in texts if code == "112040"}
        assert "112039" in dict(texts)
    assert len(uids) == 3


def test_the_observer_is_the_contributing_equipment(tmp_path: Path) -> None:
    ds = parsed(made_up(tmp_path, brain_findings(ball((4, 6, 5)))))
    (observer,) = [
        item.UID for item in ds.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "121012"
    ]
    assert observer == ds.ContributingEquipmentSequence[0].DeviceUID == ALGORITHM.device_uid


@needs_material
@needs_dciodvfy
@needs_dsrdump
def test_an_empty_label_map_is_a_report_that_says_so(tmp_path: Path) -> None:
    pairs = series_of("mr_t1_mni152", 12)
    labels = np.zeros_like(labels_for(pairs))
    findings = brain_findings(labels, measurements=(Measurement(VOLUME, 0.0, MILLILITRE, 1),), warnings=())
    report, segmentation = results(pairs, findings, read_source(pairs))
    assert segmentation is None
    text = judged(report, tmp_path)
    assert "TID 1411" not in text
    assert '(118565006,SCT,"Volume")="0"' in text
    assert read_report(report.data).comments == (
        "No voxel was labelled as White matter.",
        "No voxel was labelled as Grey matter.",
        "Negative result: the segmentation is empty.",
        "Source: series 1, MNI152 2009a T1 template.",
        STATEMENT,
    )


def test_nothing_at_all_is_a_report_that_says_so(tmp_path: Path) -> None:
    report = made_up(tmp_path, Findings(BRAIN, None))
    summary = read_report(report.data)
    assert summary.comments == (
        "Negative result: the algorithm ran to its end and reported no finding.",
        STATEMENT,
    )
    assert (summary.findings, summary.evaluations) == ((), (Evaluation(BRAIN, ABSENT),))
    assert summary.measurements == ()


def test_a_segment_without_a_voxel_is_said_beside_one_with_voxels(tmp_path: Path) -> None:
    labels = np.zeros((4, 6, 5), np.uint8)
    labels[1, 2, 3] = 2
    comments = read_report(made_up(tmp_path, brain_findings(labels, warnings=())).data).comments
    assert comments == ("No voxel was labelled as White matter.", STATEMENT)


@needs_dciodvfy
@needs_dsrdump
def test_a_value_that_is_no_finite_number_has_a_qualifier_and_no_value(tmp_path: Path) -> None:
    numbers = (float("nan"), float("inf"), float("-inf"), 1e-30, 123456789.123456789, -0.1 + 0.3)
    findings = Findings(BRAIN, None, measurements=tuple(Measurement(VOLUME, v, RATIO) for v in numbers))
    report = made_up(tmp_path, findings)
    judged(report, tmp_path)
    items = [
        item
        for item in parsed(report).ContentSequence[-1].ContentSequence[0].ContentSequence
        if item.ValueType == "NUM"
    ]
    qualifiers = [item.NumericValueQualifierCodeSequence[0].CodeValue for item in items[:3]]
    assert qualifiers == ["114000", "114002", "114001"]
    assert all(len(item.MeasuredValueSequence) == 0 for item in items[:3])
    back = [measurement.value for measurement in read_report(report.data).measurements]
    np.testing.assert_allclose(back[3:], numbers[3:], rtol=1e-9)


@needs_dciodvfy
@needs_dsrdump
def test_a_revision_names_the_report_that_it_replaces(tmp_path: Path) -> None:
    pairs = grid((2, 3, 3))
    source = read_source(source_file(tmp_path, pairs))
    first = encode_report(source, Findings(BRAIN, None), context_of(pairs), None)
    context = context_of(pairs)
    revised = encode_report(
        source,
        Findings(BRAIN, None),
        replace(
            context,
            identity=(*context.identity[:-1], "1"),
            predecessor=(
                context.study_instance_uid,
                first.series_instance_uid,
                first.sop_class_uid,
                first.sop_instance_uid,
            ),
        ),
        None,
    )
    judged(revised, tmp_path)
    assert revised.sop_instance_uid != first.sop_instance_uid
    assert read_report(revised.data).predecessor == first.sop_instance_uid
    assert read_report(first.data).predecessor == ""


def test_the_same_inputs_give_the_same_bytes_in_whatever_order_the_parameters_come(tmp_path: Path) -> None:
    pairs = grid((4, 6, 5))
    source = read_source(source_file(tmp_path, pairs))
    findings = brain_findings(ball((4, 6, 5)))
    shuffled = replace(ALGORITHM, parameters=dict(reversed(list(ALGORITHM.parameters.items()))))
    one = encode_report(source, findings, context_of(pairs), None)
    two = encode_report(source, findings, context_of(pairs, algorithm=shuffled), None)
    assert one.data == two.data


def test_a_measurement_of_a_segment_that_is_not_there_is_refused(tmp_path: Path) -> None:
    findings = Findings(BRAIN, None, measurements=(Measurement(VOLUME, 1.0, MILLILITRE, 3),))
    with pytest.raises(ValueError, match=r"label value 3, segments have \[\]"):
        made_up(tmp_path, findings)


@needs_dciodvfy
@needs_dsrdump
def test_long_and_odd_texts_do_not_break_the_report(tmp_path: Path) -> None:
    findings = Findings(
        finding=Code("x" * 40, "99INSITU", "m" * 80),
        finding_site=None,
        measurements=(Measurement(VOLUME, 1.0, Code("{a}\\b", "UCUM", "back\\slash")),),
        warnings=("", "two\nlines", "back\\slash", "w" * 5000),
    )
    report = made_up(tmp_path, findings)
    judged(report, tmp_path)
    summary = read_report(report.data)
    assert summary.findings[0] == Code("x" * 40, "99INSITU", "m" * 64)
    assert summary.comments[1:4] == ("Warning: two\nlines", "Warning: back\\slash", f"Warning: {'w' * 5000}")
