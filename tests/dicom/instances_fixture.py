"""Instances and headers made for tests of decode, geometry, volume and matching."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from dicom.header import InstanceHeader, scan_file

MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"

AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


def slice_headers(
    count: int = 10,
    spacing_mm: float = 1.0,
    *,
    directions: tuple[Any, Any] = AXIAL,
    origin: tuple[float, float, float] = (-50.0, -60.0, 12.0),
    step: tuple[float, float, float] | None = None,
    decimals: int = 12,
) -> list[InstanceHeader]:
    """Headers of one even series of `count` slices; `step` where it is not along the normal."""
    row, column = (np.asarray(direction, np.float64) for direction in directions)
    along = np.cross(row, column) * spacing_mm if step is None else np.asarray(step, np.float64)
    first = InstanceHeader(
        sop_class_uid=MR_IMAGE_STORAGE,
        sop_instance_uid="1.2.3.0",
        study_instance_uid="1.2.1",
        series_instance_uid="1.2.2",
        transfer_syntax_uid=EXPLICIT_LITTLE,
        modality="MR",
        body_part_examined="BRAIN",
        image_type=("ORIGINAL", "PRIMARY"),
        series_description="t1_mprage_sag",
        frame_of_reference_uid="1.2.9",
        image_orientation=tuple(np.round((*row, *column), 12).tolist()),
        pixel_spacing_mm=(0.9, 0.8),
        rows=100,
        columns=120,
        photometric_interpretation="MONOCHROME2",
        bits_allocated=16,
        bits_stored=12,
        high_bit=11,
    )
    positions = np.round(np.asarray(origin) + np.arange(count)[:, None] * along, decimals)
    return [
        replace(
            first,
            sop_instance_uid=f"1.2.3.{index}",
            instance_number=index + 1,
            image_position_mm=tuple(position.tolist()),
        )
        for index, position in enumerate(positions)
    ]


def write_instance(
    path: Path,
    pixels: NDArray[Any] | list[bytes],
    syntax: str = EXPLICIT_LITTLE,
    *,
    vr: str = "",
    **attributes: object,
) -> InstanceHeader:
    """Write a Part 10 file and give the header that the appliance reads from it.

    `pixels` are stored values of one frame, or codestreams, which are encapsulated.
    """
    ds = Dataset()
    ds.SOPClassUID = MR_IMAGE_STORAGE
    ds.SOPInstanceUID = "1.2.3.4"
    ds.StudyInstanceUID = "1.2.1"
    ds.SeriesInstanceUID = "1.2.2"
    ds.Modality = "MR"
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    if isinstance(pixels, np.ndarray):
        ds.Rows, ds.Columns = pixels.shape[:2]
        ds.BitsAllocated = pixels.dtype.itemsize * 8
        ds.PixelRepresentation = int(pixels.dtype.kind == "i")
        data = pixels.tobytes()
        ds.PixelData = data + b"\0" * (len(data) % 2)
    else:
        ds.PixelData = encapsulate(pixels, has_bot=False)
        ds["PixelData"].is_undefined_length = True
    for name, value in attributes.items():
        setattr(ds, name, value)
    if "BitsStored" not in ds:
        ds.BitsStored = ds.BitsAllocated
    if "HighBit" not in ds:
        ds.HighBit = ds.BitsStored - 1
    ds["PixelData"].VR = vr or ("OW" if ds.BitsAllocated > 8 and isinstance(pixels, np.ndarray) else "OB")
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.save_as(path, enforce_file_format=True)
    return scan_file(path)[0]
