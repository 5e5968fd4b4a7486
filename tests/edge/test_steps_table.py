"""The table of steps and the compiler: what a manifest may say, and what it is told when it may not."""

import inspect
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edge.pipeline import Pipeline
from edge.steps.reference import steps_markdown
from edge.steps.table import POSTPROCESSING, PREPROCESSING, check_parameters
from model_store.errors import ManifestError
from model_store.manifest import Manifest, json_schema, parse
from tests.packages import BRAIN, ROOT

Change = Callable[[dict[str, Any]], object]
ALL_STEPS = {**PREPROCESSING, **POSTPROCESSING}
DOCUMENT = ROOT / "docs" / "model-package.md"


def brain(change: Change = lambda data: None) -> Manifest:
    """The shipped manifest with something changed."""
    data = json.loads((BRAIN / "manifest.json").read_text())
    change(data)
    return parse(json.dumps(data).encode(), "test")


def radiograph(change: Change = lambda data: None) -> Manifest:
    """The chest X-ray test manifest (SqueezeNet) with something changed."""
    data = json.loads((ROOT / "tests" / "model_packages" / "cxr_squeezenet.json").read_text())
    entry = {"sha256": "0" * 64, "size_bytes": 1}
    data["files"] = {"graph.onnx": entry, "golden.npz": entry}
    change(data)
    return parse(json.dumps(data).encode(), "test")


def test_the_document_says_what_the_steps_say() -> None:
    text = DOCUMENT.read_text()
    printed = re.search(r"<!-- begin: [^\n]* -->\n\n(.*)\n\n<!-- end -->", text, flags=re.DOTALL)
    assert printed is not None
    assert printed[1] == steps_markdown(), "docs/model-package.md is old: run `python -m edge.documents docs`"


def test_the_published_schema_is_that_of_the_manifest() -> None:
    published = (ROOT / "docs" / "manifest.schema.json").read_text()
    assert published == json_schema(), "docs/manifest.schema.json is old: run `python -m edge.documents docs`"


def test_every_part_of_a_manifest_stands_in_the_document() -> None:
    text = DOCUMENT.read_text()
    for field in Manifest.model_fields.values():
        assert f"`{field.alias}`" in text or any(
            f"`{name}`" in text for name, each in Manifest.model_fields.items() if each is field
        )


@pytest.mark.parametrize("key", ALL_STEPS, ids=lambda key: key[0])
def test_every_step_names_each_of_its_parameters_in_its_docstring(key: tuple[str, int]) -> None:
    function = ALL_STEPS[key].function
    assert function.__name__ == key[0]
    documented = set(
        re.findall(r"^    (\w+): ", inspect.cleandoc(function.__doc__ or ""), flags=re.MULTILINE)
    )
    signature = inspect.signature(function).parameters
    keywords = {name for name, each in signature.items() if each.kind is each.KEYWORD_ONLY}
    assert keywords <= documented
    assert documented - {"OutOfScopeError", "ModelOutputError", "RuntimeError"} <= set(signature)


@pytest.mark.parametrize(
    ("step", "given", "problem"),
    [
        ("orient", {}, "axes: Field required"),
        ("orient", {"axes": "RAR"}, "axes: Value error, must be one letter each"),
        ("orient", {"axes": "ras"}, "axes: Value error, must be one letter each"),
        ("resample", {"spacing_mm": [2, 2]}, "spacing_mm.2: Field required"),
        (
            "resample",
            {"spacing_mm": [2, 2, 0]},
            "spacing_mm.2: Input should be greater than or equal to 0.05, got 0",
        ),
        ("resample", {"spacing_mm": [2, 2, True]}, "spacing_mm.2: Input should be a valid number, got True"),
        ("resample", {"spacing_mm": [2, 2, "2"]}, "spacing_mm.2: Input should be a valid number, got '2'"),
        ("resample", {"spacing_mm": [2, 2, float("nan")]}, "spacing_mm.2: Input should be a finite number"),
        (
            "resample",
            {"spacing_mm": [2, 2, 2], "filter": "cubic"},
            "filter: Input should be 'triangle' or 'linear'",
        ),
        ("conform", {"size": 100000}, "size: Input should be less than or equal to 512"),
        ("clip", {"lower": 5, "upper": 5}, "lower is 5, must be less than upper = 5"),
        ("clip_percentile", {"lower": 101}, "lower: Input should be less than or equal to 100"),
        ("normalise", {"mean": [0], "std": [0]}, "std.0: Input should be greater than 0"),
        (
            "rescale_range",
            {"target": [0, 1], "source": [9, 3]},
            "source: Value error, the first end must be less",
        ),
        ("stack_channels", {"kount": 3}, "kount: Extra inputs are not permitted"),
        ("volumes", {"quantities": {"Bad Name": [1]}}, "quantities"),
        ("volumes", {"quantities": {"v": [0]}}, "quantities.v.0: Input should be greater than or equal to 1"),
        ("extents", {"quantities": {"e": "UP"}}, "quantities.e: Input should be 'LR', 'AP' or 'IS'"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_was_got_and_what_is_allowed(
    step: str, given: Mapping[str, Any], problem: str
) -> None:
    parameters, problems = check_parameters(ALL_STEPS[step, 1], given)
    assert not parameters
    assert any(each.startswith(problem) for each in problems), problems


def _set(*path: str | int, to: object) -> Change:
    def change(data: Any) -> None:  # noqa: ANN401 (JSON)
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = to

    return change


def _drop(*path: str | int) -> Change:
    def change(data: Any) -> None:  # noqa: ANN401 (JSON)
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return change


def _stack_before_resize(data: dict[str, Any]) -> None:
    steps = data["preprocessing"]
    steps[2], steps[4] = steps[4], steps[2]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            _set("preprocessing", 0, "step", to="rotate"),
            "preprocessing.0 rotate: no such step in version 1; known: ",
        ),
        (
            _set("preprocessing", 0, "version", to=2),
            "preprocessing.0 orient: no such step in version 2; known versions: [1]",
        ),
        (_set("preprocessing", 0, "axes", to="LPS"), "preprocessing.2 crop_head_box: needs axes RAS"),
        (_set("preprocessing", 2, "shape", to=[96, 112, 95]), "but the steps make [96, 112, 95]"),
        (_set("tensors_in", 0, "shape", to=[96, 112]), "but the steps make 3 axes"),
        (_set("tensors_in", 0, "shape", to=[1, 2, 96, 112, 96]), "but the steps make only the last 3 axes"),
        (
            _set("tensors_in", 0, "type", to="uint8"),
            "tensors_in image: type uint8, this appliance prepares float32",
        ),
        (_set("tensors_out", 0, "type", to="int64"), "tensors_out logits: type int64"),
        (_set("profiles", 0, "max", to=[1, 1, 96]), "profiles image: 3 sizes for the 5 axes"),
        (_drop("postprocessing", 0), "postprocessing.0 largest_component: needs a label map, which no step"),
        (_drop("postprocessing", 8), "outputs.segments: no step makes a label map on the source grid"),
        (_drop("postprocessing", 4), "outputs.checks confidence: no step computes it; computed: "),
        (_drop("postprocessing", 2), "postprocessing.2 ratio: needs gm_ml, not computed"),
        (
            _set("postprocessing", 4, "quantity", to="wm_ml"),
            "postprocessing.4 confidence: wm_ml is computed twice",
        ),
        (
            _set("tensors_out", 0, "shape", to=[1, 4, 96, 112, 96]),
            "argmax makes labels [3] without a segment",
        ),
        (_set("tensors_out", 0, "shape", to=[1, 3]), "needs scores of every voxel, the output is [3]"),
        (
            _set("postprocessing", 0, to={"step": "threshold", "at": 0.5, "channel": 3}),
            "class 3, the output has 3",
        ),
        (
            _set("postprocessing", 0, to={"step": "threshold", "at": 0.5, "label": 9}),
            "threshold makes labels [9]",
        ),
        (
            _set("preprocessing", 3, to={"step": "invert_monochrome1"}),
            "works on image, the input is a kind of volume",
        ),
        (
            _set("preprocessing", 3, to={"step": "normalise", "mean": [1, 2], "std": [1]}),
            "means and deviations for [2]",
        ),
        (
            _set("outputs", "measurements", 0, "quantity", to="csf_ml"),
            "outputs.measurements csf_ml: no step computes it",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_any_study(change: Change, problem: str) -> None:
    with pytest.raises(ManifestError) as caught:
        Pipeline.compile(brain(change))
    assert any(problem in each for each in caught.value.problems), caught.value.problems


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            _set("preprocessing", 0, to={"step": "orient", "axes": "RAS"}),
            "orient: works on volume, the input is a kind of image",
        ),
        (_set("preprocessing", 5, "mean", to=[0, 0]), "means and deviations for [2, 3] channels"),
        (_set("preprocessing", 4, "count", to=1), "means and deviations for [3] channels"),
        (_stack_before_resize, "resize: shape of 2 axes, the sample has 3"),
        (_set("postprocessing", 1, "quantities", "p_viral", to=3), "class 3, the output has 3"),
        (_set("postprocessing", 0, to={"step": "argmax"}), "argmax: works on volume"),
    ],
)
def test_an_image_manifest_that_cannot_work_is_refused(change: Change, problem: str) -> None:
    with pytest.raises(ManifestError) as caught:
        Pipeline.compile(radiograph(change))
    assert any(problem in each for each in caught.value.problems), caught.value.problems


def test_every_problem_is_told_at_once() -> None:
    def change(data: dict[str, Any]) -> None:
        data["preprocessing"][0]["axes"] = "XYZ"
        data["preprocessing"][1]["spacing_mm"] = [0, 2, 2]
        data["preprocessing"][3]["step"] = "magic"
        data["outputs"]["checks"][0]["quantity"] = "nothing"

    with pytest.raises(ManifestError) as caught:
        Pipeline.compile(brain(change))
    said = "\n".join(caught.value.problems)
    for part in (
        "preprocessing.0 orient",
        "preprocessing.1 resample",
        "preprocessing.3 magic",
        "checks nothing",
    ):
        assert part in said


def test_a_model_with_two_inputs_is_refused_by_name() -> None:
    def change(data: dict[str, Any]) -> None:
        data["inputs"].append({**data["inputs"][0], "name": "t2"})
        data["tensors_out"].append({**data["tensors_out"][0], "name": "more"})

    with pytest.raises(ManifestError, match=r"inputs: 2, this appliance takes 1.*tensors_out: 2"):
        Pipeline.compile(brain(change))


def test_the_digest_is_stable_and_changes_with_a_parameter_but_not_with_a_title() -> None:
    first = Pipeline.compile(brain()).digest
    assert re.fullmatch(r"[0-9a-f]{64}", first)
    assert Pipeline.compile(brain(_set("title", to="Other"))).digest == first
    assert Pipeline.compile(brain(_set("preprocessing", 3, "upper", to=99.4))).digest != first
    assert Pipeline.compile(brain(_set("postprocessing", 5, "min_voxels", to=99))).digest != first


def test_a_default_that_is_written_out_gives_the_same_digest() -> None:
    assert (
        Pipeline.compile(brain(_set("preprocessing", 1, "filter", to="triangle"))).digest
        == Pipeline.compile(brain()).digest
    )


def test_the_digest_covers_the_code_of_the_steps_that_are_used(tmp_path: Path) -> None:
    """The same manifest compiled by a copy of the code in which one line of one step differs."""
    import shutil
    import subprocess
    import sys

    for package in ("edge", "dicom", "model_store"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "import edge.pipeline, pathlib, model_store.manifest as m;"
        "assert edge.pipeline.__file__.startswith(sys.argv[1]);"
        "p = pathlib.Path(sys.argv[2]);"
        "print(edge.pipeline.Pipeline.compile(m.parse(p.read_bytes(), 'x')).digest)"
    )

    def digest() -> str:
        run = [sys.executable, "-I", "-B", "-c", program, str(tmp_path), str(BRAIN / "manifest.json")]
        return subprocess.run(run, check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    same = digest()
    assert same == Pipeline.compile(brain()).digest
    unused = tmp_path / "edge" / "steps" / "image.py"
    unused.write_text(unused.read_text() + "\nUNUSED = 1\n")
    assert digest() == same
    percentile = tmp_path / "edge" / "steps" / "percentile.py"  # used through crop and intensity
    percentile.write_text(percentile.read_text().replace("share >= 0.5", "share > 0.5"))
    assert digest() != same
