"""The model packages of this site, and which of them serve.

Owns `<root>/packages/<digest>/` and decides on moves of the serving table. A package comes in
once, checked and durable, and never changes; the table says for each model name which digest
serves. Who signed a package, and whether the site accepted it, are decided before `activate`
is called.

*Recovery*: an import that was cut off is removed by the next one. `start_serving` re-reads every
byte of what serves; a package that is damaged is replaced by the one that served before it, and
the history says so.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from model_store.durable import commit_directory, make_directory, sync_directory
from model_store.errors import PackageError, StoreError, UnknownModelError
from model_store.manifest import MAX_MANIFEST_BYTES
from model_store.package import (
    MANIFEST_NAME,
    Package,
    Progress,
    check_files,
    check_listing,
    open_package,
    open_plain,
    read_listed,
    read_package,
)
from model_store.serving import Move, Serving, ServingTable, disk_errors

SPARE_BYTES: Final = 64 << 20
"""Left free by an import: the disk also holds the journal."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One package in the store."""

    digest: str
    name: str
    """Empty when `problem` is that the manifest cannot be read."""
    version: str
    title: str
    vendor: str
    size_bytes: int
    state: Literal["active", "previous", "stored"]
    problem: str
    """Why the package cannot be used, as far as the listing shows; else empty."""


@dataclass(frozen=True, slots=True)
class Served:
    """What serves under a name after `start_serving`."""

    name: str
    package: Package | None
    """None: neither the active package nor the one before it can be used."""
    notice: str
    """What the operator has to know (a fallback, a damaged package); else empty."""


class ModelStore:
    """The store below `root`; several processes may have it open at once."""

    def __init__(self, root: Path) -> None:
        """Open the store, making its directories where they are missing.

        Raises:
            StoreError: the disk is full, read-only or failing.
        """
        self._root = root
        self._packages = root / "packages"
        self._table = ServingTable(root)
        with disk_errors(root):
            make_directory(self._packages)

    def import_package(self, path: Path, progress: Progress | None = None) -> Package:
        """Check the package at `path` (a directory or a `.tar`) and keep a copy, durably.

        Twice the same package is one copy; a copy that is damaged is replaced. When this returns,
        the copy survives a power cut.

        Args:
            path: where the package is.
            progress: told the bytes done and the bytes in all; each byte counts twice (checked, copied).

        Raises:
            PackageError: the package is not what its manifest says.
            StoreError: the disk is full, read-only or failing; the store is as it was.
        """
        half = None if progress is None else _counted(progress, 0)
        with open_package(path, half) as source, self._locked():
            final = self._packages / source.digest
            with disk_errors(final):
                self._remove_leftovers()
                if final.exists():
                    try:
                        return self.verify(source.digest)
                    except PackageError:
                        self._set_aside(final)
                self._copy(source, final, None if progress is None else _counted(progress, 1))
        return self.get(source.digest)

    def list(self) -> tuple[StoredModel, ...]:
        """Every package in the store, by name, version and digest; contents are not re-read."""
        table = self.serving()
        active = {line.active for line in table.values()}
        previous = {line.previous for line in table.values()}
        models = []
        for directory in self._directories():
            state: Literal["active", "previous", "stored"] = (
                "active"
                if directory.name in active
                else "previous"
                if directory.name in previous
                else "stored"
            )
            try:
                package = self.get(directory.name)
            except PackageError as error:
                models.append(StoredModel(directory.name, "", "", "", "", 0, state, str(error)))
                continue
            said = package.manifest
            size = sum(entry.size_bytes for entry in said.files.values())
            models.append(
                StoredModel(package.digest, said.name, said.version, said.title, said.vendor, size, state, "")
            )
        return tuple(sorted(models, key=lambda item: (item.name, _order(item.version), item.digest)))

    def get(self, digest: str) -> Package:
        """The package with this digest; manifest, names and sizes are checked, contents are not re-read.

        Raises:
            UnknownModelError: the store does not have it.
            PackageError: the copy is damaged.
        """
        directory = self._directory(digest)
        package = read_package(directory)
        if package.digest != digest:
            raise PackageError(f"{directory}: {MANIFEST_NAME} has sha256 {package.digest}, must be {digest}")
        try:
            check_listing(package, sole_links=True)
        except OSError as error:
            raise PackageError(f"{directory}: cannot be read: {error.strerror}") from error
        return package

    def verify(self, digest: str, progress: Progress | None = None) -> Package:
        """The package with this digest, every byte of it re-read.

        Raises:
            UnknownModelError: the store does not have it.
            PackageError: the copy is damaged.
        """
        package = self.get(digest)
        try:
            check_files(package, progress, sole_links=True)
        except OSError as error:
            raise PackageError(f"{package.directory}: cannot be read: {error.strerror}") from error
        return package

    def find(self, name_or_digest: str, version: str | None = None) -> str:
        """The digest that a person means by a name (with a version, if there are several) or a digest.

        Raises:
            UnknownModelError: there is none, or more than one; the message says which there are.
        """
        models = self.list()
        found = [
            item
            for item in models
            if name_or_digest in {item.digest, item.name} and version in {None, item.version}
        ]
        if len(found) == 1:
            return found[0].digest
        wanted = name_or_digest if version is None else f"{name_or_digest} {version}"
        there = ", ".join(f"{m.name} {m.version} ({m.digest[:12]})" for m in found or models) or "nothing"
        raise UnknownModelError(
            f"model {wanted!r:.100} is in the store {len(found)} times, must be once; there is: {there}"
        )

    def serving(self) -> Mapping[str, Serving]:
        """The serving table by model name.

        Raises:
            StoreError: it cannot be read.
        """
        return self._table.read()[0]

    def active_digests(self) -> tuple[str, ...]:
        """The digests that serve at this moment, by model name; nothing but the table is read."""
        return tuple(line.active for _, line in sorted(self.serving().items()) if line.active is not None)

    def history(self) -> tuple[Move, ...]:
        """The moves of the serving table, oldest first."""
        return self._table.history()

    def activate(
        self, name_or_digest: str, version: str | None = None, *, who: str, now: datetime
    ) -> Serving:
        """Let a package serve under its name; the one that served is kept as the previous.

        Args:
            name_or_digest: the model's name, or a package's digest.
            version: which version, where the store has several of the name.
            who: the person or process that decided.
            now: aware, UTC.

        Raises:
            UnknownModelError: no such package, or more than one.
            PackageError: the package is damaged; nothing has changed.
            StoreError: the disk is full, read-only or failing.
        """
        with self._locked():
            package = self.verify(self.find(name_or_digest, version))
            old = self.serving().get(package.manifest.name)
            if old is not None and old.active == package.digest:
                return old
            previous = None if old is None else old.active or old.previous
            new = Serving(
                active=package.digest,
                previous=None if previous == package.digest else previous,
                since=now,
                by=who,
            )
            said = package.manifest
            return self._table.move(Move(move="activate", name=said.name, version=said.version, serving=new))

    def deactivate(self, name: str, *, who: str, now: datetime) -> Serving:
        """Let no package serve under `name`; `rollback` returns to the one that did.

        Raises:
            UnknownModelError: no package serves under this name.
        """
        with self._locked():
            old = self._table.line(name)
            if old.active is None:
                return old
            new = Serving(active=None, previous=old.active, since=now, by=who)
            return self._table.move(Move(move="deactivate", name=name, version=None, serving=new))

    def rollback(self, name: str, *, who: str, now: datetime) -> Serving:
        """Let the previous package of `name` serve again.

        There is no previous one afterwards: what was rolled back is never returned to by itself.

        Raises:
            UnknownModelError: the name is unknown, or has no previous package.
            PackageError: the previous package is damaged; nothing has changed.
        """
        with self._locked():
            old = self._table.line(name)
            if old.previous is None:
                raise UnknownModelError(f"model {name}: there is no previous version to return to")
            package = self.verify(old.previous)
            new = Serving(active=package.digest, previous=None, since=now, by=who)
            version = package.manifest.version
            return self._table.move(Move(move="rollback", name=name, version=version, serving=new))

    def start_serving(self, *, who: str, now: datetime) -> tuple[Served, ...]:
        """What serves, by name, every byte re-read; called once at start.

        Where the active package cannot be used, the previous one takes its place in the table if
        it can, and the notice says so.
        """
        with self._locked():
            lines, notice = self._table.read()
            served = [
                self._start(name, line, who, now)
                for name, line in sorted(lines.items())
                if line.active is not None
            ]
        return tuple(replace(item, notice="; ".join(filter(None, [notice, item.notice]))) for item in served)

    def _start(self, name: str, line: Serving, who: str, now: datetime) -> Served:
        reasons = []
        for digest in (line.active, line.previous):
            if digest is None:
                continue
            try:
                package = self.verify(digest)
                if package.manifest.name != name:
                    raise PackageError(f"{package.directory}: is {package.manifest.name}, not {name}")
            except (PackageError, UnknownModelError) as error:
                reasons.append(str(error))
                continue
            if digest == line.active:
                return Served(name, package, "")
            version = package.manifest.version
            new = Serving(active=digest, previous=None, since=now, by=who)
            self._table.move(
                Move(move="fallback", name=name, version=version, reason=reasons[0], serving=new)
            )
            notice = f"model {name}: serves version {version} again, because {reasons[0]}"
            return Served(name, package, notice)
        return Served(name, None, f"model {name}: cannot serve, because {'; and '.join(reasons)}")

    def _copy(self, source: Package, final: Path, progress: Progress | None) -> None:
        needed = sum(entry.size_bytes for entry in source.manifest.files.values()) + SPARE_BYTES
        free = shutil.disk_usage(self._packages).free
        if free < needed:
            raise StoreError(f"{self._packages}: {free} bytes free, the package needs {needed}")
        temporary = self._packages / f".{source.digest}.tmp"
        temporary.mkdir(mode=0o750)
        try:
            done = 0
            with open_plain(source.directory / MANIFEST_NAME) as file:
                _write(temporary / MANIFEST_NAME, iter([file.read(MAX_MANIFEST_BYTES + 1)]))
            for name, entry in source.manifest.files.items():
                target = temporary / name
                target.parent.mkdir(mode=0o750, exist_ok=True)
                _write(target, read_listed(source, name))
                done += entry.size_bytes
                if progress is not None:
                    progress(done, needed - SPARE_BYTES)
            # The copy is what counts, whatever happened to the source since it was checked.
            copied = read_package(temporary)
            if copied.digest != source.digest:
                raise PackageError(f"{source.directory}: {MANIFEST_NAME} changed while it was imported")
            check_listing(copied, sole_links=True)
            commit_directory(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _set_aside(self, damaged: Path) -> None:
        """Take a damaged copy out of the way, durably, before its files are removed."""
        aside = damaged.with_name(f".{damaged.name}.damaged.tmp")
        damaged.rename(aside)
        sync_directory(self._packages)
        shutil.rmtree(aside)

    def _remove_leftovers(self) -> None:
        """Remove what imports left that were cut off; only under the lock, so that none is under way."""
        for path in self._packages.glob(".*.tmp"):
            shutil.rmtree(path)

    def _directories(self) -> Iterator[Path]:
        with disk_errors(self._packages):
            yield from (path for path in self._packages.iterdir() if not path.name.startswith("."))

    def _directory(self, digest: str) -> Path:
        # Never a path from what somebody typed: only the name of a directory that is there.
        for directory in self._directories():
            if directory.name == digest:
                return directory
        raise UnknownModelError(f"model package {digest!r:.80} is not in the store")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the store against other processes; the kernel lets go when a holder dies."""
        with disk_errors(self._root):
            handle = os.open(self._root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _write(path: Path, chunks: Iterator[bytes]) -> None:
    """Write a file that nobody changes any more; `commit_directory` makes it durable."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o440)
    with os.fdopen(handle, "wb") as file:
        for chunk in chunks:
            file.write(chunk)


def _counted(progress: Progress, halves_done: int) -> Callable[[int, int], None]:
    """`progress` over the whole of an import, of which this is one half."""
    return lambda done, total: progress(halves_done * total + done, 2 * total)


def _order(version: str) -> tuple[int, ...]:
    """Versions by their numbers: 1.10.0 comes after 1.9.0."""
    numbers = version.replace("+", "-").partition("-")[0].split(".")
    return tuple(int(number) for number in numbers if number.isdecimal())
