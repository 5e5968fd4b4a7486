"""A model in its own process: right as in-process, held to its limits, replaced when it dies."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper

from edge.engine import Engine, WorkerLimits, physical_cores
from edge.errors import (
    DeadlineError,
    ModelOutOfServiceError,
    RunError,
    TensorError,
    WorkerDiedError,
    WorkerStartError,
)
from model_store.package import Package, open_package, read_package
from tests import onnx_models
from tests.material import MATERIAL, needs_material

ONE = np.ones((1, 4), np.float32)


def _package(path: Path, proto: onnx.ModelProto | None = None, **changes: object) -> Package:
    """A package whose graph is not looked at: some are hostile, and meet the worker's own limits here."""
    return read_package(onnx_models.write_package(path / "package", proto, **changes))  # type: ignore[arg-type]  # manifest fields


def _power(count: int = 1) -> onnx.ModelProto:
    """x to the power of count + 1, x of shape [N, N]: as slow as N makes it, in `count` nodes."""
    names = ["x", *(f"h{i}" for i in range(count - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], "x"], [names[i + 1]]) for i in range(count)]
    return onnx_models.model(nodes, {"x": ["N", "N"]}, {"y": ["N", "N"]})


def _session(package: Package, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    path = package.directory / package.manifest.graphs[0].file
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _status(pid: int, field: str) -> int:
    """A number of /proc/PID/status; sizes in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise AssertionError(field)


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for what another process does and tells nobody."""
    deadline, never = time.monotonic() + timeout_s, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        never.wait(0.005)


def _gone(pid: int, timeout_s: float = 10.0) -> bool:
    """Whether the process ends within the time, by the kernel's word."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    try:
        return bool(poll.poll(1000 * timeout_s))
    finally:
        os.close(handle)


def _files(pid: int) -> list[str]:
    """What the process has open, by the kernel's names."""
    names = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the directory that is being read here
            names.append(str(path.readlink()))
    return sorted(names)


@needs_material
@pytest.mark.parametrize(
    ("name", "shape"),
    [("squeezenet11_cxr_pneumonia3", (2, 3, 224, 224)), ("brain_t1_small", (1, 1, 96, 112, 96))],
)
def test_a_real_model_gives_what_it_gives_in_process(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    package = open_package(
        onnx_models.write_package(
            tmp_path / "p", onnx.load(MATERIAL / f"models/{name}.onnx"), memory_mib=2048, deadline_s=120
        )
    )
    image = np.random.default_rng(3).random(shape, np.float32)
    expected = _session(package, 2).run(None, {"image": image})[0]
    with Engine.start(package, WorkerLimits(threads=2)) as engine:
        result = engine.run({"image": image})
    assert result.outputs.keys() == {"logits"}
    np.testing.assert_array_equal(result.outputs["logits"], expected)
    assert 0 < result.run_s < result.call_s


def test_the_info_says_what_a_result_has_to_name(tmp_path: Path) -> None:
    package = _package(tmp_path)
    with Engine.start(package, WorkerLimits(threads=1)) as engine:
        info = engine.info
        assert (info.runtime, info.provider) == (f"onnxruntime {ort.__version__}", "CPUExecutionProvider")
        assert (info.threads, info.starts, info.precision) == (1, 1, "fp32")
        assert info.graph_sha256 == package.manifest.files["model.onnx"].sha256
        assert 0 < info.load_s < info.ready_s < 20


def test_all_types_and_several_tensors_arrive_as_they_are(tmp_path: Path) -> None:
    types = ["float32", "float16", "uint8", "int8", "int32", "int64"]
    numbers = {kind: helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for kind in types}
    values = [
        [
            helper.make_tensor_value_info(f"{side}.{kind}", number, ["N", 3])
            for kind, number in numbers.items()
        ]
        for side in ("in", "out")
    ]
    nodes = [helper.make_node("Identity", [f"in.{kind}"], [f"out.{kind}"]) for kind in types]
    proto = helper.make_model(
        helper.make_graph(nodes, "test", *values), ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
    )
    random = np.random.default_rng(1)
    inputs = {f"in.{kind}": random.integers(0, 100, (5, 6)).astype(kind)[:, ::2] for kind in types}
    with Engine.start(_package(tmp_path, proto)) as engine:
        outputs = engine.run(inputs).outputs
    for kind in types:
        assert outputs[f"out.{kind}"].dtype == np.dtype(kind)
        np.testing.assert_array_equal(outputs[f"out.{kind}"], inputs[f"in.{kind}"])


def test_an_output_whose_shape_only_the_run_knows_arrives(tmp_path: Path) -> None:
    with Engine.start(_package(tmp_path, onnx_models.found())) as engine:
        for values in ([1, 0, 2], [0, 0, 0], [0] * 9999 + [1], [1] * 5000, [3, 0, 1]):
            x = np.array(values, np.float32)
            np.testing.assert_array_equal(engine.run({"x": x}).outputs["y"], np.flatnonzero(x))


def test_outputs_stay_what_they_are_when_the_next_run_comes(tmp_path: Path) -> None:
    with Engine.start(_package(tmp_path)) as engine:
        first = engine.run({"x": ONE}).outputs["y"]
        engine.run({"x": ONE * 100})
        np.testing.assert_array_equal(first, ONE + 1)
        first[:] = 0  # the caller's own


def test_shapes_may_change_from_run_to_run(tmp_path: Path) -> None:
    with Engine.start(_package(tmp_path)) as engine:
        for rows in (1, 5000, 2, 40_000, 3, 0):
            x = np.full((rows, 4), rows, np.float32)
            np.testing.assert_array_equal(engine.run({"x": x}).outputs["y"], x + 1)


def test_many_runs_keep_memory_and_descriptors_flat(tmp_path: Path) -> None:
    with Engine.start(_package(tmp_path, onnx_models.convolution(128, 16))) as engine:
        images = [np.ones((n, 1, 128, 128), np.float32) for n in (1, 2, 3)]
        pids = (os.getpid(), engine.info.pid)

        def runs(count: int) -> tuple[list[int], list[list[str]]]:
            for i in range(count):
                engine.run({"x": images[i % 3]})
            return [_status(pid, "RssAnon") for pid in pids], [_files(pid) for pid in pids]

        memory, files = runs(40)
        later_memory, later_files = runs(200)
    assert later_files == files
    for before, after in zip(memory, later_memory, strict=True):
        assert after - before < 4096, "KiB: 200 runs of up to 3 MiB each kept less than two of them"


def test_runs_from_many_threads_do_not_mix(tmp_path: Path) -> None:
    with Engine.start(_package(tmp_path)) as engine, ThreadPoolExecutor(8) as pool:

        def run(number: int) -> NDArray[Any]:
            return engine.run({"x": np.full((number % 7 + 1, 4), number, np.float32)}).outputs["y"]

        for number, output in enumerate(pool.map(run, range(200))):
            np.testing.assert_array_equal(output, np.full((number % 7 + 1, 4), number + 1, np.float32))
        assert engine.info.starts == 1


def test_a_worker_killed_in_a_run_fails_that_run_and_the_next_one_works(tmp_path: Path) -> None:
    small = np.eye(3, dtype=np.float32)
    before = _files(os.getpid())
    with (
        Engine.start(_package(tmp_path, _power(50))) as engine,
        ThreadPoolExecutor(1) as pool,
    ):
        pid = engine.info.pid
        idle = _cpu_ticks(pid)
        run = pool.submit(engine.run, {"x": np.zeros((2000, 2000), np.float32)})
        _until(lambda: _cpu_ticks(pid) > idle + 5)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match=r"model test-model 1\.0\.0: the worker died: SIGKILL"):
            run.result(20)
        np.testing.assert_array_equal(engine.run({"x": small}).outputs["y"], small)
        assert engine.info.starts == 2
        assert engine.info.pid != pid
    assert _files(os.getpid()) == before


def test_a_worker_that_died_between_two_runs_is_replaced_without_an_error(tmp_path: Path) -> None:
    with Engine.start(_package(tmp_path)) as engine:
        pid = engine.info.pid
        os.kill(pid, signal.SIGKILL)
        assert _gone(pid)
        np.testing.assert_array_equal(engine.run({"x": ONE}).outputs["y"], ONE + 1)
        assert engine.info.starts == 2


def test_three_deaths_in_a_row_take_the_model_out_of_service_until_a_person_says_so(tmp_path: Path) -> None:
    limits = WorkerLimits(grace_s=0.05)
    big, small = np.zeros((5000, 5000), np.float32), np.eye(3, dtype=np.float32)
    with Engine.start(_package(tmp_path, _power()), limits) as engine:

        def die() -> None:
            with pytest.raises(DeadlineError, match="the worker was killed"):
                engine.run({"x": big}, 0.05)  # one node: nothing stops it but a kill

        die()
        die()
        engine.run({"x": small})  # the row is broken
        for _ in range(3):
            die()
        starts = engine.info.starts
        for _ in range(2):
            with pytest.raises(ModelOutOfServiceError, match="died 3 times in a row, allowed 3"):
                engine.run({"x": small})
        assert engine.info.starts == starts, "nothing is started for a model out of service"
        engine.return_to_service()
        np.testing.assert_array_equal(engine.run({"x": small}).outputs["y"], small)


def test_a_run_past_its_deadline_is_stopped_and_the_worker_lives_on(tmp_path: Path) -> None:
    small = np.eye(3, dtype=np.float32)
    with Engine.start(_package(tmp_path, _power(400), deadline_s=0.3)) as engine:
        pid = engine.info.pid
        began = time.monotonic()
        with pytest.raises(DeadlineError, match=r"not done after 0\.3 s; the run was stopped"):
            engine.run({"x": np.zeros((1000, 1000), np.float32)})  # some 10 s
        assert time.monotonic() - began < 5
        for _ in range(3):
            np.testing.assert_array_equal(engine.run({"x": small}, 20).outputs["y"], small)
        assert engine.info.pid == pid


def test_a_graph_that_fails_says_so_and_the_worker_lives_on(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["w", "i"], ["y"], name="pick")]
    proto = onnx_models.model(nodes, {}, {"y": ["N"]}, {"w": np.arange(3, dtype=np.float32)})
    proto.graph.input.append(helper.make_tensor_value_info("i", onnx.TensorProto.INT64, ["N"]))
    with Engine.start(_package(tmp_path, proto)) as engine:
        with pytest.raises(RunError, match=r"the graph failed: .*pick.*out of data bounds"):
            engine.run({"i": np.array([7])})
        np.testing.assert_array_equal(engine.run({"i": np.array([2, 0])}).outputs["y"], [2, 0])
        assert engine.info.starts == 1


def test_a_run_that_asks_for_more_memory_than_granted_fails_and_the_worker_lives_on(tmp_path: Path) -> None:
    package = _package(tmp_path, onnx_models.tiled(), memory_mib=64)
    with Engine.start(package, WorkerLimits(threads=1)) as engine:
        with pytest.raises(
            RunError, match="Failed to allocate memory for requested buffer of size 14400000000"
        ):
            engine.run({"x": np.ones(60_000, np.float32)})
        assert _status(engine.info.pid, "VmHWM") < 300 << 10
        np.testing.assert_array_equal(engine.run({"x": ONE[0]}).outputs["y"], np.ones((4, 4), np.float32))
        assert engine.info.starts == 1


def test_a_graph_of_a_few_bytes_that_asks_for_34_gigabytes_does_not_load_or_run(tmp_path: Path) -> None:
    """The same model that `model_store.graph` refuses: here it meets the limit itself."""
    with (
        pytest.raises((WorkerStartError, RunError), match="alloc"),
        Engine.start(_package(tmp_path, onnx_models.huge_constant())) as engine,
    ):
        engine.run({"x": ONE})


def test_inputs_larger_than_the_memory_are_refused_before_a_worker_hears_of_them(tmp_path: Path) -> None:
    with Engine.start(_package(tmp_path, memory_mib=1)) as engine:
        with pytest.raises(TensorError, match="inputs and outputs take"):
            engine.run({"x": np.zeros((40_000, 4), np.float32)})
        with pytest.raises(TensorError, match="is float64"):
            engine.run({"x": ONE.astype(np.float64)})
        engine.run({"x": ONE})


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "cannot be loaded"), (b"not a model", "cannot be loaded"), (None, "is not a file of the package")],
)
def test_a_graph_that_cannot_be_loaded_says_why_and_leaves_nothing(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    package, before = _package(tmp_path), _files(os.getpid())
    path = package.directory / "model.onnx"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WorkerStartError, match=problem):
        Engine.start(package)
    assert _files(os.getpid()) == before


def test_a_graph_that_is_a_link_out_of_the_package_is_not_given_to_a_worker(tmp_path: Path) -> None:
    package = _package(tmp_path)
    path = package.directory / "model.onnx"
    path.rename(tmp_path / "elsewhere.onnx")
    path.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(WorkerStartError, match="is not a file of the package"):
        Engine.start(package)


def test_a_graph_with_other_tensors_than_the_manifest_is_refused(tmp_path: Path) -> None:
    tensor = {"name": "z", "type": "float32", "shape": ["N", 4]}
    with pytest.raises(WorkerStartError, match="the graph has tensors"):
        Engine.start(_package(tmp_path, tensors_in=[tensor]))


def test_a_worker_that_is_not_ready_in_time_is_ended(tmp_path: Path) -> None:
    before = _files(os.getpid())
    with pytest.raises(WorkerStartError, match=r"not ready within 0\.001 s"):
        Engine.start(_package(tmp_path), WorkerLimits(start_timeout_s=0.001))
    assert _files(os.getpid()) == before


def test_the_worker_sees_nothing_but_what_it_needs(tmp_path: Path) -> None:
    """Environment, working directory, open files, limits: as the kernel tells them."""
    with Engine.start(_package(tmp_path)) as engine:
        engine.run({"x": ONE})
        proc = Path(f"/proc/{engine.info.pid}")
        variables = dict(item.split("=") for item in (proc / "environ").read_text().split("\0") if item)
        assert variables["ORT_DISABLE_TELEMETRY"] == "1"
        assert not {"HOME", "PATH", "PYTHONPATH", "LD_PRELOAD"} & variables.keys()
        directory = str((proc / "cwd").readlink())
        assert directory.endswith(" (deleted)"), "empty, and nothing can be put there"
        kinds = [name.partition(":")[0] for name in _files(engine.info.pid)]
        assert kinds == ["/dev/null", "/dev/null", "/memfd", "/memfd", "socket"], "no file, no network"
        limits = {
            line[:25].strip(): line[26:].split()[:2] for line in (proc / "limits").read_text().splitlines()
        }
        assert limits["Max core file size"] == ["0", "0"]
        assert limits["Max open files"] == ["64", "64"]
        hard = int(limits["Max data size"][1])
        assert 512 << 20 < hard < (512 + 400) << 20, "the manifest's 512 MiB and the runtime's own"


def test_the_worker_imports_the_runtime_and_nothing_of_the_appliance() -> None:
    code = "import sys, edge.worker; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    environment = {"ORT_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    modules = set(done.stdout.split())
    assert {"numpy", "onnxruntime", "edge"} <= modules
    assert not modules & {"dicom", "model_store", "pydicom", "pydantic", "onnx", "scipy", "cv2", "sqlite3"}


def test_the_death_of_the_parent_is_the_death_of_the_worker(tmp_path: Path) -> None:
    """kill -9, in the middle of a run that would take minutes."""
    _package(tmp_path, _power(4000), deadline_s=600)
    code = (
        "import sys, threading, numpy as np\n"
        "from pathlib import Path\n"
        "from edge.engine import Engine\n"
        "from model_store.package import read_package\n"
        "engine = Engine.start(read_package(Path(sys.argv[1])))\n"
        "print(engine.info.pid, flush=True)\n"
        "engine.run({'x': np.zeros((2000, 2000), np.float32)})\n"
    )
    command = [sys.executable, "-I", "-c", code, str(tmp_path / "package")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        idle = _cpu_ticks(pid)
        _until(lambda: _cpu_ticks(pid) > idle + 5)
        parent.kill()
    assert _gone(pid)


def test_a_worker_started_from_a_thread_outlives_that_thread(tmp_path: Path) -> None:
    """The kernel's death signal follows the thread that started the child, not the process."""
    package = _package(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        engine = pool.submit(Engine.start, package).result()
    with engine:
        engine.run({"x": ONE})
        assert engine.info.starts == 1


def test_a_worker_does_not_end_by_the_signals_that_go_to_everybody(tmp_path: Path) -> None:
    with Engine.start(_package(tmp_path)) as engine:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(engine.info.pid, number)
        engine.run({"x": ONE})
        assert engine.info.starts == 1


def test_close_ends_a_run_under_way_and_twice_is_once(tmp_path: Path) -> None:
    before = _files(os.getpid())
    engine = Engine.start(_package(tmp_path, _power(4000), deadline_s=600))
    with ThreadPoolExecutor(1) as pool:
        pid = engine.info.pid
        idle = _cpu_ticks(pid)
        run = pool.submit(engine.run, {"x": np.zeros((2000, 2000), np.float32)})
        _until(lambda: _cpu_ticks(pid) > idle + 5)
        engine.close()
        engine.close()
        with pytest.raises(WorkerDiedError):
            run.result(20)
    assert _gone(pid)
    with pytest.raises(RuntimeError, match="is closed"):
        engine.run({"x": np.eye(3, dtype=np.float32)})
    assert _files(os.getpid()) == before


def test_the_default_is_one_thread_for_each_physical_core(tmp_path: Path) -> None:
    assert 1 <= physical_cores() <= len(os.sched_getaffinity(0))
    with Engine.start(_package(tmp_path)) as engine:
        assert engine.info.threads == physical_cores()
