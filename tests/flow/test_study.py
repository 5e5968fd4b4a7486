"""One whole study: dcmtk or Orthanc sends, Insitu works, the PACS has the results in the same study."""

import io
import json
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from dicom.header import scan_file
from dicom.readback import read_report, read_segmentation
from dicom.volume import build_volume
from tests.edge import test_pipeline_models as pipeline_models
from tests.fakes.pacs import Orthanc, StoreScp, needs_dcmtk, needs_orthanc
from tests.flow.appliance import Appliance
from tests.judges import dciodvfy
from tests.material import MATERIAL, needs_material, unpack
from tests.packages import cxr_packages, meshnet_package
from tests.tiny import tiny_model, tiny_study

pytestmark = [needs_dcmtk, needs_material]


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Overlap of two masks, 0 to 1."""
    return float(2 * np.logical_and(one, other).sum() / (one.sum() + other.sum()))


def tissue_truth(affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """1 white, 2 grey matter of the MNI152 template at each voxel of a grid, (slice, row, column) to LPS."""
    image = nibabel.load(MATERIAL / "reference" / "mni152_tissue_truth_1WM_2GM_RAS.nii.gz")
    labels = np.asarray(image.dataobj, np.uint8)
    to_index = np.linalg.inv(image.affine) @ np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    points = np.moveaxis(np.indices(shape), 0, -1).reshape(-1, 3) @ to_index[:3, :3].T + to_index[:3, 3]
    index = np.rint(points).astype(int)
    inside = np.all((index >= 0) & (index < labels.shape), axis=1)
    found = np.zeros(len(index), np.uint8)
    found[inside] = labels[tuple(index[inside].T)]
    return found.reshape(shape)


def dice_of_card(labels: NDArray[np.uint8], study: list[Path]) -> tuple[float, float, float]:
    """Dice of white matter, grey matter and both as the model's card scores them: on its 2 mm grid.

    Both 1 mm voxels below a 2 mm voxel took its label, so every second one is the model's own output.
    """
    pre = pipeline_models.reference("preprocess")
    volume = build_volume([(path, scan_file(path)[0]) for path in study])
    _, info = pre.preprocess(volume.voxels, np.diag([-1, -1, 1, 1]) @ volume.affine)
    truth = pipeline_models.tissue_truth()
    ras = labels.transpose(2, 1, 0)  # (slice, row, column) of this series are S, A, R
    kept = tuple(slice(0, 2 * size, 2) for size in info["iso_shape"])
    found = np.nan_to_num(pre.crop_pad(ras[kept].astype(np.float32), info["start"]))
    shares = [
        np.nan_to_num(
            pre.crop_pad(pre.resample((truth == label).astype(np.float32), (1, 1, 1)), info["start"])
        )
        for label in (1, 2)
    ]
    expected = np.argmax([1 - shares[0] - shares[1], *shares], axis=0)
    return (
        dice(found == 1, expected == 1),
        dice(found == 2, expected == 2),
        dice(found > 0, expected > 0),
    )


def judged(objects: list[Dataset], files: list[Path]) -> None:
    for ds, path in zip(objects, files, strict=True):
        errors = dciodvfy(path).errors
        assert not errors, f"{ds.Modality}: {errors}"


@pytest.mark.slow
def test_dcmtk_to_dcmtk_a_brain_comes_back_segmented_measured_and_pictured(tmp_path: Path) -> None:
    study = unpack("mr_t1_mni152", tmp_path / "study")
    source = dcmread(study[0], stop_before_pixels=True)
    with StoreScp(tmp_path / "pacs") as pacs, Appliance(tmp_path / "box", [pacs.destination]) as box:
        assert box.send(study) == 0
        [detail] = box.wait_for("delivered")
        files = pacs.files()
        objects = {dcmread(path).Modality: (dcmread(path), path) for path in files}
    assert detail.study.closed_by == "complete volume and release of the association"
    assert len(files) == 3
    assert set(objects) == {"SEG", "SR", "OT"}
    judged([each[0] for each in objects.values()], [each[1] for each in objects.values()])
    for ds, _ in objects.values():
        assert ds.StudyInstanceUID == source.StudyInstanceUID
        assert ds.SeriesInstanceUID != source.SeriesInstanceUID
        assert ds.PatientID == source.PatientID
    assert len({ds.SeriesInstanceUID for ds, _ in objects.values()}) == 3
    segmentation = read_segmentation(objects["SEG"][1])
    labels, truth = segmentation.labels, tissue_truth(segmentation.affine, segmentation.labels.shape)
    for score, of_card in zip(dice_of_card(labels, study), (0.912, 0.922, 0.983), strict=True):
        assert score == pytest.approx(of_card, abs=0.01)
    # the card's figures are for the 2 mm grid; on the source grid nearest neighbours cost a little
    assert dice(labels == 1, truth == 1) > 0.88
    assert dice(labels == 2, truth == 2) > 0.88
    assert dice(labels > 0, truth > 0) > 0.96
    report = read_report(objects["SR"][1])
    volumes = {each.label_value or 0: each.value for each in report.measurements if each.unit.value == "ml"}
    assert any(abs(value - 647) < 647 * 0.01 for value in volumes.values()), volumes
    assert any(abs(value - 1075) < 1075 * 0.01 for value in volumes.values()), volumes


@needs_orthanc
@pytest.mark.slow
def test_orthanc_sends_the_study_and_has_the_results_in_it(tmp_path: Path) -> None:
    study = unpack("mr_t1_mni152", tmp_path / "study")
    uid = dcmread(study[0], stop_before_pixels=True).StudyInstanceUID
    box = Appliance(tmp_path / "box")
    with Orthanc(tmp_path / "orthanc", {"insitu": ("INSITU", box.port)}) as orthanc:
        box = Appliance(tmp_path / "box", [orthanc.destination], port=box.port)
        box.configuration.write_text(
            box.configuration.read_text()
            .replace('ae_title = "STORESCU"', 'ae_title = "ELSE"')
            .replace("may_send = false", "may_send = true")
        )
        with box:
            for path in study:
                orthanc.post("/instances", path.read_bytes())
            [of_study] = orthanc.get("/studies")
            orthanc.post("/modalities/insitu/store", of_study.encode())
            box.wait_for("delivered")
        assert orthanc.get("/studies") == [of_study]
        found = orthanc.sop_instance_uids(uid)
        results = {}
        sent = {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in study}
        for sop_instance_uid in set(found) - sent:
            raw = orthanc.file(sop_instance_uid)
            results[dcmread(io.BytesIO(raw)).Modality] = raw
    assert set(results) == {"SEG", "SR", "OT"}
    seg = highdicom.seg.segread(io.BytesIO(results["SEG"]))
    assert [segment.segment_label for segment in map(seg.get_segment_description, seg.segment_numbers)]
    sr = highdicom.sr.srread(io.BytesIO(results["SR"]))
    assert len(sr.content.get_volumetric_roi_measurement_groups()) == len(seg.segment_numbers)


@pytest.mark.slow
def test_meshnet_finds_the_tissues_of_the_template(tmp_path: Path) -> None:
    study = unpack("mr_t1_mni152", tmp_path / "study")
    package = meshnet_package(tmp_path / "meshnet")
    with (
        StoreScp(tmp_path / "pacs") as pacs,
        Appliance(tmp_path / "box", [pacs.destination], [package]) as box,
    ):
        assert box.send(study) == 0
        box.wait_for("delivered", limit_s=300)
        files = pacs.files()
    judged([dcmread(path) for path in files], files)
    [segmentation] = [path for path in files if dcmread(path).Modality == "SEG"]
    found = read_segmentation(segmentation)
    labels, truth = found.labels, tissue_truth(found.affine, found.labels.shape)
    assert dice(labels == 1, truth == 1) >= 0.80
    assert dice(labels == 2, truth == 2) >= 0.77
    assert dice(labels > 0, truth > 0) >= 0.92


def test_a_chest_x_ray_gets_its_probability_in_a_report(tmp_path: Path) -> None:
    [package, *_] = cxr_packages(tmp_path)
    study = [MATERIAL / "dicom" / "cxr" / "IM-0109-0001.dcm"]
    with (
        StoreScp(tmp_path / "pacs") as pacs,
        Appliance(tmp_path / "box", [pacs.destination], [package], "[assemble]\nquiet_s = 0.3\n") as box,
    ):
        assert box.send(study, "STORESCU", "-xy") == 0  # propose JPEG baseline
        [detail] = box.wait_for("delivered")
        files = pacs.files()
    assert detail.study.closed_by == "quiet timer"
    judged([dcmread(path) for path in files], files)
    assert sorted(dcmread(path).Modality for path in files) == ["OT", "SR"]


def test_the_results_of_an_undisturbed_study_name_the_model_and_how_it_ran(tmp_path: Path) -> None:
    package = tiny_model(tmp_path / "model")
    with (
        StoreScp(tmp_path / "pacs") as pacs,
        Appliance(tmp_path / "box", [pacs.destination], [package]) as box,
    ):
        assert box.send(tiny_study(tmp_path / "study")) == 0
        [detail] = box.wait_for("delivered")
        files = pacs.files()
    judged([dcmread(path) for path in files], files)
    [item] = [each for each in detail.items if each.model]
    [report] = [read_report(path) for path in files if dcmread(path).Modality == "SR"]
    said = json.dumps(report.parameters)
    for fact in (item.model_digest, "onnxruntime", "CPUExecutionProvider", "native"):
        assert fact in said
