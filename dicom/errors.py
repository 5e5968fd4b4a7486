"""The errors of `dicom`, one tree; whose fault it is decides the branch.

DicomError
├── InstanceError            an instance's bytes are not what the Standard says
│   ├── HeaderError          its attributes cannot be read, or contradict each other
│   ├── DecodeError          its pixel data cannot be decoded
│   └── UnsupportedError     it is sound, but this appliance does not decode it
├── GeometryError            the slices of a series do not make a volume
└── PeerError                the other node: refused, aborted, answered a failure, went away
"""


class DicomError(Exception):
    """Anything that `dicom` raises on purpose."""


class InstanceError(DicomError):
    """An instance's bytes are not what the Standard says."""


class HeaderError(InstanceError):
    """The attributes of an instance cannot be read, or contradict each other."""


class DecodeError(InstanceError):
    """The pixel data of an instance cannot be decoded."""


class UnsupportedError(InstanceError):
    """The instance is sound, but this appliance does not decode it (it names the syntax)."""


class GeometryError(DicomError):
    """The slices of a series do not make a volume (PS3.3 §C.7.6.2)."""


class PeerError(DicomError):
    """The other node refused, aborted, answered a failure, or went away."""
