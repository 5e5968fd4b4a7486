"""A label map as a Segmentation, BINARY (PS3.3 §A.51, §C.8.20).

Owns the multi-frame object: segments, functional groups, bit-packed frames. A segmentation has
one frame for each segment and slice, empty or not, while its pixel data stay below
`MAX_WHOLE_BYTES`: at least one viewer lays the frames of a sparse stack on the wrong slices, and
an overlay in the wrong place is worse than bytes. Above that the empty frames are left out. A label map
without any voxel makes no object: the report says so, and an empty overlay would say nothing more.

Why not highdicom: its constructor takes more than half a second for 120 frames, and makes UIDs at
random. The tests let it read back what is written here.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dicom import codes
from dicom.composite import KINDS, by_series, encode_object, lossy_compression, references
from dicom.element import Encoder, data_set, pixel_data
from dicom.errors import GeometryError
from dicom.header import InstanceHeader
from dicom.provenance import algorithm_identification
from dicom.results import Findings, ResultContext, ResultObject, Segment
from dicom.source import SourceSeries
from dicom.uid import derive

MAX_WHOLE_BYTES: Final = 16 << 20
"""Packed pixel data with all empty frames in: four segments of 128 slices of 512 by 512."""
MAX_PIXEL_BYTES: Final = 1 << 30
"""Packed pixel data at all; viewers and archives give up long before."""
_BLOCK_FRAMES: Final = 64  # a multiple of 8, so that a block of frames packs to whole bytes


def encode_segmentation(
    source: SourceSeries,
    findings: Findings,
    context: ResultContext,
    max_whole_bytes: int = MAX_WHOLE_BYTES,
) -> ResultObject | None:
    """The label map of `findings` as a Segmentation; None when it has no voxel to show.

    Segment numbers count from 1 in the order of `findings.segments`. Frames are in the order of segments,
    then of slices.

    Args:
        source: the series that the model saw.
        findings: `labels` has shape (slices, rows, columns), one slice for each of `context.inputs`.
        context: its inputs, in slice order.
        max_whole_bytes: packed pixel data up to which empty frames are written too.

    Raises:
        GeometryError: an input has no position, orientation or spacing.
        ValueError: the label map does not fit the inputs or the segments, or is too large.
    """
    labels = findings.labels
    if labels is None or not findings.segments:
        return None
    _check(labels, findings, context)
    if not is_segmented(findings):
        return None
    frames = _frames(labels, findings.segments, max_whole_bytes)
    pixels = _packed(labels, findings.segments, frames)

    def body(encode: Encoder) -> list[bytes]:
        return [
            *_image(encode, source, findings, context, len(frames)),
            *_relations(encode, context),
            *_dimensions(encode, context),
            _shared_groups(encode, context.inputs),
            _per_frame_groups(encode, context.inputs, frames),
        ]

    return encode_object(source, context, KINDS["SEG"], body, tail=pixels)


def is_segmented(findings: Findings) -> bool:
    """Whether there is a voxel to show: whether `encode_segmentation` makes an object."""
    return findings.labels is not None and bool(findings.segments) and bool(findings.labels.max())


def tracking_uid(context: ResultContext, label_value: int | None) -> str:
    """The Tracking Unique Identifier of a segment, or of the whole input (None); the report uses the same."""
    return derive(*context.identity, "tracking", "" if label_value is None else str(label_value))


def _check(labels: NDArray[np.uint8], findings: Findings, context: ResultContext) -> None:
    first = context.inputs[0]
    shape = (len(context.inputs), first.rows, first.columns)
    if labels.dtype != np.uint8 or labels.shape != shape:
        raise ValueError(f"labels: {labels.dtype} {labels.shape}, must be uint8 {shape}")
    bits = len(findings.segments) * labels.size
    if bits > MAX_PIXEL_BYTES * 8:
        raise ValueError(f"segmentation: {bits // 8} bytes of frames, allowed {MAX_PIXEL_BYTES}")
    for header in context.inputs:
        if not (header.image_position_mm and header.image_orientation and header.pixel_spacing_mm):
            raise GeometryError(
                f"SOP Instance {header.sop_instance_uid}: position, orientation or pixel spacing is missing"
            )


Frame = tuple[int, int]
"""Segment number from 1, slice index from 0."""


def _frames(labels: NDArray[np.uint8], segments: Sequence[Segment], max_whole_bytes: int) -> list[Frame]:
    whole = [(number, index) for number in range(1, len(segments) + 1) for index in range(len(labels))]
    if len(segments) * labels.size <= max_whole_bytes * 8:
        return whole
    present = {(s, i) for s, i in whole if np.any(labels[i] == segments[s - 1].label_value)}
    return [frame for frame in whole if frame in present]


def _packed(
    labels: NDArray[np.uint8], segments: Sequence[Segment], frames: Sequence[Frame]
) -> tuple[bytes, ...]:
    """Pixel Data, (7FE0,0010): one bit a pixel, no gap between frames (PS3.5 §8.2, §D.4).

    Raises:
        ValueError: the label map has a value that no segment has.
    """
    counted = 0
    parts = []
    block = np.empty((_BLOCK_FRAMES, *labels.shape[1:]), np.bool_)
    for start in range(0, len(frames), _BLOCK_FRAMES):
        part = frames[start : start + _BLOCK_FRAMES]
        for row, (number, index) in enumerate(part):
            np.equal(labels[index], segments[number - 1].label_value, out=block[row])
        counted += int(np.count_nonzero(block[: len(part)]))
        parts.append(np.packbits(block[: len(part)], bitorder="little").tobytes())
    labelled = int(np.count_nonzero(labels != 0))  # of a bool array: ten times as fast
    if counted != labelled:
        raise ValueError(
            f"labels: {labelled - counted} voxels have a value of no segment; "
            f"segments have {sorted(segment.label_value for segment in segments)}"
        )
    return pixel_data(parts)


def _image(
    encode: Encoder, source: SourceSeries, findings: Findings, context: ResultContext, frames: int
) -> list[bytes]:
    first = context.inputs[0]
    # Off-spec: a source without a frame of reference gets one of its own, for a segmentation needs it.
    frame_of_reference = first.frame_of_reference_uid or derive(
        "frame of reference", first.series_instance_uid
    )
    return [
        encode("ImageType", "DERIVED", "PRIMARY"),
        encode("FrameOfReferenceUID", frame_of_reference),
        source.copy(encode, "PositionReferenceIndicator"),
        encode("SamplesPerPixel", 1),
        encode("PhotometricInterpretation", "MONOCHROME2"),
        encode("NumberOfFrames", frames),
        encode("Rows", first.rows or 0),
        encode("Columns", first.columns or 0),
        encode("BitsAllocated", 1),
        encode("BitsStored", 1),
        encode("HighBit", 0),
        encode("PixelRepresentation", 0),
        *lossy_compression(encode, source, context.inputs),
        encode("SegmentationType", "BINARY"),
        encode("SegmentsOverlap", "NO"),
        encode("ContentLabel", "SEGMENTATION"),
        encode("ContentDescription", findings.finding.meaning),
        encode("ContentCreatorName"),
        encode(
            "SegmentSequence",
            *(_segment(encode, number, item, context) for number, item in enumerate(findings.segments, 1)),
        ),
    ]


def _segment(encode: Encoder, number: int, segment: Segment, context: ResultContext) -> bytes:
    return data_set(
        encode("SegmentNumber", number),
        encode("SegmentLabel", segment.label),
        encode("SegmentAlgorithmType", "AUTOMATIC"),
        encode("SegmentAlgorithmName", context.algorithm.name),
        encode(
            "SegmentationAlgorithmIdentificationSequence",
            algorithm_identification(encode, context.algorithm),
        ),
        encode("SegmentedPropertyCategoryCodeSequence", encode.code(segment.category)),
        encode("SegmentedPropertyTypeCodeSequence", encode.code(segment.type)),
        encode("RecommendedDisplayCIELabValue", *_cielab(segment.rgb)),
        encode("TrackingID", segment.label),
        encode("TrackingUID", tracking_uid(context, segment.label_value)),
    )


def _relations(encode: Encoder, context: ResultContext) -> list[bytes]:
    """The Common Instance Reference module, and the sources of the whole."""
    series = [
        data_set(
            encode("SeriesInstanceUID", uid),
            encode("ReferencedInstanceSequence", *references(encode, headers)),
        )
        for uid, headers in by_series(context.inputs)
    ]
    return [
        encode("ReferencedSeriesSequence", *series),
        encode("SourceImageSequence", *references(encode, context.inputs)),
    ]


_SEGMENT_NUMBER: Final = 0x0062000B
_SEGMENT_IDENTIFICATION: Final = 0x0062000A
_POSITION: Final = 0x00200032
_PLANE_POSITION: Final = 0x00209113


def _dimensions(encode: Encoder, context: ResultContext) -> list[bytes]:
    """Two dimensions: segment, then slice (PS3.3 §C.7.6.17)."""
    organization = encode("DimensionOrganizationUID", derive(*context.identity, "SEG", "dimensions"))
    pointers = (
        (_SEGMENT_NUMBER, _SEGMENT_IDENTIFICATION, "Segment"),
        (_POSITION, _PLANE_POSITION, "Slice"),
    )
    indices = [
        data_set(
            organization,
            encode("DimensionIndexPointer", pointer),
            encode("FunctionalGroupPointer", group),
            encode("DimensionDescriptionLabel", label),
        )
        for pointer, group, label in pointers
    ]
    return [
        encode("DimensionOrganizationSequence", organization),
        encode("DimensionIndexSequence", *indices),
    ]


def _shared_groups(encode: Encoder, inputs: Sequence[InstanceHeader]) -> bytes:
    first = inputs[0]
    spacing = _slice_spacing_mm(inputs)
    measures = data_set(
        encode("PixelSpacing", *(first.pixel_spacing_mm or ())),
        encode("SliceThickness", first.slice_thickness_mm or spacing),
        encode("SpacingBetweenSlices", spacing),
    )
    orientation = encode("ImageOrientationPatient", *(first.image_orientation or ()))
    shared = data_set(
        encode("PixelMeasuresSequence", measures), encode("PlaneOrientationSequence", orientation)
    )
    return encode("SharedFunctionalGroupsSequence", shared)


def _slice_spacing_mm(inputs: Sequence[InstanceHeader]) -> float:
    """Distance of neighbouring slices along their normal; of a sheared stack (gantry tilt) too."""
    first, last = inputs[0], inputs[-1]
    if len(inputs) > 1 and first.image_orientation:
        row, column = np.reshape(first.image_orientation, (2, 3))
        step = np.subtract(last.image_position_mm or 0, first.image_position_mm or 0) / (len(inputs) - 1)
        distance = abs(float(np.dot(np.cross(row, column), step)))
        if distance > 0:
            return round(distance, 6)  # a nanometre: what is left of the positions' rounding goes away
    return first.spacing_between_slices_mm or first.slice_thickness_mm or 1.0


def _per_frame_groups(encode: Encoder, inputs: Sequence[InstanceHeader], frames: Sequence[Frame]) -> bytes:
    slices = [_slice_groups(encode, header) for header in inputs]
    used = sorted({number for number, _ in frames})
    segments = {
        number: encode("SegmentIdentificationSequence", encode("ReferencedSegmentNumber", number))
        for number in used
    }
    # Every frame's index has the same eight bytes of length: made once, then only the values differ.
    content = encode("FrameContentSequence", encode("DimensionIndexValues", 0, 0))[:-8]

    def items() -> Iterator[bytes]:
        for number, index in frames:
            derivation, position = slices[index]
            values = struct.pack("<II", number, index + 1)
            yield b"".join((derivation, content, values, position, segments[number]))

    return encode("PerFrameFunctionalGroupsSequence", *items())


def _slice_groups(encode: Encoder, header: InstanceHeader) -> tuple[bytes, bytes]:
    """Derivation Image and Plane Position Sequence of the frames on one slice."""
    origin = data_set(
        *references(encode, [header])[:1],
        encode("PurposeOfReferenceCodeSequence", encode.code(codes.SOURCE_IMAGE)),
        encode("SpatialLocationsPreserved", "YES"),
    )
    derivation = data_set(
        encode("SourceImageSequence", origin),
        encode("DerivationCodeSequence", encode.code(codes.SEGMENTATION)),
    )
    position = encode("ImagePositionPatient", *(header.image_position_mm or ()))
    return (
        encode("DerivationImageSequence", derivation),
        encode("PlanePositionSequence", position),
    )


def _cielab(rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    """Colour: sRGB (D65) as CIELab (D50), each axis scaled to 0..65535 (PS3.3 §C.10.7.1.1)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    to_xyz_d50 = (
        (0.4360747, 0.3850649, 0.1430804),
        (0.2225045, 0.7168786, 0.0606169),
        (0.0139322, 0.0971045, 0.7141733),
    )
    white = (0.96422, 1.0, 0.82521)
    x, y, z = (
        t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116
        for t in (
            sum(m * v for m, v in zip(row, linear, strict=True)) / w
            for row, w in zip(to_xyz_d50, white, strict=True)
        )
    )
    lightness, a, b = 116 * y - 16, 500 * (x - y), 200 * (y - z)
    scaled = (lightness / 100 * 65535, (a + 128) / 255 * 65535, (b + 128) / 255 * 65535)
    red, green, blue = (min(65535, max(0, round(value))) for value in scaled)
    return red, green, blue
