"""A package is exactly what its manifest says, or it is refused and nothing of it stays."""

import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model_store import package as package_module
from model_store.errors import PackageError
from model_store.package import MAX_ENTRIES, check_files, check_listing, open_package, read_package
from tests import onnx_models

Spoil = Callable[[Path], object]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made; a test looks whether any was left."""
    path = tmp_path / "scratch"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def _tar(directory: Path, *, prefix: str = "", form: int = tarfile.PAX_FORMAT) -> Path:
    path = directory.with_suffix(".tar")
    with tarfile.open(path, "w", format=form) as archive:
        if prefix:
            archive.add(directory, prefix)
        else:
            for item in sorted(directory.iterdir()):
                archive.add(item, item.name)
    return path


def _raw_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for member, content in members:
            member.size = len(content) if member.isreg() else member.size
            archive.addfile(member, io.BytesIO(content))
    return path


def test_a_directory_is_a_package_and_its_digest_is_that_of_its_manifest(tmp_path: Path) -> None:
    directory = onnx_models.write_package(tmp_path / "p")
    seen: list[tuple[int, int]] = []
    package = open_package(directory, lambda done, total: seen.append((done, total)))
    assert package.digest == hashlib.sha256((directory / "manifest.json").read_bytes()).hexdigest()
    assert package.directory == directory
    assert seen[-1][0] == seen[-1][1] == sum(e.size_bytes for e in package.manifest.files.values())
    package.close()
    assert (directory / "model.onnx").is_file(), "a directory of the caller's is left alone"


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("prefix", ["", "."])
def test_a_tar_file_of_it_is_the_same_package(tmp_path: Path, scratch: Path, prefix: str, form: int) -> None:
    directory = onnx_models.write_package(tmp_path / "p")
    with open_package(_tar(directory, prefix=prefix, form=form)) as package:
        assert package.digest == open_package(directory).digest
        assert package.directory.parent == scratch
    assert list(scratch.iterdir()) == []


def test_a_package_of_a_tar_that_nobody_closes_goes_with_its_last_user(tmp_path: Path, scratch: Path) -> None:
    package = open_package(_tar(onnx_models.write_package(tmp_path / "p")))
    assert package.directory.is_dir()
    del package
    assert list(scratch.iterdir()) == []


def _edit(name: str, change: Callable[[bytes], bytes]) -> Spoil:
    return lambda path: (path / name).write_bytes(change((path / name).read_bytes()))


def _replace(name: str, with_what: Callable[[Path], object]) -> Spoil:
    def spoil(path: Path) -> None:
        (path / name).rename(path.parent / "moved")
        with_what(path / name)

    return spoil


SPOILED: dict[str, tuple[Spoil, str]] = {
    "one bit": (_edit("model.onnx", lambda raw: bytes([raw[0] ^ 1]) + raw[1:]), "sha256"),
    "one byte more": (_edit("model.onnx", lambda raw: raw + b"\0"), "the manifest says"),
    "one byte less": (_edit("model.onnx", lambda raw: raw[:-1]), "the manifest says"),
    "a file is missing": (
        lambda path: (path / "golden/case.npz").unlink(),
        "listed in the manifest, but not",
    ),
    "a file too many": (lambda path: (path / "run.sh").write_text("x"), "not listed in the manifest"),
    "a hidden file": (lambda path: (path / ".x").write_text("x"), "not a name"),
    "a nested directory": (lambda path: (path / "golden/deep").mkdir(), "first level"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "cannot be read"),
    "a symbolic link": (
        _replace("model.onnx", lambda path: path.symlink_to(path.parent.parent / "moved")),
        "plain file",
    ),
    "a linked manifest": (
        _replace("manifest.json", lambda path: path.symlink_to(path.parent.parent / "moved")),
        "cannot be read",
    ),
    "a linked directory": (
        _replace("golden", lambda path: path.symlink_to(path.parent.parent / "moved")),
        "plain file",
    ),
    "a named pipe": (_replace("model.onnx", os.mkfifo), "plain file"),
    "a piped manifest": (_replace("manifest.json", os.mkfifo), "plain file"),
    "too many files": (
        lambda path: [(path / f"f{i}").write_bytes(b"") for i in range(MAX_ENTRIES)],
        f"more than {MAX_ENTRIES}",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_directory_that_is_not_what_its_manifest_says_is_refused(tmp_path: Path, case: str) -> None:
    spoil, problem = SPOILED[case]
    directory = onnx_models.write_package(tmp_path / "p")
    spoil(directory)
    with pytest.raises(PackageError, match=problem):
        open_package(directory)


def test_a_manifest_that_lists_itself_is_refused(tmp_path: Path) -> None:
    directory = onnx_models.write_package(tmp_path / "p", more={"manifest.json": b"x"})
    with pytest.raises(PackageError, match="lists itself"):
        open_package(directory)


def test_a_second_name_of_a_file_is_refused_where_nobody_else_may_write(tmp_path: Path) -> None:
    directory = onnx_models.write_package(tmp_path / "p")
    os.link(directory / "model.onnx", tmp_path / "other")
    package = read_package(directory)
    check_listing(package)
    with pytest.raises(PackageError, match=r"model\.onnx has 2 names"):
        check_listing(package, sole_links=True)


def test_content_is_checked_by_reading_it(tmp_path: Path) -> None:
    directory = onnx_models.write_package(tmp_path / "p")
    raw = (directory / "model.onnx").read_bytes()
    (directory / "model.onnx").write_bytes(bytes(len(raw)))
    package = read_package(directory)
    check_listing(package)
    with pytest.raises(PackageError, match=r"model\.onnx has sha256"):
        check_files(package)


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    return member


HOSTILE: dict[str, tuple[list[tuple[tarfile.TarInfo, bytes]], str]] = {
    "absolute": ([(_member("/tmp/insitu-evil"), b"x")], "not a name"),
    "parent": ([(_member("../insitu-evil"), b"x")], "not a name"),
    "inner parent": ([(_member("a/../../insitu-evil"), b"x")], "not a name"),
    "symbolic link": ([(_member("a", tarfile.SYMTYPE, "/etc/passwd"), b"")], "plain file"),
    "hard link": ([(_member("a", tarfile.LNKTYPE, "/etc/passwd"), b"")], "plain file"),
    "device": ([(_member("a", tarfile.CHRTYPE), b"")], "plain file"),
    "pipe": ([(_member("a", tarfile.FIFOTYPE), b"")], "plain file"),
    "twice": ([(_member("a"), b"1"), (_member("a"), b"2")], "twice"),
    "too many": ([(_member(f"f{i}"), b"") for i in range(MAX_ENTRIES + 1)], f"more than {MAX_ENTRIES}"),
    "nothing": ([], "cannot be read"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_tar_writes_nothing_outside_and_leaves_nothing(
    tmp_path: Path, scratch: Path, case: str
) -> None:
    members, problem = HOSTILE[case]
    path = _raw_tar(tmp_path / "p.tar", members)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PackageError, match=problem):
        open_package(path)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/insitu-evil").exists()


def test_a_tar_header_that_asks_for_much_memory_is_refused(tmp_path: Path, scratch: Path) -> None:
    member = _member("././@PaxHeader", tarfile.XHDTYPE, size=64 << 20)
    path = tmp_path / "p.tar"
    with path.open("wb") as file:
        file.write(member.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(65 << 20)
    with pytest.raises(PackageError, match="a header of"):
        open_package(path)
    assert list(scratch.iterdir()) == []


def test_a_tar_that_says_it_is_larger_than_any_package_is_refused(tmp_path: Path, scratch: Path) -> None:
    path = tmp_path / "p.tar"
    member = _member("a", size=package_module.MAX_PACKAGE_BYTES + 1)
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(PackageError, match="bytes in all"):
        open_package(path)
    assert list(scratch.iterdir()) == []


def test_a_sparse_tar_member_is_refused(tmp_path: Path, scratch: Path) -> None:
    """A few bytes that unpack to gigabytes of zeros."""
    member = _member("a")
    member.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": "9999999999",
    }
    path = tmp_path / "p.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        content = b"1\n0\n1\n".ljust(512, b"\0") + b"x"
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    with pytest.raises(PackageError, match="plain file"):
        open_package(path)


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    directory = onnx_models.write_package(tmp_path / "p")
    path = tmp_path / "p.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(directory, ".")
    with pytest.raises(PackageError, match="not an uncompressed tar"):
        open_package(path)


def test_a_tar_cut_anywhere_or_with_any_header_byte_changed_is_refused_or_the_same(
    tmp_path: Path, scratch: Path
) -> None:
    directory = onnx_models.write_package(tmp_path / "p")
    source = _tar(directory)
    whole = source.read_bytes()
    with tarfile.open(source) as archive:
        headers = [at for item in archive for at in range(item.offset, item.offset_data)]
    digest = open_package(directory).digest
    random = np.random.default_rng(5)
    variants = [whole[:length] for length in range(0, len(whole), 512)]
    for at in random.choice(headers, 300, replace=False):
        variants.append(whole[:at] + bytes([whole[at] ^ (1 << int(random.integers(8)))]) + whole[at + 1 :])
    path = tmp_path / "variant.tar"
    refused = 0
    for variant in variants:
        path.write_bytes(variant)
        try:
            with open_package(path) as package:
                assert package.digest == digest
        except PackageError:
            refused += 1
    assert refused > 50
    assert list(scratch.iterdir()) == []


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="no such directory or file"):
        open_package(tmp_path / "nothing")
