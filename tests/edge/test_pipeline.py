"""What the pipeline does with what it should not be given: pixels, inputs, outputs."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from dicom.volume import Image, Volume
from edge.pipeline import Pipeline
from edge.steps.sample import MAX_VOXELS, ModelOutputError, OutOfScopeError
from tests.edge.test_steps_table import brain, radiograph


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.compile(brain())


def f32(values: ArrayLike) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)


def grey(**changes: Any) -> Image:  # noqa: ANN401 (any field)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 240)).astype(np.float32)
    return dataclasses.replace(Image(pixels, "MONOCHROME2", 8, "1.2.3"), **changes)


def test_a_monochrome1_radiograph_gives_the_tensor_of_its_negative() -> None:
    pipeline = Pipeline.compile(radiograph())
    image = grey()
    negative = grey(pixels=255 - image.pixels, photometric_interpretation="MONOCHROME1")
    plain, _ = pipeline.prepare({"radiograph": image})
    turned, _ = pipeline.prepare({"radiograph": negative})
    assert np.array_equal(plain["image"], turned["image"])


def test_a_12_bit_radiograph_is_windowed() -> None:
    pipeline = Pipeline.compile(radiograph())
    tensors, _ = pipeline.prepare({"radiograph": grey(pixels=grey().pixels * 16, bits_stored=12)})
    plain, _ = pipeline.prepare({"radiograph": grey()})
    assert np.abs(tensors["image"] - plain["image"]).max() < 0.1


def test_pixels_beyond_the_bits_that_they_claim_are_out_of_scope() -> None:
    with pytest.raises(OutOfScopeError, match="resize: takes values 0 to 255, got"):
        Pipeline.compile(radiograph()).prepare({"radiograph": grey(pixels=grey().pixels - 1000)})


def test_an_image_for_a_volume_or_another_name_is_our_misuse() -> None:
    with pytest.raises(ValueError, match="wants the volume 't1' alone"):
        Pipeline.compile(brain()).prepare({"t1": grey()})
    with pytest.raises(ValueError, match="wants the image 'radiograph' alone"):
        Pipeline.compile(radiograph()).prepare({"other": grey()})


def test_pixels_that_are_not_numbers_count_as_0(pipeline: Pipeline) -> None:
    rng = np.random.default_rng(3)
    voxels = rng.uniform(0, 100, (60, 70, 80)).astype(np.float32)
    holes = voxels.copy()
    holes[10:20, 10:20, 10:20] = np.nan
    holes[30, 30, 30] = np.inf
    zeros = np.where(np.isfinite(holes), holes, np.float32(0))
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    got, _ = pipeline.prepare({"t1": Volume(holes, affine, "1.2", ())})
    expected, _ = pipeline.prepare({"t1": Volume(zeros, affine, "1.2", ())})
    assert np.isfinite(got["image"]).all()
    assert np.array_equal(got["image"], expected["image"])


def test_pixels_that_no_arithmetic_can_hold_are_out_of_scope(pipeline: Pipeline) -> None:
    voxels = np.full((60, 70, 80), 3e38, np.float32)
    voxels[::2] = -3e38
    with pytest.raises(OutOfScopeError, match="beyond what the preprocessing can compute with"):
        pipeline.prepare({"t1": Volume(voxels, np.diag([3.0, 3.0, 3.0, 1.0]), "1.2", ())})


def test_a_volume_that_the_tensors_profile_does_not_hold_is_out_of_scope() -> None:
    def change(data: dict[str, Any]) -> None:
        data["preprocessing"] = [{"step": "orient", "axes": "RAS"}]
        data["tensors_in"][0]["shape"] = ["N", 1, "D", "H", "W"]
        data["profiles"][0].update(min=[1, 1, 8, 8, 8], max=[1, 1, 64, 64, 64])

    free = Pipeline.compile(brain(change))
    fits = Volume(np.ones((8, 64, 9), np.float32), np.eye(4), "1.2", ())
    tensors, _ = free.prepare({"t1": fits})
    assert sorted(tensors["image"].shape) == [1, 1, 8, 9, 64]
    large = Volume(np.ones((8, 65, 9), np.float32), np.eye(4), "1.2", ())
    with pytest.raises(OutOfScopeError, match=r"65 along axis \d of the tensor, the model takes 8 to 64"):
        free.prepare({"t1": large})


def test_a_volume_beyond_every_limit_is_out_of_scope_before_anything_is_allocated(pipeline: Pipeline) -> None:
    huge = np.broadcast_to(np.float32(0), (1024, 1024, 1024))  # 4 bytes that look like 4 GiB
    with pytest.raises(OutOfScopeError, match=f"allowed {MAX_VOXELS}"):
        pipeline.prepare({"t1": Volume(huge, np.eye(4), "1.2", ())})


@pytest.mark.parametrize(
    ("outputs", "problem"),
    [
        ({}, r"logits: the model gave \[\]"),
        ({"other": np.zeros((1, 3), np.float32)}, r"logits: the model gave \['other'\]"),
        ({"logits": np.zeros((1, 3), np.float64)}, "type float64, the manifest says float32"),
        ({"logits": np.zeros((1, 4), np.float32)}, r"shape \[1, 4\], the manifest says \[1, 3\]"),
        ({"logits": np.zeros((2, 3), np.float32)}, r"shape \[2, 3\]"),
        ({"logits": np.zeros((3,), np.float32)}, r"shape \[3\]"),
        ({"logits": f32([[0, np.nan, 0]])}, "not every value is a finite number"),
        ({"logits": f32([[0, np.inf, -np.inf]])}, "not every value is a finite number"),
    ],
)
def test_an_output_that_is_not_what_the_manifest_says_is_the_models_fault(
    outputs: dict[str, NDArray[Any]], problem: str
) -> None:
    pipeline = Pipeline.compile(radiograph())
    _, context = pipeline.prepare({"radiograph": grey()})
    with pytest.raises(ModelOutputError, match=problem):
        pipeline.interpret(outputs, context)


def test_scores_as_large_as_float32_goes_are_finite_numbers() -> None:
    pipeline = Pipeline.compile(radiograph())
    _, context = pipeline.prepare({"radiograph": grey()})
    found = pipeline.interpret({"logits": f32([[3e38, 3e38, -3e38]])}, context)
    assert found.quantities["p_viral"] == 0
    assert found.quantities["p_normal"] == pytest.approx(0.5)
