"""Results read back: what a report says, and the label map of a segmentation.

Owns the reading of objects that this appliance wrote, for the demonstration, the console and
the tests; other makers' objects may lack what is looked for here. It reads with pydicom,
which the writing side does not use (PS3.16 TID 1500; PS3.3 §C.8.20).

Security: a result may come back from an archive; sizes are bounded before they are allocated.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from dicom import codes
from dicom.composite import KINDS, names_of
from dicom.errors import HeaderError
from dicom.header import scan_file
from dicom.results import Code, Evaluation, Measurement, ResultContext

MAX_VOXELS: Final = 1 << 31
"""Of one label map: 2 GiB, four times 2,048 slices of 512 by 512."""
MAX_DEPTH: Final = 16
"""Of a content tree; ours has four levels."""


@dataclass(frozen=True, slots=True)
class ReportSummary:
    """What a report says."""

    title: Code
    algorithm_name: str
    algorithm_version: str
    parameters: tuple[str, ...]
    procedure: Code | None
    findings: tuple[Code, ...]
    """Of each measurement group, the whole input first."""
    measurements: tuple[Measurement, ...]
    """`label_value` is the segment number in the segmentation that the report refers to."""
    labels: tuple[str, ...]
    """For each measurement, the Tracking Identifier of its group: the segment's label, or the finding."""
    evaluations: tuple[Evaluation, ...]
    comments: tuple[str, ...]
    """Warnings, negative results in words, "not for diagnosis"."""
    source_instances: tuple[str, ...]
    """SOP Instance UIDs of the image library."""
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    predecessor: str
    """SOP Instance UID of the report that this one replaces, or empty."""


@dataclass(frozen=True, slots=True)
class SegmentSummary:
    """One segment."""

    number: int
    label: str
    type: Code


@dataclass(frozen=True)
class SegmentationSummary:
    """A segmentation as a label map."""

    labels: NDArray[np.uint8]
    """Segment numbers, 0 = background, shape (slices, rows, columns), slices as in `source_instances`."""
    segments: tuple[SegmentSummary, ...]
    affine: NDArray[np.float64]
    """Shape (4, 4): (slice, row, column, 1) to LPS mm."""
    source_instances: tuple[str, ...]
    frame_of_reference_uid: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True)
class Written:
    """A result object that lies on disk, whole."""

    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    size_bytes: int


def find_written(
    directory: Path, kinds: Collection[str], context: ResultContext
) -> tuple[Written, ...] | None:
    """The objects of `context` that an earlier run left in `directory`, in the order of `KINDS`.

    An instance that may have been sent must never come again with other content (PS3.3 §C.12.1),
    and one made anew would have other times.

    Returns:
        None unless exactly these kinds are there, each readable, whole, and with the UIDs
        that are derived from the context's identity now.
    """
    if {path.stem for path in directory.glob("*.dcm")} != set(kinds):
        return None
    found = [_written(directory / f"{kind}.dcm", kind, context) for kind in KINDS if kind in kinds]
    whole = tuple(each for each in found if each is not None)
    return whole if len(whole) == len(found) else None


def _written(path: Path, kind: str, context: ResultContext) -> Written | None:
    try:
        header, dataset_offset = scan_file(path)
        size = path.stat().st_size
    except (HeaderError, OSError):
        return None
    names = names_of(context, KINDS[kind])
    is_ours = (
        header.sop_class_uid == KINDS[kind].sop_class_uid
        and header.sop_instance_uid == names.sop_instance_uid
        and header.series_instance_uid == names.series_instance_uid
        and header.study_instance_uid == context.study_instance_uid
    )
    if kind == "SR":  # it ends with its tree: what is cut off cannot be read
        try:
            is_whole = read_report(path).sop_instance_uid == names.sop_instance_uid
        except HeaderError:
            is_whole = False
    else:
        offset, length = header.pixel_data_offset, header.pixel_data_length
        is_whole = offset is not None and length is not None and dataset_offset + offset + length == size
    if not (is_ours and is_whole):
        return None
    return Written(kind, header.sop_class_uid, header.sop_instance_uid, header.series_instance_uid, size)


def read_report(source: Path | bytes) -> ReportSummary:
    """A report of this appliance.

    Raises:
        HeaderError: it is no Imaging Measurement Report, or its tree is not as TID 1500 says.
        OSError: the file cannot be read.
    """
    ds = _read(source)
    try:
        return _report(ds)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise HeaderError(f"SOP Instance {ds.get('SOPInstanceUID', '')}: not a readable report") from error


def read_segmentation(source: Path | bytes) -> SegmentationSummary:
    """A segmentation of this appliance.

    Raises:
        HeaderError: it is no binary Segmentation, or its frames do not fit together.
        OSError: the file cannot be read.
    """
    ds = _read(source)
    try:
        return _segmentation(ds)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise HeaderError(
            f"SOP Instance {ds.get('SOPInstanceUID', '')}: not a readable segmentation"
        ) from error


def _read(source: Path | bytes) -> Dataset:
    try:
        return dcmread(BytesIO(source) if isinstance(source, bytes) else source)
    except (InvalidDicomError, RecursionError, EOFError) as error:
        raise HeaderError("result: not a DICOM file") from error


def _report(ds: Dataset) -> ReportSummary:
    title = _code(ds.ConceptNameCodeSequence[0])
    if (title.value, title.scheme) != (
        codes.IMAGING_MEASUREMENT_REPORT.value,
        codes.IMAGING_MEASUREMENT_REPORT.scheme,
    ):
        raise ValueError(f"title is {title.value}")
    groups = list(_named(ds, codes.MEASUREMENT_GROUP))
    measurements, labels, evaluations = [], [], []
    heads = (codes.FINDING.value, codes.FINDING_SITE.value)
    for group in groups:
        label = next(str(item.TextValue) for item in _named(group, codes.TRACKING_IDENTIFIER))
        number = next(
            (
                int(item.ReferencedSOPSequence[0].ReferencedSegmentNumber)
                for item in _named(group, codes.REFERENCED_SEGMENT)
            ),
            None,
        )
        for item in group.ContentSequence:
            if item.ValueType == "NUM":
                measurements.append(_measurement(item, number))
                labels.append(label)
            elif item.ValueType == "CODE" and item.ConceptNameCodeSequence[0].CodeValue not in heads:
                evaluations.append(
                    Evaluation(_code(item.ConceptNameCodeSequence[0]), _code(item.ConceptCodeSequence[0]))
                )
    return ReportSummary(
        title=title,
        algorithm_name=_texts(groups[0], codes.ALGORITHM_NAME)[0],
        algorithm_version=_texts(groups[0], codes.ALGORITHM_VERSION)[0],
        parameters=_texts(groups[0], codes.ALGORITHM_PARAMETERS),
        procedure=next(
            (_code(item.ConceptCodeSequence[0]) for item in _named(ds, codes.PROCEDURE_REPORTED)), None
        ),
        findings=tuple(
            _code(item.ConceptCodeSequence[0]) for group in groups for item in _named(group, codes.FINDING)
        ),
        measurements=tuple(measurements),
        labels=tuple(labels),
        evaluations=tuple(evaluations),
        comments=_texts(ds, codes.COMMENT),
        source_instances=tuple(
            str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for item in _named(ds, codes.SOURCE)
        ),
        study_instance_uid=str(ds.StudyInstanceUID),
        series_instance_uid=str(ds.SeriesInstanceUID),
        sop_instance_uid=str(ds.SOPInstanceUID),
        predecessor=_predecessor(ds),
    )


def _measurement(item: Dataset, segment_number: int | None) -> Measurement:
    name = _code(item.ConceptNameCodeSequence[0])
    measured = item.MeasuredValueSequence
    if not measured:  # a qualifier says why there is no value
        return Measurement(name, float("nan"), codes.NOT_A_NUMBER, segment_number)
    unit = _code(measured[0].MeasurementUnitsCodeSequence[0])
    return Measurement(name, float(measured[0].NumericValue), unit, segment_number)


def _predecessor(ds: Dataset) -> str:
    for study in ds.get("PredecessorDocumentsSequence", []):
        return str(study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
    return ""


def _named(ds: Dataset, name: Code, depth: int = 0) -> Iterator[Dataset]:
    """The content items of this name, in the order of the document."""
    if depth > MAX_DEPTH:
        raise ValueError(f"content tree deeper than {MAX_DEPTH}")
    for item in ds.get("ContentSequence", []):
        concept = item.ConceptNameCodeSequence[0]
        if (concept.get("CodeValue"), concept.CodingSchemeDesignator) == (name.value, name.scheme):
            yield item
        yield from _named(item, name, depth + 1)


def _texts(ds: Dataset, name: Code) -> tuple[str, ...]:
    return tuple(str(item.TextValue) for item in _named(ds, name))


def _code(item: Dataset) -> Code:
    value = item.get("CodeValue") or item.LongCodeValue
    return Code(str(value), str(item.CodingSchemeDesignator), str(item.CodeMeaning))


def _segmentation(ds: Dataset) -> SegmentationSummary:
    if ds.SegmentationType != "BINARY":
        raise ValueError(f"segmentation type {ds.SegmentationType}")
    instances = [
        str(item.ReferencedSOPInstanceUID)
        for series in ds.ReferencedSeriesSequence
        for item in series.ReferencedInstanceSequence
    ]
    index_of = {uid: index for index, uid in enumerate(instances)}
    rows, columns, frames = int(ds.Rows), int(ds.Columns), int(ds.NumberOfFrames)
    if (
        max(len(instances), frames) * rows * columns > MAX_VOXELS
        or len(ds.PixelData) * 8 < frames * rows * columns
    ):
        raise ValueError(f"{frames} frames of {rows} by {columns}, {len(ds.PixelData)} bytes")
    labels = np.zeros((len(instances), rows, columns), np.uint8)
    packed = np.frombuffer(ds.PixelData, np.uint8)
    positions: dict[int, NDArray[np.float64]] = {}
    size = rows * columns
    for frame, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        index = index_of[str(source.ReferencedSOPInstanceUID)]
        number = int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        first = frame * size
        part = np.unpackbits(packed[first // 8 : (first + size + 7) // 8], bitorder="little")
        labels[index][part[first % 8 : first % 8 + size].reshape(rows, columns) == 1] = number
        positions[index] = np.array(group.PlanePositionSequence[0].ImagePositionPatient, np.float64)
    return SegmentationSummary(
        labels=labels,
        segments=tuple(
            SegmentSummary(
                int(item.SegmentNumber),
                str(item.SegmentLabel),
                _code(item.SegmentedPropertyTypeCodeSequence[0]),
            )
            for item in ds.SegmentSequence
        ),
        affine=_affine(ds.SharedFunctionalGroupsSequence[0], positions),
        source_instances=tuple(instances),
        frame_of_reference_uid=str(ds.FrameOfReferenceUID),
        study_instance_uid=str(ds.StudyInstanceUID),
        series_instance_uid=str(ds.SeriesInstanceUID),
        sop_instance_uid=str(ds.SOPInstanceUID),
    )


def _affine(shared: Dataset, positions: dict[int, NDArray[np.float64]]) -> NDArray[np.float64]:
    """From the positions of the frames that are there; they need not be all slices."""
    measures = shared.PixelMeasuresSequence[0]
    orientation: Sequence[float] = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    row, column = np.array(orientation, np.float64).reshape(2, 3)
    low, high = min(positions), max(positions)
    if high > low:
        step = (positions[high] - positions[low]) / (high - low)
    else:
        step = np.cross(row, column) * float(measures.SpacingBetweenSlices)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = column * float(measures.PixelSpacing[0])
    affine[:3, 2] = row * float(measures.PixelSpacing[1])
    affine[:3, 3] = positions[low] - low * step
    return affine
