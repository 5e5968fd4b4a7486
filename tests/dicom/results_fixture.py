"""Findings and contexts to make results of, in the shapes that the appliance makes them in."""

import atexit
import functools
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom.element import Encoder, data_set, file_format
from dicom.geometry import stack_geometry
from dicom.header import InstanceHeader, scan_file
from dicom.results import Algorithm, Code, Evaluation, Findings, Measurement, ResultContext, Segment
from dicom.uid import derive
from tests.material import MATERIAL, unpack

BRAIN = Code("12738006", "SCT", "Brain")
TISSUE = Code("85756007", "SCT", "Tissue")
WHITE_MATTER = Code("68523003", "SCT", "Cerebral white matter")
GREY_MATTER = Code("40146001", "SCT", "Cerebral cortex gray matter")
VOLUME = Code("118565006", "SCT", "Volume")
MILLILITRE = Code("mL", "UCUM", "milliliter")
RATIO = Code("1", "UCUM", "no units")
PNEUMONIA = Code("233604007", "SCT", "Pneumonia")
LUNG = Code("39607008", "SCT", "Lung")
PRESENT = Code("52101004", "SCT", "Present")
ABSENT = Code("2667000", "SCT", "Absent")
CREATED = datetime(2026, 3, 4, 5, 6, 7, 890_000, UTC)

ALGORITHM = Algorithm(
    name="brain-t1-small",
    version="1.0.0",
    manufacturer="Insitu",
    device_uid=derive("model", "0" * 64),
    model_digest="0123456789abcdef" * 4,
    parameters={
        "runtime": "onnxruntime 1.32.0",
        "provider": "CPUExecutionProvider",
        "preprocessing": "sha256:" + "ab" * 32,
        "decoder": "native",
    },
)
SEGMENTS = (
    Segment(1, "White matter", TISSUE, WHITE_MATTER, (245, 222, 120)),
    Segment(2, "Grey matter", TISSUE, GREY_MATTER, (80, 170, 255)),
)


Pairs = Sequence[tuple[Path, InstanceHeader]]
"""Files with their headers, in slice order: what `read_source` takes."""


@functools.cache
def _unpacked(name: str) -> tuple[tuple[Path, InstanceHeader], ...]:
    folder = tempfile.TemporaryDirectory(prefix="insitu-results-")
    atexit.register(folder.cleanup)
    pairs = [(path, scan_file(path)[0]) for path in unpack(name, Path(folder.name))]
    order = stack_geometry([header for _, header in pairs]).order
    return tuple(pairs[index] for index in order)


def series_of(name: str, limit: int | None = None) -> Pairs:
    """A series of the material, unpacked once a process; the `limit` slices in its middle."""
    pairs = _unpacked(name)
    if limit is None:
        return pairs
    start = (len(pairs) - limit) // 2
    return pairs[start : start + limit]


def chest_x_ray(name: str = "NORMAL2-IM-1285-0001.dcm") -> tuple[Path, InstanceHeader]:
    """One chest X-ray of the material."""
    path = MATERIAL / "dicom" / "cxr" / name
    return path, scan_file(path)[0]


def context_of(pairs: Pairs, **changes: object) -> ResultContext:
    """A context whose inputs are these instances."""
    inputs = tuple(header for _, header in pairs)
    digest = derive(*(header.sop_instance_uid for header in inputs))
    context = ResultContext(
        algorithm=ALGORITHM,
        study_instance_uid=inputs[0].study_instance_uid,
        inputs=inputs,
        created=CREATED,
        identity=(inputs[0].study_instance_uid, ALGORITHM.model_digest, digest, "0"),
    )
    return replace(context, **changes)  # type: ignore[arg-type]  # names are checked by replace itself


def ball(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A ball of grey around a smaller ball of white, off centre on every axis, so that no flip hides."""
    axes = [np.linspace(-1, 1, size, dtype=np.float32) for size in shape]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    distance = (z - 0.2) ** 2 / 0.4 + (y + 0.15) ** 2 / 0.5 + (x - 0.1) ** 2 / 0.3
    labels = np.zeros(shape, np.uint8)
    labels[distance < 1] = 2
    labels[distance < 0.4] = 1
    return labels


def labels_for(pairs: Pairs) -> NDArray[np.uint8]:
    """`ball` on the grid of these instances."""
    first = pairs[0][1]
    return ball((len(pairs), first.rows or 0, first.columns or 0))


def brain_findings(labels: NDArray[np.uint8] | None, **changes: object) -> Findings:
    """Two tissues with their volumes, and a ratio of the whole."""
    findings = Findings(
        finding=BRAIN,
        finding_site=BRAIN,
        segments=SEGMENTS,
        labels=labels,
        measurements=(
            Measurement(VOLUME, 647.25, MILLILITRE, 1),
            Measurement(VOLUME, 1075.5, MILLILITRE, 2),
            Measurement(Code("118586006", "SCT", "Ratio"), 1.66151, RATIO),
        ),
        warnings=("mean confidence 0.816 is below 0.85",),
    )
    return replace(findings, **changes)  # type: ignore[arg-type]  # names are checked by replace itself


def chest_findings(probability: float = 0.93) -> Findings:
    """A score of a whole image and what it means."""
    return Findings(
        finding=PNEUMONIA,
        finding_site=LUNG,
        measurements=(Measurement(Code("SCORE", "99INSITU", "Pneumonia score"), probability, RATIO),),
        evaluations=(Evaluation(PNEUMONIA, PRESENT if probability >= 0.5 else ABSENT),),
    )


def written(folder: Path, name: str, data: bytes) -> Path:
    """The encoded object as a file."""
    path = folder / name
    path.write_bytes(data)
    return path


def grid(shape: tuple[int, int, int], orientation: Sequence[float] = (1, 0, 0, 0, 1, 0)) -> Pairs:
    """Headers of a made-up MR series of this shape, 2 mm slices, pixels of 1 by 0.5 mm; without files."""
    row, column = np.reshape(orientation, (2, 3))
    normal = np.cross(row, column)
    study, series = derive("study"), derive("series", str(shape), str(orientation))
    return [
        (
            Path("absent"),
            InstanceHeader(
                "1.2.840.10008.5.1.4.1.1.4",
                derive(series, str(index)),
                study,
                series,
                "1.2.840.10008.1.2.1",
                modality="MR",
                instance_number=index + 1,
                frame_of_reference_uid=derive(series, "frame of reference"),
                image_position_mm=tuple(float(value) for value in 10 + 2 * index * normal),  # type: ignore[arg-type]
                image_orientation=tuple(float(value) for value in orientation),  # type: ignore[arg-type]
                pixel_spacing_mm=(1.0, 0.5),
                slice_thickness_mm=2.0,
                rows=shape[1],
                columns=shape[2],
                photometric_interpretation="MONOCHROME2",
                bits_stored=12,
            ),
        )
        for index in range(shape[0])
    ]


def source_file(folder: Path, pairs: Pairs, **values: bytes) -> Pairs:
    """The same series, but its first file has these attributes only, encoded as given."""
    encode = Encoder("", "ascii")
    path, header = folder / "first.dcm", pairs[0][1]
    elements = [encode.copied(keyword, value) for keyword, value in values.items()]
    path.write_bytes(file_format(header.sop_class_uid, header.sop_instance_uid, [data_set(*elements)]))
    return [(path, header), *pairs[1:]]
