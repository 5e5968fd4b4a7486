"""What is not a study for a model ends in a named state with a reason; nothing is lost, nothing hangs."""

import shutil
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from tests.fakes.pacs import ScriptedPacs, StoreScp, needs_dcmtk
from tests.flow.appliance import Appliance
from tests.material import MATERIAL, needs_material, unpack
from tests.tiny import tiny_model, tiny_study

QUIET = "[assemble]\nquiet_s = 0.3\n"

pytestmark = needs_dcmtk


def tiny_box(tmp_path: Path, pacs: ScriptedPacs) -> Appliance:
    return Appliance(tmp_path / "box", [pacs.destination], [tiny_model(tmp_path / "model")], QUIET)


def test_an_unknown_calling_ae_title_is_rejected_and_nothing_is_kept(tmp_path: Path) -> None:
    study = tiny_study(tmp_path / "study")
    with ScriptedPacs() as pacs, tiny_box(tmp_path, pacs) as box:
        assert box.send(study, calling="STRANGER") != 0
        assert box.send(study) == 0  # and the one that is known is served as before
        box.wait_for("delivered")
        assert len(pacs.seen.objects) == 3


def test_a_study_with_two_series_gives_results_for_each_that_fits_and_a_reason_for_the_other(
    tmp_path: Path,
) -> None:
    fits = tiny_study(tmp_path / "study", series="1")
    other = tiny_study(tmp_path / "study", series="2", slices=2)
    with ScriptedPacs() as pacs, tiny_box(tmp_path, pacs) as box:
        assert box.send([*fits, *other]) == 0
        [study] = box.wait_for("delivered")
        assert [each.accepted for each in study.decisions].count(True) == 1
        [refused] = [each for each in study.decisions if not each.accepted]
        assert "2" in refused.reason
        assert "slices" in refused.reason
        assert len(pacs.seen.objects) == 3


@pytest.mark.parametrize(
    ("what", "said"),
    [("gap", "gap"), ("uneven", "spac"), ("double", "the same place"), ("turned", "rient")],
)
def test_slices_that_make_no_volume_are_declined_with_what_is_wrong(
    tmp_path: Path, what: str, said: str
) -> None:
    files = tiny_study(tmp_path / "study")
    ds = dcmread(files[4])
    if what == "gap":
        files.pop(4)
    elif what == "uneven":
        ds.ImagePositionPatient[2] = float(ds.ImagePositionPatient[2]) + 0.9
    elif what == "double":
        ds.ImagePositionPatient[2] = float(ds.ImagePositionPatient[2]) - 2.0
    elif what == "turned":
        ds.ImageOrientationPatient = [0.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    if what != "gap":
        ds.save_as(files[4])
    with ScriptedPacs() as pacs, tiny_box(tmp_path, pacs) as box:
        assert box.send(files) == 0
        [study] = box.wait_for("declined")
        assert said in study.decisions[0].reason
        assert study.study.instances == len(files)
        assert pacs.seen.objects == []


def test_a_study_in_which_nothing_is_found_gets_a_report_too(tmp_path: Path) -> None:
    with ScriptedPacs() as pacs, tiny_box(tmp_path, pacs) as box:
        assert box.send(tiny_study(tmp_path / "study", empty=True)) == 0
        [study] = box.wait_for("delivered")
        kinds = {result.kind for item in study.items for result in item.results}
        assert kinds == {"SR", "SC"}
        assert len(pacs.seen.objects) == 2


def test_a_late_image_makes_a_revision_whose_report_replaces_the_first(tmp_path: Path) -> None:
    files = tiny_study(tmp_path / "study")
    with (
        StoreScp(tmp_path / "pacs") as pacs,
        Appliance(tmp_path / "box", [pacs.destination], [tiny_model(tmp_path / "model")], QUIET) as box,
    ):
        assert box.send(files[:-1]) == 0
        box.wait_for("delivered")
        assert box.send(files[-1:]) == 0
        box.wait(lambda found: found[0].study.revision == 2 and found[0].study.state == "delivered")
        reports = [dcmread(path) for path in pacs.files()]
        reports = [ds for ds in reports if ds.Modality == "SR"]
        assert len(reports) == 2
        [second] = [ds for ds in reports if "PredecessorDocumentsSequence" in ds]
        [first] = [ds for ds in reports if "PredecessorDocumentsSequence" not in ds]
        replaced = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
        assert replaced.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID


def test_a_study_sent_twice_is_processed_once(tmp_path: Path) -> None:
    files = tiny_study(tmp_path / "study")
    with ScriptedPacs() as pacs, tiny_box(tmp_path, pacs) as box:
        assert box.send(files) == 0
        box.wait_for("delivered")
        assert box.send(files) == 0
        assert box.send(tiny_study(tmp_path / "other", name="other")) == 0
        box.wait_for("delivered", "delivered")
        assert len(pacs.seen.objects) == 6


@needs_material
def test_wrong_files_in_a_study_are_kept_and_named_and_do_not_stop_it(tmp_path: Path) -> None:
    files = tiny_study(tmp_path / "study")
    uid = dcmread(files[0]).StudyInstanceUID
    foreign = []
    for name in ("nonimage/test-SR.dcm", "nonimage/waveform_ecg.dcm", "nonimage/rtdose.dcm"):
        copy = tmp_path / "study" / Path(name).name
        ds = dcmread(MATERIAL / "dicom" / name)
        ds.StudyInstanceUID = uid
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.save_as(copy)
        foreign.append(copy)
    with ScriptedPacs() as pacs, tiny_box(tmp_path, pacs) as box:
        # its Number of Frames is no number: refused with 0xC000, which the sender is told
        assert box.send([MATERIAL / "dicom" / "odd" / "badVR.dcm"]) != 0
        assert box.send([*foreign, *files]) == 0
        [study] = box.wait_for("delivered")
        assert study.study.instances == len(files) + len(foreign)
        assert len(study.decisions) == 1 + len(foreign)
        assert all(each.reason for each in study.decisions)
        assert len(pacs.seen.objects) == 3


@needs_material
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "propose", "said"),
    [
        ("mr_phantom_frag_j2k", ["-xv"], "out of the model's scope"),
        ("ct_head_phantom_tilt", [], "(0008,0060) Modality is CT"),
    ],
)
def test_a_phantom_is_declined_and_never_reported_as_a_brain(
    tmp_path: Path, name: str, propose: list[str], said: str
) -> None:
    files = unpack(name, tmp_path / "study")
    with ScriptedPacs() as pacs, Appliance(tmp_path / "box", [pacs.destination], options=QUIET) as box:
        assert box.send(files, "STORESCU", *propose) == 0
        [study] = box.wait_for("declined")
        reasons = [each.reason for each in study.decisions] + [each.reason for each in study.items]
        assert any(said in reason for reason in reasons), reasons
        assert study.study.instances == len(files)
        assert pacs.seen.objects == []


@needs_material
def test_slices_that_cannot_be_decoded_hold_the_study_with_the_instance_named(tmp_path: Path) -> None:
    files = tiny_study(tmp_path / "study")
    ds = dcmread(files[3])
    ds.PixelData = ds.PixelData[:100]
    ds.save_as(files[3])
    with ScriptedPacs() as pacs, tiny_box(tmp_path, pacs) as box:
        assert box.send(files) == 0
        [study] = box.wait(lambda found: bool(found) and found[0].study.state in {"held", "declined"})
        [item] = [each for each in study.items if each.model]
        assert "Pixel Data" in item.reason
        assert ds.SOPInstanceUID in item.reason
        assert pacs.seen.objects == []


def test_the_disk_below_its_watermark_refuses_images_and_serves_again_after(tmp_path: Path) -> None:
    study = tiny_study(tmp_path / "study")
    free = shutil.disk_usage(tmp_path).free
    with ScriptedPacs() as pacs:
        box = tiny_box(tmp_path, pacs)
        plenty = box.configuration.read_text()
        box.configuration.write_text(
            plenty.replace("min_free_disk_bytes = 1048576", f"min_free_disk_bytes = {2 * free}")
        )
        with box:
            assert box.send(study) != 0
            assert box.studies() == []
        box.configuration.write_text(plenty)
        with box:
            assert box.send(study) == 0
            box.wait_for("delivered")
