from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from dicom.errors import HeaderError
from dicom.readback import read_report, read_segmentation
from dicom.report import encode_report
from dicom.results import ResultObject
from dicom.segmentation import encode_segmentation
from dicom.source import read_source
from tests.dicom.results_fixture import (
    ALGORITHM,
    BRAIN,
    SEGMENTS,
    ball,
    brain_findings,
    chest_findings,
    context_of,
    grid,
    source_file,
    written,
)

SHAPE = (4, 6, 5)


@pytest.fixture
def objects(tmp_path: Path) -> tuple[ResultObject, ResultObject]:
    pairs = grid(SHAPE)
    source, context = read_source(source_file(tmp_path, pairs)), context_of(pairs)
    segmentation = encode_segmentation(source, brain_findings(ball(SHAPE)), context)
    assert segmentation is not None
    return segmentation, encode_report(source, brain_findings(ball(SHAPE)), context, segmentation)


def test_what_was_written_is_read_from_bytes_and_from_a_file(
    objects: tuple[ResultObject, ResultObject], tmp_path: Path
) -> None:
    segmentation, report = objects
    summary = read_report(report.data)
    assert summary == read_report(written(tmp_path, "sr.dcm", report.data))
    assert (summary.algorithm_name, summary.algorithm_version) == (ALGORITHM.name, ALGORITHM.version)
    assert summary.parameters[0] == f"model digest=sha256:{ALGORITHM.model_digest}"
    assert len(summary.parameters) == 1 + len(ALGORITHM.parameters)
    assert summary.findings == (BRAIN, SEGMENTS[0].type, SEGMENTS[1].type)
    assert [(m.value, m.unit.value, m.label_value) for m in summary.measurements] == [
        (1.66151, "1", None),
        (647.25, "mL", 1),
        (1075.5, "mL", 2),
    ]
    assert summary.labels == ("Brain", "White matter", "Grey matter")
    assert summary.source_instances == tuple(header.sop_instance_uid for _, header in grid(SHAPE))
    assert summary.sop_instance_uid == report.sop_instance_uid
    assert summary.series_instance_uid == report.series_instance_uid
    back = read_segmentation(segmentation.data)
    np.testing.assert_array_equal(back.labels, ball(SHAPE))
    assert [(s.number, s.label, s.type) for s in back.segments] == [
        (1, "White matter", SEGMENTS[0].type),
        (2, "Grey matter", SEGMENTS[1].type),
    ]
    assert back.sop_instance_uid == segmentation.sop_instance_uid


def test_an_evaluation_is_read_and_a_finding_is_not_taken_for_one(tmp_path: Path) -> None:
    pairs = grid((1, 6, 5))
    source = read_source(source_file(tmp_path, pairs))
    summary = read_report(encode_report(source, chest_findings(), context_of(pairs), None).data)
    assert summary.evaluations == chest_findings().evaluations
    assert summary.measurements[0].label_value is None


def test_the_one_is_not_taken_for_the_other(objects: tuple[ResultObject, ResultObject]) -> None:
    segmentation, report = objects
    with pytest.raises(HeaderError, match="not a readable report"):
        read_report(segmentation.data)
    with pytest.raises(HeaderError, match="not a readable segmentation"):
        read_segmentation(report.data)


@pytest.mark.parametrize("data", [b"", b"not DICOM" * 40])
def test_what_is_not_dicom_is_refused(data: bytes) -> None:
    with pytest.raises(HeaderError, match="not a DICOM file"):
        read_report(data)


def test_a_segmentation_that_claims_more_than_it_has_is_refused(
    objects: tuple[ResultObject, ResultObject],
) -> None:
    for keyword, value in (("Rows", 65535), ("NumberOfFrames", 2_000_000_000)):
        ds = dcmread(BytesIO(objects[0].data))
        setattr(ds, keyword, value)
        changed = BytesIO()
        ds.save_as(changed)
        with pytest.raises(HeaderError, match="not a readable segmentation"):
            read_segmentation(changed.getvalue())
