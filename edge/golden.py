"""Golden cases: does this engine give, on this machine, what the model's vendor says it gives?

Owns reading a case and comparing; `model_store.manifest.Golden` says what a case is. The files
are a vendor's: sizes and types are bounded before anything is allocated, and nothing is unpickled.
"""

import math
import re
import zipfile
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from edge.engine import Engine
from edge.tensor_memory import DTYPES
from model_store.errors import PackageError
from model_store.manifest import Golden
from model_store.package import Package, open_plain

MAX_ARRAYS: Final = 64
"""Arrays of one case: at most 16 inputs, and 16 outputs with three arrays each."""

_NAME: Final = re.compile(r"(in|out|at|labels)\.(.{1,128})\.npy", re.DOTALL)
_TYPES: Final = frozenset(DTYPES.values())


@dataclass(frozen=True, slots=True)
class GoldenReport:
    """One case: passed, or what was wrong."""

    file: str
    passed: bool
    max_abs_difference: float
    """Of all values that were compared; infinite when one of them is not a number."""
    label_share: float
    """Share of voxels whose argmax over axis 1 differs; the worst output's."""
    run_s: float
    problem: str
    """What was wrong, for people; empty when passed."""


def run_golden(engine: Engine, package: Package) -> tuple[GoldenReport, ...]:
    """Run every golden case of `package` on `engine`, in the manifest's order.

    Raises:
        PackageError: a case cannot be read, or compares nothing.
        EngineError: a case cannot be run at all.
    """
    return tuple(_run_case(engine, package, case) for case in package.manifest.golden)


def _run_case(engine: Engine, package: Package, case: Golden) -> GoldenReport:
    arrays = read_case(package, case)
    inputs = {name: array for (kind, name), array in arrays.items() if kind == "in"}
    result = engine.run(inputs)
    differences, shares = [0.0], [0.0]
    for (kind, name), expected in arrays.items():
        if kind == "out":
            differences.append(
                _difference(_output(result.outputs, name, case), expected, arrays.get(("at", name)), case)
            )
        elif kind == "labels":
            shares.append(_label_share(_output(result.outputs, name, case), expected, case))
    difference, share = max(differences), max(shares)
    problems = []
    if not difference <= case.max_abs_difference:
        problems.append(f"differs by {difference:g}, allowed {case.max_abs_difference:g}")
    if not share <= case.max_label_share:
        problems.append(f"{share:.6f} of the labels differ, allowed {case.max_label_share:g}")
    return GoldenReport(case.file, not problems, difference, share, result.run_s, "; ".join(problems))


def read_case(package: Package, case: Golden) -> dict[tuple[str, str], NDArray[Any]]:
    """The arrays of a case by kind (`in`, `out`, `at`, `labels`) and tensor name.

    Raises:
        PackageError: it is not an `.npz` of such arrays, larger than the model's memory, or it
            compares nothing.
    """
    limit = package.manifest.memory_mib << 20
    size = package.manifest.files[case.file].size_bytes
    arrays: dict[tuple[str, str], NDArray[Any]] = {}
    try:
        if size > limit:
            raise ValueError(f"{size} bytes, the manifest's memory is {limit}")
        with open_plain(package.directory / case.file) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            if len(members) > MAX_ARRAYS or total > limit:
                raise ValueError(f"{len(members)} arrays of {total} bytes, allowed {MAX_ARRAYS} of {limit}")
            for member in members:
                match = _NAME.fullmatch(member.filename)
                if match is None or match.groups() in arrays:
                    raise ValueError(
                        f"array {member.filename!r:.80} is not in., out., at. or labels. of a tensor"
                    )
                kind, name = match.groups()
                arrays[kind, name] = _array(archive.read(member), member.filename)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        # zipfile: RuntimeError for an encrypted member, NotImplementedError for an unknown method
        raise PackageError(f"golden case {case.file}: {error}") from error
    except zlib.error as error:
        raise PackageError(f"golden case {case.file}: {error}") from error
    if not any(kind in {"out", "labels"} for kind, _ in arrays):
        raise PackageError(f"golden case {case.file}: has neither out. nor labels.: it compares nothing")
    return arrays


def _array(raw: bytes, name: str) -> NDArray[Any]:
    """One array, its header checked against the bytes that are there."""
    file = BytesIO(raw)
    version = npy.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"array {name!r:.80} has format {version}, must be (1, 0)")
    shape, fortran, dtype = npy.read_array_header_1_0(file)
    left = len(raw) - file.tell()
    if dtype not in _TYPES or len(shape) > 8 or math.prod(shape) * dtype.itemsize != left:
        raise ValueError(f"array {name!r:.80} is {dtype} of shape {shape!r:.60}, there are {left} bytes")
    return np.frombuffer(raw, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")


def _output(outputs: dict[str, NDArray[Any]], name: str, case: Golden) -> NDArray[Any]:
    if name not in outputs:
        raise PackageError(f"golden case {case.file}: output {name!r:.80} is not one of {sorted(outputs)}")
    return outputs[name]


def _difference(got: NDArray[Any], expected: NDArray[Any], at: NDArray[Any] | None, case: Golden) -> float:
    """The greatest absolute difference as float32; the same infinity is no difference, NaN is infinite."""
    if at is not None:
        if at.dtype.kind not in "iu" or (at.size and not 0 <= int(at.min()) <= int(at.max()) < got.size):
            raise PackageError(f"golden case {case.file}: at. has indices outside of {got.size} values")
        got = got.reshape(-1)[at.reshape(-1)].reshape(at.shape)
    if got.shape != expected.shape:
        raise PackageError(
            f"golden case {case.file}: expects an output of shape {expected.shape}, got {got.shape}"
        )
    a, b = got.astype(np.float32), expected.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(a == b, np.float32(0), np.abs(a - b))
    if difference.size == 0:
        return 0.0
    greatest = float(difference.max())
    return math.inf if math.isnan(greatest) else greatest


def _label_share(got: NDArray[Any], expected: NDArray[Any], case: Golden) -> float:
    if got.ndim < 2:
        raise PackageError(f"golden case {case.file}: labels. needs an output with an axis of classes")
    labels = got.argmax(axis=1)
    if labels.shape != expected.shape or labels.size == 0:
        raise PackageError(
            f"golden case {case.file}: expects labels of shape {expected.shape}, got {labels.shape}"
        )
    return float(np.count_nonzero(labels != expected) / labels.size)
