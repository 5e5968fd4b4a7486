"""Orthanc with its DICOMweb plugin as a process: STOW-RS, QIDO-RS and WADO-RS of somebody else."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.fakes.pacs import Orthanc

PLUGIN: Final = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")

needs_orthanc_web = pytest.mark.skipif(
    not PLUGIN.is_file(), reason="Orthanc's plugin is not installed (apt-get install orthanc-dicomweb)"
)


class OrthancWeb(Orthanc):
    """Orthanc whose DICOMweb is below /dicom-web."""

    def __init__(
        self,
        directory: Path,
        options: Mapping[str, object] | None = None,
        modalities: Mapping[str, tuple[str, int]] | None = None,
    ) -> None:
        super().__init__(directory, modalities)
        file = directory / "orthanc.json"
        configuration = json.loads(file.read_text())
        file.write_text(
            json.dumps(
                {**configuration, "Plugins": [str(PLUGIN)], "DicomWeb": {"Enable": True}, **(options or {})}
            )
        )

    @property
    def url(self) -> str:
        """Where its DICOMweb is."""
        return f"http://127.0.0.1:{self.http_port}/dicom-web"
