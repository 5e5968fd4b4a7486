"""The smallest model and the smallest study that go all the way: for tests that need many runs."""

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom.uid import derive

SHAPE: Final = (8, 16, 16)
"""Slices, rows, columns."""


def tiny_model(directory: Path, version: str = "1.0.0", threshold: float = 0.5) -> Path:
    """A package whose graph calls each voxel above `threshold` (of 0..1) a lesion."""
    directory.mkdir(parents=True)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, *SHAPE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2, *SHAPE])
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [2, 1, 1, 1, 1], [0.0, 10.0])
    bias = helper.make_tensor("bias", TensorProto.FLOAT, [2], [0.0, -10.0 * threshold])
    node = helper.make_node("Conv", ["image", "weight", "bias"], ["logits"], kernel_shape=[1, 1, 1])
    graph = helper.make_graph([node], "tiny", [image], [logits], [weight, bias])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, directory / "graph.onnx")
    voxels = np.linspace(0, 1, int(np.prod(SHAPE)), dtype=np.float32).reshape(1, 1, *SHAPE)
    expected = np.concatenate([np.zeros_like(voxels), 10 * voxels - 10 * threshold], axis=1)
    arrays: dict[str, Any] = {"in.image": voxels, "out.logits": expected}
    np.savez(directory / "golden.npz", **arrays)
    files = {}
    for name in ("graph.onnx", "golden.npz"):
        raw = (directory / name).read_bytes()
        files[name] = {"sha256": hashlib.sha256(raw).hexdigest(), "size_bytes": len(raw)}
    (directory / "manifest.json").write_text(json.dumps(_manifest(version, files)))
    return directory


def _code(value: str, scheme: str, meaning: str) -> dict[str, str]:
    return {"value": value, "scheme": scheme, "meaning": meaning}


def _manifest(version: str, files: dict[str, Any]) -> dict[str, Any]:
    lesion = _code("52988006", "SCT", "Lesion")
    return {
        "schema": "insitu.model/1",
        "name": "tiny-threshold",
        "version": version,
        "vendor": "Insitu tests",
        "title": "Tiny threshold",
        "intended_use": "Tests of the appliance.",
        "regulatory_status": "Not a medical device.",
        "licence": "Apache-2.0",
        "inputs": [{"name": "image", "kind": "volume", "modality": ["MR"], "geometry": {"slices": [4, 64]}}],
        "preprocessing": [
            {"step": "rescale_range", "source": [0, 1000], "target": [0, 1]},
            {"step": "crop_or_pad", "shape": list(SHAPE)},
        ],
        "graphs": [{"file": "graph.onnx"}],
        "tensors_in": [{"name": "image", "type": "float32", "shape": [1, 1, *SHAPE]}],
        "tensors_out": [{"name": "logits", "type": "float32", "shape": [1, 2, *SHAPE]}],
        "postprocessing": [
            {"step": "argmax"},
            {"step": "volumes", "quantities": {"lesion_ml": [1]}},
            {"step": "to_source_grid"},
        ],
        "outputs": {
            "finding": lesion,
            "segments": [
                {
                    "label_value": 1,
                    "label": "Lesion",
                    "category": _code("49755003", "SCT", "Morphologically abnormal structure"),
                    "type": lesion,
                    "rgb": [255, 80, 80],
                }
            ],
            "measurements": [
                {
                    "quantity": "lesion_ml",
                    "name": _code("118565006", "SCT", "Volume"),
                    "unit": _code("ml", "UCUM", "milliliter"),
                    "label_value": 1,
                }
            ],
            "objects": ["SEG", "SR", "SC"],
        },
        "golden": [{"file": "golden.npz", "max_abs_difference": 1e-4}],
        "deadline_s": 20,
        "memory_mib": 256,
        "operators": ["Conv"],
        "files": files,
    }


def tiny_study(
    directory: Path,
    name: str = "tiny",
    slices: int = SHAPE[0],
    *,
    series: str = "1",
    announced: int | None = None,
    empty: bool = False,
    **attributes: Any,  # noqa: ANN401 (whatever a test wants to be different)
) -> list[Path]:
    """An MR series of `slices` images of 16 x 16, with a bright cube unless `empty`; its files.

    Args:
        directory: where the files go.
        name: what the UIDs are derived from.
        slices: how many.
        series: tells the series of one study apart.
        announced: NumberOfStudyRelatedInstances (0020,1208), which closes the study at once.
        empty: nothing for the model to find.
        attributes: DICOM keywords with their values, for every image.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(slices):
        ds = Dataset()
        ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        ds.SOPInstanceUID = derive(name, series, str(number))
        ds.StudyInstanceUID = derive(name)
        ds.SeriesInstanceUID = derive(name, series)
        ds.FrameOfReferenceUID = derive(name, "frame")
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Tiny^Test", "T1", "", "O"
        ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20260301", "120000", "1", "A1"
        ds.ReferringPhysicianName, ds.Manufacturer = "", "Insitu tests"
        ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "MR", series, number + 1
        ds.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "GR", "NONE", "", "3D"
        ds.ImagePositionPatient = [-8.0, -8.0, 2.0 * number]
        ds.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        ds.PixelSpacing, ds.SliceThickness = [1.0, 1.0], 2.0
        ds.Rows = ds.Columns = 16
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.PixelRepresentation = 15, 0
        if announced is not None:
            ds.NumberOfStudyRelatedInstances = announced
        pixels = np.full((16, 16), 100, np.uint16)
        pixels[0, 0] = 101 if empty else 100
        if not empty and 2 <= number <= 5:
            pixels[4:10, 5:11] = 900
        ds.PixelData = pixels.tobytes()
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)
        ds.file_meta = FileMetaDataset()
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = directory / f"{name}-{series}-{number:03d}.dcm"
        ds.save_as(path, enforce_file_format=True)
        files.append(path)
    return files
