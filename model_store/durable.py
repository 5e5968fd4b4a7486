"""Files that survive a power cut: temporary, fsync, rename, fsync of the directory.

Nothing else in the appliance renames a file.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path


def sync_directory(directory: Path) -> None:
    """Make the entries of `directory` durable (POSIX says nothing of them after a file's own fsync)."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(directory: Path, mode: int = 0o750) -> None:
    """Make `directory` and its missing parents, each durable in its parent."""
    if directory.is_dir():
        return
    make_directory(directory.parent, mode)
    directory.mkdir(mode=mode, exist_ok=True)
    sync_directory(directory.parent)


def write_file(path: Path, data: bytes | Iterable[bytes], mode: int = 0o640) -> None:
    """Write `path` whole or not at all; when this returns, it survives a power cut.

    Raises:
        OSError: the disk is full, read-only, or failing; `path` is as it was before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in [data] if isinstance(data, bytes) else data:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        commit_file(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def commit_file(temporary: Path, path: Path) -> None:
    """Give a file that is already fsynced its name, durably; both in one directory."""
    temporary.rename(path)
    sync_directory(path.parent)


def commit_directory(temporary: Path, directory: Path) -> None:
    """Give the finished tree `temporary` its name, durably; both in one directory.

    Every file and directory below it is fsynced first, so that the name never stands for less
    than the whole tree.

    Raises:
        OSError: `directory` exists and is not empty, or the disk is failing; `temporary` is left.
    """
    for parent, _, names in os.walk(temporary, topdown=False):
        for name in names:
            handle = os.open(Path(parent, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_directory(Path(parent))
    temporary.rename(directory)
    sync_directory(directory.parent)


def append_line(path: Path, line: str, mode: int = 0o640) -> None:
    """Append one line of text to `path`; when this returns, it survives a power cut.

    A line that a crash cut off stays as it is; the next one begins on a line of its own. The caller
    sees to it that no other process appends at the same time.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
        file.write((b"\n" if torn else b"") + line.encode() + b"\n")
        os.fsync(file.fileno())
    if size == 0:
        sync_directory(path.parent)  # the file may be new


def write_files(directory: Path, files: Mapping[str, bytes], mode: int = 0o640) -> None:
    """Write several files of one directory, each whole or not at all, with one fsync of the directory.

    Raises:
        OSError: as `write_file`; files already renamed stay.
    """
    for name, data in files.items():
        temporary = directory / f".{name}.{os.getpid()}.tmp"
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(directory / name)
    sync_directory(directory)
