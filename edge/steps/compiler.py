"""A manifest's two lists of steps, looked up and checked: what can be known before a study comes.

Owns every reason why a manifest cannot be served by this version of the appliance, and the
digest of what it will do. Runs no step.
"""

import hashlib
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, Final

from edge.steps import orientation
from edge.steps.resampling import Separable
from edge.steps.slices import SlicePlan
from edge.steps.table import (
    POSTPROCESSING,
    PREPROCESSING,
    SOURCE_LABELS,
    Entry,
    Shape,
    check_parameters,
    computed,
    used,
)
from model_store.errors import ManifestError
from model_store.manifest import Manifest, Step, Tensor

DIMENSIONS: Final = {"volume": 3, "image": 2}


@dataclass(frozen=True)
class CompiledStep:
    """One step with its parameters filled in."""

    name: str
    version: int
    parameters: Mapping[str, Any]
    run: partial[Any]
    """Takes a `Sample` or a `Reading` and gives a new one."""


@dataclass(frozen=True)
class Plan:
    """What is done to an input before the model runs, and to its output after."""

    before: tuple[CompiledStep, ...]
    after: tuple[CompiledStep, ...]
    slices: SlicePlan | None = None
    """How a volume is begun slice by slice; None for images, and where the first step needs all slices."""


def compile_steps(manifest: Manifest) -> Plan:
    """Look up every step, check its parameters and what it needs, and that every quantity is computed.

    Raises:
        ManifestError: with every problem at once.
    """
    problems = _beyond_this_appliance(manifest)
    kind = manifest.inputs[0].kind
    before = _List("preprocessing", PREPROCESSING, kind, problems, (None,) * DIMENSIONS[kind])
    before.compile(manifest.preprocessing)
    if before.whole:
        problems += _misfit(before.shape, manifest.tensors_in[0])
    scores = tuple(size if isinstance(size, int) else None for size in manifest.tensors_out[0].shape[1:])
    after = _List("postprocessing", POSTPROCESSING, kind, problems, scores)
    after.compile(manifest.postprocessing)
    problems += _unfounded(manifest, after)
    if problems:
        raise ManifestError(f"{manifest.name} {manifest.version}", problems)
    slices = _slice_plan(before.steps) if kind == "volume" else None
    return Plan(tuple(before.steps), tuple(after.steps), slices)


def digest_of(plan: Plan, caller: ModuleType) -> str:
    """sha256 of what is done and of the code that does it, so that a changed step shows in a result.

    Args:
        plan: the steps with their parameters.
        caller: the module that runs them; its source counts too.
    """
    steps = [*plan.before, *plan.after]
    named = [(step.name, step.version, dict(step.parameters)) for step in steps]
    found = hashlib.sha256(json.dumps(named, sort_keys=True).encode())
    modules: dict[str, ModuleType] = {}
    waiting = [caller] + [sys.modules[step.run.func.__module__] for step in steps]
    while waiting:
        module = waiting.pop()
        if module.__name__ not in modules:
            modules[module.__name__] = module
            names = {getattr(value, "__module__", None) for value in vars(module).values()}
            waiting += [sys.modules[name] for name in names if isinstance(name, str) and _ours(name)]
    for name in sorted(modules):
        found.update(f"\n{name}\n{inspect.getsource(modules[name])}".encode())
    return found.hexdigest()


def _slice_plan(steps: Sequence[CompiledStep]) -> SlicePlan | None:
    """How far the steps can be done slice by slice, as the table declares them."""
    pointwise: list[partial[Any]] = []
    orient: CompiledStep | None = None
    for index, step in enumerate(steps):
        entry = PREPROCESSING[step.name, step.version]
        if entry.pointwise is not None and entry.pointwise(step.parameters):
            pointwise.append(step.run)
        elif entry.function is orientation.orient and orient is None:
            orient = step
        else:
            separable = entry.separable
            parameters = step.parameters if separable is not None else {}
            return _sliced(pointwise, orient, separable, parameters, index + (separable is not None))
    return _sliced(pointwise, orient, None, {}, len(steps))


def _sliced(
    pointwise: Sequence[partial[Any]],
    orient: CompiledStep | None,
    separable: Separable | None,
    parameters: Mapping[str, Any],
    covered: int,
) -> SlicePlan | None:
    if not pointwise and separable is None:
        return None  # nothing is saved: turning axes costs nothing
    return SlicePlan(
        tuple(pointwise),
        None if orient is None else orient.parameters["axes"],
        None if orient is None else orient.run,
        separable,
        parameters,
        covered,
    )


class _List:
    """One of a manifest's two lists of steps while it is compiled; all problems go into one list."""

    def __init__(
        self, where: str, table: Mapping[tuple[str, int], Entry], kind: str, problems: list[str], shape: Shape
    ) -> None:
        self._where, self._table, self._kind, self._problems = where, table, kind, problems
        self.steps: list[CompiledStep] = []
        self.facts: set[str] = set()
        self.quantities: set[str] = set()
        self.shape = shape
        self.whole = True
        """Every step compiled; what follows from the whole list may be checked."""

    def compile(self, steps: tuple[Step, ...]) -> None:
        for index, step in enumerate(steps):
            problems = self._step(step)
            self._problems += [f"{self._where}.{index} {step.step}: {problem}" for problem in problems]
            self.whole = self.whole and not problems

    def _step(self, step: Step) -> list[str]:
        entry = self._table.get((step.step, step.version))
        if entry is None:
            versions = sorted(version for name, version in self._table if name == step.step)
            known = f"known versions: {versions}" if versions else f"known: {self._names()}"
            return [f"no such step in version {step.version}; {known}"]
        parameters, problems = check_parameters(entry, step.parameters)
        if self._kind not in entry.on:
            problems.append(f"works on {' or '.join(sorted(entry.on))}, the input is a kind of {self._kind}")
        missing = [fact for fact in entry.needs if fact not in self.facts]
        problems += [f"needs {fact}, which no step before it has made" for fact in missing]
        if problems:
            return problems
        problems += [
            f"needs {name}, not computed" for name in used(parameters) if name not in self.quantities
        ]
        problems += [f"{name} is computed twice" for name in computed(parameters) if name in self.quantities]
        self.quantities.update(computed(parameters))
        if entry.check is not None and (wrong := entry.check(self.shape, parameters)) is not None:
            return [*problems, wrong]
        gives = [fact.format_map(parameters) for fact in entry.gives]
        if any(fact.startswith("axes ") for fact in gives):
            self.facts = {fact for fact in self.facts if not fact.startswith("axes ")}
        self.facts.update(gives)
        if entry.shape is not None:
            self.shape = entry.shape(self.shape, parameters)
        run = partial(entry.function, **parameters)
        self.steps.append(CompiledStep(step.step, step.version, parameters, run))
        return problems

    def _names(self) -> str:
        return ", ".join(sorted({name for name, _ in self._table}))


def _beyond_this_appliance(manifest: Manifest) -> list[str]:
    """What the schema allows and this version of the appliance cannot do yet."""
    counts = {
        "inputs": len(manifest.inputs),
        "tensors_in": len(manifest.tensors_in),
        "tensors_out": len(manifest.tensors_out),
    }
    problems = [f"{name}: {count}, this appliance takes 1" for name, count in counts.items() if count != 1]
    problems += [
        f"tensors_in {tensor.name}: type {tensor.type}, this appliance prepares float32"
        for tensor in manifest.tensors_in
        if tensor.type != "float32"
    ]
    problems += [
        f"tensors_out {tensor.name}: type {tensor.type}, this appliance reads float32 and float16"
        for tensor in manifest.tensors_out
        if tensor.type not in {"float32", "float16"}
    ]
    problems += [
        f"profiles {profile.tensor}: {len(sizes)} sizes for the {len(tensor.shape)} axes of the tensor"
        for profile in manifest.profiles
        for tensor in manifest.tensors_in
        if tensor.name == profile.tensor
        for sizes in (profile.min, profile.opt, profile.max)
        if len(sizes) != len(tensor.shape)
    ]
    return problems


def _misfit(shape: Shape, tensor: Tensor) -> list[str]:
    """Where the shape that the steps make cannot be the tensor's."""
    leading = len(tensor.shape) - len(shape)
    wanted = f"tensors_in {tensor.name}: shape {list(tensor.shape)}"
    if leading < 0:
        return [f"{wanted}, but the steps make {len(shape)} axes"]
    if any(size != 1 for size in tensor.shape[:leading] if isinstance(size, int)):
        return [f"{wanted}, but the steps make only the last {len(shape)} axes"]
    made = zip(shape, tensor.shape[leading:], strict=True)
    if any(got is not None and isinstance(size, int) and got != size for got, size in made):
        return [f"{wanted}, but the steps make {list(shape)}"]
    return []


def _unfounded(manifest: Manifest, after: _List) -> list[str]:
    """What the outputs claim and no step computes."""
    says = manifest.outputs
    asked = [
        *(("measurements", item.quantity) for item in says.measurements),
        *(("evaluations", item.quantity) for item in says.evaluations),
        *(("checks", item.quantity) for item in says.checks),
    ]
    known = ", ".join(sorted(after.quantities)) or "none"
    problems = [
        f"outputs.{where} {name}: no step computes it; computed: {known}"
        for where, name in asked
        if name not in after.quantities
    ]
    if says.segments and SOURCE_LABELS not in after.facts:
        problems.append(f"outputs.segments: no step makes {SOURCE_LABELS} (to_source_grid)")
    values = {segment.label_value for segment in says.segments}
    for step in after.steps:
        made: set[int] = set()
        if step.name == "argmax":
            classes = manifest.tensors_out[0].shape[1:2]
            made = {label for size in classes if isinstance(size, int) for label in range(1, size)}
        elif step.name == "threshold":
            made = {step.parameters["label"]}
        if says.segments and (extra := made - values):
            problems.append(f"outputs.segments: {step.name} makes labels {sorted(extra)} without a segment")
    return problems


def _ours(module: str) -> bool:
    """Whether the module computes values: the table and this compiler only arrange."""
    return module.startswith("edge.steps.") and module not in {__name__, Entry.__module__}
