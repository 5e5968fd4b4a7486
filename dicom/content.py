"""Content items of a Structured Report as bytes (PS3.3 §C.17.3, §C.18).

Owns the encoding of each value type that our report uses; which items a report has, and in which
order, is in `dicom.report`.
"""

from collections.abc import Iterable
from typing import Final

from dicom import codes
from dicom.element import Encoder, data_set, decimal
from dicom.results import Code

CONTAINS: Final = "CONTAINS"
HAS_CONCEPT_MOD: Final = "HAS CONCEPT MOD"
HAS_OBS_CONTEXT: Final = "HAS OBS CONTEXT"
HAS_ACQ_CONTEXT: Final = "HAS ACQ CONTEXT"


class ContentEncoder:
    """Makes content items; each method gives the content of one item of (0040,A730)."""

    def __init__(self, encode: Encoder) -> None:
        self.encode = encode

    def container(
        self, relationship: str, name: Code, children: Iterable[bytes], template: str = ""
    ) -> bytes:
        """A CONTAINER with its children, in their order."""
        return data_set(*self.root(name, children, template), self.encode("RelationshipType", relationship))

    def root(self, name: Code, children: Iterable[bytes], template: str) -> list[bytes]:
        """The elements of a CONTAINER without relationship: of the document itself."""
        encode = self.encode
        elements = [
            encode("ValueType", "CONTAINER"),
            encode("ConceptNameCodeSequence", encode.code(name)),
            encode("ContinuityOfContent", "SEPARATE"),
            encode("ContentSequence", *children),
        ]
        if template:
            identification = data_set(
                encode("MappingResource", "DCMR"), encode("TemplateIdentifier", template)
            )
            elements.append(encode("ContentTemplateSequence", identification))
        return elements

    def code(self, relationship: str, name: Code, value: Code) -> bytes:
        """A CODE item."""
        concept = self.encode("ConceptCodeSequence", self.encode.code(value))
        return self._item(relationship, "CODE", name, concept)

    def text(self, relationship: str, name: Code, value: str) -> bytes:
        """A TEXT item; an empty value is written as a dash, for the Standard wants one."""
        return self._item(relationship, "TEXT", name, self.encode("TextValue", value or "-"))

    def uid(self, relationship: str, name: Code, value: str) -> bytes:
        """A UIDREF item."""
        return self._item(relationship, "UIDREF", name, self.encode("UID", value))

    def number(self, name: Code, value: float, unit: Code) -> bytes:
        """A contained NUM item; one that is no finite number has a qualifier in place of a value."""
        encode = self.encode
        if value - value != 0:
            infinity = codes.POSITIVE_INFINITY if value > 0 else codes.NEGATIVE_INFINITY
            qualifier = codes.NOT_A_NUMBER if value != value else infinity  # noqa: PLR0124 (NaN alone differs)
            return self._item(
                CONTAINS,
                "NUM",
                name,
                encode("MeasuredValueSequence"),
                encode("NumericValueQualifierCodeSequence", encode.code(qualifier)),
            )
        measured = data_set(
            encode("NumericValue", decimal(value)),
            encode("MeasurementUnitsCodeSequence", encode.code(unit)),
        )
        return self._item(CONTAINS, "NUM", name, encode("MeasuredValueSequence", measured))

    def image(
        self, name: Code, sop_class_uid: str, sop_instance_uid: str, segment_number: int | None = None
    ) -> bytes:
        """A contained IMAGE item, of one segment where a number is given."""
        encode = self.encode
        reference = data_set(
            encode("ReferencedSOPClassUID", sop_class_uid),
            encode("ReferencedSOPInstanceUID", sop_instance_uid),
            *([] if segment_number is None else [encode("ReferencedSegmentNumber", segment_number)]),
        )
        return self._item(CONTAINS, "IMAGE", name, encode("ReferencedSOPSequence", reference))

    def _item(self, relationship: str, value_type: str, name: Code, *value: bytes) -> bytes:
        encode = self.encode
        return data_set(
            encode("RelationshipType", relationship),
            encode("ValueType", value_type),
            encode("ConceptNameCodeSequence", encode.code(name)),
            *value,
        )
