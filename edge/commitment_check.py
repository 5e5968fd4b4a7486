"""What of the instances a peer names is safely here: looked up and read again, from the disk.

Owns the decision for each instance (PS3.4 §J.3.3): the file is there, its data set is whole (its
seal, `edge.seal`), it names the SOP instance and the SOP class that were asked for, and it and its
name are durable. The pages that the system keeps of the file are given up first, so that what is
read is what the disk has.

A request names no study, so the newest studies are looked through first; only for an instance that
is not here all of them are.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dicom.commitment import CommitmentReport, CommitmentRequest, FailureReason, Reference
from dicom.errors import HeaderError
from dicom.header import scan_descriptor
from edge.incoming import key_of
from edge.seal import read_sealed
from model_store.durable import sync_directory

log = logging.getLogger(__name__)

_KEY_DIGITS: Final = 32


def check(root: Path, request: CommitmentRequest) -> CommitmentReport:
    """Look for every instance of `request` in the store at `root`, and read it.

    Raises:
        OSError: the store as a whole cannot be read.
    """
    wanted = {key_of(each.sop_instance_uid): each for each in request.references}
    found = _find(root, wanted)
    committed: list[Reference] = []
    failed: list[tuple[Reference, int]] = []
    for study in set(found.values()):
        sync_directory(study)
    sync_directory(root)
    for reference in request.references:
        directory = found.get(key_of(reference.sop_instance_uid))
        if directory is None:
            failed.append((reference, FailureReason.NO_SUCH_OBJECT_INSTANCE))
            continue
        failure = _look(directory / f"{key_of(reference.sop_instance_uid)}.dcm", reference)
        if failure is None:
            committed.append(reference)
        else:
            failed.append((reference, failure))
    return CommitmentReport(request.transaction_uid, tuple(committed), tuple(failed))


def _find(root: Path, wanted: dict[str, Reference]) -> dict[str, Path]:
    """Instance key to the directory of its study, for those that are here."""
    missing = set(wanted)
    found: dict[str, Path] = {}
    for directory in _newest_first(root):
        if not missing:
            break
        try:
            names = {entry.stem for entry in directory.iterdir() if entry.suffix == ".dcm"}
        except FileNotFoundError:  # deleted meanwhile
            continue
        for key in missing & names:
            found[key] = directory
        missing -= names
    return found


def _newest_first(root: Path) -> Iterator[Path]:
    studies: list[tuple[float, str]] = []
    with os.scandir(root) as entries:
        studies.extend(
            (entry.stat(follow_symlinks=False).st_mtime, entry.name)
            for entry in entries
            if len(entry.name) == _KEY_DIGITS and entry.is_dir(follow_symlinks=False)
        )
    for _, name in sorted(studies, reverse=True):
        yield root / name


def _look(path: Path, reference: Reference) -> int | None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:  # deleted meanwhile
        return FailureReason.NO_SUCH_OBJECT_INSTANCE
    except OSError as error:
        return _unreadable(path, error)
    try:
        os.fsync(handle)  # of a run without durability; else it costs nothing
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        sealed = read_sealed(handle)
        if sealed is None:
            return _unreadable(path, HeaderError("it is not what was received: damaged, or cut short"))
        header = scan_descriptor(handle, sealed.meta.dataset_offset, sealed.meta.transfer_syntax_uid)
    except (OSError, HeaderError) as error:
        return _unreadable(path, error)
    finally:
        os.close(handle)
    if header.sop_instance_uid != reference.sop_instance_uid:
        return _unreadable(path, HeaderError("it holds another instance than its name stands for"))
    if header.sop_class_uid != reference.sop_class_uid:
        return FailureReason.CLASS_INSTANCE_CONFLICT
    return None


def _unreadable(path: Path, error: Exception) -> int:
    log.error("instance %s cannot be committed to: %s", path.stem, error)
    return FailureReason.PROCESSING_FAILURE
