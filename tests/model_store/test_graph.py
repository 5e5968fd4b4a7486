"""What a graph may contain: every hostile model of FACTS is refused before a runtime sees it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_store.errors import GraphError
from model_store.graph import MAX_NODES, MAX_PROBLEMS, OPSETS
from model_store.operators import ALLOWED_OPERATORS, EXCLUDED_OPERATORS
from model_store.package import open_package
from tests import onnx_models
from tests.material import MATERIAL, needs_material


def _open(tmp_path: Path, proto: onnx.ModelProto, **changes: object) -> None:
    open_package(onnx_models.write_package(tmp_path / "p", proto, **changes))  # type: ignore[arg-type]  # manifest fields


def _refused(tmp_path: Path, proto: onnx.ModelProto, **changes: object) -> str:
    with pytest.raises(GraphError) as caught:
        _open(tmp_path, proto, **changes)
    return str(caught.value)


def _node_model(*nodes: onnx.NodeProto, **more: object) -> onnx.ModelProto:
    return onnx_models.model(nodes, {"x": ["N", 4]}, {"y": ["N", 4]}, **more)  # type: ignore[arg-type]  # passed on


@pytest.mark.parametrize(
    "make", [onnx_models.add_one, onnx_models.convolution, onnx_models.found, onnx_models.tiled]
)
def test_a_plain_graph_is_accepted(tmp_path: Path, make: Callable[[], onnx.ModelProto]) -> None:
    _open(tmp_path, make())


@needs_material
@pytest.mark.parametrize("name", sorted(path.stem for path in (MATERIAL / "models").glob("*.onnx")))
def test_every_model_of_the_material_is_accepted(tmp_path: Path, name: str) -> None:
    _open(tmp_path, onnx.load(MATERIAL / f"models/{name}.onnx"), memory_mib=4096)


def test_a_constant_of_34_gigabytes_in_a_few_bytes_is_refused(tmp_path: Path) -> None:
    proto = onnx_models.huge_constant()
    onnx.checker.check_model(proto)  # which finds nothing
    said = _refused(tmp_path, proto)
    assert "node 'huge' (ConstantOfShape): makes 9000000000 values" in said


@pytest.mark.parametrize("operator", ["Expand", "Tile"])
def test_a_literal_shape_beyond_the_memory_is_refused(tmp_path: Path, operator: str) -> None:
    nodes = [
        helper.make_node("Constant", [], ["s"], value_ints=[100_000, 100_000]),
        helper.make_node(operator, ["x", "s"], ["y"], name="big"),
    ]
    assert f"node 'big' ({operator}): makes 10000000000 values" in _refused(tmp_path, _node_model(*nodes))


def _loop(body_operator: str = "Identity") -> onnx.ModelProto:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["c"], ["c2"], name="keep"),
            helper.make_node(body_operator, ["v"], ["v2"], name="inner"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v2", TensorProto.FLOAT, None),
        ],
    )
    return _node_model(
        helper.make_node("Constant", [], ["on"], name="on", value=numpy_helper.from_array(np.array(True))),
        helper.make_node("Loop", ["", "on", "x"], ["y"], name="forever", body=body),
    )


def test_a_loop_is_refused_and_what_is_inside_of_it_is_looked_at(tmp_path: Path) -> None:
    said = _refused(tmp_path, _loop("RandomNormalLike"))
    assert "node 'forever' (Loop): not allowed: control flow" in said
    assert "inside of node 'forever' node 'inner' (RandomNormalLike): not allowed: random" in said


def _external(location: str, **more: str) -> onnx.ModelProto:
    proto = onnx_models.add_one()
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        weight.external_data.add(key=key, value=value)
    return proto


@pytest.mark.parametrize(
    "location",
    [
        "/etc/passwd",
        "etc/passwd",
        "../../../../../../etc/passwd",
        "golden/../secret",
        "*/_ORT_MEM_ADDR_/*",
        "manifest.json",
        "",
        "./weights.bin",
    ],
)
def test_weights_outside_of_the_listed_files_are_refused(tmp_path: Path, location: str) -> None:
    said = _refused(tmp_path, _external(location), more={"weights.bin": bytes(4)})
    assert "tensor 'one': external data at" in said
    assert "which the manifest does not list" in said


def test_weights_in_a_listed_file_are_accepted(tmp_path: Path) -> None:
    proto = _external("weights.bin", offset="4", length="4")
    _open(tmp_path, proto, more={"weights.bin": bytes(8)})


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"offset": "8"}, "offset 8"),
        ({"offset": "0", "length": "99"}, "length 99"),
        ({"offset": "-1"}, "offset -1"),
        ({"offset": "9" * 5000}, "offset 999"),
        ({"basepath": "/"}, "keys"),
    ],
)
def test_weights_outside_of_their_file_are_refused(
    tmp_path: Path, fields: dict[str, str], problem: str
) -> None:
    assert problem in _refused(tmp_path, _external("weights.bin", **fields), more={"weights.bin": bytes(8)})


def test_weights_of_a_constant_node_are_looked_at_too(tmp_path: Path) -> None:
    tensor = _external("/etc/passwd").graph.initializer[0]
    nodes = [
        helper.make_node("Constant", [], ["one"], name="hidden", value=tensor),
        helper.make_node("Add", ["x", "one"], ["y"]),
    ]
    assert "inside of node 'hidden' tensor 'one': external data" in _refused(tmp_path, _node_model(*nodes))


def test_another_domain_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Evil", ["x"], ["y"], name="custom", domain="com.vendor")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.vendor", 1)]
    said = _refused(tmp_path, _node_model(node, opset_imports=opsets))
    assert "node 'custom' (com.vendor:Evil): not allowed: only the domain ai.onnx is" in said


def test_a_model_local_function_is_refused_and_looked_into(tmp_path: Path) -> None:
    function = helper.make_function(
        "local", "Relu", ["a"], ["b"], [helper.make_node("Bernoulli", ["a"], ["b"], name="dice")],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    node = helper.make_node("Relu", ["x"], ["y"], name="call", domain="local")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    said = _refused(tmp_path, _node_model(node, functions=[function], opset_imports=opsets))
    assert "model-local function local:Relu is not allowed" in said
    assert "node 'dice' (Bernoulli): not allowed: random" in said


def test_a_truncated_model_is_refused_at_every_length(tmp_path: Path) -> None:
    raw = onnx_models.add_one().SerializeToString()
    for length in range(len(raw)):
        directory = onnx_models.write_package(tmp_path / str(length), more={"model.onnx": raw[:length]})
        with pytest.raises(GraphError):
            open_package(directory)


@pytest.mark.parametrize("operator", sorted(name for names in EXCLUDED_OPERATORS.values() for name in names))
def test_an_excluded_operator_is_refused_with_its_reason(tmp_path: Path, operator: str) -> None:
    reason = next(reason for reason, names in EXCLUDED_OPERATORS.items() if operator in names)
    said = _refused(tmp_path, _node_model(helper.make_node(operator, ["x"], ["y"], name="bad")))
    assert f"node 'bad' ({operator}): not allowed: {reason}" in said


def test_every_operator_of_the_tables_exists_and_stands_once() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    groups = [ALLOWED_OPERATORS, *EXCLUDED_OPERATORS.values()]
    assert frozenset().union(*groups) <= known
    assert sum(map(len, groups)) == len(frozenset().union(*groups))


def test_an_operator_with_a_graph_inside_is_never_allowed() -> None:
    graphs = onnx.defs.OpSchema.AttrType.GRAPH, onnx.defs.OpSchema.AttrType.GRAPHS
    carriers = {
        schema.name
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.domain == "" and any(item.type in graphs for item in schema.attributes.values())
    }
    assert carriers
    assert not carriers & ALLOWED_OPERATORS


def test_an_operator_that_the_manifest_does_not_declare_is_refused(tmp_path: Path) -> None:
    said = _refused(tmp_path, onnx_models.convolution(), operators=["Conv"])
    assert "node 'relu' (Relu): not among the manifest's operators" in said


def test_a_manifest_that_declares_a_forbidden_operator_is_refused(tmp_path: Path) -> None:
    assert "manifest: operator Loop is not allowed: control flow" in _refused(
        tmp_path, onnx_models.add_one(), operators=["Add", "Loop"]
    )


def test_training_dropout_and_casts_to_text_are_refused(tmp_path: Path) -> None:
    dropout = [
        helper.make_node("Constant", [], ["r"], value_float=0.5),
        helper.make_node("Constant", [], ["t"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("Dropout", ["x", "r", "t"], ["y"], name="dice"),
    ]
    assert "node 'dice' (Dropout): training mode is random" in _refused(tmp_path / "a", _node_model(*dropout))
    cast = helper.make_node("Cast", ["x"], ["y"], name="text", to=TensorProto.STRING)
    assert "node 'text' (Cast): casts to text" in _refused(tmp_path / "b", _node_model(cast))


@pytest.mark.parametrize(
    ("field", "name", "kind", "shape", "problem"),
    [
        ("tensors_in", "z", "float32", ["N", 4], "input tensors are"),
        ("tensors_in", "x", "uint8", ["N", 4], "input tensor 'x': has ONNX type 1"),
        ("tensors_in", "x", "float32", ["N", 5], "input tensor 'x': has shape"),
        ("tensors_in", "x", "float32", ["N", "C"], "input tensor 'x': has shape"),
        ("tensors_in", "x", "float32", [4], "input tensor 'x': has shape"),
        ("tensors_out", "y", "float32", [1, 3], "output tensor 'y': has shape"),
    ],
)
def test_tensors_that_are_not_the_declared_ones_are_refused(
    tmp_path: Path, field: str, name: str, kind: str, shape: list[int | str], problem: str
) -> None:
    declared = {field: [{"name": name, "type": kind, "shape": shape}]}
    assert problem in _refused(tmp_path, onnx_models.add_one(), **declared)


def test_the_manifest_may_fix_what_the_graph_leaves_free(tmp_path: Path) -> None:
    fixed = {"type": "float32", "shape": [1, 4]}
    _open(
        tmp_path,
        onnx_models.add_one(),
        tensors_in=[{"name": "x", **fixed}],
        tensors_out=[{"name": "y", **fixed}],
    )


def test_weights_beyond_the_memory_are_refused_by_what_they_claim(tmp_path: Path) -> None:
    proto = onnx_models.add_one()
    proto.graph.initializer[0].dims[:] = [1 << 40, 1 << 40]
    assert "the manifest's memory is" in _refused(tmp_path, proto)


def test_a_tensor_with_a_shape_that_cannot_be_is_refused(tmp_path: Path) -> None:
    for number, dims in enumerate(([-1], [1] * 9)):
        proto = onnx_models.add_one()
        proto.graph.initializer[0].dims[:] = dims
        assert "tensor 'one': has shape" in _refused(tmp_path / str(number), proto)


def test_an_opset_outside_of_the_range_is_refused(tmp_path: Path) -> None:
    for opset in (OPSETS.start - 1, OPSETS.stop):
        proto = _node_model(helper.make_node("Relu", ["x"], ["y"]), opset=opset)
        assert f"opset of ai.onnx is [{opset}]" in _refused(tmp_path / str(opset), proto)


@pytest.mark.parametrize("opset", [OPSETS.start, OPSETS.stop - 1])
def test_both_ends_of_the_opset_range_load_in_the_runtime(tmp_path: Path, opset: int) -> None:
    proto = _node_model(helper.make_node("Relu", ["x"], ["y"]), opset=opset)
    _open(tmp_path, proto)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": -np.ones((1, 4), np.float32)})[0].max() == 0


def test_a_wrong_graph_names_a_few_problems_and_counts_the_rest(tmp_path: Path) -> None:
    nodes = [helper.make_node("Loop", ["x"], ["y"], name=f"n{i}") for i in range(50)]
    said = _refused(tmp_path, _node_model(*nodes))
    assert said.count("control flow") == MAX_PROBLEMS
    assert "and 43 more" in said  # 50 nodes and the manifest's own line, less 8


def test_more_nodes_than_any_model_has_are_refused(tmp_path: Path) -> None:
    proto = _node_model(*[helper.make_node("Relu", ["x"], ["y"])] * (MAX_NODES + 1))
    assert f"more than {MAX_NODES} nodes" in _refused(tmp_path, proto)
