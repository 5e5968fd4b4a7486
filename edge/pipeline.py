"""A manifest's pre- and postprocessing, compiled: from pixels to tensors, from outputs to findings.

Owns the run of the composed steps, the tensor's shape, the plausibility checks, the coded
findings. It does no IO, keeps no state between two studies, and any number of threads may use it
at once. What a step does is in `edge.steps`; the model's run lies between
`prepare` and `interpret` and is somebody else's.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom.results import Code, Evaluation, Findings, Measurement, Segment
from dicom.volume import Image, Volume
from edge.steps.compiler import CompiledStep, Plan, compile_steps, digest_of
from edge.steps.labels import coverage
from edge.steps.sample import ModelOutputError, OutOfScopeError, Reading, Sample, check_size
from edge.steps.slices import SliceWork
from model_store.manifest import Check, Coded, Manifest, Tensor


@dataclass(frozen=True)
class Context:
    """What `interpret` must know of the input that `prepare` saw."""

    sample: Sample
    source_shape: tuple[int, ...]
    source_affine: NDArray[np.float64] | None


@dataclass(frozen=True)
class Interpretation:
    """What one model says of one input."""

    findings: Findings
    quantities: Mapping[str, float]
    """Every number that the postprocessing named, unrounded."""
    failures: tuple[str, ...]
    """The checks with action `decline` that failed, each with its numbers; empty: the result may go out."""


@dataclass(frozen=True)
class Pipeline:
    """A manifest's steps, compiled. Immutable; thread-safe."""

    manifest: Manifest
    plan: Plan
    digest: str
    """sha256 of the steps, their versions and parameters, and the source of the code that does them."""

    @classmethod
    def compile(cls, manifest: Manifest) -> "Pipeline":
        """Compile the manifest's steps.

        Raises:
            ManifestError: with every problem at once.
        """
        plan = compile_steps(manifest)
        return cls(manifest, plan, digest_of(plan, sys.modules[__name__]))

    def prepare(self, inputs: Mapping[str, Volume | Image]) -> tuple[dict[str, NDArray[np.float32]], Context]:
        """The model's input tensors for one study, by name, and what `interpret` will need.

        Raises:
            OutOfScopeError: the input is beyond what the steps or the tensor can take.
            ValueError: the inputs are not those that the manifest names (our misuse).
        """
        wanted = self.manifest.inputs[0]
        source = inputs.get(wanted.name)
        if set(inputs) != {wanted.name} or not isinstance(
            source, Volume if wanted.kind == "volume" else Image
        ):
            raise ValueError(f"{self.manifest.name} wants the {wanted.kind} {wanted.name!r} alone")
        first = _sample(source)
        return self._prepared(first, self.plan.before, first.values.shape, first.affine)

    def slice_work(self, affine: NDArray[np.float64], shape: tuple[int, int]) -> SliceWork | None:
        """What can be done to each slice of a series when it arrives; None: this manifest begins with all.

        Args:
            affine: (4, 4), (slice, row, column, 1) to LPS mm, of one slice (`dicom.geometry.slice_affine`)
                or of the volume; the same key comes out where the one is a slice of the other.
            shape: rows and columns.

        Raises:
            OutOfScopeError: the slices are beyond what the steps can take.
        """
        return None if self.plan.slices is None else self.plan.slices.work(affine, shape)

    def begin_slice(self, work: SliceWork, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """One slice (rows, columns), modality units, as `prepare_slices` takes it."""
        with np.errstate(over="ignore", invalid="ignore"):
            return work.do(_finite(pixels))

    def prepare_slices(
        self, slices: Sequence[NDArray[np.float32]], affine: NDArray[np.float64], shape: tuple[int, int, int]
    ) -> tuple[dict[str, NDArray[np.float32]], Context]:
        """As `prepare`, bit for bit, of slices that `begin_slice` was given before.

        Args:
            slices: in slice order, made under the key that `slice_work` gives for the volume.
            affine: of the volume.
            shape: of the volume, (slices, rows, columns).

        Raises:
            OutOfScopeError: as `prepare`.
            ValueError: this manifest begins with all slices (our misuse).
        """
        plan = self.plan.slices
        if plan is None or len(slices) != shape[0]:
            raise ValueError(f"{self.manifest.name}: {len(slices)} begun slices for {shape[0]} of its volume")
        with np.errstate(over="ignore", invalid="ignore"):
            joined = plan.join(slices, affine, shape)
        return self._prepared(joined, self.plan.before[plan.covered :], shape, affine)

    def _prepared(
        self,
        sample: Sample,
        steps: Sequence[CompiledStep],
        source_shape: tuple[int, ...],
        source_affine: NDArray[np.float64] | None,
    ) -> tuple[dict[str, NDArray[np.float32]], Context]:
        with np.errstate(over="ignore", invalid="ignore"):  # what it makes is looked at in `_tensor`
            for step in steps:
                sample = step.run(sample)
        tensor = self.manifest.tensors_in[0]
        return {tensor.name: self._tensor(sample, tensor)}, Context(sample, source_shape, source_affine)

    def interpret(self, outputs: Mapping[str, NDArray[Any]], context: Context) -> Interpretation:
        """What the model's outputs mean.

        Args:
            outputs: by name; the first dimension is 1.
            context: as `prepare` gave it.

        Raises:
            ModelOutputError: an output is missing, of another shape or type, or not finite.
        """
        tensor = self.manifest.tensors_out[0]
        scores = _scores(outputs, tensor, context.sample)
        reading = Reading(scores, context.sample, context.source_shape, context.source_affine)
        for step in self.plan.after:
            reading = step.run(reading)
        failures: list[str] = []
        warnings: list[str] = []
        for check in self.manifest.outputs.checks:
            if (reason := _failed(check, reading.quantities[check.quantity])) is not None:
                (failures if check.action == "decline" else warnings).append(reason)
        findings = self._findings(reading, tuple(warnings))
        return Interpretation(findings, reading.quantities, tuple(failures))

    def _tensor(self, sample: Sample, tensor: Tensor) -> NDArray[np.float32]:
        """The sample with the tensor's leading dimensions, checked against its shape and profile."""
        values = np.ascontiguousarray(sample.values, np.float32)
        if not _all_finite(values):
            raise OutOfScopeError("the pixels' values are beyond what the preprocessing can compute with")
        values = values.reshape((1,) * (len(tensor.shape) - values.ndim) + values.shape)
        limits = next((item for item in self.manifest.profiles if item.tensor == tensor.name), None)
        for axis, (size, wanted) in enumerate(zip(values.shape, tensor.shape, strict=True)):
            if isinstance(wanted, int):
                low = high = wanted
            elif limits is not None:
                low, high = limits.min[axis], limits.max[axis]
            else:
                continue
            if not low <= size <= high:
                raise OutOfScopeError(
                    f"{tensor.name}: {size} along axis {axis} of the tensor, the model takes {low} to {high}"
                )
        return values

    def _findings(self, reading: Reading, warnings: tuple[str, ...]) -> Findings:
        says, quantities = self.manifest.outputs, reading.quantities
        share: float | None = None
        unseen: tuple[tuple[int, int], ...] = ()
        if reading.source_affine is not None and reading.sample.affine is not None:
            share, unseen = coverage(reading.sample, reading.source_shape, reading.source_affine)
        return Findings(
            finding=_code(says.finding),
            finding_site=None if says.finding_site is None else _code(says.finding_site),
            segments=tuple(
                Segment(
                    item.label_value,
                    item.label,
                    _code(item.category),
                    _code(item.type),
                    (item.rgb[0], item.rgb[1], item.rgb[2]),
                )
                for item in says.segments
            ),
            labels=reading.source_label_map if says.segments else None,
            measurements=tuple(
                Measurement(
                    _code(item.name),
                    round(quantities[item.quantity], item.decimals),
                    _code(item.unit),
                    item.label_value,
                )
                for item in says.measurements
            ),
            evaluations=tuple(
                Evaluation(
                    _code(item.name),
                    _code(item.at_or_above if quantities[item.quantity] >= item.threshold else item.below),
                    score=quantities[item.quantity],
                    threshold=item.threshold,
                )
                for item in says.evaluations
            ),
            warnings=warnings,
            coverage=share,
            unseen_slices=unseen,
        )


def _sample(source: Volume | Image) -> Sample:
    """What the first step is given: finite values, and the geometry or the facts of an image."""
    if isinstance(source, Volume):
        check_size(source.voxels.shape, "volume")
        return Sample(_finite(source.voxels), source.affine)
    check_size(source.pixels.shape, "image")
    return Sample(
        _finite(source.pixels),
        photometric_interpretation=source.photometric_interpretation,
        bits_stored=source.bits_stored,
    )


def _finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """`values`, with 0 for what is not a finite number (a float pixel may be); no copy where all are."""
    return values if _all_finite(values) else np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def _all_finite(values: NDArray[np.float32]) -> bool:
    return bool(np.isfinite(values).all())


def _scores(outputs: Mapping[str, NDArray[Any]], tensor: Tensor, sample: Sample) -> NDArray[np.float32]:
    """The output without its batch dimension, checked.

    Raises:
        ModelOutputError: it is missing, of another shape or type, or not finite.
    """
    output = outputs.get(tensor.name)
    if output is None:
        raise ModelOutputError(f"{tensor.name}: the model gave {sorted(outputs)}")
    if output.dtype != np.dtype(tensor.type):
        raise ModelOutputError(f"{tensor.name}: type {output.dtype}, the manifest says {tensor.type}")
    wanted: list[int | str] = [1, *tensor.shape[1:]]
    spatial = output.ndim - 2
    fits = output.ndim == len(wanted) and all(
        got == size for got, size in zip(output.shape, wanted, strict=True) if isinstance(size, int)
    )
    if not fits or (spatial > 0 and output.shape[2:] != sample.values.shape[-spatial:]):
        raise ModelOutputError(
            f"{tensor.name}: shape {list(output.shape)}, the manifest says {wanted}"
            f" for an input of {list(sample.values.shape)}"
        )
    scores: NDArray[np.float32] = output[0].astype(np.float32, copy=False)
    if not _all_finite(scores):
        raise ModelOutputError(f"{tensor.name}: not every value is a finite number")
    return scores


def _failed(check: Check, value: float) -> str | None:
    """Why the check fails, with its numbers; None when it holds."""
    low, high = check.range
    if low <= value <= high:
        return None
    return f"{check.message} ({check.quantity} is {value:.4g}, expected {low:g} to {high:g})"


def _code(coded: Coded) -> Code:
    return Code(coded.value, coded.scheme, coded.meaning)
