"""The instances that were received, as files; they are the truth about what is here.

    <root>/<study key>/<instance key>.dcm   whole, durable, never written again
    <root>/incoming/                        slots: being received, or received and soon only above
    <root>/incidents/                       second versions of an instance, and why they were kept

Owns where files lie, how they are found again, and their removal; how one comes to be
stored is `edge.incoming`. It decides nothing about DIMSE statuses (`edge.receive`) and
does not say to others what arrived (`edge.arrivals`).

Several processes may have a store on one root; one of them receives, and calls `recover`.

*Diagnostics*: logs what `recover` removed, incidents, and files that cannot be read again.
"""

import errno
import logging
import os
import re
import secrets
import zlib
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from dicom.errors import HeaderError
from dicom.header import scan_descriptor
from dicom.part10 import MAX_META_BYTES, read_meta
from dicom.walk import NO_OTHER_LIMITS, WalkLimits
from edge.arrivals import Arrival
from edge.incoming import (
    Committed,
    DiskError,
    Fate,
    IncomingInstance,
    InstanceStoreError,
    MismatchError,
    Named,
    StudyDirectories,
    disk_errors,
    key_of,
)
from edge.seal import Crc32, read_sealed
from edge.slots import Slots
from model_store.durable import make_directory, sync_directory

__all__ = [
    "Committed",
    "DiskError",
    "Fate",
    "IncomingInstance",
    "InstanceStore",
    "InstanceStoreError",
    "MismatchError",
    "Named",
    "instance_key",
    "no_checkpoint",
    "study_key",
]

log = logging.getLogger(__name__)

MIN_FREE_INODES: Final = 1024
"""Free inodes below which nothing is received: the journal and the results need some."""

_KEY: Final = re.compile(r"[0-9a-f]{32}")


def study_key(study_instance_uid: str) -> str:
    """The name of a study's directory."""
    return key_of(study_instance_uid)


def instance_key(sop_instance_uid: str) -> str:
    """The name of an instance's file, without its ending."""
    return key_of(sop_instance_uid)


def no_checkpoint(name: str) -> None:
    """Do nothing at a durable step; a crash test has the process killed there."""


class InstanceStore:
    """The store at `root`. Thread-safe."""

    def __init__(
        self,
        root: Path,
        min_free_bytes: int = 0,
        checkpoint: Callable[[str], None] = no_checkpoint,
        *,
        durable: bool = True,
        crc32: Crc32 = zlib.crc32,
        walk_limits: WalkLimits = NO_OTHER_LIMITS,
        ring: Callable[[], None] = lambda: None,
    ) -> None:
        """Touches nothing yet.

        Args:
            root: its directory, on one file system.
            min_free_bytes: free space below which nothing is received.
            checkpoint: called at "received" (all bytes are written), "synced" (it is durable, in its
                slot) and "named" (it has its lasting name, which `settle` makes durable).
            durable: whether a commit waits for the disk. Without, a power cut takes instances that
                were acknowledged; a kill does not.
            crc32: of what is received (`edge.seal.fast_crc32`).
            walk_limits: on the elements of an instance.
            ring: called when `keep` has something to do.
        """
        self.root: Final = root
        self.incoming: Final = root / "incoming"
        self.incidents: Final = root / "incidents"
        self._min_free_bytes = min_free_bytes
        self._checkpoint = checkpoint
        self._durable = durable
        self._crc32 = crc32
        self._walk_limits = walk_limits
        self._studies = StudyDirectories(root, self.incidents, durable=durable)
        run = secrets.token_hex(8)  # not the process id: containers on one disk share those
        self._slots = Slots(self.incoming, run, self._studies.sync_names, ring, durable=durable)

    def recover(self) -> int:
        """Make the directories, and clear up after a crash.

        What was received whole has been promised, or may have been: it gets its lasting name. The
        rest is removed.

        Only for the process that receives, before its first `begin`.

        Returns:
            How many files were removed that something had been received into.

        Raises:
            OSError: the disk does not let us.
        """
        for directory in (self.incoming, self.incidents):
            make_directory(directory)
        torn = 0
        adopted: dict[Path, str] = {}
        for leftover in list(self.incoming.iterdir()):
            try:
                study = self._adopt(leftover)
            except (OSError, DiskError) as error:
                log.error("a received instance stays in %s: %s", leftover, error)
                continue
            if study is None:
                torn += leftover.lstat().st_size > 0
                leftover.unlink()
            else:
                adopted[leftover] = study
        self._studies.sync_names(set(adopted.values()))
        for leftover in adopted:
            leftover.unlink()
        sync_directory(self.incoming)
        if torn:
            log.warning("%d instances were half received when the process ended: removed", torn)
        return torn

    def keep(self) -> bool:
        """Do ahead, and afterwards, what instances need not wait for; False: nobody waits for this.

        For a thread that calls it when it is rung for, and every second or so.

        Raises:
            OSError: no file can be made.
        """
        self._slots.keep()
        return False

    def settle(self) -> None:
        """Take the second names away that instances have since they were received."""
        self._slots.settle()

    def begin(self, named: Named) -> IncomingInstance:
        """Begin to receive an instance.

        Raises:
            DiskError: there is too little room, or no file can be made.
            ValueError: a UID is none.
        """
        self.check_room()
        return IncomingInstance(
            named,
            self._slots,
            self._studies,
            self.check_room,
            self._checkpoint,
            durable=self._durable,
            crc32=self._crc32,
            walk_limits=self._walk_limits,
        )

    def check_room(self) -> None:
        """Look whether the disk has room for more.

        Raises:
            DiskError: it has not.
        """
        with disk_errors("the disk of the instances"):
            disk = os.statvfs(self.root)
        free = disk.f_bavail * disk.f_frsize
        if free < self._min_free_bytes:
            raise DiskError(
                f"the disk of the instances has {free} bytes free, must have {self._min_free_bytes}"
            )
        if disk.f_files > 0 and disk.f_favail < MIN_FREE_INODES:  # 0: a file system without such a limit
            raise DiskError(
                f"the disk of the instances has {disk.f_favail} inodes free, must have {MIN_FREE_INODES}"
            )

    def path(self, study_key: str, instance_key: str) -> Path:
        """Where an instance lies, or would lie.

        Raises:
            ValueError: one of them is no key.
        """
        if not (_KEY.fullmatch(study_key) and _KEY.fullmatch(instance_key)):
            raise ValueError("instance store: a key is 32 hexadecimal digits")
        return self.root / study_key / f"{instance_key}.dcm"

    def stored_keys(self) -> Iterator[tuple[str, str]]:
        """The study key and instance key of every stored instance, without opening any."""
        for study in sorted(entry.name for entry in self.root.iterdir() if _KEY.fullmatch(entry.name)):
            for instance in self._instances(study):
                yield study, instance

    def scan(self, *, skip: Container[tuple[str, str]] = frozenset()) -> Iterator[Arrival]:
        """Read the header of every stored instance that is not in `skip` (study key, instance key).

        One that cannot be read (a damaged disk) is logged and left out. When it was received is
        taken from the file's time of modification; checksum and association are not known. What a
        crash left whole in a slot gets its lasting name first.
        """
        with suppress(OSError, DiskError):  # no store yet, or another user's: then `recover` does it
            for leftover in list(self.incoming.iterdir()):
                self._adopt(leftover)
        for study, instance in self.stored_keys():
            if (study, instance) in skip:
                continue
            try:
                yield self._found(study, instance)
            except FileNotFoundError:  # deleted meanwhile
                continue
            except (HeaderError, OSError) as error:
                log.error("instance %s of study %s cannot be read again: %s", instance, study, error)

    def delete_instances(self, study_key: str, instance_keys: Iterable[str]) -> None:
        """Remove instances, and their study's directory when that empties it, durably.

        An instance that arrives meanwhile is safe: it is not among the names, and a directory
        that holds it is not removed.

        Raises:
            ValueError: one of them is no key.
            OSError: the disk does not let us; what is gone is gone.
        """
        if not _KEY.fullmatch(study_key):
            raise ValueError("instance store: a key is 32 hexadecimal digits")
        directory = self.root / study_key
        for key in instance_keys:
            self.path(study_key, key).unlink(missing_ok=True)
        try:
            sync_directory(directory)
            directory.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            return
        sync_directory(self.root)

    def delete_study(self, study_key: str) -> int:
        """Remove the instances of a study that are here now, durably; how many."""
        keys = self._instances(study_key)
        self.delete_instances(study_key, keys)
        return len(keys)

    def _adopt(self, slot: Path) -> str | None:
        """Give a whole file its lasting name, if it has none; its study key. None: it is not whole.

        Harmless while it is being received: it is not sealed before it is whole.
        """
        try:
            handle = os.open(slot, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            sealed = read_sealed(handle)
            if sealed is None:
                return None
            header = scan_descriptor(handle, sealed.meta.dataset_offset, sealed.meta.transfer_syntax_uid)
            os.fsync(handle)
        except HeaderError:
            return None
        finally:
            os.close(handle)
        committed = Committed(
            fate=self._studies.place(str(slot), header),
            study_key=key_of(header.study_instance_uid),
            instance_key=key_of(header.sop_instance_uid),
            size_bytes=sealed.size_bytes,
            checksum=sealed.checksum,
            header=header,
        )
        if committed.fate is Fate.CONFLICT:
            self._studies.keep_incident(str(slot), committed, sealed.meta.source_ae_title)
        return committed.study_key

    def _instances(self, study_key: str) -> list[str]:
        files: list[Path] = []
        with suppress(FileNotFoundError):  # deleted meanwhile
            files = list((self.root / study_key).iterdir())
        return sorted(file.stem for file in files if file.suffix == ".dcm" and _KEY.fullmatch(file.stem))

    def _found(self, study: str, instance: str) -> Arrival:
        handle = os.open(self.path(study, instance), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            meta = read_meta(os.pread(handle, MAX_META_BYTES, 0))
            header = scan_descriptor(handle, meta.dataset_offset, meta.transfer_syntax_uid)
            facts = os.fstat(handle)
        finally:
            os.close(handle)
        if (key_of(header.study_instance_uid), key_of(header.sop_instance_uid)) != (study, instance):
            raise HeaderError("it names another study or instance than its file's name stands for")
        return Arrival(
            study_key=study,
            instance_key=instance,
            size_bytes=facts.st_size,
            checksum=None,
            header=header,
            calling_ae_title=meta.source_ae_title,
            association="",
            received=datetime.fromtimestamp(facts.st_mtime, UTC),
        )
