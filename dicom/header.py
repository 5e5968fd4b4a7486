"""The attributes of one instance that the appliance needs before any pixel is decoded.

Owns the scan of an encoded data set for these attributes; it builds no `Dataset`
and decodes no pixel. Implements PS3.5 §7 (data elements), §A.1, §A.2, §A.3, §A.5.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InstanceHeader:
    """The facts of one instance; an absent attribute is None (or empty, for text and tuples)."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    modality: str = ""
    body_part_examined: str = ""
    view_position: str = ""
    laterality: str = ""
    image_type: tuple[str, ...] = ()
    series_description: str = ""
    protocol_name: str = ""
    scanning_sequence: tuple[str, ...] = ()
    contrast_agent: str = ""
    series_number: int | None = None
    instance_number: int | None = None
    acquisition_number: int | None = None
    temporal_position: int | None = None
    echo_time_ms: float | None = None
    images_in_acquisition: int | None = None
    number_of_study_related_instances: int | None = None
    frame_of_reference_uid: str = ""
    image_position_mm: tuple[float, float, float] | None = None
    image_orientation: tuple[float, float, float, float, float, float] | None = None
    pixel_spacing_mm: tuple[float, float] | None = None
    slice_thickness_mm: float | None = None
    spacing_between_slices_mm: float | None = None
    gantry_tilt_deg: float | None = None
    rows: int | None = None
    columns: int | None = None
    number_of_frames: int = 1
    samples_per_pixel: int = 1
    photometric_interpretation: str = ""
    bits_allocated: int | None = None
    bits_stored: int | None = None
    high_bit: int | None = None
    pixel_representation: int = 0
    planar_configuration: int = 0
    rescale_slope: float | None = None
    rescale_intercept: float | None = None
    window_center: float | None = None
    window_width: float | None = None
    pixel_data_offset: int | None = None
    """Where the value of (7FE0,0010) begins, from the start of the data set; None if deflated or absent."""
    pixel_data_length: int | None = None
    """Its length in bytes; None for an encapsulated (undefined length) value."""
