"""Whether a series is what a model's input asks for; every reason against it, in plain English.

Rules only: the facts of a series and the manifest's `Input` in, a verdict out; no IO.
A series is declined with all its reasons at once, each naming the attribute with its
tag, what it is and what the model accepts. Free text of the series (descriptions) never
gets into a reason: people write names there.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dicom.decode import DECODED
from dicom.errors import GeometryError
from dicom.geometry import StackGeometry, stack_geometry
from dicom.header import InstanceHeader
from model_store.manifest import Input

MAX_REASONS: Final = 12
"""In one verdict: as many as `Input` has criteria. A series of many kinds of images could give more."""
RELATIVE_SLACK: Final = 1e-4
"""Of a limit: what rounding does to a measured spacing or extent."""
MAX_SHOWN_CHARACTERS: Final = 32
"""Of a value in a reason; a code string (CS) has at most 16."""
RADIOGRAPHS: Final = frozenset({"CR", "DX", "DR", "RG"})
"""Modalities whose plain images are projections (PS3.3 §C.7.3.1.1.1; DR is retired, but written)."""
FRONTAL_VIEWS: Final = frozenset({"", "AP", "PA"})
UPRIGHT: Final = ("L", "F")
"""Patient Orientation of a frontal radiograph as it is looked at: rows run to the patient's left, columns
to the feet (PS3.3 §C.7.6.1.1.1). The pixels of another one would be given to the model turned or mirrored."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is asked of one image; two images that differ in none of it are judged once."""

    transfer_syntax_uid: str
    modality: str
    body_part: str
    view_position: str
    image_type: tuple[str, ...]
    words: str
    """Those of Series Description and Protocol Name, in lower case, each between single spaces."""
    photometric: str
    rows: int | None
    columns: int | None
    pixel_spacing_mm: tuple[float, float] | None
    number_of_frames: int
    is_image: bool
    orientation: tuple[str, ...] = ()
    """Patient Orientation; empty if absent."""


@dataclass(frozen=True, slots=True)
class SeriesFacts:
    """What is known of one series."""

    count: int
    images: tuple[ImageFacts, ...]
    """The different kinds of images among them, in the order in which they came."""
    geometry: StackGeometry | None
    """Of the series as a volume, or None: then `geometry_error` says why."""
    geometry_error: str
    patients: int = 1
    """Different Patient IDs among them, an absent one included."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model's input accepts a series, and why not."""

    accepted: bool
    reasons: tuple[str, ...]
    """Against it, all of them; or, of an accepted one, what was found."""
    only_geometry: bool = False
    """Declined, but for its geometry alone: slices that are still to come may mend that."""

    @property
    def reason(self) -> str:
        """The reasons in one line."""
        return "; ".join(self.reasons)


def facts(headers: Sequence[InstanceHeader]) -> SeriesFacts:
    """The facts of one series, or of some of its images.

    Args:
        headers: of instances of one series, in any order; not empty.
    """
    geometry: StackGeometry | None = None
    geometry_error = ""
    try:
        geometry = stack_geometry(headers)
    except GeometryError as error:
        geometry_error = str(error)
    kinds = dict.fromkeys(_image_facts(header) for header in headers)
    patients = len({header.patient_key for header in headers})
    return SeriesFacts(len(headers), tuple(kinds), geometry, geometry_error, patients)


def match(manifest_input: Input, series: SeriesFacts) -> Verdict:
    """Judge a series: as a volume, all its images must be acceptable; image by image, any of them."""
    judged = [tuple(_against_image(manifest_input, image)) for image in series.images]
    against = [reason for reasons in judged for reason in reasons]
    if manifest_input.kind == "volume" and series.patients > 1:
        against.append(
            f"(0010,0020) Patient ID differs within the series, it has {series.patients} different ones;"
            " the model accepts a volume of one patient"
        )
    shape: list[str] = []
    if manifest_input.kind == "image":
        accepted = not all(judged)
    else:
        shape = list(_against_volume(manifest_input, series))
        accepted = not against and not shape
    if accepted:
        return Verdict(accepted=True, reasons=(_found(manifest_input, series),))
    reasons = tuple(dict.fromkeys([*against, *shape]))
    if len(reasons) > MAX_REASONS:
        reasons = (*reasons[:MAX_REASONS], f"and {len(reasons) - MAX_REASONS} more")
    return Verdict(accepted=False, reasons=reasons, only_geometry=not against)


def _image_facts(header: InstanceHeader) -> ImageFacts:
    return ImageFacts(
        transfer_syntax_uid=header.transfer_syntax_uid,
        modality=_code(header.modality),
        body_part=_code(header.body_part_examined),
        view_position=_code(header.view_position),
        image_type=tuple([_code(value) for value in header.image_type]),
        words=f"{_words(header.series_description)}{_words(header.protocol_name)}",
        photometric=_code(header.photometric_interpretation),
        rows=header.rows,
        columns=header.columns,
        pixel_spacing_mm=header.pixel_spacing_mm,
        number_of_frames=header.number_of_frames,
        is_image=header.rows is not None and header.photometric_interpretation != "",
        orientation=tuple([_code(value) for value in header.patient_orientation if value.strip()]),
    )


def _code(value: str) -> str:
    return value.strip().upper()


def _words(text: str) -> str:
    """Runs of letters and digits: `anat-T1w_acq-tfl` has the words anat, t1w, acq and tfl."""
    return f" {' '.join(_WORD.findall(text.lower()))} "


_WORD: Final = re.compile(r"[^\W_]+")


def _against_image(wants: Input, image: ImageFacts) -> Iterator[str]:
    if image.modality not in map(_code, wants.modality):
        yield _differs("(0008,0060) Modality", image.modality, wants.modality)
    if not image.is_image:
        yield "an instance without rows, columns and pixels, no image"
        return
    if image.transfer_syntax_uid not in DECODED:
        yield f"(0002,0010) Transfer Syntax UID is {_shown(image.transfer_syntax_uid)}, which is not decoded"
    if image.photometric not in map(_code, wants.photometric):
        yield _differs("(0028,0004) Photometric Interpretation", image.photometric, wants.photometric)
    if image.number_of_frames != 1:
        yield f"(0028,0008) Number of Frames is {image.number_of_frames}, the appliance takes images of 1"
    yield from _against_context(wants, image)
    yield from _against_words(wants, image)
    yield from _against_size(wants, image)


def _against_context(wants: Input, image: ImageFacts) -> Iterator[str]:
    absent = not image.body_part
    if wants.body_part and image.body_part not in map(_code, wants.body_part):
        if not absent or wants.body_part_absent == "decline":
            yield _differs("(0018,0015) Body Part Examined", image.body_part, wants.body_part)
    elif absent and wants.body_part_absent == "decline":
        yield "(0018,0015) Body Part Examined is absent, the model asks for it"
    if wants.view_position and image.view_position not in map(_code, wants.view_position):
        yield _differs("(0018,5101) View Position", image.view_position, wants.view_position)
    if (
        wants.kind == "image"
        and image.orientation not in ((), UPRIGHT)
        and image.modality in RADIOGRAPHS
        and image.view_position in FRONTAL_VIEWS
    ):
        yield (
            f"(0020,0020) Patient Orientation is {_shown(_backslashed(image.orientation))}, a frontal"
            f" radiograph is accepted with {_backslashed(UPRIGHT)} or none"
        )
    shown = _backslashed(image.image_type)
    if wants.image_type_any and not set(map(_code, wants.image_type_any)) & set(image.image_type):
        yield (
            f"(0008,0008) Image Type is {_shown(shown)}, the model asks for one of"
            f" {_options(wants.image_type_any)}"
        )
    refused = [value for value in wants.image_type_none if _code(value) in image.image_type]
    if refused:
        yield f"(0008,0008) Image Type is {_shown(shown)}, the model refuses {_options(refused)}"


def _against_words(wants: Input, image: ImageFacts) -> Iterator[str]:
    where = "(0008,103E) Series Description and (0018,1030) Protocol Name"
    if wants.description_any and not any(_mentions(image, text) for text in wants.description_any):
        yield f"{where} have none of the words {_options(wants.description_any)}"
    refused = [text for text in wants.description_none if _mentions(image, text)]
    if refused:
        yield f"{where} have {_options(refused)}, which the model refuses"


def _mentions(image: ImageFacts, text: str) -> bool:
    words = _words(text)
    return words != _words("") and words in image.words


def _against_size(wants: Input, image: ImageFacts) -> Iterator[str]:
    limits = wants.geometry
    yield from _outside("(0028,0010) Rows", image.rows, limits.rows)
    yield from _outside("(0028,0011) Columns", image.columns, limits.columns)
    if limits.pixel_spacing_mm is None:
        return
    if image.pixel_spacing_mm is None:
        yield f"(0028,0030) Pixel Spacing is absent, the model accepts {_span(limits.pixel_spacing_mm)} mm"
        return
    for spacing_mm in dict.fromkeys(image.pixel_spacing_mm):
        yield from _outside("(0028,0030) Pixel Spacing", spacing_mm, limits.pixel_spacing_mm, " mm")


def _against_volume(wants: Input, series: SeriesFacts) -> Iterator[str]:
    limits = wants.geometry
    yield from _outside("the number of slices", series.count, limits.slices)
    geometry = series.geometry
    if geometry is None:
        yield series.geometry_error
        return
    yield from _outside("the spacing of the slices", geometry.spacing_mm[0], limits.slice_spacing_mm, " mm")
    for extent_mm in dict.fromkeys(geometry.extent_mm):
        yield from _outside("an edge of the volume", extent_mm, limits.extent_mm, " mm")
    if limits.max_gantry_tilt_deg is not None:
        tilt = (0.0, limits.max_gantry_tilt_deg)
        yield from _outside("the tilt of the stack (gantry tilt)", geometry.shear_deg, tilt, " degrees")


def _outside(
    name: str, value: float | None, allowed: tuple[float, float] | None, unit: str = ""
) -> Iterator[str]:
    if allowed is None:
        return
    if value is None:
        yield f"{name} is absent, the model accepts {_span(allowed)}{unit}"
        return
    # Limits are written with few decimals: 1.0000001 mm is 1 mm.
    slack = RELATIVE_SLACK * max(abs(allowed[0]), abs(allowed[1]))
    if not allowed[0] - slack <= value <= allowed[1] + slack:
        yield f"{name} is {value:.5g}{unit}, the model accepts {_span(allowed)}{unit}"


def _differs(name: str, got: str, allowed: Sequence[str]) -> str:
    return f"{name} is {_shown(got)}, the model accepts {_options(allowed)}"


def _shown(value: str) -> str:
    return value[:MAX_SHOWN_CHARACTERS] or "absent"


def _backslashed(values: Sequence[str]) -> str:
    return "\\".join(values)


def _options(values: Sequence[str]) -> str:
    return ", ".join(values)


def _span(allowed: tuple[float, float]) -> str:
    return f"{allowed[0]:g} to {allowed[1]:g}"


def _found(wants: Input, series: SeriesFacts) -> str:
    modality = ", ".join(dict.fromkeys(image.modality for image in series.images))
    if wants.kind == "image" or series.geometry is None:
        return f"{modality}, {series.count} image{'s' if series.count > 1 else ''}"
    slices, rows, columns = series.geometry.shape
    spacing = " x ".join(f"{value:.3g}" for value in series.geometry.spacing_mm)
    return f"{modality}, {slices} slices of {rows} x {columns}, {spacing} mm"
