"""Every step that a manifest may name, by name and version: the explicit table.

Owns what the compiler of a pipeline must know of a step besides its code: what it works on, what
must come before it, what it leaves behind, which shape it makes. The parameters are the keyword
arguments of the step's function, checked once against their annotations. A number that a step
computes is named by its parameter `quantity`, or by the keys of `quantities`.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from edge.steps import crop, image, intensity, labels, orientation, quantities, resampling

Shape = tuple[int | None, ...]
"""What is known of a sample's shape before any study has come; None: it depends on the study."""

VOLUME: Final = frozenset({"volume"})
IMAGE: Final = frozenset({"image"})
ANY: Final = VOLUME | IMAGE


@dataclass(frozen=True)
class Entry:
    """One step of the table."""

    function: Callable[..., Any]
    on: frozenset[str] = ANY
    """Kinds of input that it works on."""
    needs: tuple[str, ...] = ()
    """What an earlier step must have left behind."""
    gives: tuple[str, ...] = ()
    """What it leaves behind; `{axes}` stands for the parameter of that name."""
    shape: Callable[[Shape, Mapping[str, Any]], Shape] | None = None
    """The shape that it makes; None: it keeps the shape."""
    check: Callable[[Shape, Mapping[str, Any]], str | None] | None = None
    """What is wrong with the parameters for a sample (or, after the model, scores) of a shape."""
    pointwise: Callable[[Mapping[str, Any]], bool] | None = None
    """Whether, with these parameters, each voxel's value depends on that voxel alone: then it can be done
    slice by slice (`edge.steps.slices`)."""
    separable: resampling.Separable | None = None
    """How it is done within the slices first, and through them last: the same."""


def _free(shape: Shape, _: Mapping[str, Any]) -> Shape:
    return (None,) * len(shape)


def _named(_: Shape, parameters: Mapping[str, Any]) -> Shape:
    return tuple(parameters["shape"])


def _cube(_: Shape, parameters: Mapping[str, Any]) -> Shape:
    return (parameters["size"],) * 3


def _stacked(shape: Shape, parameters: Mapping[str, Any]) -> Shape:
    return (parameters["count"], *shape)


def _same_rank(shape: Shape, parameters: Mapping[str, Any]) -> str | None:
    wanted = len(parameters["shape"])
    return None if wanted == len(shape) else f"shape of {wanted} axes, the sample has {len(shape)}"


def _channels(shape: Shape, parameters: Mapping[str, Any]) -> str | None:
    counts = {len(parameters["mean"]), len(parameters["std"])} - {1}
    if not counts or (counts == {shape[0]} and len(shape) == 3):
        return None
    return f"means and deviations for {sorted(counts)} channels, the sample is {list(shape)}"


def _classes(shape: Shape, parameters: Mapping[str, Any]) -> str | None:
    """Scores of a whole input, and of each class that is named."""
    if len(shape) != 1:
        return f"needs one score a class, the output is {list(shape)} for each input"
    return _known_class(shape, max(parameters["quantities"].values(), default=0))


def _channel(shape: Shape, parameters: Mapping[str, Any]) -> str | None:
    return _each_voxel(shape, parameters) or _known_class(shape, parameters["channel"])


def _each_voxel(shape: Shape, _: Mapping[str, Any]) -> str | None:
    if len(shape) == 4:
        return None
    return f"needs scores of every voxel, the output is {list(shape)} for each input"


def _known_class(shape: Shape, index: int) -> str | None:
    classes = shape[0]
    return f"class {index}, the output has {classes}" if classes is not None and index >= classes else None


def _always(_: Mapping[str, Any]) -> bool:
    return True


def _range_given(parameters: Mapping[str, Any]) -> bool:
    return parameters["source"] is not None


def _one_mean(parameters: Mapping[str, Any]) -> bool:
    return len(parameters["mean"]) == len(parameters["std"]) == 1


LABELS: Final = "a label map"
SOURCE_LABELS: Final = "a label map on the source grid"

PREPROCESSING: Final[Mapping[tuple[str, int], Entry]] = MappingProxyType(
    {
        ("orient", 1): Entry(orientation.orient, VOLUME, gives=("axes {axes}",), shape=_free),
        ("resample", 1): Entry(resampling.resample, VOLUME, shape=_free, separable=resampling.RESAMPLE),
        ("conform", 1): Entry(resampling.conform, VOLUME, shape=_cube, separable=resampling.CONFORM),
        ("resize", 1): Entry(image.resize, IMAGE, shape=_named, check=_same_rank),
        ("resize_nearest", 1): Entry(image.resize_nearest, VOLUME, shape=_named),
        ("crop_head_box", 1): Entry(crop.crop_head_box, VOLUME, needs=("axes RAS",), shape=_named),
        ("crop_foreground", 1): Entry(crop.crop_foreground, VOLUME, shape=_free),
        ("crop_or_pad", 1): Entry(crop.crop_or_pad, VOLUME, shape=_named),
        ("clip", 1): Entry(intensity.clip, pointwise=_always),
        ("clip_percentile", 1): Entry(intensity.clip_percentile),
        ("rescale_percentile", 1): Entry(intensity.rescale_percentile),
        ("rescale_range", 1): Entry(intensity.rescale_range, pointwise=_range_given),
        ("normalise", 1): Entry(intensity.normalise, check=_channels, pointwise=_one_mean),
        ("standardise", 1): Entry(intensity.standardise),
        ("invert_monochrome1", 1): Entry(image.invert_monochrome1, IMAGE),
        ("window_percentile", 1): Entry(image.window_percentile, IMAGE),
        ("stack_channels", 1): Entry(image.stack_channels, IMAGE, shape=_stacked),
    }
)

POSTPROCESSING: Final[Mapping[tuple[str, int], Entry]] = MappingProxyType(
    {
        ("softmax", 1): Entry(labels.softmax),
        ("sigmoid", 1): Entry(labels.sigmoid),
        ("argmax", 1): Entry(labels.argmax, VOLUME, gives=(LABELS,), check=_each_voxel),
        ("threshold", 1): Entry(labels.threshold, VOLUME, gives=(LABELS,), check=_channel),
        ("largest_component", 1): Entry(labels.largest_component, VOLUME, needs=(LABELS,)),
        ("volumes", 1): Entry(quantities.volumes, VOLUME, needs=(LABELS,)),
        ("ratio", 1): Entry(quantities.ratio),
        ("confidence", 1): Entry(quantities.confidence, VOLUME, needs=(LABELS,)),
        ("tissue_contrast", 1): Entry(quantities.tissue_contrast, VOLUME, needs=(LABELS,)),
        ("extents", 1): Entry(quantities.extents, VOLUME, needs=(LABELS,)),
        ("border_share", 1): Entry(quantities.border_share, VOLUME, needs=(LABELS,)),
        ("class_probabilities", 1): Entry(quantities.class_probabilities, check=_classes),
        ("to_source_grid", 1): Entry(labels.to_source_grid, VOLUME, needs=(LABELS,), gives=(SOURCE_LABELS,)),
    }
)


def parameters_of(entry: Entry) -> type[BaseModel]:
    """The parameters of a step as a pydantic model: names, types, limits and defaults of its function."""
    hints = get_type_hints(entry.function, include_extras=True)
    fields: dict[str, Any] = {
        parameter.name: (
            hints[parameter.name],
            ... if parameter.default is parameter.empty else parameter.default,
        )
        for parameter in inspect.signature(entry.function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)
    return create_model(entry.function.__name__, __config__=config, **fields)


def check_parameters(entry: Entry, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The step's parameters with defaults, and what is wrong with those given (then the first is empty)."""
    try:
        model = parameters_of(entry).model_validate_json(json.dumps(dict(given)), strict=True)
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False):
            where = ".".join(str(part) for part in item["loc"])
            got = "" if item["type"] == "missing" else f", got {item['input']!r:.80}"
            problems.append(f"{where}: {item['msg']}{got}")
        return {}, problems
    parameters = {name: getattr(model, name) for name in type(model).model_fields}
    lower, upper = parameters.get("lower"), parameters.get("upper")
    if lower is not None and upper is not None and lower >= upper:
        return {}, [f"lower is {lower:g}, must be less than upper = {upper:g}"]
    return parameters, []


def computed(parameters: Mapping[str, Any]) -> list[str]:
    """Names of the numbers that a step with these parameters computes."""
    one = parameters.get("quantity")
    return ([] if one is None else [one]) + list(parameters.get("quantities") or {})


def used(parameters: Mapping[str, Any]) -> list[str]:
    """Names of the numbers that it takes from earlier steps."""
    return [parameters[name] for name in ("numerator", "denominator") if name in parameters]
