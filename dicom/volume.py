"""Pixels with their geometry: a volume of parallel slices, or one plain image.

Array order is the Standard's: (slice, row, column). The affine maps a voxel index
(slice, row, column, 1) to the patient frame in mm: L, P, S grow to the patient's
left, posterior, superior (PS3.3 §C.7.6.2.1.1).

Owns the way from stored instances to either of them; the rules are in `geometry`, the
pixels come from `decode`. Does not resample, window or invert.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dicom.codec import CODECS, decoder_name
from dicom.decode import DEFAULT_LIMITS, decode, modality_values
from dicom.errors import GeometryError, UnsupportedError
from dicom.geometry import StackGeometry, stack_geometry
from dicom.header import InstanceHeader
from dicom.layout import DecodeLimits

DECODE_THREADS: Final = 4
"""For compressed slices, whose decoders run beside each other; native ones are faster in one thread."""
GREY: Final = frozenset({"MONOCHROME1", "MONOCHROME2"})
NO_SLICES: Final[Mapping[str, NDArray[np.float32]]] = MappingProxyType({})


@dataclass(frozen=True)
class Volume:
    """One series as a regular grid of voxels in the patient frame."""

    voxels: NDArray[np.float32]
    """Shape (slices, rows, columns); modality units (rescale applied): Hounsfield units for CT."""
    affine: NDArray[np.float64]
    """Shape (4, 4): (slice, row, column, 1) to LPS mm."""
    frame_of_reference_uid: str
    sop_instance_uids: tuple[str, ...]
    """One for each slice, in the order of the first axis."""
    decoder: str = "native"
    """Decoder and version that made the pixels, for the provenance."""
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Image:
    """One frame by itself: an image that has no place in the patient frame (CR, DX, SC), or one slice."""

    pixels: NDArray[np.float32]
    """Shape (rows, columns), modality units; MONOCHROME1 is not inverted here."""
    photometric_interpretation: str
    bits_stored: int
    sop_instance_uid: str
    decoder: str = "native"


def build_volume(
    files: Sequence[tuple[Path, InstanceHeader]],
    ready: Mapping[str, NDArray[np.float32]] = NO_SLICES,
    *,
    limits: DecodeLimits = DEFAULT_LIMITS,
) -> Volume:
    """Decode a series and lay its slices in order; the order of `files` does not matter.

    Args:
        files: each instance of one series, with its header.
        ready: slices decoded already, as of `read_slice`, by SOP Instance UID; the others are read.
        limits: what one instance, and the whole volume, may cost.

    Raises:
        GeometryError: they make no volume, or a larger one than `limits` allow.
        InstanceError: one of them cannot be decoded.
        OSError: a file cannot be read.
    """
    headers = [header for _, header in files]
    geometry = stack_geometry(headers)
    voxels = _empty(geometry, headers[0].series_instance_uid, limits)
    places = {headers[index].sop_instance_uid: place for place, index in enumerate(geometry.order)}

    def lay(file: tuple[Path, InstanceHeader]) -> None:
        path, header = file
        place = voxels[places[header.sop_instance_uid]]
        found = ready.get(header.sop_instance_uid)
        if found is None:
            _read(path, header, limits, place)
        else:
            _lay(found, header, place)

    if any(header.transfer_syntax_uid in CODECS for header in headers):
        with ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="decode") as pool:
            for _ in pool.map(lay, files):  # raises what the first that failed raised
                pass
    else:
        for file in files:
            lay(file)
    return _volume(voxels, geometry, headers)


def stack(
    slices: Sequence[NDArray[np.float32]],
    geometry: StackGeometry,
    headers: Sequence[InstanceHeader],
    *,
    limits: DecodeLimits = DEFAULT_LIMITS,
) -> Volume:
    """Lay decoded slices in order.

    Args:
        slices: one for each header, as of `read_slice`, in the order of `headers`.
        geometry: what `stack_geometry` made of `headers`.
        headers: of one series.
        limits: `max_bytes` bounds the volume.

    Raises:
        GeometryError: a slice has another shape than its header says, or the volume is too large.
    """
    voxels = _empty(geometry, headers[0].series_instance_uid, limits)
    for place, index in enumerate(geometry.order):
        _lay(slices[index], headers[index], voxels[place])
    return _volume(voxels, geometry, headers)


def read_slice(path: Path, header: InstanceHeader, limits: DecodeLimits = DEFAULT_LIMITS) -> Image:
    """Decode one single-frame grey instance to modality units; to be laid into a volume later.

    Raises:
        UnsupportedError: colour, palette or multi-frame.
        InstanceError: it cannot be decoded.
        OSError: the file cannot be read.
    """
    return Image(
        pixels=_read(path, header, limits),
        photometric_interpretation=header.photometric_interpretation,
        bits_stored=header.bits_stored or header.bits_allocated or 0,
        sop_instance_uid=header.sop_instance_uid,
        decoder=decoder_name(header.transfer_syntax_uid),
    )


def build_image(path: Path, header: InstanceHeader, limits: DecodeLimits = DEFAULT_LIMITS) -> Image:
    """One plain image for a model that judges each image by itself; errors as `read_slice`."""
    return read_slice(path, header, limits)


def _empty(geometry: StackGeometry, series_instance_uid: str, limits: DecodeLimits) -> NDArray[np.float32]:
    size = math.prod(geometry.shape) * np.dtype(np.float32).itemsize
    if size > limits.max_bytes:
        raise GeometryError(
            f"series {series_instance_uid}: a volume of {geometry.shape} voxels has {size} bytes,"
            f" allowed {limits.max_bytes}"
        )
    return np.empty(geometry.shape, np.float32)


def _read(
    path: Path, header: InstanceHeader, limits: DecodeLimits, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Shape (rows, columns), modality units, in `out` if it is given."""
    named = f"SOP Instance {header.sop_instance_uid}"
    if header.number_of_frames != 1:
        raise UnsupportedError(
            f"{named}: (0028,0008) Number of Frames is {header.number_of_frames}, a slice or an image has 1"
        )
    if header.photometric_interpretation not in GREY:
        raise UnsupportedError(
            f"{named}: (0028,0004) Photometric Interpretation is"
            f" {header.photometric_interpretation[:16] or 'absent'}, allowed {' and '.join(sorted(GREY))}"
        )
    if header.modality_lut:
        raise UnsupportedError(
            f"{named}: has a Modality LUT Sequence (0028,3000), allowed is Rescale Slope and Intercept"
        )
    return modality_values(decode(path, header, limits).pixels[0], header, out)


def _lay(found: NDArray[np.float32], header: InstanceHeader, place: NDArray[np.float32]) -> None:
    if found.shape != place.shape:
        raise GeometryError(
            f"SOP Instance {header.sop_instance_uid}: decoded slice is {found.shape},"
            f" a slice of its series {place.shape}"
        )
    place[...] = found


def _volume(
    voxels: NDArray[np.float32], geometry: StackGeometry, headers: Sequence[InstanceHeader]
) -> Volume:
    decoders = {decoder_name(syntax) for syntax in {header.transfer_syntax_uid for header in headers}}
    return Volume(
        voxels=voxels,
        affine=geometry.affine,
        frame_of_reference_uid=geometry.frame_of_reference_uid,
        sop_instance_uids=tuple([headers[index].sop_instance_uid for index in geometry.order]),
        decoder=", ".join(sorted(decoders)),
        facts={"shear_deg": f"{geometry.shear_deg:.2f}"},
    )
