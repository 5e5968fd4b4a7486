"""Where the shared material is (real models, real DICOM); tests that need it skip where it is absent."""

import tarfile
from pathlib import Path

import pytest

MATERIAL = Path(__file__).resolve().parents[2] / "shared" / "material"
needs_material = pytest.mark.skipif(
    not MATERIAL.is_dir(),
    reason="the shared material (../shared/material) is not beside this checkout",
)


def unpack(name: str, into: Path) -> list[Path]:
    """The DICOM files of `dicom/NAME.tar.xz`, unpacked below `into`, sorted by name."""
    with tarfile.open(MATERIAL / "dicom" / f"{name}.tar.xz") as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(into, filter="data")
        else:  # Debian 12's own Python 3.11.2 has no filters; the material is ours
            archive.extractall(into)
    return sorted(path for path in into.rglob("*") if path.is_file())
