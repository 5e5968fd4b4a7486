"""The site's store: what is imported stays, what serves is good, and every move is written down."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from model_store.errors import GraphError, PackageError, StoreError, UnknownModelError
from model_store.package import Package
from model_store.store import ModelStore
from tests import onnx_models

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
WHO = "test"


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def _source(tmp_path: Path, version: str = "1.0.0", name: str = "test-model") -> Path:
    return onnx_models.write_package(tmp_path / f"{name}-{version}", version=version, name=name)


def _import(store: ModelStore, tmp_path: Path, version: str = "1.0.0", name: str = "test-model") -> Package:
    return store.import_package(_source(tmp_path, version, name))


def _snapshot(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != ".lock"
    }


def _damage(package: Package) -> None:
    path = package.directory / "model.onnx"
    path.chmod(0o640)
    path.write_bytes(bytes(path.stat().st_size))


def test_an_imported_package_is_a_read_only_copy_of_its_own(store: ModelStore, tmp_path: Path) -> None:
    source = _source(tmp_path)
    seen: list[tuple[int, int]] = []
    package = store.import_package(source, lambda done, total: seen.append((done, total)))
    assert package.directory == tmp_path / "store/packages" / package.digest
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    shutil.rmtree(source)
    assert store.verify(package.digest).manifest == package.manifest
    modes = {path.stat().st_mode & 0o777 for path in package.directory.rglob("*") if path.is_file()}
    assert modes == {0o440}


def test_importing_twice_is_importing_once(store: ModelStore, tmp_path: Path) -> None:
    first = _import(store, tmp_path)
    inode = (first.directory / "model.onnx").stat().st_ino
    again = store.import_package(tmp_path / "test-model-1.0.0")
    assert again == first
    assert (again.directory / "model.onnx").stat().st_ino == inode
    assert len(store.list()) == 1


def test_a_refused_package_leaves_the_store_as_it_was(store: ModelStore, tmp_path: Path) -> None:
    _import(store, tmp_path)
    before = _snapshot(tmp_path / "store")
    bad = onnx_models.write_package(tmp_path / "bad", onnx_models.huge_constant())
    with pytest.raises(GraphError):
        store.import_package(bad)
    assert _snapshot(tmp_path / "store") == before


def test_a_damaged_copy_is_found_and_an_import_mends_it(store: ModelStore, tmp_path: Path) -> None:
    package = _import(store, tmp_path)
    _damage(package)
    store.get(package.digest)  # size and names are right
    with pytest.raises(PackageError, match=r"model\.onnx has sha256"):
        store.verify(package.digest)
    store.import_package(tmp_path / "test-model-1.0.0")
    store.verify(package.digest)
    assert [path.name for path in (tmp_path / "store/packages").iterdir()] == [package.digest]


def test_an_import_cut_off_by_kill_leaves_nothing_that_counts(store: ModelStore, tmp_path: Path) -> None:
    """A process is killed in the middle of its copy; the next import finds and removes what it left."""
    source = _source(tmp_path)
    child = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from model_store.store import ModelStore\n"
        "def progress(done, total):\n"
        "    if done * 2 > total: os.kill(os.getpid(), signal.SIGKILL)\n"
        "ModelStore(Path(sys.argv[1])).import_package(Path(sys.argv[2]), progress)\n"
    )
    command = [sys.executable, "-I", "-c", child, str(tmp_path / "store"), str(source)]
    assert subprocess.run(command, check=False).returncode == -9
    assert [path.suffix for path in (tmp_path / "store/packages").iterdir()] == [".tmp"]
    assert store.list() == ()
    package = store.import_package(source)
    assert [path.name for path in (tmp_path / "store/packages").iterdir()] == [package.digest]


def test_a_link_or_a_stranger_in_the_store_is_damage(store: ModelStore, tmp_path: Path) -> None:
    package = _import(store, tmp_path)
    os.link(package.directory / "model.onnx", tmp_path / "second-name")
    with pytest.raises(PackageError, match="2 names"):
        store.get(package.digest)
    (model,) = store.list()
    assert "2 names" in model.problem


def test_a_package_under_the_wrong_digest_is_damage(store: ModelStore, tmp_path: Path) -> None:
    package = _import(store, tmp_path)
    wrong = package.directory.with_name("0" * 64)
    package.directory.rename(wrong)
    with pytest.raises(PackageError, match="must be 0000"):
        store.get("0" * 64)


@pytest.mark.parametrize("digest", ["", "..", "../packages", "/etc", "f" * 64, "a/b", "\0"])
def test_no_path_is_built_from_what_somebody_typed(store: ModelStore, tmp_path: Path, digest: str) -> None:
    _import(store, tmp_path)
    with pytest.raises(UnknownModelError):
        store.get(digest)


def test_the_list_is_in_the_order_of_versions(store: ModelStore, tmp_path: Path) -> None:
    for version in ("1.10.0", "1.9.0", "1.9.0-rc.1"):
        _import(store, tmp_path, version)
    _import(store, tmp_path, name="another")
    store.activate("test-model", "1.10.0", who=WHO, now=NOW)
    listed = [(model.name, model.version, model.state) for model in store.list()]
    assert listed[0] == ("another", "1.0.0", "stored")
    assert listed[-1] == ("test-model", "1.10.0", "active")


def test_a_name_that_means_two_packages_asks_for_the_version(store: ModelStore, tmp_path: Path) -> None:
    for version in ("1.0.0", "2.0.0"):
        _import(store, tmp_path, version)
    with pytest.raises(UnknownModelError, match=r"2 times.*1\.0\.0.*2\.0\.0"):
        store.find("test-model")
    assert store.find("test-model", "2.0.0") != store.find("test-model", "1.0.0")
    with pytest.raises(UnknownModelError, match="0 times"):
        store.find("test-model", "3.0.0")


def test_activate_deactivate_and_rollback_move_one_line_and_say_who(
    store: ModelStore, tmp_path: Path
) -> None:
    one, two = _import(store, tmp_path, "1.0.0"), _import(store, tmp_path, "2.0.0")
    other = _import(store, tmp_path, name="other")
    store.activate(other.digest, who=WHO, now=NOW)
    store.activate(one.digest, who="anna", now=NOW)
    line = store.activate("test-model", "2.0.0", who="ben", now=NOW + timedelta(hours=1))
    assert (line.active, line.previous, line.by) == (two.digest, one.digest, "ben")
    assert store.active_digests() == (other.digest, two.digest)

    assert store.activate(two.digest, who="again", now=NOW) == line, "what serves already does not move"

    line = store.deactivate("test-model", who="anna", now=NOW)
    assert (line.active, line.previous) == (None, two.digest)
    assert store.active_digests() == (other.digest,)

    line = store.rollback("test-model", who="anna", now=NOW)
    assert (line.active, line.previous) == (two.digest, None)
    with pytest.raises(UnknownModelError, match="no previous"):
        store.rollback("test-model", who="anna", now=NOW)

    moves = [(move.move, move.version, move.serving.by) for move in store.history()]
    assert moves == [
        ("activate", "1.0.0", WHO),
        ("activate", "1.0.0", "anna"),
        ("activate", "2.0.0", "ben"),
        ("deactivate", None, "anna"),
        ("rollback", "2.0.0", "anna"),
    ]
    assert ModelStore(tmp_path / "store").serving() == store.serving()


def test_a_damaged_package_is_not_activated_and_nothing_moves(store: ModelStore, tmp_path: Path) -> None:
    one, two = _import(store, tmp_path, "1.0.0"), _import(store, tmp_path, "2.0.0")
    store.activate(one.digest, who=WHO, now=NOW)
    _damage(two)
    before = _snapshot(tmp_path / "store")
    with pytest.raises(PackageError):
        store.activate(two.digest, who=WHO, now=NOW)
    assert _snapshot(tmp_path / "store") == before


def test_an_unknown_name_moves_nothing(store: ModelStore) -> None:
    for move in (store.deactivate, store.rollback):
        with pytest.raises(UnknownModelError, match="not in the serving table"):
            move("nobody", who=WHO, now=NOW)
    assert store.history() == ()


def test_at_start_a_damaged_package_is_replaced_by_the_one_before_and_it_is_said(
    store: ModelStore, tmp_path: Path
) -> None:
    one, two = _import(store, tmp_path, "1.0.0"), _import(store, tmp_path, "2.0.0")
    other = _import(store, tmp_path, name="other")
    for digest in (other.digest, one.digest, two.digest):
        store.activate(digest, who=WHO, now=NOW)
    assert [item.notice for item in store.start_serving(who="insitu", now=NOW)] == ["", ""]

    _damage(two)
    served = {item.name: item for item in store.start_serving(who="insitu", now=NOW)}
    assert served["other"].package == other
    assert served["other"].notice == ""
    assert served["test-model"].package == one
    assert "serves version 1.0.0 again, because" in served["test-model"].notice
    assert "model.onnx has sha256" in served["test-model"].notice
    last = store.history()[-1]
    assert (last.move, last.version, last.serving.active) == ("fallback", "1.0.0", one.digest)
    assert store.start_serving(who="insitu", now=NOW)[1].notice == "", "the second start is a plain one"


def test_at_start_a_model_without_any_good_package_does_not_serve_and_it_is_said(
    store: ModelStore, tmp_path: Path
) -> None:
    one, two = _import(store, tmp_path, "1.0.0"), _import(store, tmp_path, "2.0.0")
    for digest in (one.digest, two.digest):
        store.activate(digest, who=WHO, now=NOW)
    _damage(two)
    shutil.rmtree(one.directory)
    (served,) = store.start_serving(who="insitu", now=NOW)
    assert served.package is None
    assert "cannot serve" in served.notice
    assert "is not in the store" in served.notice


@pytest.mark.parametrize("damage", [b"", b"{", b'{"test-model": {"active": 1}}', b"\0" * 100])
def test_a_damaged_table_is_made_again_from_the_history(
    store: ModelStore, tmp_path: Path, damage: bytes
) -> None:
    package = _import(store, tmp_path)
    line = store.activate(package.digest, who=WHO, now=NOW)
    (tmp_path / "store/serving.json").write_bytes(damage)
    assert store.serving() == {"test-model": line}
    (served,) = store.start_serving(who="insitu", now=NOW)
    assert served.package == package
    assert "is damaged; what serves is taken from the history" in served.notice


def test_a_history_with_torn_lines_still_tells_the_others(store: ModelStore, tmp_path: Path) -> None:
    package = _import(store, tmp_path)
    store.activate(package.digest, who=WHO, now=NOW)
    with (tmp_path / "store/history.jsonl").open("ab") as file:
        file.write(b'{"move": "activ')
    store.deactivate("test-model", who=WHO, now=NOW)
    assert [move.move for move in store.history()] == ["activate", "deactivate"]


def test_a_table_entry_that_points_at_another_model_is_not_served(store: ModelStore, tmp_path: Path) -> None:
    package, other = _import(store, tmp_path), _import(store, tmp_path, name="other")
    store.activate(package.digest, who=WHO, now=NOW)
    path = tmp_path / "store/serving.json"
    table = json.loads(path.read_bytes())
    table["test-model"]["active"] = other.digest
    path.write_text(json.dumps(table))
    (served,) = store.start_serving(who="insitu", now=NOW)
    assert served.package is None
    assert "is other, not test-model" in served.notice


def test_two_processes_that_import_and_activate_at_once_both_succeed(
    store: ModelStore, tmp_path: Path
) -> None:
    child = (
        "import sys\nfrom datetime import UTC, datetime\nfrom pathlib import Path\n"
        "from model_store.store import ModelStore\n"
        "store = ModelStore(Path(sys.argv[1]))\n"
        "digest = store.import_package(Path(sys.argv[2])).digest\n"
        "store.activate(digest, who='child', now=datetime(2026, 3, 1, tzinfo=UTC))\n"
    )
    sources = [_source(tmp_path, name=f"model-{i}") for i in range(3)]
    children = [
        subprocess.Popen([sys.executable, "-I", "-c", child, str(tmp_path / "store"), str(source)])
        for source in sources
    ]
    assert [process.wait(60) for process in children] == [0, 0, 0]
    assert sorted(store.serving()) == ["model-0", "model-1", "model-2"]
    assert len(store.history()) == 3


def test_a_place_that_cannot_be_a_store_is_our_disks_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file"):
        ModelStore(tmp_path / "file")
