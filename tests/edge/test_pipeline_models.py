"""The pipelines of the three kinds of model, against references that are not ours.

The brain model's own recipe (NumPy, in the material), independent tissue maps, the expected
tensor of MeshNet, and a table of probabilities of the chest X-ray models.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dicom.header import scan_file
from dicom.results import Code
from dicom.volume import Image, Volume, build_image, build_volume
from edge.pipeline import Pipeline
from tests.edge.test_steps_table import brain
from tests.material import MATERIAL, needs_material, unpack
from tests.packages import BRAIN, cxr_packages, manifest_of, meshnet_package, radiographs

Run = Callable[[dict[str, NDArray[np.float32]]], dict[str, NDArray[Any]]]


def session(graph: Path) -> Run:
    """The graph in ONNX Runtime, in this process."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    loaded = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in loaded.get_outputs()]
    return lambda tensors: dict(zip(names, loaded.run(names, tensors), strict=True))


def series(name: str, into: Path) -> Volume:
    """One of the material's series as a volume."""
    return build_volume([(path, scan_file(path)[0]) for path in unpack(name, into)])


def reference(name: str) -> ModuleType:
    """A module of the material: the brain model's own recipe."""
    path = MATERIAL / "models" / "brain_t1_small" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"brain_t1_small_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float(2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other)))


def tissue_truth() -> NDArray[np.uint8]:
    """1 white, 2 grey matter of the template, (R, A, S), 1 mm."""
    import nibabel

    image: Any = nibabel.load(MATERIAL / "reference" / "mni152_tissue_truth_1WM_2GM_RAS.nii.gz")
    return np.asarray(image.dataobj, np.uint8)


@pytest.fixture(scope="module")
def mni(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return series("mr_t1_mni152", tmp_path_factory.mktemp("mni152"))


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.compile(manifest_of(BRAIN))


@pytest.fixture(scope="module")
def run_brain() -> Run:
    return session(BRAIN / "graph.onnx")


@needs_material
@pytest.mark.parametrize(
    ("name", "volumes_ml"),
    [
        ("mr_t1_mni152", (647, 1075)),
        pytest.param("mr_t1_studyforrest", (525, 783), marks=pytest.mark.slow),
        ("mr_phantom_frag_j2k", None),
        pytest.param("ct_head_phantom_tilt", None, marks=pytest.mark.slow),
    ],
)
def test_the_brain_pipeline_is_the_models_own_recipe(
    name: str,
    volumes_ml: tuple[int, int] | None,
    tmp_path: Path,
    pipeline: Pipeline,
    run_brain: Run,
) -> None:
    volume = series(name, tmp_path)
    pre, post = reference("preprocess"), reference("postprocess")
    tensor, info = pre.preprocess(volume.voxels, np.diag([-1, -1, 1, 1]) @ volume.affine)
    tensors, context = pipeline.prepare({"t1": volume})
    assert tensors["image"].dtype == np.float32
    assert tensors["image"].shape == (1, 1, 96, 112, 96)
    assert np.abs(tensors["image"] - tensor).max() <= 1e-5
    outputs = run_brain(tensors)
    found = pipeline.interpret(outputs, context)
    labels, quantities = post.summarise(tensor[0, 0], run_brain({"image": tensor})["logits"][0])
    native = pre.labels_to_native(labels, info)
    assert found.findings.labels is not None
    assert found.findings.labels.shape == volume.voxels.shape
    # Two tensors that differ by rounding may differ in a voxel that is a tie: none did on any of the four.
    assert np.count_nonzero(found.findings.labels != native) <= native.size * 1e-6
    for quantity, expected in quantities.items():
        if quantity in found.quantities and "tilt" not in name:  # a sheared voxel is not 8 mm³
            assert found.quantities[quantity] == pytest.approx(expected, rel=1e-3, abs=1e-4), quantity
    if volumes_ml is None:
        assert any("the volume is not a brain's" in reason for reason in found.failures)
    else:
        assert found.failures == ()
        assert found.findings.warnings == ()
        assert found.quantities["wm_ml"] == pytest.approx(volumes_ml[0], abs=1)
        assert found.quantities["gm_ml"] == pytest.approx(volumes_ml[1], abs=1)


@needs_material
def test_from_the_same_model_output_the_labels_come_back_bit_for_bit(mni: Volume, pipeline: Pipeline) -> None:
    pre = reference("preprocess")
    _, info = pre.preprocess(mni.voxels, np.diag([-1, -1, 1, 1]) @ mni.affine)
    labels = np.random.default_rng(0).integers(0, 3, (96, 112, 96)).astype(np.uint8)
    labels[40:50, 40:50, 40:50] = 1
    _, context = pipeline.prepare({"t1": mni})
    only_back = Pipeline.compile(
        brain(
            lambda data: data.update(
                postprocessing=[{"step": "argmax"}, {"step": "to_source_grid"}],
                outputs={**data["outputs"], "measurements": [], "checks": []},
            )
        )
    )
    logits = np.stack([labels == label for label in range(3)]).astype(np.float32)[None]
    found = only_back.interpret({"logits": logits}, context).findings.labels
    assert found is not None
    assert np.array_equal(found, pre.labels_to_native(labels, info))


@needs_material
def test_brain_dice_is_that_of_the_card(mni: Volume, pipeline: Pipeline, run_brain: Run) -> None:
    """The card scores on the 2 mm grid: truth as shares of tissue, resampled like the image."""
    pre = reference("preprocess")
    tensors, context = pipeline.prepare({"t1": mni})
    found = pipeline.interpret(run_brain(tensors), context)
    assert found.findings.labels is not None
    truth = tissue_truth()
    source = found.findings.labels.transpose(2, 1, 0)  # (slice, row, column) of this series are S, A, R
    assert dice(source == 1, truth == 1) > 0.88
    assert dice(source == 2, truth == 2) > 0.88
    assert dice(source > 0, truth > 0) > 0.96
    _, info = pre.preprocess(mni.voxels, np.diag([-1, -1, 1, 1]) @ mni.affine)
    shares = [
        np.nan_to_num(
            pre.crop_pad(pre.resample((truth == label).astype(np.float32), (1, 1, 1)), info["start"])
        )
        for label in (1, 2)
    ]
    coarse = np.argmax([1 - shares[0] - shares[1], *shares], axis=0)
    labels = np.asarray(run_brain(tensors)["logits"][0].argmax(0))
    assert dice(labels == 1, coarse == 1) == pytest.approx(0.912, abs=0.01)
    assert dice(labels == 2, coarse == 2) == pytest.approx(0.922, abs=0.01)
    assert dice(labels > 0, coarse > 0) == pytest.approx(0.983, abs=0.01)


@needs_material
def test_every_order_of_the_sources_axes_gives_the_same_result(mni: Volume, pipeline: Pipeline) -> None:
    """A sagittal, a coronal or a feet-last series of the same head is the same head."""
    tensors, context = pipeline.prepare({"t1": mni})
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(1, 3, 96, 112, 96)).astype(np.float32)
    labels = pipeline.interpret({"logits": scores}, context).findings.labels
    assert labels is not None
    for order, flipped in (((2, 0, 1), 0), ((1, 2, 0), 2)):
        voxels = np.ascontiguousarray(np.flip(mni.voxels.transpose(order), flipped))
        to_old = np.zeros((4, 4))
        to_old[3, 3] = 1
        for new, old in enumerate(order):
            to_old[old, new] = -1 if new == flipped else 1
            to_old[old, 3] = voxels.shape[new] - 1 if new == flipped else 0
        turned = dataclasses.replace(mni, voxels=voxels, affine=mni.affine @ to_old)
        other, place = pipeline.prepare({"t1": turned})
        assert np.abs(other["image"] - tensors["image"]).max() <= 1e-5
        back = pipeline.interpret({"logits": scores}, place).findings.labels
        assert back is not None
        assert np.array_equal(back, np.flip(labels.transpose(order), flipped))


@needs_material
def test_findings_are_what_the_manifest_says_of_the_numbers(
    mni: Volume, pipeline: Pipeline, run_brain: Run
) -> None:
    tensors, context = pipeline.prepare({"t1": mni})
    found = pipeline.interpret(run_brain(tensors), context)
    findings = found.findings
    assert findings.finding == Code("12738006", "SCT", "Brain")
    assert [(segment.label_value, segment.type.value) for segment in findings.segments] == [
        (1, "389080008"),
        (2, "389081007"),
    ]
    assert [(item.label_value, item.value, item.unit.value) for item in findings.measurements] == [
        (None, round(found.quantities["brain_ml"]), "ml"),
        (1, round(found.quantities["wm_ml"]), "ml"),
        (2, round(found.quantities["gm_ml"]), "ml"),
    ]
    assert findings.labels is not None
    assert findings.labels.dtype == np.uint8
    assert findings.labels.flags.c_contiguous


@needs_material
def test_a_failed_check_declines_or_warns_with_its_numbers(mni: Volume, run_brain: Run) -> None:
    def change(data: dict[str, Any]) -> None:
        for check in data["outputs"]["checks"]:
            if check["quantity"] in {"confidence", "brain_ml"}:
                check["range"] = [0.99, 1.0]

    strict = Pipeline.compile(brain(change))
    tensors, context = strict.prepare({"t1": mni})
    found = strict.interpret(run_brain(tensors), context)
    assert found.failures == ("the volume is not a brain's (brain_ml is 1722, expected 0.99 to 1)",)
    [warning] = found.findings.warnings
    assert warning.endswith("(confidence is 0.8888, expected 0.99 to 1)")


@needs_material
def test_a_pipeline_serves_many_threads_at_once(mni: Volume, pipeline: Pipeline) -> None:
    expected, _ = pipeline.prepare({"t1": mni})
    before = mni.voxels.copy()
    with ThreadPoolExecutor(4) as pool:
        for tensors, _ in pool.map(lambda _: pipeline.prepare({"t1": mni}), range(8)):
            assert np.array_equal(tensors["image"], expected["image"])
    assert np.array_equal(mni.voxels, before)


@needs_material
def test_the_meshnet_tensor_is_the_expected_one(mni: Volume, tmp_path: Path) -> None:
    pipeline = Pipeline.compile(manifest_of(meshnet_package(tmp_path)))
    tensors, context = pipeline.prepare({"t1": mni})
    with np.load(MATERIAL / "reference" / "meshnet5_tensor_golden_mni152.npz") as golden:
        expected = golden["conformed_crop_u8"].astype(np.float32) / np.float32(golden["conformed_max"])
        labels, box = golden["labels_u8"], golden["box"]
    assert np.array_equal(tensors["volume"][0, 0], expected)
    assert np.allclose(  # the 256³ cube's affine, RAS, moved to the box
        np.diag([-1, -1, 1, 1]) @ context.sample.grid @ [0, 0, 0, 1],
        [127 - box[0, 0], box[2, 0] - 145, 149 - box[1, 0], 1],
    )
    logits = np.stack([labels == label for label in range(3)]).astype(np.float32)[None]
    found = pipeline.interpret({"logits": logits}, context)
    truth = tissue_truth()
    assert found.findings.labels is not None
    source = found.findings.labels.transpose(2, 1, 0)
    assert dice(source == 1, truth == 1) >= 0.80
    assert dice(source == 2, truth == 2) >= 0.77
    assert dice(source > 0, truth > 0) >= 0.92


@needs_material
@pytest.mark.slow
def test_meshnet_end_to_end(mni: Volume, tmp_path: Path) -> None:
    package = meshnet_package(tmp_path)
    pipeline = Pipeline.compile(manifest_of(package))
    tensors, context = pipeline.prepare({"t1": mni})
    outputs = session(package / "graph.onnx")(tensors)
    with np.load(MATERIAL / "reference" / "meshnet5_tensor_golden_mni152.npz") as golden:
        differ = np.count_nonzero(outputs["logits"][0].argmax(0) != golden["labels_u8"])
    assert differ <= 750  # 1e-4 of 7.5 million; a rerun differed in none
    found = pipeline.interpret(outputs, context)
    truth = tissue_truth()
    assert found.failures == ()
    assert found.findings.labels is not None
    source = found.findings.labels.transpose(2, 1, 0)
    assert dice(source == 1, truth == 1) >= 0.80
    assert dice(source == 2, truth == 2) >= 0.77
    assert dice(source > 0, truth > 0) >= 0.92


@needs_material
@pytest.mark.slow
def test_the_conformed_grid_of_an_oblique_series_is_the_reference_pipelines(tmp_path: Path) -> None:
    import nibabel

    image: Any = nibabel.load(MATERIAL / "reference" / "mr_t1_studyforrest__meshnet5_labels_LIA256.nii.gz")
    pipeline = Pipeline.compile(manifest_of(meshnet_package(tmp_path / "package")))
    _, context = pipeline.prepare({"t1": series("mr_t1_studyforrest", tmp_path / "study")})
    to_cube = np.linalg.solve(image.affine, np.diag([-1, -1, 1, 1]) @ context.sample.grid)
    assert np.allclose(to_cube[:3, :3], np.eye(3), atol=1e-6)
    assert np.allclose(to_cube[:3, 3], np.rint(to_cube[:3, 3]), atol=1e-4)
    labels = np.asarray(image.dataobj, np.uint8)
    start = np.rint(to_cube[:3, 3]).astype(int)
    on = np.argwhere(labels > 0)
    assert (on.min(0) >= start).all()
    assert (on.max(0) < start + context.sample.values.shape).all()


@needs_material
def test_a_fourth_models_published_recipe_can_be_written_with_the_steps(mni: Volume) -> None:
    """deepbet's box model: nearest-exact to 128³, z-score, and a probability to threshold."""

    def change(data: dict[str, Any]) -> None:
        data["preprocessing"] = [
            {"step": "orient", "axes": "RAS"},
            {"step": "resize_nearest", "shape": [128, 128, 128]},
            {"step": "clip_percentile", "lower": 0.5, "upper": 99.5},
            {"step": "standardise"},
            {"step": "rescale_range", "source": [0, 1], "target": [0.449, 0.675]},
        ]
        data["tensors_in"][0].update(name="volume", shape=[1, 1, "D", "H", "W"])
        data["tensors_out"][0].update(name="prob", shape=[1, 2, "D", "H", "W"])
        data["profiles"] = []
        data["postprocessing"] = [
            {"step": "threshold", "channel": 1, "at": 0.5},
            {"step": "volumes", "quantities": {"brain_ml": [1]}},
            {"step": "to_source_grid"},
        ]
        data["outputs"].update(segments=data["outputs"]["segments"][:1], measurements=[], checks=[])

    import nibabel

    deepbet = Pipeline.compile(brain(change))
    tensors, context = deepbet.prepare({"t1": mni})
    outputs = session(MATERIAL / "models" / "deepbet_bbox_model.onnx")(tensors)
    found = deepbet.interpret(outputs, context)
    assert found.quantities["brain_ml"] == pytest.approx(1919, abs=2)
    image: Any = nibabel.load(MATERIAL / "reference" / "mr_t1_mni152__deepbet_mask_RAS.nii.gz")
    assert found.findings.labels is not None
    mask = found.findings.labels.transpose(2, 1, 0) > 0
    assert (
        dice(mask, np.asarray(image.dataobj) > 0) > 0.97
    )  # of the two-stage model; the box model is coarser


@pytest.fixture(scope="module")
def images() -> Iterator[dict[str, Image]]:
    found = {}
    for row in radiographs():
        path = MATERIAL / row["file"]
        found[row["file"]] = build_image(path, scan_file(path)[0])
    yield found


@needs_material
def test_every_chest_radiograph_gets_the_probabilities_of_the_table(
    tmp_path: Path, images: dict[str, Image]
) -> None:
    columns = {
        "p_bacterial": "sq_p_bacterial",
        "p_normal": "sq_p_normal",
        "p_viral": "sq_p_viral",
        "p_pneumonia": "small_p_pneumonia",
    }
    rows = radiographs()
    assert len(rows) == 105
    compared = 0
    for package in cxr_packages(tmp_path):
        pipeline, run = Pipeline.compile(manifest_of(package)), session(package / "graph.onnx")
        for row in rows:
            tensors, context = pipeline.prepare({"radiograph": images[row["file"]]})
            found = pipeline.interpret(run(tensors), context)
            for quantity, value in found.quantities.items():
                assert value == pytest.approx(float(row[columns[quantity]]), abs=1e-3), row["file"]
                compared += 1
            [evaluation] = found.findings.evaluations
            pneumonia = found.quantities.get("p_pneumonia", 0.0) >= 0.5
            if "p_normal" in found.quantities:
                pneumonia = found.quantities["p_normal"] < 0.5
            assert evaluation.value.meaning == ("Present" if pneumonia else "Absent")
    assert compared == 4 * 105


@needs_material
def test_the_published_values_of_two_radiographs_come_out(tmp_path: Path, images: dict[str, Image]) -> None:
    [_, package] = cxr_packages(tmp_path)
    pipeline, run = Pipeline.compile(manifest_of(package)), session(package / "graph.onnx")
    for name, published in (("IM-0003-0001", 0.9222), ("IM-0005-0001", 0.8516)):
        tensors, context = pipeline.prepare({"radiograph": images[f"dicom/cxr/{name}.dcm"]})
        assert pipeline.interpret(run(tensors), context).quantities["p_normal"] == pytest.approx(
            published, abs=1e-3
        )
