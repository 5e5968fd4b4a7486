"""Storage commitment of the appliance as a process, with Orthanc as the peer that asks."""

import json
import threading
import time
from pathlib import Path
from typing import Any

from tests.fakes.pacs import Orthanc, free_port, needs_orthanc
from tests.flow.appliance import Appliance
from tests.tiny import tiny_study

DEADLINE_S = 60.0


def storage_commitment(orthanc: Orthanc, instances: list[dict[str, str]]) -> dict[str, Any]:
    """Have Orthanc ask the appliance, and return its view of the report."""
    asked = orthanc.post(
        "/modalities/insitu/storage-commitment", json.dumps({"DicomInstances": instances}).encode()
    )
    deadline = time.monotonic() + DEADLINE_S
    tick = threading.Event()
    while True:  # Orthanc gives no event over HTTP
        report: dict[str, Any] = orthanc.get(asked["Path"])
        if report["Status"] != "Pending":
            return report
        assert time.monotonic() < deadline, report
        tick.wait(0.05)


@needs_orthanc
def test_orthanc_sends_a_study_asks_for_its_commitment_and_the_study_closes_on_that(tmp_path: Path) -> None:
    port = free_port()
    with Orthanc(tmp_path / "orthanc", {"insitu": ("INSITU", port)}) as orthanc:
        peer = (
            "[assemble]\nquiet_s = 600\nclose_on_complete_volume = false\n"
            '[[peer]]\nname = "orthanc"\nae_title = "ORTHANC"\nhost = "127.0.0.1"\n'
            f"port = {orthanc.destination.port}\n"
        )
        files = tiny_study(tmp_path / "study")
        for file in files:
            orthanc.post("/instances", file.read_bytes())
        uids = orthanc.sop_instance_uids()
        with Appliance(tmp_path / "box", models=(), options=peer, port=port) as box:
            sent = orthanc.post("/modalities/insitu/store", json.dumps(sorted(uids.values())).encode())
            assert sent["FailedInstancesCount"] == 0
            sop_class = orthanc.get(f"/instances/{next(iter(uids.values()))}/simplified-tags")["SOPClassUID"]
            named = [{"SOPClassUID": sop_class, "SOPInstanceUID": uid} for uid in sorted(uids)]
            report = storage_commitment(orthanc, named)
            assert report["Status"] == "Success"
            assert {each["SOPInstanceUID"] for each in report["Success"]} == set(uids)
            assert report["Failures"] == []
            (closed,) = box.wait_for("held")  # no model is active
            assert "commitment" in closed.study.closed_by

            lost = {"SOPClassUID": sop_class, "SOPInstanceUID": "1.2.3.4.5.6.7"}
            report = storage_commitment(orthanc, [named[0], lost])
            assert report["Status"] == "Failure"
            assert [each["SOPInstanceUID"] for each in report["Success"]] == [named[0]["SOPInstanceUID"]]
            (failed,) = report["Failures"]
            assert (failed["SOPInstanceUID"], failed["FailureReason"]) == ("1.2.3.4.5.6.7", 0x0112), failed
            assert not list((box.state / "commitments").rglob("*.json"))
