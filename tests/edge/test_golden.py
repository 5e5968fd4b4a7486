"""Golden cases: equal passes, different fails with a number, and a hostile case is refused."""

import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.engine import Engine
from edge.golden import GoldenReport, run_golden
from model_store.errors import PackageError
from model_store.package import open_package, read_package
from tests import onnx_models
from tests.onnx_models import npz

X = np.arange(8, dtype=np.float32).reshape(2, 4)
SHIPPED = Path(__file__).resolve().parents[2] / "models/brain_t1_small"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """y = x + 1; the cases change from test to test, the graph does not."""
    package = read_package(onnx_models.write_package(tmp_path_factory.mktemp("engine") / "p"))
    with Engine.start(package) as started:
        yield started


def _report(engine: Engine, tmp_path: Path, case: bytes, **limits: float) -> GoldenReport:
    said = {"file": "golden/case.npz", "max_abs_difference": 1e-5, **limits}
    package = read_package(onnx_models.write_package(tmp_path / "p", case=case, golden=[said], memory_mib=1))
    (report,) = run_golden(engine, package)
    return report


def _zip(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def _npy(array: "np.typing.NDArray[np.generic]", *, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def test_an_equal_case_passes(engine: Engine, tmp_path: Path) -> None:
    report = _report(engine, tmp_path, npz(in__x=X, out__y=X + 1, labels__y=np.array([3, 3])))
    assert report.passed
    assert (report.max_abs_difference, report.label_share, report.problem) == (0, 0, "")
    assert report.run_s > 0


def test_a_different_value_fails_with_its_difference(engine: Engine, tmp_path: Path) -> None:
    wrong = X + 1
    wrong[1, 2] += 0.5
    report = _report(engine, tmp_path, npz(in__x=X, out__y=wrong))
    assert not report.passed
    assert report.max_abs_difference == 0.5
    assert report.problem == "differs by 0.5, allowed 1e-05"


def test_a_difference_within_the_limit_passes(engine: Engine, tmp_path: Path) -> None:
    report = _report(engine, tmp_path, npz(in__x=X, out__y=X + 1.25), max_abs_difference=0.25)
    assert report.passed
    assert report.max_abs_difference == 0.25


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_a_number_fails(engine: Engine, tmp_path: Path, value: float) -> None:
    wrong = X + 1
    wrong[0, 0] = value
    assert not _report(engine, tmp_path, npz(in__x=X, out__y=wrong), max_abs_difference=1e9).passed


def test_the_same_infinity_is_no_difference(engine: Engine, tmp_path: Path) -> None:
    x = np.full((1, 4), np.inf, np.float32)
    assert _report(engine, tmp_path, npz(in__x=x, out__y=x)).passed


def test_an_output_may_be_given_at_some_places_only(engine: Engine, tmp_path: Path) -> None:
    at = np.array([[1, 7], [0, 4]])
    good = npz(in__x=X, at__y=at, out__y=(X + 1).reshape(-1)[at])
    bad = npz(in__x=X, at__y=at, out__y=(X + 2).reshape(-1)[at])
    assert _report(engine, tmp_path / "a", good).passed
    assert _report(engine, tmp_path / "b", bad).max_abs_difference == 1


def test_labels_that_differ_are_a_share(engine: Engine, tmp_path: Path) -> None:
    case = npz(in__x=X, labels__y=np.array([3, 0]))
    report = _report(engine, tmp_path / "a", case)
    assert (report.passed, report.label_share) == (False, 0.5)
    assert report.problem == "0.500000 of the labels differ, allowed 0"
    assert _report(engine, tmp_path / "b", case, max_label_share=0.5).passed


REFUSED = {
    "compares nothing": npz(in__x=X),
    "unknown output": npz(in__x=X, out__z=X),
    "other shape": npz(in__x=X, out__y=X[:1]),
    "labels of another shape": npz(in__x=X, labels__y=np.zeros((2, 4), np.int64)),
    "index too large": npz(in__x=X, at__y=np.array([8]), out__y=np.zeros(1, np.float32)),
    "index negative": npz(in__x=X, at__y=np.array([-1]), out__y=np.zeros(1, np.float32)),
    "unknown kind": npz(in__x=X, out__y=X, secret=X),
    "not a zip": b"PK not at all",
    "object array": _zip(("out.y.npy", _npy(np.array([{}], object), allow_pickle=True))),
    "a pickle": _zip(("out.y.npy", pickle.dumps({}))),
    "double precision": npz(in__x=X, out__y=X.astype(np.float64)),
    "a bomb": _zip(("out.y.npy", bytes(64 << 20))),
    "a header that lies": _zip(("out.y.npy", _npy(X).replace(b"(2, 4)", b"(9**9,)"))),
    "a header too large": _zip(("out.y.npy", _npy(X).replace(b"(2, 4),", b"(99999)"))),
    "the same twice": _zip(("in.x.npy", _npy(X)), ("out.y.npy", _npy(X)), ("out.y.npy ", _npy(X))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_case_that_is_none_is_refused(engine: Engine, tmp_path: Path, name: str) -> None:
    with pytest.raises(PackageError, match=r"golden case golden/case\.npz: "):
        _report(engine, tmp_path, REFUSED[name])


def test_a_case_cut_at_any_length_is_refused(engine: Engine, tmp_path: Path) -> None:
    whole = npz(in__x=X, out__y=X + 1)
    for length in range(0, len(whole), 7):
        with pytest.raises(PackageError):
            _report(engine, tmp_path / str(length), whole[:length])


def test_the_shipped_model_passes_its_golden_cases() -> None:
    package = open_package(SHIPPED)
    with Engine.start(package) as started:
        reports = run_golden(started, package)
    assert [report.problem for report in reports] == [""] * len(package.manifest.golden)
