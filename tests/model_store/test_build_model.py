"""`scripts/build-model`, and the packages that it has built."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from model_store.package import open_package
from tests.material import MATERIAL, needs_material
from tests.packages import BRAIN, GRAPHS, ROOT, build_package


def build_model(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "scripts" / "build-model", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(BRAIN, tmp_path / "package")


def test_the_shipped_package_is_as_built_and_passes_every_check() -> None:
    assert build_model(BRAIN, "--check").returncode == 0
    with open_package(BRAIN) as package:
        assert package.manifest.name == "brain-t1-small"
        assert {"card.md", "graph.onnx", "golden.npz"} <= package.manifest.files.keys()


def test_a_changed_file_is_noticed_and_built_in(copy: Path) -> None:
    before = (copy / "manifest.json").read_bytes()
    (copy / "card.md").write_text("another card\n")
    (copy / "licences" / "new.txt").write_text("a licence\n")
    checked = build_model(copy, "--check")
    assert checked.returncode == 1
    assert "is not what the directory holds" in checked.stderr
    assert (copy / "manifest.json").read_bytes() == before
    assert build_model(copy).returncode == 0
    assert build_model(copy, "--check").returncode == 0
    after = json.loads((copy / "manifest.json").read_text())
    assert after["files"]["licences/new.txt"]["size_bytes"] == 10
    assert {**after, "files": 0} == {**json.loads(before), "files": 0}
    open_package(copy).close()


@pytest.mark.parametrize(
    ("raw", "said"),
    [("{", "build-model: "), ('{"schema": "insitu.model/1"}', "name: Field required")],
)
def test_a_manifest_that_is_wrong_is_told_and_left_as_it_is(copy: Path, raw: str, said: str) -> None:
    (copy / "manifest.json").write_text(raw)
    built = build_model(copy)
    assert built.returncode == 1
    assert said in built.stderr
    assert "Traceback" not in built.stderr
    assert (copy / "manifest.json").read_text() == raw


def test_a_directory_without_a_manifest_is_told(tmp_path: Path) -> None:
    built = build_model(tmp_path)
    assert built.returncode == 1
    assert "manifest.json" in built.stderr


@needs_material
@pytest.mark.parametrize("name", GRAPHS)
def test_a_package_from_the_material_passes_every_check(name: str, tmp_path: Path) -> None:
    with open_package(build_package(name, tmp_path)) as package:
        assert package.manifest.name == name.replace("_", "-")


@needs_material
def test_the_shipped_golden_case_is_the_materials(tmp_path: Path) -> None:
    with (
        np.load(BRAIN / "golden.npz") as ours,
        np.load(MATERIAL / "models" / "brain_t1_small.golden.npz") as theirs,
    ):
        assert set(ours.files) == {"in.image", "at.logits", "out.logits", "labels.logits"}
        assert ours["in.image"].dtype == np.float32
        assert np.array_equal(ours["in.image"], theirs["image"].astype(np.float32))
        assert np.array_equal(ours["labels.logits"], theirs["labels"][None])
        channel, voxel = np.divmod(ours["at.logits"].reshape(3, 64), 96 * 112 * 96)
        assert (channel == np.arange(3)[:, None]).all()
        assert (voxel == theirs["sample_index"]).all()
        assert np.array_equal(ours["out.logits"].reshape(3, 64), theirs["sample_logits"])
    assert (BRAIN / "graph.onnx").read_bytes() == (MATERIAL / "models" / "brain_t1_small.onnx").read_bytes()
