"""Whether the slices of a series make one volume, and where it lies in the patient.

Rules only: headers in, geometry or the reason against it out; no IO, no pixels.
Implements PS3.3 §C.7.6.2.1.1 (Image Position and Orientation (Patient), Pixel Spacing)
and §C.7.4.1 (Frame of Reference). Enhanced multi-frame objects are not arranged here.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dicom.errors import GeometryError
from dicom.header import InstanceHeader

MAX_COSINE_DIFFERENCE: Final = 1e-4
"""Between direction cosines of two slices: 0.05 mm at 500 mm, half of what is allowed for a position."""
MAX_COSINE_ERROR: Final = 1e-3
"""Of the length of a direction and of the right angle: cosines written with three decimals."""
MAX_SPACING_DIFFERENCE: Final = 1e-4
"""Between Pixel Spacing of two slices, relative: 0.05 mm over 500 mm."""
MAX_OFF_GRID_MM: Final = 0.1
"""Off the even grid: positions that a scanner rounds to one decimal are each off by up to 0.05 mm,
and the first and the last of them, which span the grid, too."""
MAX_OFF_GRID_SHARE: Final = 0.1
"""The same as a share of the spacing, where that is less: a tenth of a slice does not show after
trilinear resampling."""
MIN_OFF_GRID_SHARE: Final = 0.01
"""The same as a share of the spacing, where that is more: thick slices."""
SAME_PLACE_MM: Final = 0.01
"""Nearer than this along the normal is the same place: the thinnest slices made are 0.1 mm apart."""
MISSING_SLICE_GAP: Final = 1.5
"""A gap of this many spacings is a missing slice; a smaller one is uneven spacing."""
MAX_SHEAR_DEG: Final = 45.0
"""Gantries tilt by up to 30 degrees; beyond 45 the positions move more across the slices than along."""
MIN_SLICES: Final = 2
"""One slice has no spacing."""
MAX_POSITION_MM: Final = 1e6
"""One kilometre: no scanner is as large, and float64 still resolves nanometres."""
MAX_PIXEL_SPACING_MM: Final = 1e3
"""One metre."""
MIN_PIXEL_SPACING_MM: Final = 1e-4
"""A tenth of a micrometre: below what a microscope resolves."""
MAX_ECHO_DIFFERENCE: Final = 0.05
"""Between Echo Times of one stack, relative: some scanners write each slice's own; echoes differ by more."""
MAX_NAMED: Final = 3
"""Gaps, places or values that one message lists."""


@dataclass(frozen=True, eq=False)
class StackGeometry:
    """A series as a regular grid."""

    order: tuple[int, ...]
    """Indices of the headers in slice order: along the normal (row direction cross column direction)."""
    affine: NDArray[np.float64]
    """Shape (4, 4): (slice, row, column, 1) to LPS mm; the first slice's first voxel at its own position."""
    shape: tuple[int, int, int]
    """(slices, rows, columns)."""
    spacing_mm: tuple[float, float, float]
    """(slice, row, column): distance of the centres of neighbouring voxels; of a sheared stack the first
    is longer than the distance of the planes."""
    shear_deg: float
    """Angle between the line of the slice centres and the normal of the slices: the gantry tilt."""
    frame_of_reference_uid: str

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Edges of the volume, (slice, row, column): voxels times spacing."""
        slices, rows, columns = (n * mm for n, mm in zip(self.shape, self.spacing_mm, strict=True))
        return slices, rows, columns


def stack_geometry(headers: Sequence[InstanceHeader]) -> StackGeometry:
    """Arrange the instances of one series as a volume.

    The grid does not depend on the order of `headers`, bit for bit; `order` refers to it.

    Raises:
        GeometryError: they make no volume: other series, planes, sizes or frames of reference among
            them, two stacks, a place taken twice, missing slices, uneven spacing
            (PS3.3 §C.7.6.2.1.1). The message says which, what, got and allowed.
    """
    _require_single_frames(headers)
    for attribute in (_STUDY, _SERIES, _FRAME_OF_REFERENCE, _ROWS, _COLUMNS):
        _require_same(headers, attribute)
    first = headers[0]
    row_direction, column_direction, normal = _directions(headers)
    row_mm, column_mm = _pixel_spacing(headers)
    _require_one_echo(headers)
    _require_same(headers, _TEMPORAL_POSITION, "more than one stack")
    positions = _vectors(headers, _POSITION, MAX_POSITION_MM)
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    _require_distinct_places(headers, along, order)
    spacing_mm = _require_no_gap(first.series_instance_uid, along[order])
    step = _even_step(headers, order, positions[order], normal, spacing_mm)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = column_direction * row_mm
    affine[:3, 2] = row_direction * column_mm
    affine[:3, 3] = positions[order[0]]
    return StackGeometry(
        order=tuple(order.tolist()),
        affine=affine,
        shape=(len(headers), int(first.rows or 0), int(first.columns or 0)),
        spacing_mm=(float(np.linalg.norm(step)), row_mm, column_mm),
        shear_deg=_shear_deg(first.series_instance_uid, step, normal),
        frame_of_reference_uid=first.frame_of_reference_uid,
    )


def slice_affine(header: InstanceHeader) -> NDArray[np.float64]:
    """The affine of one slice by itself, before the others are known.

    Returns:
        Shape (4, 4): as that of a `StackGeometry` of which it is the first slice, but for the first
        column, which is the unit normal. Rows and columns are the same bit for bit where all slices of
        the stack have the same orientation and spacing.

    Raises:
        GeometryError: it has no position, orientation or spacing, or none that can be.
    """
    row_direction, column_direction, normal = _directions([header])
    row_mm, column_mm = _pixel_spacing([header])
    affine = np.eye(4)
    affine[:3, 0] = normal
    affine[:3, 1] = column_direction * row_mm
    affine[:3, 2] = row_direction * column_mm
    affine[:3, 3] = _vectors([header], _POSITION, MAX_POSITION_MM)[0]
    return affine


def complete(headers: Sequence[InstanceHeader]) -> bool:
    """Whether these make an even stack without gaps, of as many slices as any of them announces.

    Slices that are sent in order look complete at every moment: this is a sign to close a
    study only together with the end of its association.
    """
    announced = max((header.images_in_acquisition or 0 for header in headers), default=0)
    if len(headers) < announced:
        return False
    try:
        stack_geometry(headers)
    except GeometryError:
        return False
    return True


class _Attribute(NamedTuple):
    name: str
    get: Callable[[InstanceHeader], Any]
    required: bool = True


_STUDY: Final = _Attribute("(0020,000D) Study Instance UID", lambda header: header.study_instance_uid)
_SERIES: Final = _Attribute("(0020,000E) Series Instance UID", lambda header: header.series_instance_uid)
_FRAME_OF_REFERENCE: Final = _Attribute(
    "(0020,0052) Frame of Reference UID", lambda header: header.frame_of_reference_uid
)
_ROWS: Final = _Attribute("(0028,0010) Rows", lambda header: header.rows)
_COLUMNS: Final = _Attribute("(0028,0011) Columns", lambda header: header.columns)
_SPACING: Final = _Attribute("(0028,0030) Pixel Spacing", lambda header: header.pixel_spacing_mm)
_POSITION: Final = _Attribute("(0020,0032) Image Position (Patient)", lambda header: header.image_position_mm)
_ORIENTATION: Final = _Attribute(
    "(0020,0037) Image Orientation (Patient)", lambda header: header.image_orientation
)
_ECHO_TIME: Final = _Attribute("(0018,0081) Echo Time", lambda header: header.echo_time_ms, required=False)
_TEMPORAL_POSITION: Final = _Attribute(
    "(0020,0100) Temporal Position Identifier", lambda header: header.temporal_position, required=False
)
_ACQUISITION: Final = _Attribute(
    "(0020,0012) Acquisition Number", lambda header: header.acquisition_number, required=False
)
_IMAGE_TYPE: Final = _Attribute(
    "(0008,0008) Image Type", lambda header: "\\".join(header.image_type), required=False
)


def _require_single_frames(headers: Sequence[InstanceHeader]) -> None:
    if len(headers) < MIN_SLICES:
        raise GeometryError(f"{len(headers)} slices make no volume, at least {MIN_SLICES} do")
    seen: set[str] = set()
    for header in headers:
        if header.number_of_frames != 1:
            raise GeometryError(
                f"{_named(header)}: (0028,0008) Number of Frames is {header.number_of_frames}, a slice has 1"
            )
        if header.sop_instance_uid in seen:
            raise GeometryError(f"{_named(header)} is there twice")
        seen.add(header.sop_instance_uid)


def _require_same(headers: Sequence[InstanceHeader], attribute: _Attribute, meaning: str = "") -> None:
    values = Counter(attribute.get(header) for header in headers)
    if attribute.required:
        _require_present(headers, attribute)
    if len(values) == 1:
        return
    listed = ", ".join(str(value) for value in sorted(values, key=str)[:MAX_NAMED])
    more = f" and {len(values) - MAX_NAMED} more" if len(values) > MAX_NAMED else ""
    raise GeometryError(
        f"series {headers[0].series_instance_uid}: {attribute.name} has {len(values)} values"
        f" ({listed}{more}), a volume has one{': ' + meaning if meaning else ''}"
    )


def _require_one_echo(headers: Sequence[InstanceHeader]) -> None:
    times = [header.echo_time_ms for header in headers if header.echo_time_ms is not None]
    if times and max(times) - min(times) > MAX_ECHO_DIFFERENCE * max(times):
        _require_same(headers, _ECHO_TIME, "more than one stack")


def _require_present(headers: Sequence[InstanceHeader], attribute: _Attribute) -> None:
    for header in headers:
        if attribute.get(header) in (None, "", ()):
            raise GeometryError(f"{_named(header)}: {attribute.name} is absent")


def _vectors(headers: Sequence[InstanceHeader], attribute: _Attribute, limit: float) -> NDArray[np.float64]:
    _require_present(headers, attribute)
    values = np.array([attribute.get(header) for header in headers], np.float64)
    wrong = np.flatnonzero(~(np.abs(values) <= limit).all(axis=1))  # NaN is wrong, too
    if wrong.size:
        raise GeometryError(
            f"{_named(headers[wrong[0]])}: {attribute.name} is {values[wrong[0]].tolist()},"
            f" allowed -{limit:g} to {limit:g}"
        )
    return values


def _usual(headers: Sequence[InstanceHeader], attribute: _Attribute) -> tuple[float, ...]:
    """The most frequent value, the least of them in a tie: the same whatever came first."""
    counts = Counter(attribute.get(header) for header in headers)
    most = max(counts.values())
    usual: tuple[float, ...] = min(value for value, count in counts.items() if count == most)
    return usual


def _require_near(
    headers: Sequence[InstanceHeader],
    attribute: _Attribute,
    values: NDArray[np.float64],
    usual: NDArray[np.float64],
    allowed: float,
) -> None:
    differences = np.abs(values - usual).max(axis=1)
    worst = int(differences.argmax())
    if differences[worst] > allowed:
        raise GeometryError(
            f"{_named(headers[worst])}: {attribute.name} is {_listed(values[worst])}, that of the series"
            f" {_listed(usual)}; they differ by {differences[worst]:.3g}, allowed {allowed:.3g}"
        )


def _directions(
    headers: Sequence[InstanceHeader],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors along a row, along a column, and normal to both, in LPS."""
    values = _vectors(headers, _ORIENTATION, 1 + MAX_COSINE_ERROR)
    usual = np.array(_usual(headers, _ORIENTATION), np.float64)
    _require_near(headers, _ORIENTATION, values, usual, MAX_COSINE_DIFFERENCE)
    row, column = usual[:3], usual[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    slant = float(row @ column)
    if max(abs(length - 1) for length in lengths) > MAX_COSINE_ERROR or abs(slant) > MAX_COSINE_ERROR:
        raise GeometryError(
            f"series {headers[0].series_instance_uid}: {_ORIENTATION.name} is {_listed(usual)}: lengths"
            f" {lengths[0]:.4f} and {lengths[1]:.4f}, must be 1; scalar product {slant:.4f}, must be 0;"
            f" allowed error {MAX_COSINE_ERROR:g}"
        )
    row, column = row / lengths[0], column / lengths[1]
    normal = np.cross(row, column)
    return row, column, normal / np.linalg.norm(normal)


def _pixel_spacing(headers: Sequence[InstanceHeader]) -> tuple[float, float]:
    """(between rows, between columns) in mm."""
    values = _vectors(headers, _SPACING, MAX_PIXEL_SPACING_MM)
    row_mm, column_mm = _usual(headers, _SPACING)
    if min(row_mm, column_mm) < MIN_PIXEL_SPACING_MM:
        raise GeometryError(
            f"series {headers[0].series_instance_uid}: {_SPACING.name} is {row_mm} and {column_mm},"
            f" must be at least {MIN_PIXEL_SPACING_MM:g}"
        )
    usual = np.array([row_mm, column_mm])
    _require_near(headers, _SPACING, values, usual, MAX_SPACING_DIFFERENCE * min(row_mm, column_mm))
    return row_mm, column_mm


def _require_distinct_places(
    headers: Sequence[InstanceHeader], along: NDArray[np.float64], order: NDArray[np.intp]
) -> None:
    same = np.flatnonzero(np.diff(along[order]) < SAME_PLACE_MM)
    if not same.size:
        return
    for attribute in (_ACQUISITION, _IMAGE_TYPE):
        stacks: dict[Any, list[float]] = {}
        for index, header in enumerate(headers):
            stacks.setdefault(attribute.get(header), []).append(float(along[index]))
        if len(stacks) > 1 and all(
            len(places) == 1 or np.diff(np.sort(places)).min() >= SAME_PLACE_MM for places in stacks.values()
        ):
            _require_same(headers, attribute, "more than one stack")
    one, other = headers[order[same[0]]], headers[order[same[0] + 1]]
    more = f", and {same.size - 1} more such places" if same.size > 1 else ""
    raise GeometryError(
        f"{_named(one)} and {other.sop_instance_uid} lie at the same place,"
        f" {along[order[same[0]]]:.2f} mm along the normal{more}; a place has one slice"
    )


def _require_no_gap(series_instance_uid: str, along: NDArray[np.float64]) -> float:
    """The usual spacing along the normal, in mm."""
    gaps = np.diff(along)
    spacing_mm = float(np.sort(gaps)[(gaps.size - 1) // 2])  # the lower median: missing slices widen gaps
    wide = np.flatnonzero(gaps > MISSING_SLICE_GAP * spacing_mm)
    if wide.size:
        named = "; ".join(
            f"a gap of {gaps[i]:.2f} mm between slices at {along[i]:.2f} and {along[i + 1]:.2f} mm"
            f" where the spacing is {spacing_mm:.2f} mm"
            for i in wide[:MAX_NAMED]
        )
        more = f"; and {wide.size - MAX_NAMED} more" if wide.size > MAX_NAMED else ""
        raise GeometryError(f"series {series_instance_uid}: slices are missing: {named}{more}")
    return spacing_mm


def _even_step(
    headers: Sequence[InstanceHeader],
    order: NDArray[np.intp],
    positions: NDArray[np.float64],
    normal: NDArray[np.float64],
    spacing_mm: float,
) -> NDArray[np.float64]:
    """The vector from one slice to the next, every slice being near the grid that it makes."""
    count = len(positions)
    step: NDArray[np.float64] = (positions[-1] - positions[0]) / (count - 1)
    off = positions - (positions[0] + np.arange(count)[:, None] * step)
    distances = np.linalg.norm(off, axis=1)
    worst = int(distances.argmax())
    allowed = max(min(MAX_OFF_GRID_MM, MAX_OFF_GRID_SHARE * spacing_mm), MIN_OFF_GRID_SHARE * spacing_mm)
    if distances[worst] > allowed:
        uneven_mm = abs(float(off[worst] @ normal))
        kind = "not evenly spaced" if uneven_mm > distances[worst] / 2 else "shifted across their planes"
        raise GeometryError(
            f"series {headers[0].series_instance_uid}: slices are {kind}:"
            f" {_named(headers[order[worst]])}, at {float(positions[worst] @ normal):.2f} mm along the"
            f" normal, is {distances[worst]:.3f} mm off the grid of {spacing_mm:.3f} mm,"
            f" allowed {allowed:.3f} mm"
        )
    return step


def _shear_deg(series_instance_uid: str, step: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
    across = float(np.linalg.norm(np.cross(step, normal)))  # exact where the cosine is nearly 1
    shear = math.degrees(math.atan2(across, float(step @ normal)))
    if shear > MAX_SHEAR_DEG:
        raise GeometryError(
            f"series {series_instance_uid}: the stack is sheared by {shear:.1f} degrees,"
            f" allowed {MAX_SHEAR_DEG:g}"
        )
    return shear


def _named(header: InstanceHeader) -> str:
    return f"SOP Instance {header.sop_instance_uid}"


def _listed(values: NDArray[np.float64]) -> str:
    return "\\".join(f"{value:.6g}" for value in values)
