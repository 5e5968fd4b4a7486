"""Files that survive a power cut: what is visible when, and what is left when it fails."""

import os
from pathlib import Path

import pytest

from model_store.durable import append_line, commit_directory, make_directory, write_file


def _tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_file(tmp_path / "a", b"old")
    write_file(tmp_path / "a", [b"n", b"ew"], mode=0o440)
    assert _tree(tmp_path) == {"a": b"new"}
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o440


def test_a_write_that_fails_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    write_file(tmp_path / "a", b"old")

    def chunks() -> "list[bytes]":
        raise OSError("the source failed")

    with pytest.raises(OSError, match="the source failed"):
        write_file(tmp_path / "a", (chunk for _ in range(1) for chunk in chunks()))
    assert _tree(tmp_path) == {"a": b"old"}


def test_a_directory_and_its_parents_are_made_once(tmp_path: Path) -> None:
    make_directory(tmp_path / "a/b/c")
    make_directory(tmp_path / "a/b/c")
    assert (tmp_path / "a/b/c").is_dir()


def test_a_directory_gets_its_name_with_everything_below_it(tmp_path: Path) -> None:
    made = tmp_path / ".new.tmp"
    (made / "deep").mkdir(parents=True)
    (made / "one").write_bytes(b"1")
    (made / "deep/two").write_bytes(b"2")
    commit_directory(made, tmp_path / "new")
    assert _tree(tmp_path) == {"new/one": b"1", "new/deep/two": b"2"}


def test_a_directory_is_not_put_over_one_that_is_there(tmp_path: Path) -> None:
    for name in ("old", ".new.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(name.encode())
    with pytest.raises(OSError, match="not empty"):
        commit_directory(tmp_path / ".new.tmp", tmp_path / "old")
    assert _tree(tmp_path) == {"old/file": b"old", ".new.tmp/file": b".new.tmp"}


def test_a_link_in_a_directory_is_refused_before_the_directory_has_its_name(tmp_path: Path) -> None:
    made = tmp_path / ".new.tmp"
    made.mkdir()
    (made / "link").symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="link"):
        commit_directory(made, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_line_cut_off_by_a_crash_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, "first")
    append_line(path, "second")
    os.truncate(path, path.stat().st_size - 3)
    append_line(path, "third")
    assert path.read_text() == "first\nseco\nthird\n"
