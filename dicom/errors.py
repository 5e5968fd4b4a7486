"""The errors of `dicom`, one tree; whose fault it is decides the branch.

DicomError
├── InstanceError            an instance's bytes are not what the Standard says
│   ├── HeaderError          its attributes cannot be read, or contradict each other
│   ├── DecodeError          its pixel data cannot be decoded
│   └── UnsupportedError     it is sound, but this appliance does not decode it
├── GeometryError            the slices of a series do not make a volume
├── PeerError                the other node: refused, aborted, answered a failure, went away
│   └── ProtocolError        what it sent is not what PS3.7 and PS3.8 say
└── StoreRefusedError        we do not take this instance: the DIMSE status to answer says why
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


class ProtocolError(PeerError):
    """What the other node sent is not what PS3.7 and PS3.8 say."""


class StoreRefusedError(DicomError):
    """We do not take an instance; the association goes on.

    Attributes:
        status: the C-STORE status to answer, a failure of PS3.4 Table B.2-1 (0xA700 out of resources,
            0xA900 data set does not match SOP Class, 0xC000 cannot understand) or of PS3.7 Annex C.
        reason: why, for our log; the peer sees the status only.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"status 0x{status:04X}: {reason}")
        self.status = status
        self.reason = reason
