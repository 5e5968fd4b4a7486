"""Small ONNX models and packages, made where they are needed; nothing here is from a vendor."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_store.manifest import Manifest, parse

FLOAT = TensorProto.FLOAT
Shape = Sequence[int | str | None]


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    weights: Mapping[str, NDArray[Any]] | None = None,
    opset: int = 17,
    **more: Any,  # noqa: ANN401
) -> onnx.ModelProto:
    """A model of float32 inputs and outputs; `more` goes to `make_model` (functions, opset_imports)."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    more.setdefault("opset_imports", [helper.make_opsetid("", opset)])
    return helper.make_model(graph, ir_version=8, **more)


def add_one() -> onnx.ModelProto:
    """y = x + 1, x of shape [N, 4]."""
    return model(
        [helper.make_node("Add", ["x", "one"], ["y"], name="plus")],
        {"x": ["N", 4]},
        {"y": ["N", 4]},
        {"one": np.ones(1, np.float32)},
    )


def convolution(edge: int = 64, channels: int = 8) -> onnx.ModelProto:
    """A 3 x 3 convolution and a Relu over [N, 1, edge, edge]."""
    weight = np.random.default_rng(7).standard_normal((channels, 1, 3, 3)).astype(np.float32)
    return model(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["y"], name="relu"),
        ],
        {"x": ["N", 1, edge, edge]},
        {"y": ["N", channels, edge, edge]},
        {"w": weight},
    )


def products(count: int, edge: int = 1024) -> onnx.ModelProto:
    """`count` products of edge x edge matrices in a row: as slow as one wants, in many short nodes."""
    names = ["x", *(f"h{i}" for i in range(count - 1)), "y"]
    weight = (np.eye(edge) * 0.5).astype(np.float32)
    return model(
        [helper.make_node("MatMul", [names[i], "w"], [names[i + 1]], name=f"mul{i}") for i in range(count)],
        {"x": [edge, edge]},
        {"y": [edge, edge]},
        {"w": weight},
    )


def found() -> onnx.ModelProto:
    """The places where x > 0: its output shape is known only when it has run. x: [N], y: [M]."""
    return model(
        [
            helper.make_node("Greater", ["x", "zero"], ["g"], name="greater"),
            helper.make_node("NonZero", ["g"], ["places"], name="places"),
            helper.make_node("Cast", ["places"], ["f"], name="cast", to=FLOAT),
            helper.make_node("Squeeze", ["f", "axis"], ["y"], name="squeeze"),
        ],
        {"x": ["N"]},
        {"y": ["M"]},
        {"zero": np.zeros(1, np.float32), "axis": np.zeros(1, np.int64)},
    )


def huge_constant(values: int = 9_000_000_000) -> onnx.ModelProto:
    """A few dozen bytes that ask for `values` float32 (FACTS: 34 GB), and pass onnx.checker."""
    return model(
        [
            helper.make_node("ConstantOfShape", ["s"], ["c"], name="huge"),
            helper.make_node("ReduceSum", ["c"], ["r"], name="sum", keepdims=0),
            helper.make_node("Add", ["x", "r"], ["y"], name="plus"),
        ],
        {"x": ["N", 4]},
        {"y": ["N", 4]},
        {"s": np.array([values], np.int64)},
    )


def tiled() -> onnx.ModelProto:
    """x: [N], y: [M, M]: squares its input's length, so that a small input asks for a large output."""
    return model(
        [
            helper.make_node("Unsqueeze", ["x", "axis0"], ["row"], name="row"),
            helper.make_node("Unsqueeze", ["x", "axis1"], ["column"], name="column"),
            helper.make_node("Mul", ["row", "column"], ["y"], name="square"),
        ],
        {"x": ["N"]},
        {"y": ["M", "M"]},
        {"axis0": np.array([0], np.int64), "axis1": np.array([1], np.int64)},
    )


def operators(proto: onnx.ModelProto) -> list[str]:
    """The operators of the outermost graph, as a manifest names them."""
    return sorted({f"{n.domain}:{n.op_type}" if n.domain else n.op_type for n in proto.graph.node})


def tensors(values: Iterable[onnx.ValueInfoProto]) -> list[dict[str, Any]]:
    """Inputs or outputs of a graph, as a manifest describes them."""
    return [
        {
            "name": value.name,
            "type": str(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
            "shape": [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim],
        }
        for value in values
    ]


def npz(**arrays: NDArray[Any]) -> bytes:
    """The bytes of an `.npz`; `__` in a keyword stands for the dot of `in.NAME`."""
    file = BytesIO()
    np.savez(file, **{name.replace("__", "."): array for name, array in arrays.items()})  # type: ignore[arg-type]  # numpy types keywords as allow_pickle
    return file.getvalue()


def description(proto: onnx.ModelProto, files: Mapping[str, bytes], /, **changes: object) -> dict[str, Any]:
    """A manifest as JSON data for a package of `files`; `changes` replaces its fields."""
    coded = {"value": "1", "scheme": "99TEST", "meaning": "test"}
    golden = [{"file": name, "max_abs_difference": 1e-5} for name in files if name.endswith(".npz")]
    data: dict[str, Any] = {
        "schema": "insitu.model/1",
        "name": "test-model",
        "version": "1.0.0",
        "vendor": "Insitu tests",
        "title": "Test model",
        "intended_use": "Tests of the appliance.",
        "regulatory_status": "Not a medical device.",
        "licence": "Apache-2.0",
        "inputs": [{"name": "x", "kind": "image", "modality": ["OT"]}],
        "preprocessing": [],
        "graphs": [{"file": "model.onnx"}],
        "tensors_in": tensors(proto.graph.input),
        "tensors_out": tensors(proto.graph.output),
        "postprocessing": [],
        "outputs": {"finding": coded, "objects": ["SR"]},
        "golden": golden,
        "deadline_s": 20.0,
        "memory_mib": 512,
        "operators": operators(proto),
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
            for name, content in files.items()
        },
    }
    return data | changes


def write_package(
    directory: Path,
    proto: onnx.ModelProto | None = None,
    *,
    case: bytes | None = None,
    more: Mapping[str, bytes] | None = None,
    **changes: object,
) -> Path:
    """Write a whole package below `directory` and return it; `case` is its golden case's `.npz`."""
    proto = add_one() if proto is None else proto
    if case is None:
        zeros = np.zeros((1, 4), np.float32)
        case = npz(in__x=zeros, out__y=zeros + 1)
    files = {"model.onnx": proto.SerializeToString(), "golden/case.npz": case, **(more or {})}
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    raw = json.dumps(description(proto, files, **changes)).encode()
    (directory / "manifest.json").write_bytes(raw)
    return directory


def manifest(directory: Path) -> Manifest:
    """The manifest of a package that `write_package` wrote."""
    return parse((directory / "manifest.json").read_bytes(), str(directory))
