"""What a result is made from, in plain dataclasses.

The vocabulary of `segmentation`, `report` and `picture`, which turn it into encoded objects.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from dicom.header import InstanceHeader
from dicom.uid import IMPLEMENTATION_VERSION_NAME


@dataclass(frozen=True, slots=True)
class Code:
    """A coded concept: (value, scheme designator, meaning), PS3.3 §8.8."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Algorithm:
    """The model that made a result, as IHE AIR and TID 4019 want it named."""

    name: str
    version: str
    manufacturer: str
    device_uid: str
    """Derived from the model digest: changes whenever the model changes."""
    model_digest: str
    """sha256 of the model package's manifest, 64 hex digits."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """runtime, provider, decoder, preprocessing digest…: goes to TID 4019 (111002, DCM)."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One label value of a label map and what it means (PS3.3 §C.8.20.2)."""

    label_value: int
    label: str
    category: Code
    type: Code
    rgb: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number with its meaning; of a segment when `label_value` is given, else of the image."""

    name: Code
    value: float
    unit: Code
    label_value: int | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One qualitative finding (TID 1500 row 4 ff.): question and answer, both coded."""

    name: Code
    value: Code
    score: float | None = None
    """The number that was judged, unrounded; None where none was."""
    threshold: float | None = None
    """From which on `score` gave the other answer."""


@dataclass(frozen=True)
class Findings:
    """All that one model says of one input."""

    finding: Code
    """What was looked for (121071, DCM, Finding)."""
    finding_site: Code | None
    segments: tuple[Segment, ...] = ()
    labels: NDArray[np.uint8] | None = None
    """Label map on the source grid, shape (slices, rows, columns), 0 = background."""
    measurements: tuple[Measurement, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    warnings: tuple[str, ...] = ()
    """Shown to the reader in report and picture; plain text without patient data."""
    coverage: float | None = None
    """Share of the source's voxels that lie in the model's grid, 0 to 1; None for an image."""
    unseen_slices: tuple[tuple[int, int], ...] = ()
    """Runs of source slices wholly outside of that grid: first and last index from 0, in slice order."""


@dataclass(frozen=True, slots=True)
class Equipment:
    """The appliance that ran the algorithm and wrote the object (PS3.3 §C.7.5.1, §C.7.5.2)."""

    serial_number: str = "1"
    """Names this box; type 1 in a report, so never empty."""
    station_name: str = "INSITU"
    software_version: str = IMPLEMENTATION_VERSION_NAME
    manufacturer: str = "Insitu"
    model_name: str = "Insitu edge inference appliance"


@dataclass(frozen=True, slots=True)
class ResultContext:
    """Everything besides the findings that a result depends on; the same context gives the same bytes."""

    algorithm: Algorithm
    study_instance_uid: str
    inputs: tuple[InstanceHeader, ...]
    """The instances that the model saw, in slice order."""
    created: datetime
    """Aware, UTC; kept in the journal, so that a second run writes the same."""
    identity: tuple[str, ...]
    """Parts of the derived UIDs: study, model digest, digest of the inputs, revision."""
    predecessor: tuple[str, str, str, str] | None = None
    """(study, series, SOP class, SOP instance) of the report that this one replaces."""
    equipment: Equipment = field(default_factory=Equipment)


@dataclass(frozen=True, slots=True)
class ResultObject:
    """One encoded result, ready to be written and sent."""

    kind: str
    """`SEG`, `SR` or `SC`."""
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    data: bytes
    """The whole file: preamble, file meta information, data set (PS3.10 §7)."""
