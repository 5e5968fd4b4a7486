"""The coded concepts that results use, each named once (PS3.16; SNOMED CT, UCUM, RFC 5646).

Concepts of a model's own findings are not here: the model's manifest brings them.
"""

from collections.abc import Mapping
from typing import Final

from dicom.results import Code

# Purposes and provenance
PROCESSING_ALGORITHM: Final = Code("Newcode1", "99IHE", "Processing Algorithm")
"""IHE AIR, Contributing Equipment. The final code value was not to be had: this is a placeholder."""
ARTIFICIAL_INTELLIGENCE: Final = Code("123110", "DCM", "Artificial Intelligence")
SEGMENTATION: Final = Code("113076", "DCM", "Segmentation")
SOURCE_IMAGE: Final = Code("121322", "DCM", "Source image for image processing operation")

# TID 1500 and what it includes
IMAGING_MEASUREMENT_REPORT: Final = Code("126000", "DCM", "Imaging Measurement Report")
LANGUAGE: Final = Code("121049", "DCM", "Language of Content Item and Descendants")
ENGLISH: Final = Code("en-US", "RFC5646", "English (United States)")
OBSERVER_TYPE: Final = Code("121005", "DCM", "Observer Type")
DEVICE: Final = Code("121007", "DCM", "Device")
DEVICE_UID: Final = Code("121012", "DCM", "Device Observer UID")
DEVICE_NAME: Final = Code("121013", "DCM", "Device Observer Name")
DEVICE_MANUFACTURER: Final = Code("121014", "DCM", "Device Observer Manufacturer")
DEVICE_MODEL_NAME: Final = Code("121015", "DCM", "Device Observer Model Name")
DEVICE_SERIAL_NUMBER: Final = Code("121016", "DCM", "Device Observer Serial Number")
PROCEDURE_REPORTED: Final = Code("121058", "DCM", "Procedure reported")
IMAGE_LIBRARY: Final = Code("111028", "DCM", "Image Library")
IMAGE_LIBRARY_GROUP: Final = Code("126200", "DCM", "Image Library Group")
MODALITY: Final = Code("121139", "DCM", "Modality")
FRAME_OF_REFERENCE: Final = Code("112227", "DCM", "Frame of Reference UID")
SOURCE: Final = Code("260753009", "SCT", "Source")
IMAGING_MEASUREMENTS: Final = Code("126010", "DCM", "Imaging Measurements")
MEASUREMENT_GROUP: Final = Code("125007", "DCM", "Measurement Group")
TRACKING_IDENTIFIER: Final = Code("112039", "DCM", "Tracking Identifier")
TRACKING_UID: Final = Code("112040", "DCM", "Tracking Unique Identifier")
FINDING: Final = Code("121071", "DCM", "Finding")
FINDING_SITE: Final = Code("363698007", "SCT", "Finding Site")
ALGORITHM_NAME: Final = Code("111001", "DCM", "Algorithm Name")
ALGORITHM_VERSION: Final = Code("111003", "DCM", "Algorithm Version")
ALGORITHM_PARAMETERS: Final = Code("111002", "DCM", "Algorithm Parameters")
REFERENCED_SEGMENT: Final = Code("121191", "DCM", "Referenced Segment")
SOURCE_SERIES: Final = Code("121232", "DCM", "Source series for segmentation")
SOURCE_OF_MEASUREMENT: Final = Code("121112", "DCM", "Source of Measurement")
ABSENT: Final = Code("2667000", "SCT", "Absent")
COMMENT: Final = Code("121106", "DCM", "Comment")
NOT_A_NUMBER: Final = Code("114000", "DCM", "Not a number")
NEGATIVE_INFINITY: Final = Code("114001", "DCM", "Negative Infinity")
POSITIVE_INFINITY: Final = Code("114002", "DCM", "Positive Infinity")

# Modalities (CID 29) and the procedure to name when the source names none
IMAGING: Final = Code("363679005", "SCT", "Imaging")
PROCEDURES: Final[Mapping[str, Code]] = {
    "CR": Code("168537006", "SCT", "Plain radiography"),
    "CT": Code("77477000", "SCT", "Computed tomography"),
    "DX": Code("168537006", "SCT", "Plain radiography"),
    "MG": Code("71651007", "SCT", "Mammography"),
    "MR": Code("113091000", "SCT", "Magnetic resonance imaging"),
    "PT": Code("82918005", "SCT", "Positron emission tomography"),
    "US": Code("16310003", "SCT", "Ultrasonography"),
}
MODALITIES: Final[Mapping[str, Code]] = {
    "CR": Code("CR", "DCM", "Computed Radiography"),
    "CT": Code("CT", "DCM", "Computed Tomography"),
    "DX": Code("DX", "DCM", "Digital Radiography"),
    "MG": Code("MG", "DCM", "Mammography"),
    "MR": Code("MR", "DCM", "Magnetic Resonance"),
    "NM": Code("NM", "DCM", "Nuclear Medicine"),
    "OT": Code("OT", "DCM", "Other"),
    "PT": Code("PT", "DCM", "Positron emission tomography"),
    "US": Code("US", "DCM", "Ultrasound"),
    "XA": Code("XA", "DCM", "X-Ray Angiography"),
}
