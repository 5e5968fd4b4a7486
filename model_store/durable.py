"""Files that survive a power cut: temporary, fsync, rename, fsync of the directory.

Nothing else in the appliance renames a file.
"""

import os
from collections.abc import Iterable
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
