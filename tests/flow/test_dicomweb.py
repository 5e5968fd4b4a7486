"""DICOMweb end to end: dicomweb-client stores a study, the results are made, and a viewer can read them."""

import io
import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from dicomweb_client import DICOMwebClient
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.uid import UID
from requests import Session

from edge.config import load
from edge.daemon import started
from edge.web_auth import token_hash
from tests.fakes.orthanc_web import OrthancWeb, needs_orthanc_web
from tests.fakes.pacs import ScriptedPacs, free_port
from tests.flow.appliance import Appliance
from tests.material import MATERIAL, needs_material
from tests.tiny import tiny_model, tiny_study

TOKEN = "a-token-of-the-test"
AUTHORIZATION = {"Authorization": f"Bearer {TOKEN}"}


class WebBox(Appliance):
    """The appliance with both ports of DICOMweb open to one client."""

    def __post_init__(self) -> None:
        self.store_port, self.read_port = free_port(), free_port()
        self.options += (
            f'\n[web]\nhost = "127.0.0.1"\nstore_port = {self.store_port}\nport = {self.read_port}\n'
            f'[[web_client]]\nname = "test"\nae_title = "WEB"\ntoken_sha256 = "{token_hash(TOKEN)}"\n'
            "may_read = true\n"
        )
        super().__post_init__()

    def client(self, *, store: bool = False) -> DICOMwebClient:
        session = Session()
        session.headers.update(AUTHORIZATION)
        port = self.store_port if store else self.read_port
        return DICOMwebClient(f"http://127.0.0.1:{port}", session=session)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.read_port}{path}"

    def get(self, path: str, accept: str = "*/*") -> requests.Response:
        return requests.get(self.url(path), headers={**AUTHORIZATION, "Accept": accept}, timeout=30)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WebBox, list[Path], list[Dataset]]]:
    """A box that was sent one study by STOW-RS, in one request, and delivered the results."""
    directory = tmp_path_factory.mktemp("served")
    files = tiny_study(directory / "study")
    with (
        ScriptedPacs() as pacs,
        WebBox(directory / "box", [pacs.destination], [tiny_model(directory / "m")]) as box,
    ):
        answer = box.client(store=True).store_instances([dcmread(path) for path in files])
        assert len(answer.ReferencedSOPSequence) == len(files)
        [detail] = box.wait_for("delivered")
        assert detail.study.closed_by == "complete volume and release of the association"
        assert detail.study.calling_ae_title == "WEB"
        assert len(pacs.seen.objects) == 3
        yield box, files, [dcmread(path) for path in files]


def test_a_study_stored_by_dicomweb_client_is_found_and_retrieved_as_it_was_sent(
    served: tuple[WebBox, list[Path], list[Dataset]],
) -> None:
    box, _, sent = served
    client = box.client()
    [study] = client.search_for_studies()
    found = Dataset.from_json(study)
    assert found.StudyInstanceUID == sent[0].StudyInstanceUID
    assert (str(found.PatientName), found.PatientID) == ("Tiny^Test", "T1")
    assert set(found.ModalitiesInStudy) == {"MR", "OT", "SEG", "SR"}
    assert found.NumberOfStudyRelatedInstances == len(sent) + 3
    retrieved = client.retrieve_series(found.StudyInstanceUID, sent[0].SeriesInstanceUID)
    assert sorted(ds.SOPInstanceUID for ds in retrieved) == sorted(ds.SOPInstanceUID for ds in sent)
    by_uid = {ds.SOPInstanceUID: ds for ds in sent}
    assert all(ds == by_uid[ds.SOPInstanceUID] for ds in retrieved)


def test_results_are_series_of_the_study_and_their_objects_can_be_read(
    served: tuple[WebBox, list[Path], list[Dataset]],
) -> None:
    box, _, sent = served
    client = box.client()
    series = [Dataset.from_json(each) for each in client.search_for_series(sent[0].StudyInstanceUID)]
    assert sorted(each.Modality for each in series) == ["MR", "OT", "SEG", "SR"]
    report = next(each for each in series if each.Modality == "SR")
    [entry] = client.search_for_instances(sent[0].StudyInstanceUID, report.SeriesInstanceUID)
    uid = Dataset.from_json(entry).SOPInstanceUID
    ds = client.retrieve_instance(sent[0].StudyInstanceUID, report.SeriesInstanceUID, uid)
    assert ds.ConceptNameCodeSequence[0].CodeValue == "126000"


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"PatientID": "T1"}, 1),
        ({"PatientID": "T2"}, 0),
        ({"PatientName": "tiny*"}, 1),
        ({"PatientName": "t?ny^test"}, 1),
        ({"PatientName": "[t]iny*"}, 0),
        ({"00100020": "T1"}, 1),
        ({"StudyDate": "20260301"}, 1),
        ({"StudyDate": "20260201-20260331"}, 1),
        ({"StudyDate": "-20260228"}, 0),
        ({"StudyDate": "20260301-"}, 1),
        ({"ModalitiesInStudy": "SR"}, 1),
        ({"ModalitiesInStudy": "CT"}, 0),
        ({"AccessionNumber": "A1", "PatientID": "T1"}, 1),
        ({"AccessionNumber": "A1", "PatientID": "T2"}, 0),
        ({"StudyInstanceUID": "1.2.3,1.2.4"}, 0),
    ],
)
def test_studies_match_by_the_usual_keys(
    served: tuple[WebBox, list[Path], list[Dataset]], filters: dict[str, str], count: int
) -> None:
    assert len(served[0].client().search_for_studies(search_filters=filters)) == count


def test_pages_and_limits_are_kept_and_unknown_keys_refused(
    served: tuple[WebBox, list[Path], list[Dataset]],
) -> None:
    box, _, sent = served
    path = f"/studies/{sent[0].StudyInstanceUID}/instances"
    every = box.get(path).json()
    pages = [box.get(f"{path}?limit=4&offset={offset}").json() for offset in (0, 4, 8)]
    assert [len(page) for page in pages] == [4, 4, 3]
    assert [*pages[0], *pages[1], *pages[2]] == every
    assert box.get("/studies?limit=x").status_code == 400
    assert box.get("/studies?PatientAge=1").status_code == 400
    assert box.get("/studies?PatientID=1&PatientID=2").status_code == 400
    assert box.get("/studies/../../etc/series").status_code in {400, 404}
    assert box.get("/studies/1.2.03").status_code == 400
    assert box.get("/studies/1.2.3").status_code == 404
    assert "fuzzymatching" in box.get("/studies?fuzzymatching=true").headers["Warning"]


def test_metadata_is_all_attributes_but_the_pixels(served: tuple[WebBox, list[Path], list[Dataset]]) -> None:
    box, _, sent = served
    study, series = sent[0].StudyInstanceUID, sent[0].SeriesInstanceUID
    found = [Dataset.from_json(each) for each in box.client().retrieve_series_metadata(study, series)]
    by_uid = {ds.SOPInstanceUID: ds for ds in found}
    assert len(by_uid) == len(sent)
    for ds in sent:
        twin = by_uid[ds.SOPInstanceUID]
        for each in ds:
            if each.keyword != "PixelData":
                assert twin[each.tag].value == each.value, each.keyword
        assert "PixelData" not in twin


def test_frames_are_the_stored_values_and_the_picture_shows_the_window(
    served: tuple[WebBox, list[Path], list[Dataset]],
) -> None:
    box, _, sent = served
    ds = sent[3]
    study, series, uid = ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID
    [frame] = box.client().retrieve_instance_frames(study, series, uid, [1])
    assert frame == ds.PixelData
    path = f"/studies/{study}/series/{series}/instances/{uid}"
    for kind in ("image/png", "image/jpeg"):
        answer = box.get(f"{path}/rendered", kind)
        assert answer.headers["Content-Type"] == kind
        picture = np.asarray(Image.open(io.BytesIO(answer.content)))
        assert picture.shape == (16, 16)
        assert int(picture[6, 7]) > 250
        assert int(picture[14, 14]) < 5
    dark = np.asarray(
        Image.open(io.BytesIO(box.get(f"{path}/frames/1/rendered?window=5000,100,linear").content))
    )
    assert dark.max() == 0
    assert box.get(f"{path}/frames/2").status_code == 404
    assert box.get(f"{path}/frames/x").status_code == 400
    assert box.get(f"{path}/rendered?window=1,0").status_code == 400
    assert box.get(f"{path}/frames/1", "image/jp2").status_code == 406
    assert (
        box.get(path, 'multipart/related; type="application/dicom"; transfer-syntax=1.2.3').status_code == 406
    )


def test_the_secondary_capture_can_be_looked_at(served: tuple[WebBox, list[Path], list[Dataset]]) -> None:
    box, _, sent = served
    study = sent[0].StudyInstanceUID
    [capture] = box.get(f"/studies/{study}/instances?Modality=OT").json()
    ds = Dataset.from_json(capture)
    path = f"/studies/{study}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}/rendered"
    picture = Image.open(io.BytesIO(box.get(path).content))
    assert picture.mode == "RGB"
    assert picture.size == (ds.Columns, ds.Rows)


def test_segmentation_frames_are_packed_bits(served: tuple[WebBox, list[Path], list[Dataset]]) -> None:
    box, _, sent = served
    study = sent[0].StudyInstanceUID
    [entry] = box.get(f"/studies/{study}/instances?Modality=SEG").json()
    ds = Dataset.from_json(entry)
    whole = box.client().retrieve_instance(study, ds.SeriesInstanceUID, ds.SOPInstanceUID)
    numbers = list(range(1, int(whole.NumberOfFrames) + 1))
    frames = box.client().retrieve_instance_frames(study, ds.SeriesInstanceUID, ds.SOPInstanceUID, numbers)
    unpacked = [np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little") for frame in frames]
    size = whole.Rows * whole.Columns
    assert (np.concatenate([each[:size] for each in unpacked]) == whole.pixel_array.ravel()).all()


def test_nobody_without_a_credential_learns_anything_and_the_log_names_no_patient(
    served: tuple[WebBox, list[Path], list[Dataset]],
) -> None:
    box, _, sent = served
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        for path in ("/studies", f"/studies/{sent[0].StudyInstanceUID}", "/nowhere"):
            answer = requests.get(box.url(path), headers=headers, timeout=10)
            assert answer.status_code == 401
            assert answer.content == b""
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            assert answer.headers["Cache-Control"] == "no-store"
    box.get("/studies?PatientName=Tiny*&PatientID=T1")
    log = box.log.read_text()
    assert "Tiny" not in log
    assert "PatientID" not in log
    assert TOKEN not in log + box.configuration.read_text()


def test_a_study_of_several_requests_is_closed_once(tmp_path: Path) -> None:
    files = tiny_study(tmp_path / "study")
    with (
        ScriptedPacs() as pacs,
        WebBox(tmp_path / "box", [pacs.destination], [tiny_model(tmp_path / "m")]) as box,
    ):
        client = box.client(store=True)
        for path in files:  # four slices in a row are a volume already
            client.store_instances([dcmread(path)])
        [detail] = box.wait_for("delivered")
        assert detail.study.revision == 1
        assert detail.study.instances == len(files)
        assert len(pacs.seen.objects) == 3


@needs_material
def test_compressed_instances_come_back_as_stored_and_decoded_frame_by_frame(tmp_path: Path) -> None:
    files = sorted((MATERIAL / "dicom" / "transfer_syntaxes").glob("*.dcm"))
    chosen: dict[str, Path] = {}
    for path in files:
        ds = dcmread(path, stop_before_pixels=True)
        if getattr(ds, "SamplesPerPixel", 3) == 1 and str(ds.get("Modality", "")) == "CT":
            chosen.setdefault(str(ds.file_meta.TransferSyntaxUID), path)
    wanted = {
        "1.2.840.10008.1.2.4.90",
        "1.2.840.10008.1.2.4.80",
        "1.2.840.10008.1.2.5",
        "1.2.840.10008.1.2.4.70",
    }
    some = [path for syntax, path in chosen.items() if syntax in wanted]
    assert len(some) >= 3
    with WebBox(tmp_path / "box", models=()) as box:
        for number, path in enumerate(some):
            ds = dcmread(path)
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.{number}")
            box.client(store=True).store_instances([ds])
            box.wait(lambda found, n=number + 1: bool(found) and sum(s.study.instances for s in found) == n)  # type: ignore[misc]
            client = box.client()
            study, series = ds.StudyInstanceUID, ds.SeriesInstanceUID
            [frame] = client.retrieve_instance_frames(study, series, ds.SOPInstanceUID, [1])
            assert np.array_equal(
                np.frombuffer(frame, ds.pixel_array.dtype).reshape(ds.Rows, ds.Columns), ds.pixel_array
            )
            url = f"/studies/{study}/series/{series}/instances/{ds.SOPInstanceUID}/frames/1"
            stored = box.get(url, 'multipart/related; type="application/octet-stream"; transfer-syntax=*')
            assert f"transfer-syntax={ds.file_meta.TransferSyntaxUID}".encode() in stored.content
            whole = client.retrieve_instance(study, series, ds.SOPInstanceUID)
            assert whole.file_meta.TransferSyntaxUID == ds.file_meta.TransferSyntaxUID
            assert whole.PixelData == ds.PixelData


@needs_orthanc_web
def test_orthanc_as_stow_client_sends_a_study_that_is_worked_on(tmp_path: Path) -> None:
    files = tiny_study(tmp_path / "study")
    with (
        ScriptedPacs() as pacs,
        WebBox(tmp_path / "box", [pacs.destination], [tiny_model(tmp_path / "m")]) as box,
    ):
        servers = {
            "insitu": {
                "Url": f"http://127.0.0.1:{box.store_port}/",
                "HttpHeaders": AUTHORIZATION,
                "HasDelete": False,
            }
        }
        with OrthancWeb(tmp_path / "orthanc", {"DicomWeb": {"Enable": True, "Servers": servers}}) as orthanc:
            for path in files:
                orthanc.post("/instances", path.read_bytes())
            [study] = orthanc.get("/studies")
            body = json.dumps({"Resources": [study], "Synchronous": True}).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{orthanc.http_port}/dicom-web/servers/insitu/stow", body, method="POST"
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert answer.status == 200
        [detail] = box.wait_for("delivered")
        assert detail.study.instances == len(files)


def test_web_that_is_off_imports_nothing_of_it(tmp_path: Path) -> None:
    program = (
        "import sys, runpy; sys.argv = ['insitu', *sys.argv[1:]]\n"
        "try: runpy.run_module('edge', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('LOADED', sorted({'fastapi', 'starlette', 'uvicorn'} & set(sys.modules)))"
    )
    box = Appliance(tmp_path / "box", models=())
    for words in (["--help"], ["status"]):
        done = subprocess.run(
            [sys.executable, "-I", "-c", program, "--config", str(box.configuration), *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout.endswith("LOADED []\n"), words
    settings = load(box.configuration, {})
    with started(settings):
        assert not any(thread.name.startswith("web-") for thread in threading.enumerate())
