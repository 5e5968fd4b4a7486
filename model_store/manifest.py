"""The manifest of a model package: data, never code.

Owns its schema (`insitu.model/1`, published as `docs/manifest.schema.json`) and its
checks; says nothing of what a preprocessing step does (`edge.steps` implements them).
"""

import json
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from model_store.errors import ManifestError

SCHEMA: Final = "insitu.model/1"
MAX_MANIFEST_BYTES: Final = 1 << 20
"""1 MiB: the largest real manifest so far is 8 KiB; read before anything is verified."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9](-?[a-z0-9]+)*$", max_length=64)]
Version = Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+([-+][0-9A-Za-z.-]{1,32})?$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?$", max_length=128),
]
"""A relative path of at most two parts, none of which begins with a dot."""
Range = tuple[float, float]
"""Least and greatest allowed value, both included."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Coded(_Part):
    """A coded concept (PS3.3 §8.8): SNOMED CT (`SCT`), DICOM (`DCM`), RadLex, UCUM."""

    value: Annotated[str, Field(min_length=1, max_length=64)]
    scheme: Annotated[str, Field(min_length=1, max_length=16)]
    meaning: Annotated[str, Field(min_length=1, max_length=64)]


class Geometry(_Part):
    """Limits of the acceptance envelope; outside of them a series is declined with the reason."""

    slices: tuple[int, int] | None = Field(None, description="number of slices, least and greatest")
    rows: tuple[int, int] | None = Field(None, description="(0028,0010), least and greatest")
    columns: tuple[int, int] | None = Field(None, description="(0028,0011), least and greatest")
    pixel_spacing_mm: Range | None = Field(None, description="in-plane distance of voxel centres")
    slice_spacing_mm: Range | None = Field(
        None, description="distance of slice centres, measured from positions"
    )
    extent_mm: Range | None = Field(None, description="shortest and longest edge of the whole volume")
    max_gantry_tilt_deg: float | None = Field(None, description="greatest shear of the slice stack")


class Input(_Part):
    """One thing that the model wants: a series as a volume, or each image of a series."""

    name: Name
    kind: Literal["volume", "image"]
    modality: tuple[str, ...] = Field(min_length=1, description="(0008,0060), any of these")
    body_part: tuple[str, ...] = Field((), description="(0018,0015), any of these; empty: not asked")
    body_part_absent: Literal["accept", "decline"] = Field(
        "accept", description="when the attribute is empty"
    )
    view_position: tuple[str, ...] = Field((), description="(0018,5101), any of these; empty: not asked")
    image_type_any: tuple[str, ...] = Field(
        (), description="at least one of these in (0008,0008); empty: not asked"
    )
    image_type_none: tuple[str, ...] = Field(("LOCALIZER",), description="none of these in (0008,0008)")
    description_any: tuple[str, ...] = Field(
        (), description="one of these words in (0008,103E) or (0018,1030)"
    )
    description_none: tuple[str, ...] = Field(
        (), description="none of these words in (0008,103E) or (0018,1030)"
    )
    photometric: tuple[str, ...] = Field(
        ("MONOCHROME1", "MONOCHROME2"), description="(0028,0004), any of these"
    )
    geometry: Geometry = Geometry()


class Step(BaseModel):
    """One named, versioned step that the appliance implements; its parameters stand beside its name."""

    model_config = ConfigDict(frozen=True, extra="allow")
    step: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=48)]
    version: Annotated[int, Field(ge=1, le=999)] = 1

    @property
    def parameters(self) -> dict[str, Any]:
        """What stands beside `step` and `version`."""
        return dict(self.model_extra or {})


class Tensor(_Part):
    """One tensor of the graph; a text dimension is free (`N`, batch) within `ShapeProfile`."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    type: Literal["float32", "float16", "uint8", "int8", "int32", "int64"]
    shape: tuple[int | str, ...] = Field(min_length=1, max_length=6)


class ShapeProfile(_Part):
    """Least, usual and greatest shape of an input with free dimensions (TensorRT needs all three)."""

    tensor: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class Graph(_Part):
    """One ONNX graph; precision variants are graphs of their own, each with its golden cases."""

    file: FileName
    precision: Literal["fp32", "fp16", "int8"] = "fp32"


class SegmentSpec(_Part):
    """One label value of the model's label map."""

    label_value: Annotated[int, Field(ge=1, le=255)]
    label: Annotated[str, Field(min_length=1, max_length=64)]
    category: Coded
    type: Coded
    rgb: tuple[Annotated[int, Field(ge=0, le=255)], ...] = Field(min_length=3, max_length=3)


class MeasurementSpec(_Part):
    """A quantity that a postprocessing step computed, as a coded measurement."""

    quantity: str
    name: Coded
    unit: Coded
    label_value: int | None = Field(None, description="the segment that it measures; absent: the image")
    decimals: Annotated[int, Field(ge=0, le=6)] = 3


class EvaluationSpec(_Part):
    """A coded answer to a quantity: `at_or_above` when it reaches the threshold, else `below`."""

    quantity: str
    threshold: float
    name: Coded
    at_or_above: Coded
    below: Coded


class Check(_Part):
    """A plausibility rule on a quantity: outside of the range, decline the result or warn in it."""

    quantity: str
    range: Range
    action: Literal["decline", "warn"]
    message: Annotated[str, Field(min_length=1, max_length=200)]


class Outputs(_Part):
    """What the model says, as coded concepts, and the objects to make of it."""

    finding: Coded
    finding_site: Coded | None = None
    segments: tuple[SegmentSpec, ...] = ()
    measurements: tuple[MeasurementSpec, ...] = ()
    evaluations: tuple[EvaluationSpec, ...] = ()
    checks: tuple[Check, ...] = ()
    objects: tuple[Literal["SEG", "SR", "SC"], ...] = ("SR", "SC")


class Golden(_Part):
    """A golden case: `.npz` with input tensors `in.NAME` and expected outputs `out.NAME`.

    An output may be given whole, or only at `at.NAME` (flat indices into the tensor);
    `labels.NAME` is the expected argmax over axis 1. Values are compared as float32.
    """

    file: FileName
    max_abs_difference: Annotated[float, Field(gt=0)]
    max_label_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="share of voxels whose argmax may differ"
    )


class FileEntry(_Part):
    """One file of the package."""

    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0, le=8 << 30)]


class Manifest(_Part):
    """A model package, described by its vendor; its sha256 is the model digest."""

    schema_: Literal["insitu.model/1"] = Field(alias="schema")
    name: Name
    version: Version
    vendor: Annotated[str, Field(min_length=1, max_length=64)]
    title: Annotated[str, Field(min_length=1, max_length=64)]
    intended_use: Annotated[str, Field(min_length=1, max_length=2000)]
    regulatory_status: Annotated[str, Field(min_length=1, max_length=500)]
    licence: Annotated[str, Field(min_length=1, max_length=200)]
    udi: str | None = None
    inputs: tuple[Input, ...] = Field(min_length=1, max_length=8)
    preprocessing: tuple[Step, ...] = Field(max_length=64)
    graphs: tuple[Graph, ...] = Field(min_length=1, max_length=8)
    tensors_in: tuple[Tensor, ...] = Field(min_length=1, max_length=16)
    tensors_out: tuple[Tensor, ...] = Field(min_length=1, max_length=16)
    profiles: tuple[ShapeProfile, ...] = ()
    postprocessing: tuple[Step, ...] = Field(max_length=64)
    outputs: Outputs
    golden: tuple[Golden, ...] = Field(min_length=1, max_length=32)
    deadline_s: Annotated[float, Field(gt=0, le=3600)]
    memory_mib: Annotated[int, Field(gt=0, le=1 << 20)]
    operators: tuple[str, ...] = Field(description="`Conv` (ai.onnx), or `domain:Name`")
    trainable: tuple[str, ...] = Field((), description="initializers that federated learning may change")
    files: dict[FileName, FileEntry]

    @model_validator(mode="after")
    def _refers_to_what_exists(self) -> "Manifest":
        problems = []
        named = [graph.file for graph in self.graphs] + [case.file for case in self.golden]
        problems += [f"{name}: not among `files`" for name in named if name not in self.files]
        values = [segment.label_value for segment in self.outputs.segments]
        if len(set(values)) != len(values):
            problems.append(f"outputs.segments: label values {values} are not unique")
        problems += [
            f"outputs.measurements {item.quantity}: no segment has label value {item.label_value}"
            for item in self.outputs.measurements
            if item.label_value is not None and item.label_value not in values
        ]
        if "SEG" in self.outputs.objects and not values:
            problems.append("outputs.objects asks for SEG, but outputs.segments is empty")
        if "SR" not in self.outputs.objects:
            problems.append("outputs.objects: SR is required (findings and measurements, IHE AIR)")
        for check in self.outputs.checks:
            if check.range[0] > check.range[1]:
                problems.append(f"outputs.checks {check.quantity}: range {check.range} is empty")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def parse(raw: bytes, source: str) -> Manifest:
    """The manifest in `raw`, checked; `source` names it in errors.

    Raises:
        ManifestError: too large, not JSON, or against the schema (all problems at once).
    """
    if len(raw) > MAX_MANIFEST_BYTES:
        raise ManifestError(source, [f"{len(raw)} bytes, allowed {MAX_MANIFEST_BYTES}"])
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ManifestError(source, [f"not JSON: {error}"]) from error
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        raise ManifestError(source, [_problem(item) for item in error.errors()]) from error


def json_schema() -> str:
    """The JSON Schema of a manifest, as it is published in `docs/manifest.schema.json`."""
    schema = Manifest.model_json_schema(by_alias=True)
    schema["$id"] = SCHEMA
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def _problem(item: ErrorDetails) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "manifest"
    got = (
        "" if item["type"] == "missing" or isinstance(item["input"], dict) else f", got {item['input']!r:.80}"
    )
    return f"{where}: {item['msg']}{got}"
