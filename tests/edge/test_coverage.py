"""How much of the imaged volume lies in the grid that the model was given."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dicom.geometry import stack_geometry
from dicom.header import scan_file
from dicom.volume import Volume, build_volume
from edge.pipeline import Pipeline
from edge.steps.labels import coverage, to_source_grid
from edge.steps.sample import Reading, Sample
from model_store.manifest import Manifest
from model_store.package import read_package
from tests.material import needs_material, unpack
from tests.tiny import tiny_model

SHIPPED = Path(__file__).resolve().parents[2] / "models" / "brain_t1_small"


def sample(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> Sample:
    return Sample(np.zeros(shape, np.float32), affine)


def labelled(grid: Sample, shape: tuple[int, int, int], affine: NDArray[np.float64]) -> NDArray[np.uint8]:
    """What a model that labels all that it sees leaves on the source's grid."""
    everything = np.ones(grid.values.shape, np.uint8)
    scores = np.zeros((1, *grid.values.shape), np.float32)
    found = to_source_grid(Reading(scores, grid, shape, affine, everything)).source_label_map
    assert found is not None
    return found


def runs(unseen: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for index in np.flatnonzero(unseen).tolist():
        if found and found[-1][1] == index - 1:
            found[-1] = (found[-1][0], index)
        else:
            found.append((index, index))
    return tuple(found)


@given(
    st.permutations([0, 1, 2]),
    st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    st.tuples(*[st.floats(0.4, 2.5)] * 3),
    st.tuples(*[st.floats(-14, 14)] * 3),
)
@settings(deadline=None, max_examples=60)
def test_the_share_is_that_of_the_voxels_that_could_have_got_a_label(
    axes: list[int], signs: tuple[float, ...], spacing: tuple[float, ...], shift: tuple[float, ...]
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, axis in enumerate(axes):
        affine[axis, column] = signs[column] * spacing[column]
    affine[:3, 3] = shift
    shape, grid = (9, 8, 7), sample((6, 7, 8), np.diag([2.0, 1.5, 1.0, 1.0]))
    found = labelled(grid, shape, affine) > 0
    share, unseen = coverage(grid, shape, affine)
    assert share == pytest.approx(found.mean(), abs=1e-12)
    assert unseen == runs(~found.reshape(len(found), -1).max(axis=1))


@pytest.mark.parametrize("degrees", [7, 30, 60])
def test_oblique_grids_are_sampled(degrees: float) -> None:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = [[c, -s, 0], [s, c, 0], [0, 0, 1]]
    shape, grid = (40, 60, 50), sample((30, 40, 40), np.eye(4))
    found = labelled(grid, shape, affine) > 0
    share, unseen = coverage(grid, shape, affine)
    assert share == pytest.approx(found.mean(), abs=0.02)
    exact = runs(~found.reshape(len(found), -1).max(axis=1))
    assert len(unseen) == len(exact)
    ends = zip(unseen, exact, strict=True)  # a corner may lie between two samples
    assert all(abs(a - b) <= 1 for pair in ends for a, b in zip(*pair, strict=True))


def test_slices_beyond_the_grid_of_the_model_reach_the_findings(tmp_path: Path) -> None:
    package = read_package(tiny_model(tmp_path / "tiny"))
    manifest: Manifest = package.manifest
    pipeline = Pipeline.compile(manifest)
    grid = manifest.tensors_in[0].shape[2:]
    slices = int(grid[0]) + 12
    voxels = np.zeros((slices, 16, 16), np.float32)
    affine = np.eye(4)
    tensors, context = pipeline.prepare({"image": Volume(voxels, affine, "1.2", ("1",) * slices)})
    shape = (1, 2, *next(iter(tensors.values())).shape[2:])
    findings = pipeline.interpret({"logits": np.zeros(shape, np.float32)}, context).findings
    assert findings.coverage == pytest.approx(int(grid[0]) / slices)
    assert findings.unseen_slices == ((0, 5), (slices - 6, slices - 1))


@needs_material
@pytest.mark.parametrize(
    ("name", "seen", "runs_unseen"),
    [("mr_t1_mni152", 0.823, ((166, 188),)), ("mr_t1_studyforrest", 0.656, ((0, 95),))],
)
def test_of_real_heads_the_shipped_model_leaves_out_air_and_neck_and_it_is_known(
    name: str, seen: float, runs_unseen: tuple[tuple[int, int], ...], tmp_path: Path
) -> None:
    pairs = [(path, scan_file(path)[0]) for path in unpack(name, tmp_path)]
    order = stack_geometry([header for _, header in pairs]).order
    volume = build_volume([pairs[index] for index in order])
    pipeline = Pipeline.compile(read_package(SHIPPED).manifest)
    _, context = pipeline.prepare({pipeline.manifest.inputs[0].name: volume})
    share, unseen = coverage(context.sample, volume.voxels.shape, volume.affine)
    assert share == pytest.approx(seen, abs=0.001)
    assert unseen == runs_unseen
