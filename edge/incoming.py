"""One instance while it is received, and the durable steps that make it a stored one.

Owns the check against the C-STORE command and the steps of a commit in their order: the seal
(`edge.seal`), fsync of the file, its name in the study's directory, which never replaces
another file. The file has a durable name from the beginning, its slot (`edge.slots`): after the
fsync nothing can be lost any more, and the name in the study's directory stands for a whole
file from its first moment. Where the files lie and how they are found again is
`edge.instances`.

Security: a name is made of the SHA-256 of a UID, never of what a peer sent.
"""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from dicom.errors import HeaderError
from dicom.header import InstanceHeader, scan_descriptor
from dicom.part10 import MAX_META_BYTES, file_meta, read_meta
from dicom.walk import NO_OTHER_LIMITS, WalkLimits
from edge.seal import UNSEALED, Crc32, seal
from edge.slots import Slots
from model_store.durable import sync_directory, write_file

log = logging.getLogger(__name__)

MAX_INCIDENTS: Final = 1000
"""Second versions kept, all in all: a peer that alters and resends must not fill the disk."""
RECHECK_BYTES: Final = 64 * 1024 * 1024
"""The disk is looked at again after so much of one instance: 32 at once overshoot by 2 GiB at most."""

WRITE_OUT_BYTES: Final = 8 * 1024 * 1024
"""The disk is set to work after so much of one instance: the fsync of 2 GB then waits for the last of it.
An ordinary image is shorter and not worth the system call."""

_MAX_PARTS: Final = 1024  # what one writev takes (Linux, IOV_MAX)
_COMPARE_BYTES: Final = 1024 * 1024
_MAX_ATTEMPTS: Final = 64  # to link into a directory that retention removes whenever it is empty
_MAX_KNOWN: Final = 4096  # study directories remembered as durable; forgetting one costs an fsync


class InstanceStoreError(Exception):
    """The store does not take an instance; it keeps nothing of it."""


class DiskError(InstanceStoreError):
    """Our disk is full, nearly full, read-only or failing."""


class MismatchError(InstanceStoreError):
    """The data set does not name the instance that the C-STORE command named."""


class Fate(StrEnum):
    """What became of an instance; it is durable in each case."""

    STORED = "stored"
    DUPLICATE = "duplicate"  # the same data set was here already
    CONFLICT = "conflict"  # another data set of this name was here, and stays; see incidents/


@dataclass(frozen=True, slots=True)
class Committed:
    """A finished commit. `size_bytes` is the file's; `checksum` the CRC-32 of its data set."""

    fate: Fate
    study_key: str
    instance_key: str
    size_bytes: int
    checksum: int
    header: InstanceHeader


@dataclass(frozen=True, slots=True)
class Named:
    """What a C-STORE command and its presentation context say of the instance that follows."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    study_instance_uid: str = ""
    """The only study that it may be of; empty: any."""


def key_of(uid: str) -> str:
    """The name of a study's directory or of an instance's file: half the SHA-256 of its UID, in hex."""
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


class IncomingInstance:
    """One instance that is being received, by one thread. End it with `commit` or `discard`."""

    def __init__(
        self,
        named: Named,
        slots: Slots,
        studies: "StudyDirectories",
        check_room: Callable[[], None],
        checkpoint: Callable[[str], None],
        *,
        durable: bool,
        crc32: Crc32,
        walk_limits: WalkLimits = NO_OTHER_LIMITS,
    ) -> None:
        """Take a slot.

        Raises:
            DiskError: there is none, and none can be made.
            ValueError: a UID is none.
        """
        self._named = named
        self._slots = slots
        self._studies = studies
        self._check_room = check_room
        self._checkpoint = checkpoint
        self._durable = durable
        self._crc32 = crc32
        self._walk_limits = walk_limits
        self._meta = file_meta(
            named.sop_class_uid,
            named.sop_instance_uid,
            named.transfer_syntax_uid,
            named.calling_ae_title,
            UNSEALED,
        )
        self._written = 0
        self._written_out = 0
        self._next_check = RECHECK_BYTES
        self._checksum = 0
        with disk_errors(self._what):
            self._slot, self._handle = slots.take()
        self._is_named = False

    def write(self, parts: Sequence[memoryview]) -> None:
        """Append bytes of the data set.

        Raises:
            DiskError: the disk does not take them; nothing is kept, `discard` need not be called.
        """
        for part in parts:
            self._checksum = self._crc32(part, self._checksum)
        try:
            with disk_errors(self._what):
                if self._written == 0:
                    parts = [memoryview(self._meta), *parts]
                self._written += _write_all(self._handle, parts)
            if self._durable and self._written >= self._written_out + WRITE_OUT_BYTES:
                # begins to write these pages, and waits for none
                end = self._written
                os.posix_fadvise(
                    self._handle, self._written_out, end - self._written_out, os.POSIX_FADV_DONTNEED
                )
                self._written_out = end
            if self._written >= self._next_check:
                self._next_check = self._written + RECHECK_BYTES
                self._check_room()
        except BaseException:
            self.discard()
            raise

    def commit(self) -> Committed:
        """Make the instance durable under its name.

        Raises:
            HeaderError: the data set cannot be read, or does not name a study.
            MismatchError: it is another instance than the command said.
            DiskError: the disk does not take it.
            In each case nothing is kept.
        """
        try:
            return self._commit()
        finally:
            self.discard()

    def discard(self) -> None:
        """Drop what was received; does nothing after a commit."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
            if not self._is_named:
                with suppress(OSError):  # `InstanceStore.recover` removes it at the next start
                    os.unlink(self._slot)  # noqa: PTH108 (a text, as `os` takes it: this is the hot path)

    @property
    def _what(self) -> str:
        return f"SOP Instance {self._named.sop_instance_uid}"

    def _commit(self) -> Committed:
        with disk_errors(self._what):
            if self._written == 0:
                self._written = _write_all(self._handle, [memoryview(self._meta)])
            self._checkpoint("received")
            header = self._read_header()
            dataset_bytes = self._written - len(self._meta)
            _require_whole(header, dataset_bytes)
            seal_at = len(self._meta) - len(UNSEALED)
            os.pwrite(self._handle, seal(dataset_bytes, self._checksum), seal_at)
            if self._durable:
                os.fsync(self._handle)
            self._checkpoint("synced")
            committed = Committed(
                fate=self._studies.place(self._slot, header),
                study_key=key_of(header.study_instance_uid),
                instance_key=key_of(header.sop_instance_uid),
                size_bytes=self._written,
                checksum=self._checksum,
                header=header,
            )
            if committed.fate is Fate.CONFLICT:
                self._studies.keep_incident(self._slot, committed, self._named.calling_ae_title)
        if committed.fate is Fate.STORED:
            self._is_named = True
            self._checkpoint("named")
            self._slots.named(self._slot, committed.study_key)
        return committed

    def _read_header(self) -> InstanceHeader:
        try:
            syntax = self._named.transfer_syntax_uid
            header = scan_descriptor(self._handle, len(self._meta), syntax, self._walk_limits)
        except HeaderError as error:
            raise HeaderError(f"{self._what}: {error}") from error
        for attribute, got, named in (
            ("(0008,0016) SOP Class UID", header.sop_class_uid, self._named.sop_class_uid),
            ("(0008,0018) SOP Instance UID", header.sop_instance_uid, self._named.sop_instance_uid),
            ("(0020,000D) Study Instance UID", header.study_instance_uid, self._named.study_instance_uid),
        ):
            if named and got != named:
                raise MismatchError(f"{self._what}: {attribute} is {got}, the command says {named}")
        return header


class StudyDirectories:
    """The studies' directories below `root`, and how a file gets its name there. Thread-safe."""

    def __init__(self, root: Path, incidents: Path, *, durable: bool) -> None:
        self._root = str(root)
        self._durable = durable
        self._incidents = incidents
        self._known: dict[str, int] = {}  # study key to the inode whose entry in root is durable

    def place(self, received: str, header: InstanceHeader) -> Fate:
        """Give a file that is durable under another name its name here; that one is not durable yet.

        `os.link` never replaces a file, whichever thread or process made that one.

        Raises:
            DiskError, OSError: the disk does not let us; the name is not there.
        """
        directory = f"{self._root}/{key_of(header.study_instance_uid)}"
        lasting = f"{directory}/{key_of(header.sop_instance_uid)}.dcm"
        for _ in range(_MAX_ATTEMPTS):
            try:
                os.link(received, lasting)
            except FileExistsError:
                with suppress(FileNotFoundError):  # deleted meanwhile
                    return self._compare(lasting, received)
            except FileNotFoundError:
                with suppress(FileExistsError):
                    Path(directory).mkdir(0o750)
            else:
                return Fate.STORED
        raise DiskError(f"SOP Instance {header.sop_instance_uid}: its study's directory is removed each time")

    def sync_names(self, study_keys: Collection[str]) -> None:
        """Make the names in these studies' directories durable, and those of the directories.

        Raises:
            OSError: the disk does not let us.
        """
        directories: list[int] = []
        try:
            new: dict[str, int] = {}
            for study_key in study_keys:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                with suppress(FileNotFoundError):  # deleted meanwhile
                    directories.append(os.open(f"{self._root}/{study_key}", flags))
                    new[study_key] = os.fstat(directories[-1]).st_ino
            for directory in directories:
                os.fsync(directory)
            new = {key: inode for key, inode in new.items() if self._known.get(key) != inode}
            if new:  # made since, here or by another process
                sync_directory(Path(self._root))
                if len(self._known) >= _MAX_KNOWN:
                    self._known.clear()
                self._known.update(new)
        finally:
            for directory in directories:
                os.close(directory)

    def keep_incident(self, received: str, committed: Committed, calling_ae_title: str) -> None:
        """Keep a second version of an instance, durably and once, with the reason.

        Raises:
            OSError: the disk does not let us.
        """
        name = f"{committed.instance_key}-{committed.checksum:08x}-{committed.size_bytes}"
        reason = "another data set of the same SOP Instance UID was stored before, and stays"
        if len(list(self._incidents.iterdir())) >= 2 * MAX_INCIDENTS:
            log.error(
                "instance %s: %s; not kept, %d are kept already",
                committed.instance_key,
                reason,
                MAX_INCIDENTS,
            )
            return
        facts = {
            "reason": reason,
            "stored": f"{committed.study_key}/{committed.instance_key}.dcm",
            "calling_ae_title": calling_ae_title,
        }
        note = Path(f"{received}.json")  # a name of its own: two may send the same at once
        try:
            write_file(note, json.dumps(facts, indent=2).encode() + b"\n")
            for file, ending in ((note, "json"), (received, "dcm")):
                with suppress(FileExistsError):  # sent again
                    os.link(file, self._incidents / f"{name}.{ending}")
        finally:
            note.unlink(missing_ok=True)
        if self._durable:
            sync_directory(self._incidents)
        log.error("instance %s: %s; kept as incidents/%s.dcm", committed.instance_key, reason, name)

    def _compare(self, lasting: str, received: str) -> Fate:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        stored = os.open(lasting, flags)
        try:
            with Path(received).open("rb", buffering=0) as file:
                if os.path.samestat(os.fstat(stored), os.fstat(file.fileno())):
                    return Fate.STORED  # by `InstanceStore.scan`, just now
                same = _same_dataset(stored, file.fileno())
            if same and self._durable:
                os.fsync(stored)  # it may be from a run without durability
        except HeaderError:
            same = False  # what is stored is damaged: a person must look, and the new one is kept
        finally:
            os.close(stored)
        return Fate.DUPLICATE if same else Fate.CONFLICT


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn an OSError into a DiskError that names `what` and the cause."""
    try:
        yield
    except OSError as error:
        cause = errno.errorcode.get(error.errno or 0, "?")
        raise DiskError(f"{what}: our disk does not take it: {cause} {error.strerror}") from error


def _write_all(handle: int, parts: Sequence[memoryview]) -> int:
    """Write every byte of `parts`; how many there were."""
    total = 0
    for begin in range(0, len(parts), _MAX_PARTS):
        batch = list(parts[begin : begin + _MAX_PARTS])
        while batch:
            written = os.writev(handle, batch)
            total += written
            while batch and written >= len(batch[0]):
                written -= len(batch[0])
                del batch[0]
            if batch:  # cut short, by a signal or a disk that is nearly full: go on from there
                batch[0] = batch[0][written:]
    return total


def _same_dataset(one: int, other: int) -> bool:
    """Whether two stored files hold the same data set in the same transfer syntax."""
    metas = [read_meta(os.pread(handle, MAX_META_BYTES, 0)) for handle in (one, other)]
    positions = [meta.dataset_offset for meta in metas]
    lengths = [os.fstat(handle).st_size - at for handle, at in zip((one, other), positions, strict=True)]
    if lengths[0] != lengths[1] or metas[0].transfer_syntax_uid != metas[1].transfer_syntax_uid:
        return False
    for begin in range(0, lengths[0], _COMPARE_BYTES):
        if os.pread(one, _COMPARE_BYTES, positions[0] + begin) != os.pread(
            other, _COMPARE_BYTES, positions[1] + begin
        ):
            return False
    return True


def _require_whole(header: InstanceHeader, dataset_bytes: int) -> None:
    """Refuse Pixel Data that ends before its own length says: kept, it could never be mended.

    Raises:
        HeaderError: it is cut short.
    """
    begin, length = header.pixel_data_offset, header.pixel_data_length
    if begin is not None and length is not None and begin + length > dataset_bytes:
        raise HeaderError(
            f"SOP Instance {header.sop_instance_uid}: Pixel Data (7FE0,0010) is cut short:"
            f" {dataset_bytes - begin} bytes came, its length says {length}"
        )
