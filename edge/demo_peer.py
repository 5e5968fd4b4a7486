"""A receiving node for the demo: writes each object it is sent into a directory.

`python -I -m edge.demo_peer DIRECTORY AE_TITLE` listens on a free port of the loopback, says the
port in one line on standard output, and ends when its standard input ends, so that it never
outlives the demo. It stands in for the hospital's PACS, keeps nothing durable, and is no part of
the appliance.
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from dicom.part10 import file_meta
from dicom.receive import Acceptor, AcceptorSettings, AssociationInfo, End, Incoming, Rejection, StoreRequest


class Shelf:
    """Takes whatever it is sent; a `dicom.receive.StoreHandler`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def admit(
        self, calling_ae_title: str, called_ae_title: str, address: str, certificate_sha256: str | None
    ) -> Rejection | None:
        """Everybody who can reach the loopback may send."""

    def begin(self, request: StoreRequest) -> Incoming:
        """One file an object, named by the digest of its UID: no name is made of what a peer sent."""
        name = hashlib.sha256(request.sop_instance_uid.encode()).hexdigest()[:16]
        meta = file_meta(
            request.sop_class_uid,
            request.sop_instance_uid,
            request.transfer_syntax_uid,
            request.association.calling_ae_title.strip(" "),
        )
        return _File(self._directory / f"{name}.dcm", meta)

    def ended(self, association: AssociationInfo, how: End) -> None:
        """Nothing to do."""


class _File:
    """One object on its way into a file; a `dicom.receive.Incoming`."""

    def __init__(self, path: Path, meta: bytes) -> None:
        self._path = path
        self._partial = path.with_suffix(".part")
        self._file: BinaryIO = self._partial.open("wb")
        self._file.write(meta)

    def write(self, parts: Sequence[memoryview]) -> None:
        self._file.writelines(parts)

    def commit(self) -> int:
        self._file.close()
        self._partial.replace(self._path)
        return 0

    def discard(self) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)


def main(arguments: Sequence[str]) -> int:
    """Listen until standard input ends."""
    directory, ae_title = Path(arguments[0]), arguments[1]
    directory.mkdir(parents=True, exist_ok=True)
    acceptor = Acceptor(AcceptorSettings(ae_title=ae_title), Shelf(directory))
    acceptor.start()
    sys.stdout.write(f"{acceptor.address[1]}\n")
    sys.stdout.flush()
    try:
        sys.stdin.read()
    except KeyboardInterrupt:
        return 130
    finally:
        acceptor.stop(5.0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
