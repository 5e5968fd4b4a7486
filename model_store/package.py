"""A model package on disk: a directory, or one `.tar` file of it.

Owns the check that the files are exactly what the manifest says: each listed once, with its
size and sha256, nothing else, and no link of any kind. What is inside the ONNX files is the
business of `model_store.graph`; who signed the manifest is not asked here.

*Security*: the path may come from anybody. Nothing is executed, nothing is written outside of
the temporary directory, and every count and size is bounded before it is used.
"""

import hashlib
import os
import re
import shutil
import stat
import tarfile
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Final, Self

from model_store.errors import PackageError
from model_store.manifest import MAX_MANIFEST_BYTES, Manifest, parse

MANIFEST_NAME: Final = "manifest.json"
MAX_ENTRIES: Final = 256
"""Files and directories of a package: 8 graphs, 32 golden cases, cards and licences are below 100."""
MAX_PACKAGE_BYTES: Final = 16 << 30
"""16 GiB: twice the largest single file that a manifest may list."""
CHUNK_BYTES: Final = 1 << 20
"""Read and hashed at a time; the sha256 of 1 MiB takes about a millisecond."""

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

_PATH: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?")


@dataclass(frozen=True)
class Package:
    """A package whose files are what its manifest says.

    Use it as a context manager, or let it go: a temporary directory that a `.tar` was unpacked
    into is removed with it.
    """

    manifest: Manifest
    digest: str
    """sha256 of the bytes of `manifest.json`, 64 hex digits: the model digest."""
    directory: Path
    _remove: Callable[[], object] | None = field(default=None, init=False, repr=False, compare=False)

    def close(self) -> None:
        """Remove what was unpacked for this package; a directory of the caller's is left alone."""
        if self._remove is not None:
            self._remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_package(path: Path, progress: Progress | None = None) -> Package:
    """The package at `path`, a directory or a `.tar` file, with every check done.

    Args:
        path: where the package is; a `.tar` is unpacked into a temporary directory.
        progress: told the bytes hashed and the bytes in all.

    Raises:
        PackageError: it is not a package, or its files are not what the manifest says.
        ManifestError: the manifest is wrong.
        GraphError: an ONNX graph uses what is not allowed, or is not what the manifest says.
    """
    from model_store.graph import check_graphs  # noqa: PLC0415 (it calls for `Package`)

    try:
        if path.is_dir():
            package = read_package(path)
        elif path.is_file():
            package = _unpacked(path)
        else:
            raise PackageError(f"{path}: no such directory or file")
        try:
            check_files(package, progress)
            check_graphs(package)
        except BaseException:
            package.close()
            raise
    except OSError as error:
        raise PackageError(f"{path}: cannot be read: {error}") from error
    return package


def read_package(directory: Path) -> Package:
    """The package in `directory` by its manifest alone; nothing else of it has been checked.

    Raises:
        PackageError: there is no manifest, or it is not a plain file.
        ManifestError: the manifest is wrong.
    """
    path = directory / MANIFEST_NAME
    try:
        with open_plain(path) as file:
            raw = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise PackageError(f"{path}: cannot be read: {error.strerror}") from error
    return Package(parse(raw, str(path)), hashlib.sha256(raw).hexdigest(), directory)


def check_listing(package: Package, *, sole_links: bool = False) -> None:
    """Check names, kinds and sizes of the package's files; their content is not read.

    Args:
        package: what to look at.
        sole_links: also refuse a file that has a second name (a hard link); for the store's copies,
            which nobody else may be able to write.

    Raises:
        PackageError: something is missing, too much, a link, or of another size.
    """
    found = _walk(package.directory)
    listed = package.manifest.files
    if MANIFEST_NAME in listed:
        raise PackageError(f"{package.directory}: {MANIFEST_NAME} lists itself")
    for name in sorted(listed.keys() - found.keys()):
        raise PackageError(f"{package.directory}: {name} is listed in the manifest, but not there")
    for name in sorted(found.keys() - listed.keys() - {MANIFEST_NAME}):
        raise PackageError(f"{package.directory}: {name} is there, but not listed in the manifest")
    total = sum(entry.size_bytes for entry in listed.values())
    if total > MAX_PACKAGE_BYTES:
        raise PackageError(f"{package.directory}: {total} bytes in all, allowed {MAX_PACKAGE_BYTES}")
    for name, status in found.items():
        if name in listed and status.st_size != listed[name].size_bytes:
            raise PackageError(
                f"{package.directory}: {name} is {status.st_size} bytes,"
                f" the manifest says {listed[name].size_bytes}"
            )
        if sole_links and status.st_nlink != 1:
            raise PackageError(f"{package.directory}: {name} has {status.st_nlink} names, must be 1")


def check_files(package: Package, progress: Progress | None = None, *, sole_links: bool = False) -> None:
    """Check the listing, and the sha256 of every file.

    Raises:
        PackageError: as `check_listing`; or a file's content is not what the manifest says.
    """
    check_listing(package, sole_links=sole_links)
    total = sum(entry.size_bytes for entry in package.manifest.files.values())
    done = 0
    for name in package.manifest.files:
        for chunk in read_listed(package, name):
            done += len(chunk)
            if progress is not None:
                progress(done, total)


def read_listed(package: Package, name: str) -> Iterator[bytes]:
    """The content of a listed file in chunks; the error comes after the last one, so write nothing final.

    Raises:
        PackageError: the content is not what the manifest says.
    """
    entry = package.manifest.files[name]
    digest, size = hashlib.sha256(), 0
    with open_plain(package.directory / name) as file:
        while chunk := file.read(min(CHUNK_BYTES, entry.size_bytes + 1 - size)):
            size += len(chunk)
            if size > entry.size_bytes:
                break
            digest.update(chunk)
            yield chunk
    if size != entry.size_bytes or digest.hexdigest() != entry.sha256:
        raise PackageError(
            f"{package.directory}: {name} has sha256 {digest.hexdigest()[:16]}… of {size} bytes,"
            f" the manifest says {entry.sha256[:16]}… of {entry.size_bytes}"
        )


@contextmanager
def open_plain(path: Path) -> Iterator[FileIO]:
    """`path` opened for reading, if it is a plain file: no symbolic link, no device, no pipe.

    Raises:
        PackageError: it is something else.
        OSError: it cannot be opened.
    """
    # O_NONBLOCK: opening a named pipe must not wait for its writer.
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with FileIO(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise PackageError(f"{path}: is not a plain file")
        yield file


def _walk(directory: Path) -> dict[str, os.stat_result]:
    """Every file below `directory`, at most one directory deep, by its relative name."""
    found: dict[str, os.stat_result] = {}
    waiting, count = [""], 0
    while waiting:
        prefix = waiting.pop()
        with os.scandir(directory / prefix) as entries:
            for entry in entries:
                count += 1
                if count > MAX_ENTRIES:
                    raise PackageError(f"{directory}: more than {MAX_ENTRIES} files and directories")
                name = prefix + entry.name
                if not _PATH.fullmatch(name):
                    raise PackageError(f"{directory}: {name!r:.80} is not a name that a package may have")
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    found[name] = status
                elif stat.S_ISDIR(status.st_mode) and not prefix:
                    waiting.append(f"{name}/")
                else:
                    raise PackageError(
                        f"{directory}: {name} is neither a plain file nor a directory of the first level"
                    )
    return found


def _unpacked(path: Path) -> Package:
    """The package of a `.tar` file, in a temporary directory that goes with it."""
    temporary = Path(tempfile.mkdtemp(prefix="insitu-package-"))
    try:
        _extract(path, temporary)
        package = read_package(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    remove = weakref.finalize(package, shutil.rmtree, temporary, ignore_errors=True)
    object.__setattr__(package, "_remove", remove)  # frozen to everybody else
    return package


class _BoundedReads(FileIO):
    """A file that is never asked for much at once: tarfile reads an extended header whole."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= CHUNK_BYTES:
            raise PackageError(f"a header of {size} bytes, allowed {CHUNK_BYTES}")
        return super().read(size) or b""


def _extract(path: Path, into: Path) -> None:
    """Write the plain files of an uncompressed tar below `into`, one by one."""
    try:
        with _BoundedReads(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            count, total = 0, 0
            while (member := archive.next()) is not None:
                count, total = count + 1, total + member.size
                if count > MAX_ENTRIES or total > MAX_PACKAGE_BYTES:
                    raise PackageError(f"more than {MAX_ENTRIES} members or {MAX_PACKAGE_BYTES} bytes in all")
                name = member.name.removeprefix("./")
                if member.isdir() and (name == "." or (_PATH.fullmatch(name) and "/" not in name)):
                    if name != ".":
                        (into / name).mkdir(mode=0o750, exist_ok=True)
                    continue
                if member.type not in {tarfile.REGTYPE, tarfile.AREGTYPE} or member.issparse():
                    raise PackageError(f"member {name!r:.80} is neither a plain file nor a directory")
                if not _PATH.fullmatch(name):
                    raise PackageError(f"member {name!r:.80} is not a name that a package may have")
                _extract_file(archive, member, into / name)
    except PackageError as error:
        raise PackageError(f"{path}: {error}") from error
    except (tarfile.TarError, EOFError, ValueError, OverflowError, IndexError, KeyError) as error:
        # what tarfile lets through on damaged headers, besides its own errors
        raise PackageError(f"{path}: not an uncompressed tar file: {error}") from error


def _extract_file(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = archive.extractfile(member)
    if source is None:
        raise PackageError(f"member {member.name!r:.80} has no content")
    target.parent.mkdir(mode=0o750, exist_ok=True)
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    except FileExistsError:
        raise PackageError(f"member {member.name!r:.80} is there twice") from None
    with os.fdopen(handle, "wb") as file:
        left = member.size
        while left > 0 and (chunk := source.read(min(CHUNK_BYTES, left))):
            file.write(chunk)
            left -= len(chunk)
