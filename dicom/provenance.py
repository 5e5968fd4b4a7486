"""Who made a result, said in it: the algorithm, and the appliance that ran it.

Owns the Contributing Equipment item and the algorithm parameters that IHE AIR asks for, and the
General and Enhanced General Equipment modules (PS3.3 §C.7.5.1, §C.7.5.2, §C.12.1;
PS3.16 TID 4019). The Device UID is the caller's: derived from the model digest, so
that it changes whenever the model does.
"""

from typing import Final

from dicom import codes
from dicom.element import Encoder, data_set
from dicom.results import Algorithm, Equipment, ResultContext

NOT_FOR_DIAGNOSIS: Final = "Research result, not for diagnosis"
"""In every report and in the panel of every picture."""
NOT_FOR_DIAGNOSIS_MARK: Final = "NOT FOR DIAGNOSIS"
"""In every series description and across the top of every picture."""


def contributing_equipment(encode: Encoder, context: ResultContext) -> bytes:
    """(0018,A001) with one item for the algorithm (IHE AIR, Evidence Creator)."""
    algorithm = context.algorithm
    return encode(
        "ContributingEquipmentSequence",
        data_set(
            encode("PurposeOfReferenceCodeSequence", encode.code(codes.PROCESSING_ALGORITHM)),
            encode("Manufacturer", algorithm.manufacturer),
            encode("ManufacturerModelName", algorithm.name),
            encode("SoftwareVersions", algorithm.version),
            encode("DeviceUID", algorithm.device_uid),
            encode("ContributionDateTime", context.created.strftime("%Y%m%d%H%M%S.%f%z")),
            encode("ContributionDescription", f"model digest sha256:{algorithm.model_digest}"),
        ),
    )


def equipment(encode: Encoder, made_by: Equipment) -> list[bytes]:
    """The General and Enhanced General Equipment modules: the appliance."""
    return [
        encode("Manufacturer", made_by.manufacturer),
        encode("ManufacturerModelName", made_by.model_name),
        encode("DeviceSerialNumber", made_by.serial_number),
        encode("SoftwareVersions", made_by.software_version),
        encode("StationName", made_by.station_name),
    ]


def algorithm_identification(encode: Encoder, algorithm: Algorithm) -> bytes:
    """The content of one item of the Algorithm Identification Macro (PS3.3 Table 10-19)."""
    parameters = "\n".join(algorithm_parameters(algorithm))
    return data_set(
        encode("AlgorithmFamilyCodeSequence", encode.code(codes.ARTIFICIAL_INTELLIGENCE)),
        encode("AlgorithmName", algorithm.name),
        encode("AlgorithmVersion", algorithm.version),
        encode("AlgorithmSource", algorithm.manufacturer),
        encode("AlgorithmParameters", parameters),
    )


def algorithm_parameters(algorithm: Algorithm) -> tuple[str, ...]:
    """`key=value` texts for (111002, DCM): the model digest first, the others by name."""
    others = (f"{key}={algorithm.parameters[key]}" for key in sorted(algorithm.parameters))
    return (f"model digest=sha256:{algorithm.model_digest}", *others)
