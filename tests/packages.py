"""Model packages for tests: the shipped one, and three built from the shared material.

The manifests are in `tests/model_packages/NAME.json` without `files`; the graph and its golden
case come from the material, and `scripts/build-model` fills in the sizes and hashes.
"""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image

from model_store.manifest import Manifest, parse
from tests.material import MATERIAL

ROOT = Path(__file__).resolve().parents[1]
BRAIN = ROOT / "models" / "brain_t1_small"
"""The package that is shipped; needs no material."""
GRAPHS = {
    "cxr_squeezenet": "squeezenet11_cxr_pneumonia3.onnx",
    "cxr_small": "cxr_pneumonia_small_selftrained.onnx",
    "meshnet_gw": "meshnet_model5_gw_ae.onnx",
}
GOLDEN_RADIOGRAPH = "dicom/cxr/IM-0003-0001.dcm"


def build_package(name: str, into: Path) -> Path:
    """Build the package `cxr_squeezenet`, `cxr_small` or `meshnet_gw` as a directory below `into`."""
    directory = into / name
    directory.mkdir(parents=True)
    manifest = json.loads((ROOT / "tests" / "model_packages" / f"{name}.json").read_text())
    (directory / "manifest.json").write_text(json.dumps({**manifest, "files": {}}))
    shutil.copyfile(MATERIAL / "models" / GRAPHS[name], directory / "graph.onnx")
    arrays = _golden_volume() if name == "meshnet_gw" else _golden_image(name)
    np.savez_compressed(directory / "golden.npz", allow_pickle=False, **arrays)
    subprocess.run(
        [sys.executable, "-I", "-m", "scripts.build_model", str(directory)], check=True, timeout=60
    )
    return directory


def cxr_packages(into: Path) -> list[Path]:
    """Both chest X-ray packages, the small one first."""
    return [build_package("cxr_small", into), build_package("cxr_squeezenet", into)]


def meshnet_package(into: Path) -> Path:
    """The MeshNet package: a free grid, 7 to 20 s a run on one core."""
    return build_package("meshnet_gw", into)


def manifest_of(directory: Path) -> Manifest:
    """The manifest of a package directory."""
    return parse((directory / "manifest.json").read_bytes(), directory.name)


def radiographs() -> list[dict[str, str]]:
    """The rows of the material's table: file, size, the probabilities that each model must give."""
    with (MATERIAL / "reference" / "cxr_labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _golden_image(name: str) -> dict[str, np.ndarray]:
    """One radiograph by the models' own recipe (Pillow), and the scores that the material expects of it."""
    expected = next(row for row in radiographs() if row["file"] == GOLDEN_RADIOGRAPH)
    grey = Image.fromarray(pydicom.dcmread(MATERIAL / GOLDEN_RADIOGRAPH).pixel_array)
    size = 224 if name == "cxr_squeezenet" else 128
    small = np.asarray(grey.resize((size, size), Image.Resampling.BILINEAR), np.float32) / np.float32(255)
    if name == "cxr_small":
        score = np.asarray([[float(expected["small_p_pneumonia"])]], np.float32)
        return {"in.image": small[None, None], "out.p_pneumonia": score}
    mean = np.asarray([0.485, 0.456, 0.406], np.float32)[:, None, None]
    deviation = np.asarray([0.229, 0.224, 0.225], np.float32)[:, None, None]
    logits = [float(expected[f"sq_logit_{kind}"]) for kind in ("bacterial", "normal", "viral")]
    return {
        "in.image": ((small - mean) / deviation)[None],
        "out.logits": np.asarray([logits], np.float32),
    }


def _golden_volume() -> dict[str, np.ndarray]:
    with np.load(MATERIAL / "reference" / "meshnet5_tensor_golden_mni152.npz") as golden:
        volume = golden["conformed_crop_u8"].astype(np.float32) / np.float32(golden["conformed_max"])
        return {"in.volume": volume[None, None], "labels.logits": golden["labels_u8"][None]}
