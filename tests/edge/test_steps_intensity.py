"""The steps that change values, and the exact percentiles below them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from edge.steps.image import invert_monochrome1, resize, stack_channels, window_percentile
from edge.steps.intensity import (
    clip,
    clip_percentile,
    normalise,
    rescale_percentile,
    rescale_range,
    standardise,
)
from edge.steps.percentile import SMALL, percentiles
from edge.steps.sample import OutOfScopeError, Sample


def f32(values: ArrayLike) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, int], NDArray[Any]]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy tails": lambda rng, n: rng.standard_cauchy(n),
    "mostly zero": lambda rng, n: np.where(rng.random(n) < 0.7, 0, rng.gamma(2, 200, n)),
    "few values": lambda rng, n: rng.integers(0, 5, n),
    "constant": lambda rng, n: np.full(n, -3.25),
    "sorted": lambda rng, n: np.sort(rng.random(n)),
    "every 61st is large": lambda rng, n: np.where(np.arange(n) % 61 == 0, 1e6, rng.random(n)),
    "every 61st is small": lambda rng, n: np.where(np.arange(n) % 61 == 0, -1e6, rng.random(n)),
}


def padded(values: NDArray[np.float32]) -> Sample:
    """`values` in the middle of a volume with one voxel of padding on each side."""
    whole = np.zeros(tuple(n + 2 for n in values.shape), np.float32)
    whole[1:-1, 1:-1, 1:-1] = values
    return Sample(whole, np.eye(4), tuple((1, n + 1) for n in values.shape))


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("count", [1, 2, 1000, SMALL, SMALL + 1, 3 * SMALL + 7])
def test_percentiles_are_those_of_numpy_to_the_last_digit_of_float32(kind: str, count: int) -> None:
    values = DISTRIBUTIONS[kind](np.random.default_rng(count), count).astype(np.float32)
    percents = [0, 0.001, 0.5, 1, 25, 50, 99.5, 99.9, 99.9999, 100]
    assert np.array_equal(
        f32(percentiles(values, percents)), np.percentile(values, percents).astype(np.float32)
    )


@given(st.integers(1, 4 * SMALL), st.floats(0, 100), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_any_percentile_of_many_values_is_numpys(count: int, percent: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=count) * 10 ** rng.uniform(-3, 3)).astype(np.float32)
    assert np.float32(percentiles(values, [percent])[0]) == np.float32(np.percentile(values, [percent])[0])


def test_clip_limits_only_on_the_sides_that_are_given() -> None:
    sample = Sample(f32([[-5, 0, 5]]))
    assert clip(sample, lower=-1, upper=2).values.tolist() == [[-1, 0, 2]]
    assert clip(sample, lower=-1).values.tolist() == [[-1, 0, 5]]
    assert clip(sample, upper=2).values.tolist() == [[-5, 0, 2]]
    assert sample.values.tolist() == [[-5, 0, 5]]


def test_clip_percentile_can_look_at_positive_values_only() -> None:
    values = np.concatenate([np.zeros(900), np.arange(1, 101)]).astype(np.float32).reshape(10, 10, 10)
    of_all = clip_percentile(Sample(values, np.eye(4)), upper=50)
    positive = clip_percentile(Sample(values, np.eye(4)), upper=50, over="positive")
    assert of_all.values.max() == 0
    assert positive.values.max() == 50.5
    with pytest.raises(OutOfScopeError, match="no voxel is above 0"):
        clip_percentile(Sample(np.zeros((2, 2, 2), np.float32), np.eye(4)), upper=50, over="positive")


def test_rescale_percentile_maps_the_two_percentiles_to_0_and_1_and_clips() -> None:
    values = np.linspace(-50, 150, 1000, dtype=np.float32).reshape(10, 10, 10)
    result = rescale_percentile(Sample(values, np.eye(4)), lower=10, upper=90).values
    low, high = np.percentile(values, [10, 90])
    assert np.allclose(result, np.clip((values - low) / (high - low), 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    "step",
    [
        lambda sample: clip(sample, lower=3),
        lambda sample: clip_percentile(sample, lower=20, upper=80),
        rescale_percentile,
        lambda sample: rescale_range(sample, target=(5, 6)),
        lambda sample: normalise(sample, mean=(7.0,), std=(2.0,)),
        standardise,
    ],
)
def test_padding_does_not_count_and_stays_0(step: Callable[[Sample], Sample]) -> None:
    values = np.random.default_rng(5).uniform(1, 9, (4, 5, 6)).astype(np.float32)
    alone = step(Sample(values, np.eye(4)))
    result = step(padded(values))
    assert np.array_equal(result.values[1:-1, 1:-1, 1:-1], alone.values)
    border = np.ones(result.values.shape, bool)
    border[1:-1, 1:-1, 1:-1] = False
    assert not result.values[border].any()


def test_a_box_beside_the_volume_is_out_of_scope() -> None:
    nothing = Sample(np.zeros((4, 4, 4), np.float32), np.eye(4), ((0, 0), (0, 4), (0, 4)))
    with pytest.raises(OutOfScopeError, match="nothing of the volume"):
        rescale_percentile(nothing)


def test_rescale_range_of_the_volume_itself_can_round_and_halves_go_to_even() -> None:
    values = f32([0, 1888, 3776]).reshape(3, 1, 1)
    result = rescale_range(Sample(values, np.eye(4)), target=(0, 255), whole=True)
    assert result.values.ravel().tolist() == [0, 128, 255]


def test_rescale_range_of_a_flat_volume_is_finite() -> None:
    flat = Sample(np.full((2, 2, 2), 7, np.float32), np.eye(4))
    assert np.isfinite(rescale_range(flat, target=(0, 1)).values).all()


def test_rescale_range_with_a_source_does_not_clip_and_can_turn_around() -> None:
    sample = Sample(f32([[0, 100, 300]]))
    assert rescale_range(sample, source=(0, 200), target=(0, 1)).values.tolist() == [[0, 0.5, 1.5]]
    assert rescale_range(sample, source=(0, 200), target=(1, 0)).values.tolist() == [[1, 0.5, -0.5]]


def test_normalise_works_channel_by_channel() -> None:
    sample = Sample(np.ones((3, 2, 2), np.float32))
    result = normalise(sample, mean=(0.0, 1.0, 2.0), std=(1.0, 1.0, 0.5))
    assert result.values[:, 0, 0].tolist() == [1, 0, -2]


def test_standardise_makes_mean_0_and_deviation_1_over_what_it_is_asked() -> None:
    values = np.random.default_rng(6).normal(300, 40, (8, 8, 8)).astype(np.float32)
    values[:4] = 0
    of_all = standardise(Sample(values, np.eye(4))).values
    assert of_all.mean() == pytest.approx(0, abs=1e-5)
    assert of_all.std() == pytest.approx(1, abs=1e-5)
    positive = standardise(Sample(values, np.eye(4)), over="positive").values
    assert positive[4:].mean() == pytest.approx(0, abs=1e-5)
    assert positive[4:].std() == pytest.approx(1, abs=1e-5)
    flat = standardise(Sample(np.full((2, 2, 2), 9, np.float32), np.eye(4))).values
    assert not flat.any()


def test_monochrome1_is_inverted_once_and_monochrome2_is_not() -> None:
    white_is_0 = Sample(f32([[0, 1000, 4095]]), photometric_interpretation="MONOCHROME1", bits_stored=12)
    inverted = invert_monochrome1(white_is_0)
    assert inverted.values.tolist() == [[4095, 3095, 0]]
    assert inverted.photometric_interpretation == "MONOCHROME2"
    assert invert_monochrome1(inverted) is inverted


def test_more_than_8_bits_are_windowed_to_8_and_8_bits_stay() -> None:
    twelve = Sample(np.arange(4096, dtype=np.float32).reshape(64, 64), bits_stored=12)
    windowed = window_percentile(twelve)
    assert (windowed.values.min(), windowed.values.max(), windowed.bits_stored) == (0, 255, 8)
    assert np.array_equal(windowed.values, np.rint(windowed.values))
    assert windowed.values.ravel()[2048] == pytest.approx(127.5, abs=0.51)
    assert window_percentile(windowed) is windowed


def test_resize_is_pillows_bilinear_on_8_bits() -> None:
    grey = np.random.default_rng(4).integers(0, 256, (301, 407)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(grey).resize((224, 128), Image.Resampling.BILINEAR))
    result = resize(Sample(grey.astype(np.float32)), shape=(128, 224))
    assert np.array_equal(result.values, expected)


def test_resize_refuses_values_beyond_8_bits() -> None:
    with pytest.raises(OutOfScopeError, match="got 0 to 300"):
        resize(Sample(f32([[0, 300]])), shape=(2, 2))


def test_stack_channels_repeats_the_image() -> None:
    result = stack_channels(Sample(f32([[1, 2]])), count=3)
    assert result.values.shape == (3, 1, 2)
    assert (result.values == f32([1, 2])).all()
