"""What an ONNX graph may contain, checked before any runtime loads it.

Owns the check of a package's graphs against the appliance's table of operators and against the
manifest. It parses; it never runs anything and never follows a reference
out of the package. What a graph asks for while it runs (memory, time) is bounded by the
worker process, not here.
"""

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any, Final

from model_store.errors import GraphError
from model_store.manifest import Manifest, Tensor
from model_store.operators import ALLOWED_OPERATORS, why_not
from model_store.package import Package, open_plain

MAX_GRAPH_BYTES: Final = 1 << 30
"""1 GiB parsed at once; larger weights belong in an external file (protobuf ends at 2 GiB)."""
MAX_NODES: Final = 100_000
"""The largest exported transformers have some 20,000 nodes."""
MAX_RANK: Final = 8
"""Sizes of one tensor; a batch of windows of a volume has seven."""
MAX_PROBLEMS: Final = 8
"""Named in one error; a wrong graph has one reason a thousand times."""
OPSETS: Final = range(11, 27)
"""ai.onnx versions: older ones define Resize, Pad and others differently; newer ones are not yet tried."""

_EXTERNAL_KEYS: Final = frozenset({"location", "offset", "length", "checksum"})
_NO_LIMIT: Final = 1 << 62


def check_graphs(package: Package) -> None:
    """Check every graph of a package whose files have been checked.

    Raises:
        GraphError: an operator is not allowed or not declared, weights lie outside of the package,
            the tensors are not the declared ones, or something is too large; the error names the
            node and its operator, and at most eight problems.
    """
    sizes = {name: entry.size_bytes for name, entry in package.manifest.files.items()}
    for graph in package.manifest.graphs:
        path = package.directory / graph.file
        with open_plain(path) as file:
            raw = file.read(MAX_GRAPH_BYTES + 1)
        check_graph(raw, graph.file, package.manifest, sizes)


def check_graph(raw: bytes, name: str, manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """Check one ONNX model.

    Args:
        raw: the bytes of the ONNX file.
        name: its name in the package; external data lies beside it.
        manifest: what it has to agree with.
        sizes: bytes of each file of the package, by name.

    Raises:
        GraphError: see `check_graphs`.
    """
    if len(raw) > MAX_GRAPH_BYTES:
        raise GraphError(f"{name}: more than {MAX_GRAPH_BYTES} bytes; put the weights into external files")
    model = _parse(raw, name)
    check = _Check(model, name, manifest, sizes)
    check.all()
    if check.problems:
        more = len(check.problems) - MAX_PROBLEMS
        lines = check.problems[:MAX_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        raise GraphError(f"{name}: " + "; ".join(lines))


def _parse(raw: bytes, name: str) -> Any:  # noqa: ANN401 (protobuf messages have no types)
    import onnx  # noqa: PLC0415 (0.2 s; only who checks a package pays for it)
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # noqa: PLC0415

    model = onnx.ModelProto()
    try:
        model.ParseFromString(raw)
    except (DecodeError, RecursionError) as error:
        raise GraphError(f"{name}: not an ONNX model: {error}") from error
    if not model.HasField("graph") or not model.opset_import:
        raise GraphError(f"{name}: not an ONNX model: it has no graph or no opset")
    return model


class _Check:
    """One pass over one model; collects problems."""

    def __init__(self, model: Any, name: str, manifest: Manifest, sizes: Mapping[str, int]) -> None:  # noqa: ANN401
        self.problems: list[str] = []
        self._model = model
        self._name = name
        self._manifest = manifest
        self._sizes = sizes
        self._limit_bytes = manifest.memory_mib << 20
        self._weights_bytes = 0
        self._declared = {operator.removeprefix("ai.onnx:") for operator in manifest.operators}

    def all(self) -> None:
        """Run every check."""
        self._opset()
        for operator in sorted(self._declared - ALLOWED_OPERATORS):
            self.problems.append(f"manifest: operator {operator} is not allowed: {why_not(operator)}")
        if self._model.training_info:
            self.problems.append("it contains training information")
        for function in self._model.functions:
            # A function could take the name of an allowed operator, or call others without end.
            self.problems.append(
                f"model-local function {function.domain}:{function.name} is not allowed:"
                " inline it (onnx.inliner.inline_local_functions)"
            )
        self._nodes()
        self._tensors("input", self._manifest.tensors_in, self._inputs())
        self._tensors("output", self._manifest.tensors_out, list(self._model.graph.output))
        if self._weights_bytes > self._limit_bytes:
            self.problems.append(
                f"weights of {self._weights_bytes} bytes, the manifest's memory is {self._limit_bytes}"
            )

    def _opset(self) -> None:
        versions = [item.version for item in self._model.opset_import if item.domain in {"", "ai.onnx"}]
        if len(versions) != 1 or versions[0] not in OPSETS:
            self.problems.append(
                f"opset of ai.onnx is {versions}, must be one of {OPSETS.start} to {OPSETS.stop - 1}"
            )

    def _nodes(self) -> None:
        literals = {item.name: _integers(item) for item in self._model.graph.initializer}
        for count, (where, node) in enumerate(_walk(self._model, self._weights), 1):
            if count > MAX_NODES:
                self.problems.append(f"more than {MAX_NODES} nodes")
                return
            operator = node.op_type if node.domain in {"", "ai.onnx"} else f"{node.domain}:{node.op_type}"
            # The exporter names nodes; a nameless one is known by what it makes.
            label = (
                f"{where}node {(node.name or (node.output[0] if node.output else '?'))!r:.80} ({operator})"
            )
            if operator not in ALLOWED_OPERATORS:
                self.problems.append(f"{label}: not allowed: {why_not(operator)}")
            elif operator not in self._declared:
                self.problems.append(f"{label}: not among the manifest's operators")
            elif operator == "Dropout" and len(node.input) > 2 and node.input[2]:
                self.problems.append(f"{label}: training mode is random; a second run must give the same")
            elif operator == "Cast" and any(
                item.name == "to" and item.i == _STRING for item in node.attribute
            ):
                self.problems.append(f"{label}: casts to text")
            self._literal_shape(label, operator, node, literals)

    def _literal_shape(self, label: str, operator: str, node: Any, literals: dict[str, list[int]]) -> None:  # noqa: ANN401
        """Refuse a literal output shape larger than the memory; a computed one meets the worker's limit."""
        if operator == "Constant":
            values = [list(item.ints) or _integers(item.t) for item in node.attribute]
            literals[node.output[0] if node.output else ""] = values[0] if values else []
        position = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}.get(operator)
        if position is None or len(node.input) <= position:
            return
        size = prod(max(dim, 0) for dim in literals.get(node.input[position], []) or [0])
        if size > self._limit_bytes:
            self.problems.append(
                f"{label}: makes {size} values, the manifest's memory is {self._limit_bytes} bytes"
            )

    def _weights(self, where: str, tensor: Any) -> None:  # noqa: ANN401
        """One tensor that the model carries: its size and, if it lies elsewhere, where."""
        label = f"{where}tensor {tensor.name!r:.80}"
        dims = list(tensor.dims)
        if len(dims) > MAX_RANK or any(dim < 0 for dim in dims):
            self.problems.append(f"{label}: has shape {dims!r:.80}, allowed {MAX_RANK} sizes, none negative")
            return
        bits = _BITS.get(tensor.data_type)
        if bits is None:
            self.problems.append(f"{label}: has ONNX type {tensor.data_type}, which is not one of numbers")
            return
        self._weights_bytes = min(self._weights_bytes + prod(dims) * bits // 8, _NO_LIMIT)
        if tensor.data_location == tensor.EXTERNAL or tensor.external_data:
            self._external(label, tensor, prod(dims) * bits // 8)

    def _external(self, label: str, tensor: Any, needed_bytes: int) -> None:  # noqa: ANN401
        fields = {item.key: item.value for item in tensor.external_data}
        location = fields.get("location", "")
        folder = self._name.rpartition("/")[0]
        name = f"{folder}/{location}" if folder else location
        if len(fields) != len(tensor.external_data) or not fields.keys() <= _EXTERNAL_KEYS:
            self.problems.append(f"{label}: external data with keys {sorted(fields)}")
        elif name not in self._sizes:
            # What is listed has a plain name: no absolute path, no `..`, no memory address.
            self.problems.append(
                f"{label}: external data at {location!r:.80}, which the manifest does not list"
            )
        else:
            offset, length = fields.get("offset", "0"), fields.get("length", str(needed_bytes))
            if not (offset.isdecimal() and length.isdecimal() and len(offset + length) < 40) or (
                int(offset) + max(int(length), needed_bytes) > self._sizes[name]
            ):
                self.problems.append(
                    f"{label}: external data at offset {offset:.20}, length {length:.20},"
                    f" {location} has {self._sizes[name]} bytes"
                )

    def _inputs(self) -> list[Any]:
        """The graph's inputs that a caller feeds (before IR 4, weights stand among them)."""
        weights = {item.name for item in self._model.graph.initializer}
        return [item for item in self._model.graph.input if item.name not in weights]

    def _tensors(self, kind: str, declared: tuple[Tensor, ...], found: list[Any]) -> None:
        names, wanted = [item.name for item in found], [tensor.name for tensor in declared]
        if sorted(names) != sorted(wanted):
            self.problems.append(f"{kind} tensors are {names!r:.200}, the manifest says {wanted!r:.200}")
            return
        by_name = {item.name: item for item in found}
        for tensor in declared:
            label, value = f"{kind} tensor {tensor.name!r:.80}", by_name[tensor.name]
            kind_of = value.type.WhichOneof("value")
            if kind_of != "tensor_type":
                self.problems.append(f"{label}: is a {kind_of}, must be a tensor")
                continue
            number = value.type.tensor_type.elem_type
            if _NUMBER[tensor.type] != number:
                self.problems.append(f"{label}: has ONNX type {number}, the manifest says {tensor.type}")
            if not value.type.tensor_type.HasField("shape"):
                continue  # every dimension is free; the runtime checks what comes
            shape = [
                dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None)
                for dim in value.type.tensor_type.shape.dim
            ]
            # The manifest may fix what the graph leaves free, never the other way round.
            if len(shape) != len(tensor.shape) or any(
                isinstance(got, int) and got != said for got, said in zip(shape, tensor.shape, strict=True)
            ):
                self.problems.append(f"{label}: has shape {shape}, the manifest says {list(tensor.shape)}")


def _walk(model: Any, weights: Callable[[str, Any], None]) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Every node of the graph, of graphs inside of nodes and of functions; their tensors go to `weights`."""
    waiting: list[tuple[str, Any]] = [("", model.graph)]
    waiting += [(f"function {item.name!r:.80} ", item) for item in model.functions]
    while waiting:
        where, graph = waiting.pop()
        for tensor in getattr(graph, "initializer", ()):
            weights(where, tensor)
        for sparse in getattr(graph, "sparse_initializer", ()):
            weights(where, sparse.values)
            weights(where, sparse.indices)
        for node in graph.node:
            yield where, node
            inner = f"{where}inside of node {node.name!r:.80} "
            for item in node.attribute:
                waiting += [(inner, part) for part in [item.g] * item.HasField("g") + list(item.graphs)]
                tensors = [item.t] * item.HasField("t") + list(item.tensors)
                sparse = [item.sparse_tensor] * item.HasField("sparse_tensor") + list(item.sparse_tensors)
                for tensor in tensors + [part for both in sparse for part in (both.values, both.indices)]:
                    weights(inner, tensor)


def _integers(tensor: Any) -> list[int]:  # noqa: ANN401
    """The values of a small int64 tensor, as a shape is written; of anything else none."""
    raw = tensor.raw_data
    if tensor.data_type != _INT64 or max(len(raw) // 8, len(tensor.int64_data)) > MAX_RANK:
        return []
    if raw:
        return [int.from_bytes(raw[at : at + 8], "little", signed=True) for at in range(0, len(raw), 8)]
    return list(tensor.int64_data)


# Numbers of onnx.TensorProto.DataType.
_INT64: Final = 7
_STRING: Final = 8
_NUMBER: Final[Mapping[str, int]] = {
    "float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": _INT64, "float16": 10,
}  # fmt: skip
_BITS: Final[Mapping[int, int]] = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, _INT64: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4,
}  # fmt: skip
"""Bits of one value; complex numbers (14, 15) and text (8) are not here."""
