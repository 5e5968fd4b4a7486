"""The steps after the model: from scores to labels and numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from edge.steps.labels import argmax, largest_component, sigmoid, softmax, threshold
from edge.steps.quantities import (
    border_share,
    class_probabilities,
    confidence,
    extents,
    ratio,
    tissue_contrast,
    volumes,
)
from edge.steps.sample import ModelOutputError, Reading, Sample


def f32(values: ArrayLike) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)


def of_labels(
    labels: NDArray[np.uint8],
    values: NDArray[np.float32] | None = None,
    grid: NDArray[np.float64] | None = None,
) -> Reading:
    sample = Sample(
        labels.astype(np.float32) if values is None else values, np.eye(4) if grid is None else grid
    )
    return Reading(np.zeros((3, *labels.shape), np.float32), sample, labels.shape, np.eye(4), labels)


def of_scores(scores: NDArray[np.float32]) -> Reading:
    grid = np.zeros(scores.shape[1:], np.float32)
    return Reading(scores, Sample(grid, np.eye(4)), grid.shape, np.eye(4))


def test_softmax_and_sigmoid_are_what_they_are_and_do_not_overflow() -> None:
    scores = f32([[1000.0], [0.0], [-1000.0]])
    assert softmax(of_scores(scores)).scores.ravel().tolist() == [1, 0, 0]
    assert sigmoid(of_scores(scores)).scores.ravel().tolist() == [1, 0.5, 0]


@given(st.integers(1, 6), st.integers(0, 2**32))
@settings(deadline=None)
def test_argmax_is_numpys_and_ties_go_to_the_first(classes: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 3, (classes, 4, 5, 6)).astype(np.float32)
    assert np.array_equal(argmax(of_scores(scores)).labels, scores.argmax(0))


def test_more_classes_than_a_label_map_can_hold_is_the_models_fault() -> None:
    with pytest.raises(ModelOutputError, match="257 classes"):
        argmax(of_scores(np.zeros((257, 1, 1, 1), np.float32)))


def test_threshold_labels_what_is_at_or_above() -> None:
    scores = f32([0.4, 0.5, 0.6]).reshape(1, 3, 1, 1)
    assert threshold(of_scores(scores), at=0.5, label=7).labels.ravel().tolist() == [0, 7, 7]
    with pytest.raises(ModelOutputError, match="channel 1 of 1"):
        threshold(of_scores(scores), at=0.5, channel=1)


@given(st.integers(0, 2**32), st.floats(0.05, 0.6))
@settings(deadline=None)
def test_the_largest_component_is_that_of_six_neighbours_over_all_labels(seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((8, 9, 10)) < density, rng.integers(1, 3, (8, 9, 10)), 0).astype(np.uint8)
    before = labels.copy()
    result = largest_component(of_labels(labels), quantity="share")
    assert np.array_equal(labels, before)
    kept = result.labels > 0
    assert np.array_equal(result.labels[kept], labels[kept])
    parts, count = ndimage.label(labels > 0)
    sizes = np.bincount(parts.ravel())[1:]
    assert kept.sum() == (sizes.max() if count else 0)
    assert len(np.unique(parts[kept])) == min(count, 1)
    assert result.quantities["share"] == pytest.approx(sizes.max() / sizes.sum() if count else 1)


def test_voxels_that_touch_at_an_edge_only_are_apart() -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, :2] = labels[1, 1, 2] = 1
    assert largest_component(of_labels(labels)).labels.sum() == 2


def test_volumes_count_labels_together_in_ml() -> None:
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[:2], labels[5:6] = 1, 2
    grid = np.diag([2.0, -2.0, 2.5, 1.0])
    found = volumes(of_labels(labels, grid=grid), quantities={"one": (1,), "both": (1, 2, 2), "none": (3,)})
    assert found.quantities == pytest.approx({"one": 2.0, "both": 3.0, "none": 0.0})


def test_a_ratio_with_nothing_below_is_0() -> None:
    labels = np.ones((2, 2, 2), np.uint8)
    counted = volumes(of_labels(labels), quantities={"one": (1,), "two": (2,)})
    found = ratio(counted, quantity="r", numerator="one", denominator="two")
    assert found.quantities["r"] == 0
    assert ratio(counted, quantity="r", numerator="two", denominator="one").quantities["r"] == 0


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_confidence_is_the_mean_probability_of_the_chosen_class(kind: str) -> None:
    scores = np.random.default_rng(1).normal(size=(3, 5, 5, 5)).astype(np.float32) * 3
    reading = argmax(of_scores(scores))
    if kind == "probabilities":
        reading = softmax(reading)
    found = confidence(reading, quantity="c", scores=kind)  # type: ignore[arg-type]
    exact = (np.exp(scores) / np.exp(scores).sum(0)).max(0)[reading.labels > 0].mean()
    assert found.quantities["c"] == pytest.approx(float(exact), abs=1e-6)


def test_contrast_is_the_difference_of_means_over_the_spread() -> None:
    labels = np.ones((10, 10, 10), np.uint8)
    labels[5:] = 2
    values = np.where(labels == 1, 0.8, 0.5).astype(np.float32)
    values[::2] += 0.1
    found = tissue_contrast(of_labels(labels, values), quantity="c", bright=1, dark=2)
    one, other = values[labels == 1].astype(float), values[labels == 2].astype(float)
    exact = (one.mean() - other.mean()) / (0.5 * (one.std() + other.std()) + 1e-3)
    assert found.quantities["c"] == pytest.approx(exact, rel=1e-6)
    turned = tissue_contrast(of_labels(labels, values), quantity="c", bright=2, dark=1)
    assert turned.quantities["c"] == pytest.approx(-exact, rel=1e-6)
    few = tissue_contrast(of_labels(labels, values), quantity="c", bright=1, dark=2, min_voxels=500)
    assert few.quantities["c"] == 0


def test_extents_follow_the_patients_directions_on_any_grid() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[2:5, 4:14, 6:7] = 1
    grid = np.zeros((4, 4))
    grid[2, 0], grid[0, 1], grid[1, 2], grid[3, 3] = -3, 2, 5, 1  # i: I, j: L, k: P
    found = extents(of_labels(labels, grid=grid), quantities={"w": "LR", "l": "AP", "h": "IS"})
    assert found.quantities == pytest.approx({"w": 20, "l": 5, "h": 9})


def test_the_border_share_counts_the_outermost_voxels() -> None:
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[0, 2, 2] = labels[1, 2, 2] = labels[2, 2, 2] = labels[3, 2, 2] = 1
    assert border_share(of_labels(labels), quantity="b").quantities["b"] == 0.25


def test_every_quantity_of_an_empty_label_map_is_0() -> None:
    reading = of_labels(np.zeros((4, 4, 4), np.uint8))
    reading = volumes(largest_component(reading), quantities={"v": (1,)})
    reading = tissue_contrast(confidence(reading, quantity="c"), quantity="t", bright=1, dark=2)
    reading = border_share(extents(reading, quantities={"e": "LR"}), quantity="b")
    assert set(reading.quantities.values()) == {0.0}
    assert len(reading.quantities) == 5


def test_class_probabilities_are_named_and_must_be_probabilities() -> None:
    reading = of_scores(f32([0.25, 0.75]))
    found = class_probabilities(reading, quantities={"p": 1, "q": 0})
    assert found.quantities == {"p": 0.75, "q": 0.25}
    with pytest.raises(ModelOutputError, match="class 2 of 2"):
        class_probabilities(reading, quantities={"p": 2})
    with pytest.raises(ModelOutputError, match=r"p is 3\.5, must be 0 to 1"):
        class_probabilities(of_scores(f32([3.5])), quantities={"p": 0})
