"""The manifest: one line for each thing to mend, whatever bytes come."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.errors import ManifestError
from model_store.manifest import MAX_MANIFEST_BYTES, Manifest, json_schema, parse
from tests import onnx_models

FILES = {"model.onnx": b"", "case.npz": b""}
SEGMENT = {
    "label_value": 1,
    "label": "White matter",
    "category": {"value": "85756007", "scheme": "SCT", "meaning": "Tissue"},
    "type": {"value": "389081007", "scheme": "SCT", "meaning": "White matter"},
    "rgb": [1, 2, 3],
}


def _data(**changes: object) -> dict[str, Any]:
    return onnx_models.description(onnx_models.add_one(), FILES, **changes)


def _parse(data: object) -> Manifest:
    return parse(json.dumps(data).encode(), "manifest.json")


def test_a_manifest_says_what_it_was_given() -> None:
    manifest = _parse(_data(preprocessing=[{"step": "clip", "version": 2, "low": 0.5}]))
    assert (manifest.name, manifest.version) == ("test-model", "1.0.0")
    assert manifest.preprocessing[0].parameters == {"low": 0.5}
    assert manifest.tensors_in[0].shape == ("N", 4)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"schema": "insitu.model/2"}, "schema"),
        ({"name": "Not A Name"}, "name"),
        ({"version": "1.0"}, "version"),
        ({"surprise": 1}, "surprise"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"memory_mib": 0}, "memory_mib"),
        ({"graphs": [{"file": "other.onnx"}]}, "other.onnx: not among `files`"),
        ({"graphs": [{"file": "../model.onnx"}]}, "graphs.0.file"),
        ({"golden": []}, "golden"),
        ({"golden": [{"file": "no.npz", "max_abs_difference": 1}]}, "no.npz: not among `files`"),
        ({"files": {"/etc/passwd": {"sha256": "0" * 64, "size_bytes": 1}}}, "files"),
        ({"files": {"a/b/c": {"sha256": "0" * 64, "size_bytes": 1}}}, "files"),
        ({"files": {".hidden": {"sha256": "0" * 64, "size_bytes": 1}}}, "files"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(ManifestError, match=problem):
        _parse(_data(**changes))


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(ManifestError) as caught:
        _parse(_data(name="?", version="?", deadline_s=-1))
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("outputs", "problem"),
    [
        ({"objects": ["SEG", "SR"]}, "outputs.segments is empty"),
        ({"objects": ["SC"]}, "SR is required"),
        ({"objects": ["SR"], "segments": [SEGMENT, SEGMENT]}, "not unique"),
        (
            {
                "objects": ["SR"],
                "measurements": [
                    {"quantity": "v", "name": SEGMENT["type"], "unit": SEGMENT["type"], "label_value": 9}
                ],
            },
            "no segment has label value 9",
        ),
        (
            {
                "objects": ["SR"],
                "checks": [{"quantity": "v", "range": [2, 1], "action": "warn", "message": "m"}],
            },
            "is empty",
        ),
    ],
)
def test_outputs_refer_to_what_exists(outputs: dict[str, object], problem: str) -> None:
    with pytest.raises(ManifestError, match=problem):
        _parse(_data(outputs={"finding": SEGMENT["type"], **outputs}))


def test_a_manifest_above_the_limit_is_not_even_parsed() -> None:
    with pytest.raises(ManifestError, match=f"allowed {MAX_MANIFEST_BYTES}"):
        parse(b" " * (MAX_MANIFEST_BYTES + 1), "manifest.json")


def test_nesting_without_end_is_an_error_not_a_crash() -> None:
    with pytest.raises(ManifestError):
        parse(b"[" * 200_000, "manifest.json")


def test_a_manifest_cut_at_any_length_is_an_error() -> None:
    raw = json.dumps(_data()).encode()
    for length in range(len(raw)):
        with pytest.raises(ManifestError):
            parse(raw[:length], "manifest.json")


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_any_json_at_all_is_an_error_and_nothing_else(data: object) -> None:
    with pytest.raises(ManifestError):
        _parse(data)


def test_the_schema_is_json_and_names_itself() -> None:
    schema = json.loads(json_schema())
    assert schema["$id"] == "insitu.model/1"
    assert "memory_mib" in schema["properties"]


def test_the_shipped_model_has_a_manifest_that_parses() -> None:
    path = Path(__file__).resolve().parents[2] / "models/brain_t1_small/manifest.json"
    assert parse(path.read_bytes(), str(path)).name == "brain-t1-small"
