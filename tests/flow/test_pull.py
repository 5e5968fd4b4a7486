"""Studies are fetched from Orthanc: by C-MOVE, by DICOMweb, and earlier ones of a patient by rule."""

import json
import subprocess
from pathlib import Path
from typing import Any

from dicom.uid import derive
from tests.fakes.orthanc_web import OrthancWeb, needs_orthanc_web
from tests.fakes.pacs import Orthanc, ScriptedPacs, free_port, needs_dcmtk, needs_orthanc
from tests.flow.appliance import Appliance
from tests.tiny import tiny_model, tiny_study

PATIENT = "PAT-7391"
ARCHIVE = '[[peer]]\nname = "archive"\nae_title = "ORTHANC"\nhost = "127.0.0.1"\nport = {port}\n'


def insitu(box: Appliance, *words: str) -> subprocess.CompletedProcess[str]:
    """One call of the command line on this box."""
    command = [*box.command()[:-1], *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def fill(orthanc: Orthanc, files: list[Path]) -> None:
    for path in files:
        orthanc.post("/instances", path.read_bytes())


@needs_orthanc
def test_a_study_is_found_by_c_find_and_comes_by_c_move(tmp_path: Path) -> None:
    files = tiny_study(tmp_path / "study")
    port = free_port()
    with (
        ScriptedPacs() as pacs,
        Orthanc(tmp_path / "orthanc", {"insitu": ("INSITU", port)}) as orthanc,
        Appliance(
            tmp_path / "box",
            [pacs.destination],
            [tiny_model(tmp_path / "model")],
            ARCHIVE.format(port=orthanc.destination.port),
            port=port,
        ) as box,
    ):
        fill(orthanc, files)
        asked = insitu(box, "query", "archive", "--patient-id", "T1", "--json")
        [study] = json.loads(asked.stdout)["studies"]
        assert study["study_instance_uid"] == derive("tiny")
        assert study["study_date"] == "20260301"
        assert study["modalities"] == ["MR"]
        assert "T1" not in asked.stdout
        assert "Tiny" not in asked.stdout
        assert (
            json.loads(insitu(box, "query", "archive", "--modality", "CT", "--json").stdout)["studies"] == []
        )
        pulled = insitu(box, "pull", derive("tiny"), "from", "archive", "--json")
        assert pulled.returncode == 0, pulled.stderr
        assert json.loads(pulled.stdout)["instances"] == len(files)
        [detail] = box.wait_for("delivered")
        assert detail.study.instances == len(files)
        assert len(pacs.seen.objects) == 3
        assert insitu(box, "pull", "1.2.3", "from", "archive").returncode in {4, 5}  # Orthanc says 0xC000
        assert insitu(box, "pull", "1.2.03", "from", "archive").returncode == 2
        assert insitu(box, "query", "archive").returncode == 2


@needs_orthanc_web
def test_a_study_is_found_by_qido_and_comes_by_wado_through_the_dicom_port(tmp_path: Path) -> None:
    files = tiny_study(tmp_path / "study")
    with (
        ScriptedPacs() as pacs,
        OrthancWeb(tmp_path / "orthanc") as orthanc,
        Appliance(tmp_path / "box", [pacs.destination], [tiny_model(tmp_path / "model")]) as box,
    ):
        fill(orthanc, files)
        asked = insitu(box, "query", orthanc.url, "--patient-id", "T1", "--json")
        [study] = json.loads(asked.stdout)["studies"]
        assert study["study_instance_uid"] == derive("tiny")
        pulled = insitu(box, "pull", derive("tiny"), "from", orthanc.url, "--json")
        assert pulled.returncode == 0, pulled.stderr
        assert json.loads(pulled.stdout) | {"seconds": 0} == {"instances": 8, "failed": 0, "seconds": 0}
        [detail] = box.wait_for("delivered")
        assert detail.study.revision == 1
        assert detail.study.calling_ae_title == "INSITU"
        assert len(pacs.seen.objects) == 3
        assert insitu(box, "pull", "1.2.3", "from", orthanc.url).returncode != 0


@needs_orthanc
@needs_dcmtk
def test_a_rule_fetches_the_latest_earlier_studies_of_the_patient_and_of_nobody_else(tmp_path: Path) -> None:
    now = tiny_study(tmp_path / "now", name="now", PatientID=PATIENT)
    port = free_port()
    rule = '[[pull]]\nsender = "scanner"\nmodality = "MR"\narchive = "archive"\nmax_priors = 2\n'
    with (
        Orthanc(tmp_path / "orthanc", {"insitu": ("INSITU", port)}) as orthanc,
        Appliance(
            tmp_path / "box",
            models=(),
            options="[assemble]\nquiet_s = 0.3\n" + ARCHIVE.format(port=orthanc.destination.port) + rule,
            port=port,
        ) as box,
    ):
        fill(orthanc, now)
        for name, date, patient, modality in (
            ("oldest", "20200101", PATIENT, "MR"),
            ("older", "20240101", PATIENT, "MR"),
            ("old", "20250101", PATIENT, "MR"),
            ("later", "20270101", PATIENT, "MR"),
            ("other", "20250601", PATIENT + "0", "MR"),
            ("ct", "20250701", PATIENT, "CT"),
        ):
            more: dict[str, Any] = {"StudyDate": date, "PatientID": patient, "Modality": modality}
            fill(orthanc, tiny_study(tmp_path / name, name=name, slices=2, **more))
        assert box.send(now) == 0
        found = box.wait(
            lambda studies: any(
                e.what == "priors: done" for s in studies for e in s.events if "came" in e.detail
            )
        )
        found = box.wait(lambda studies: len(studies) == 3 and all(s.study.state != "open" for s in studies))
        uids = {each.study.study_instance_uid for each in found}
        assert uids == {derive(name) for name in ("now", "old", "older")}
        asked = [event for each in found for event in each.events if event.what == "priors: asked"]
        assert len(asked) == 1, "a study that was fetched as a prior asks for none"
        log = box.log.read_text()
        assert "2 studies of archive: 4 instances came, 0 failed" in log
        assert PATIENT not in log
        assert "Tiny" not in log
