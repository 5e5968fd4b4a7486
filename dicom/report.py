"""The findings as a Comprehensive 3D SR, Imaging Measurement Report (PS3.3 §A.35.13; PS3.16 TID 1500).

Owns the content tree and the SR document modules. The tree: language, device observer (TID 1004),
procedure reported, image library (TID 1600), and one measurement group for each segment
(TID 1411 where the segmentation has it, else TID 1501) behind one for the whole input (TID 1501).
Every group names the algorithm with its parameters (TID 4019). What a person must read beside the values
(warnings, a negative result in words, "not for diagnosis") is a Comment (121106, DCM) of
the group of the whole input; both templates are extensible, and readers show such text.

A negative result is a report like any other: "nothing found" must differ from "not run". What was
looked for and not found is no Finding (121071, DCM): its group has none, but an evaluation
that says Absent (2667000, SCT), unless it is normal anatomy. The Tracking Identifier still names it.
"""

from collections.abc import Iterable, Iterator

from dicom import codes
from dicom.composite import KINDS, by_series, encode_object, in_its_letters, references
from dicom.content import CONTAINS, HAS_ACQ_CONTEXT, HAS_CONCEPT_MOD, HAS_OBS_CONTEXT, ContentEncoder
from dicom.element import Encoder, data_set
from dicom.header import InstanceHeader
from dicom.provenance import algorithm_parameters
from dicom.results import Code, Findings, ResultContext, ResultObject, Segment
from dicom.segmentation import tracking_uid
from dicom.source import SourceSeries
from dicom.statements import absence, is_normal, statements


def encode_report(
    source: SourceSeries, findings: Findings, context: ResultContext, segmentation: ResultObject | None
) -> ResultObject:
    """The findings as a structured report, complete and unverified.

    Args:
        source: the series that the model saw.
        findings: what the model says; nothing at all is a result too, and said in words.
        context: what else the report depends on.
        segmentation: the object of `encode_segmentation` for the same findings; None when
            there is none, and then no measurement refers to a segment.

    Raises:
        ValueError: a measurement is of a label value that no segment has, or the context is
            of another study than the source.
    """
    values = {segment.label_value for segment in findings.segments}
    for measurement in findings.measurements:
        if measurement.label_value is not None and measurement.label_value not in values:
            raise ValueError(
                f"measurement {measurement.name.meaning}: label value {measurement.label_value}, "
                f"segments have {sorted(values)}"
            )

    def body(encode: Encoder) -> list[bytes]:
        content = ContentEncoder(encode)
        tree = _Tree(content, source, findings, context, segmentation)
        return [
            *content.root(codes.IMAGING_MEASUREMENT_REPORT, tree.items(), template="1500"),
            *_document(encode, source, context, segmentation),
        ]

    return encode_object(source, context, KINDS["SR"], body)


class _Tree:
    """The items below the root, in the order of TID 1500."""

    def __init__(
        self,
        content: ContentEncoder,
        source: SourceSeries,
        findings: Findings,
        context: ResultContext,
        segmentation: ResultObject | None,
    ) -> None:
        self.content = content
        self.source = source
        self.findings = findings
        self.context = context
        self.segmentation = segmentation
        self.said = statements(findings, context)

    def items(self) -> Iterator[bytes]:
        content = self.content
        yield content.code(HAS_CONCEPT_MOD, codes.LANGUAGE, codes.ENGLISH)
        yield from self._observer()
        for procedure in self._procedures():
            yield content.code(HAS_CONCEPT_MOD, codes.PROCEDURE_REPORTED, procedure)
        yield content.container(CONTAINS, codes.IMAGE_LIBRARY, self._library())
        groups = [self._whole(), *(self._of_segment(*item) for item in enumerate(self.findings.segments, 1))]
        yield content.container(CONTAINS, codes.IMAGING_MEASUREMENTS, groups)

    def _observer(self) -> Iterator[bytes]:
        """TID 1002 and 1004: the algorithm is the observer, so its Device UID is the observer's (IHE AIR)."""
        content, algorithm = self.content, self.context.algorithm
        yield content.code(HAS_OBS_CONTEXT, codes.OBSERVER_TYPE, codes.DEVICE)
        yield content.uid(HAS_OBS_CONTEXT, codes.DEVICE_UID, algorithm.device_uid)
        yield content.text(HAS_OBS_CONTEXT, codes.DEVICE_NAME, f"{algorithm.name} {algorithm.version}")
        yield content.text(HAS_OBS_CONTEXT, codes.DEVICE_MANUFACTURER, algorithm.manufacturer)
        yield content.text(HAS_OBS_CONTEXT, codes.DEVICE_MODEL_NAME, algorithm.name)
        yield content.text(HAS_OBS_CONTEXT, codes.DEVICE_SERIAL_NUMBER, self.context.equipment.serial_number)

    def _procedures(self) -> tuple[Code, ...]:
        """The imaging procedure: the study's own code, else that of the modality."""
        modality = self.context.inputs[0].modality
        return self.source.procedures or (codes.PROCEDURES.get(modality, codes.IMAGING),)

    def _library(self) -> Iterator[bytes]:
        """TID 1600: one group for each series, with what its images have in common (TID 1602)."""
        content = self.content
        for _, headers in by_series(self.context.inputs):
            first = headers[0]
            shared = []
            if first.modality in codes.MODALITIES:
                shared.append(content.code(HAS_ACQ_CONTEXT, codes.MODALITY, codes.MODALITIES[first.modality]))
            if first.frame_of_reference_uid:
                shared.append(
                    content.uid(HAS_ACQ_CONTEXT, codes.FRAME_OF_REFERENCE, first.frame_of_reference_uid)
                )
            images = (content.image(codes.SOURCE, h.sop_class_uid, h.sop_instance_uid) for h in headers)
            yield content.container(CONTAINS, codes.IMAGE_LIBRARY_GROUP, [*shared, *images])

    def _whole(self) -> bytes:
        """TID 1501: what is said of the whole input, and all that is said in words."""
        findings, content, context = self.findings, self.content, self.context
        # Which one image was measured; of a volume it is the whole image library.
        source = context.inputs if len(context.inputs) == 1 else ()
        negative = self.said.is_negative
        absent = absence(findings) if negative else None
        answers = findings.evaluations if absent is None else (absent,)
        children = [
            *self._group_head(findings.finding.meaning, None, None if negative else findings.finding),
            *self._measurements(None),
            *(content.code(CONTAINS, answer.name, answer.value) for answer in answers),
            *(
                content.image(codes.SOURCE_OF_MEASUREMENT, header.sop_class_uid, header.sop_instance_uid)
                for header in source
            ),
            *(content.text(CONTAINS, codes.COMMENT, text) for text in self._texts()),
        ]
        return content.container(CONTAINS, codes.MEASUREMENT_GROUP, children, template="1501")

    def _of_segment(self, number: int, segment: Segment) -> bytes:
        """TID 1411 with the segment of the segmentation; TID 1501 where there is no segmentation."""
        content = self.content
        missing = segment.label_value in self.said.missing
        children = [
            *self._group_head(segment.label, segment.label_value, None if missing else segment.type),
            *self._measurements(segment.label_value),
        ]
        if missing and not is_normal(segment.category):
            children.append(content.code(CONTAINS, segment.type, codes.ABSENT))
        if self.segmentation is None:
            return content.container(CONTAINS, codes.MEASUREMENT_GROUP, children, template="1501")
        children += [
            content.image(
                codes.REFERENCED_SEGMENT,
                self.segmentation.sop_class_uid,
                self.segmentation.sop_instance_uid,
                number,
            ),
            # The series, for the images themselves are in the library and in the segmentation.
            content.uid(CONTAINS, codes.SOURCE_SERIES, self.context.inputs[0].series_instance_uid),
        ]
        return content.container(CONTAINS, codes.MEASUREMENT_GROUP, children, template="1411")

    def _group_head(self, identifier: str, label_value: int | None, finding: Code | None) -> Iterator[bytes]:
        content, algorithm = self.content, self.context.algorithm
        yield content.text(HAS_OBS_CONTEXT, codes.TRACKING_IDENTIFIER, identifier)
        yield content.uid(HAS_OBS_CONTEXT, codes.TRACKING_UID, tracking_uid(self.context, label_value))
        if finding is not None:
            yield content.code(CONTAINS, codes.FINDING, finding)
        if self.findings.finding_site is not None:
            yield content.code(HAS_CONCEPT_MOD, codes.FINDING_SITE, self.findings.finding_site)
        yield content.text(HAS_CONCEPT_MOD, codes.ALGORITHM_NAME, algorithm.name)
        yield content.text(HAS_CONCEPT_MOD, codes.ALGORITHM_VERSION, algorithm.version)
        for parameter in algorithm_parameters(algorithm):
            yield content.text(HAS_CONCEPT_MOD, codes.ALGORITHM_PARAMETERS, parameter)

    def _texts(self) -> Iterator[str]:
        """The sentences; what a source's description has beyond this object's character set is replaced."""
        for text in self.said.texts():
            yield in_its_letters(self.content.encode, text) if text == self.said.source else text

    def _measurements(self, label_value: int | None) -> Iterator[bytes]:
        for item in self.findings.measurements:
            if item.label_value == label_value:
                yield self.content.number(item.name, item.value, item.unit)


def _document(
    encode: Encoder, source: SourceSeries, context: ResultContext, segmentation: ResultObject | None
) -> list[bytes]:
    """The SR Document Series and SR Document General modules (PS3.3 §C.17.1, §C.17.2)."""
    elements = [
        encode("ReferencedPerformedProcedureStepSequence"),
        encode("CompletionFlag", "COMPLETE"),
        encode("VerificationFlag", "UNVERIFIED"),
        encode("PerformedProcedureCodeSequence", *map(encode.code, source.procedures)),
        encode("CurrentRequestedProcedureEvidenceSequence", _evidence(encode, context, segmentation)),
    ]
    if context.predecessor is not None:
        study, series, sop_class, sop_instance = context.predecessor
        item = _document_reference(encode, sop_class, sop_instance)
        predecessor = _series_reference(encode, series, [item])
        elements.append(
            encode("PredecessorDocumentsSequence", _study_reference(encode, study, [predecessor]))
        )
    return elements


def _evidence(encode: Encoder, context: ResultContext, segmentation: ResultObject | None) -> bytes:
    """Every instance that the content tree refers to (PS3.3 §C.17.2.3)."""
    series = [
        _series_reference(encode, uid, references(encode, headers))
        for uid, headers in by_series(context.inputs)
    ]
    if segmentation is not None:
        item = _document_reference(encode, segmentation.sop_class_uid, segmentation.sop_instance_uid)
        series.append(_series_reference(encode, segmentation.series_instance_uid, [item]))
    return _study_reference(encode, context.study_instance_uid, series)


def _document_reference(encode: Encoder, sop_class_uid: str, sop_instance_uid: str) -> bytes:
    header = InstanceHeader(sop_class_uid, sop_instance_uid, "", "", "")
    return references(encode, [header])[0]


def _series_reference(encode: Encoder, uid: str, instances: Iterable[bytes]) -> bytes:
    return data_set(encode("SeriesInstanceUID", uid), encode("ReferencedSOPSequence", *instances))


def _study_reference(encode: Encoder, uid: str, series: Iterable[bytes]) -> bytes:
    return data_set(encode("StudyInstanceUID", uid), encode("ReferencedSeriesSequence", *series))
