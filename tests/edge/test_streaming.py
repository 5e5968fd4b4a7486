"""Slices that were begun on arrival give the bits of the whole volume, in whatever order they came."""

import json
import random
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread

from dicom.geometry import slice_affine, stack_geometry
from dicom.header import InstanceHeader
from dicom.volume import Volume
from edge.pipeline import Pipeline
from edge.steps.sample import OutOfScopeError
from edge.study import Stage
from model_store.manifest import parse
from tests.dicom.instances_fixture import slice_headers
from tests.edge.stages_fixture import WAIT_S, Stages, shuffled
from tests.edge.test_steps_table import brain
from tests.packages import ROOT
from tests.tiny import tiny_model, tiny_study

DIRECTIONS = {
    "axial": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "axial, turned about": ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0)),
    "sagittal": ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0)),
    "coronal": ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0)),
    "oblique": ((0.9, 0.3, np.sqrt(0.1)), (-0.31622777, 0.94868330, 0.0)),
}


def meshnet() -> Pipeline:
    """The steps of MeshNet: another orientation, `conform`, nothing of the graph."""
    data = json.loads((ROOT / "tests" / "model_packages" / "meshnet_gw.json").read_text())
    entry = {"sha256": "0" * 64, "size_bytes": 1}
    data["files"] = {"graph.onnx": entry, "golden.npz": entry}
    return Pipeline.compile(parse(json.dumps(data).encode(), "test"))


def pointwise_first() -> Pipeline:
    """Steps of each kind before and after the separable one."""

    def change(data: dict[str, Any]) -> None:
        steps = data["preprocessing"]
        clip = {"step": "clip", "lower": 5.0, "upper": 900.0}
        scale = {"step": "rescale_range", "source": [0, 1000], "target": [0, 4]}
        data["preprocessing"] = [clip, steps[0], scale, *steps[1:]]

    return Pipeline.compile(brain(change))


def series(
    name: str, count: int = 40, spacing_mm: float = 3.1
) -> tuple[list[InstanceHeader], NDArray[np.float32]]:
    """Headers and slices of a head-sized series, the slices with a bright ball in the middle."""
    directions = DIRECTIONS[name]
    headers = [
        replace(each, rows=90, columns=100, pixel_spacing_mm=(2.2, 1.9))
        for each in slice_headers(count, spacing_mm, directions=directions, decimals=6)
    ]
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (count, 90, 100)), indexing="ij"))
    voxels = np.random.default_rng(7).uniform(0, 60, (count, 90, 100)) + 900 * ((grid**2).sum(0) < 0.6)
    return headers, voxels.astype(np.float32)


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("make", [lambda: Pipeline.compile(brain()), meshnet, pointwise_first])
def test_begun_slices_give_the_tensor_and_geometry_of_the_volume_bit_for_bit(name: str, make: Any) -> None:  # noqa: ANN401
    pipeline = make()
    headers, voxels = series(name)
    geometry = stack_geometry(headers)
    voxels = voxels[list(geometry.order)]
    source = pipeline.manifest.inputs[0].name
    expected, known = pipeline.prepare({source: Volume(voxels, geometry.affine, "1.2", ())})
    begun = []
    for place, index in enumerate(geometry.order):
        work = pipeline.slice_work(slice_affine(headers[index]), (90, 100))
        assert work is not None
        assert work.key == pipeline.slice_work(geometry.affine, (90, 100)).key
        begun.append(pipeline.begin_slice(work, voxels[place]))
    got, context = pipeline.prepare_slices(begun, geometry.affine, geometry.shape)
    assert {key: value.tobytes() for key, value in got.items()} == {
        key: value.tobytes() for key, value in expected.items()
    }
    assert context.sample.grid.tobytes() == known.sample.grid.tobytes()
    assert context.sample.inside == known.sample.inside
    assert context.source_shape == known.source_shape


def test_pixels_that_are_no_numbers_are_0_in_a_begun_slice_as_in_a_volume() -> None:
    pipeline = pointwise_first()
    headers, voxels = series("axial")
    voxels[3, 4, 5], voxels[7, 8, 9] = np.nan, np.inf
    geometry = stack_geometry(headers)
    work = pipeline.slice_work(geometry.affine, (90, 100))
    assert work is not None
    expected, _ = pipeline.prepare({"t1": Volume(voxels, geometry.affine, "1.2", ())})
    begun = [pipeline.begin_slice(work, plane) for plane in voxels]
    got, _ = pipeline.prepare_slices(begun, geometry.affine, geometry.shape)
    assert got["image"].tobytes() == expected["image"].tobytes()


def test_a_manifest_that_begins_with_the_whole_volume_is_not_begun_by_slices() -> None:
    def change(data: dict[str, Any]) -> None:
        data["preprocessing"].insert(0, {"step": "clip_percentile", "upper": 99.0})

    pipeline = Pipeline.compile(brain(change))
    assert pipeline.slice_work(np.eye(4), (90, 100)) is None
    with pytest.raises(ValueError, match="begun slices"):
        pipeline.prepare_slices([], np.eye(4), (0, 90, 100))


@pytest.mark.parametrize(("edge", "said"), [(60_000, "allowed 134217728"), (4_000, "allowed 4096")])
def test_slices_that_would_become_too_large_are_out_of_scope_before_anything_is_made(
    edge: int, said: str
) -> None:
    affine = np.diag([1.0, 1000.0, 1000.0, 1.0])
    with pytest.raises(OutOfScopeError, match=said):
        Pipeline.compile(brain()).slice_work(affine, (edge, edge))


def test_shuffled_or_not_and_streamed_or_not_a_study_gives_the_same_result_bytes(tmp_path: Path) -> None:
    package = tiny_model(tmp_path / "model")
    files = tiny_study(tmp_path / "study", slices=12)
    found = []
    for number, (order, streaming) in enumerate(
        [
            (files, False),
            (files, True),
            (files[::-1], True),
            (shuffled(files, 1), True),
            (shuffled(files, 2), True),
        ]
    ):
        with Stages(tmp_path / f"box{number}", [package], streaming=streaming) as box:
            box.receive(order)
            box.assembler.poll()
            box.idle()
            assert (box.begun.get(_name(box, files[0])) is not None) == streaming
            box.step()
            found.append(box.results())
    assert len(found[0]) == 3
    assert all(each == found[0] for each in found[1:])


def test_a_slice_that_is_not_there_any_more_is_made_again_with_the_same_bytes(tmp_path: Path) -> None:
    package = tiny_model(tmp_path / "model")
    files = tiny_study(tmp_path / "study")
    found = []
    for number, lost in enumerate(([], files[2:5])):
        with Stages(tmp_path / f"box{number}", [package]) as box:
            box.receive(files)
            box.assembler.poll()
            box.idle()
            for path in lost:
                box.begun.drop(_name(box, path))
                box.slices.drop(_name(box, path).rpartition("/")[0])
            box.step()
            found.append(box.results())
    assert len(found[0]) == 3
    assert found[0] == found[1]


def test_when_no_model_waits_for_a_study_its_slices_are_gone(tmp_path: Path) -> None:
    with Stages(tmp_path / "box", [tiny_model(tmp_path / "model")]) as box:
        files = tiny_study(tmp_path / "study")
        box.receive(files)
        box.assembler.poll()
        box.idle()
        name = _name(box, files[0])
        assert box.begun.get(name) is not None
        box.step(Stage.ASSEMBLE)
        assert box.begun.get(name) is not None
        box.step()
        assert box.begun.get(name) is None
        assert box.slices.get(name.rpartition("/")[0]) is None


def test_a_study_that_no_model_takes_leaves_no_slices_behind(tmp_path: Path) -> None:
    files = tiny_study(tmp_path / "study", slices=2, announced=2)  # the model takes 4 slices and more
    with Stages(tmp_path / "box", [tiny_model(tmp_path / "model")]) as box:
        box.receive(files)
        box.assembler.poll()
        box.idle()
        box.step()
        assert box.study().study.state == "declined"
        assert box.begun.get(_name(box, files[0])) is None


def test_the_first_slice_that_cannot_be_decoded_ends_the_decoding_ahead_of_its_study(tmp_path: Path) -> None:
    files = tiny_study(tmp_path / "study")
    ds = dcmread(files[0])
    ds.PixelData = ds.PixelData[:100]
    ds.save_as(files[0])
    with Stages(tmp_path / "box", [tiny_model(tmp_path / "model")]) as box:
        box.receive(files)
        box.assembler.poll()
        box.idle()
        assert all(box.begun.get(_name(box, path)) is None for path in files)
        box.step()
        detail = box.study()
        assert detail.study.state == "held"
        assert ds.SOPInstanceUID in detail.study.reason


def test_what_waits_for_the_thread_is_left_to_the_model_that_wants_it_now(tmp_path: Path) -> None:
    with Stages(tmp_path / "box", [tiny_model(tmp_path / "model")]) as box:
        release = threading.Event()
        box.executor.submit(release.wait, WAIT_S)
        files = shuffled(tiny_study(tmp_path / "study"), random.Random(3).randrange(100))
        box.receive(files)
        box.assembler.poll()
        box.step()  # the thread is busy elsewhere: nothing waits for it
        assert box.study().items[-1].stage == Stage.DELIVER
        release.set()
        box.idle()
        assert box.begun.get(_name(box, files[0])) is None


def _name(box: Stages, path: Path) -> str:
    """The name of a begun slice."""
    [model] = box.serving.active()
    entry = box.arrival(box.store_file(path))
    return f"{entry.study_key}/{entry.instance_key}/{model.digest}"
