"""One model, loaded and warm in a process of its own: the parent's side.

Owns the life of the worker process (`edge.worker`): it starts it, hands it tensors through shared
memory, holds it to its deadline, and starts another when it has died. What the tensors mean is
the pipeline's business; what follows from an error is decided by the stage that ran the model.

A run costs one copy of the inputs into the shared memory and one of the outputs out of it. The
graph itself reads and writes that memory. The outputs are copied because the next run uses the
memory again, and because a worker that a hostile graph has taken over must not change a result
after we have looked at it.

*Diagnostics*: logs each start, death and missed deadline, with the model's name, version and
process id. *Security*: the answers of a worker are checked against the manifest; it decides no size
that is allocated here beyond the manifest's memory.
"""

import logging
import math
import mmap
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from edge.errors import (
    DeadlineError,
    ModelOutOfServiceError,
    RunError,
    WorkerDiedError,
    WorkerStartError,
)
from edge.tensor_layout import Layout
from edge.tensor_memory import TensorMemory, make_descriptor
from edge.worker_process import WorkerProcess
from model_store.package import Package

PLACE_TIMEOUT_S: Final = 30.0
"""For copying outputs whose shape was not known before: a gigabyte takes about one second."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What a worker may take; the manifest says its memory and its deadline."""

    threads: int = 0
    """Threads of one run; 0: one for each physical core that this process may use."""
    start_timeout_s: float = 60.0
    """From nothing to ready: 0.5 s for a small graph; optimising a large one on a busy box, minutes."""
    grace_s: float = 2.0
    """Between the deadline, when the run is asked to end (it looks between two nodes), and SIGKILL."""
    max_deaths: int = 3
    """Deaths in a row after which the model is out of service; a run that succeeds sets the count to 0."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What runs the model, for a result's provenance and for the operator."""

    runtime: str
    """`onnxruntime 1.32.0`."""
    provider: str
    """`CPUExecutionProvider`."""
    threads: int
    graph: str
    """Name of the graph file in the package."""
    graph_sha256: str
    precision: str
    starts: int
    """How often a worker has been started for this engine."""
    pid: int
    """Process id of the last worker."""
    load_s: float
    """Loading and optimising the graph."""
    ready_s: float
    """From nothing to ready, the load included."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What one run gave."""

    outputs: dict[str, NDArray[Any]]
    """By name; types and shapes as the manifest declares them; the caller's own copies."""
    run_s: float
    """The runtime's own run, measured in the worker."""
    call_s: float
    """The whole call, waiting for other runs of this engine included."""


class Engine:
    """A model ready to run. Thread-safe; runs of one engine happen one after the other."""

    def __init__(self, package: Package, limits: WorkerLimits) -> None:
        """Use `start`."""
        self._package = package
        self._manifest = package.manifest
        self._limits = limits
        self._threads = limits.threads or physical_cores()
        self._label = f"model {self._manifest.name} {self._manifest.version}"
        self._graph = self._manifest.graphs[0]
        self._memory_limit = self._manifest.memory_mib << 20
        self._lock = threading.Lock()
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="insitu-engine")
        self._process: WorkerProcess | None = None
        self._memory: TensorMemory | None = None
        self._info: EngineInfo | None = None
        self._deaths = 0
        self._last_death = ""
        self._closed = False

    @classmethod
    def start(cls, package: Package, limits: WorkerLimits | None = None) -> Self:
        """The model of a package whose files have been checked, loaded and warm.

        The first graph that the manifest lists is loaded.

        Raises:
            WorkerStartError: the worker does not become ready.
        """
        engine = cls(package, limits or WorkerLimits())
        try:
            with engine._lock:
                engine._start_worker()
        except BaseException:
            engine.close()
            raise
        return engine

    @property
    def info(self) -> EngineInfo:
        """What runs the model."""
        if self._info is None:
            raise RuntimeError(f"{self._label}: was never started")
        return self._info

    def run(self, inputs: Mapping[str, NDArray[Any]], timeout_s: float | None = None) -> RunResult:
        """Run the graph once.

        Args:
            inputs: by name; types and shapes as the manifest declares them.
            timeout_s: the deadline of this run; without it the manifest's.

        Raises:
            TensorError: the inputs are not what the manifest declares, or too large.
            DeadlineError: the run did not end in time.
            RunError: the graph failed.
            WorkerDiedError: the worker died; the next run starts another.
            WorkerStartError: there was no worker, and another did not become ready.
            ModelOutOfServiceError: too many deaths in a row.
        """
        began = time.perf_counter()
        timeout_s = self._manifest.deadline_s if timeout_s is None else timeout_s
        layout = Layout(self._manifest, inputs, self._memory_limit, self._label)
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self._label}: its engine is closed")
            if self._process is not None and self._process.has_died():
                self._count_death(self._end_worker())  # between two runs: no run has to fail for it
            if self._deaths >= self._limits.max_deaths:
                raise ModelOutOfServiceError(
                    f"{self._label}: out of service, its worker died {self._deaths} times in a row,"
                    f" allowed {self._limits.max_deaths}; the last time: {self._last_death}"
                )
            process = self._process or self._start_worker()
            outputs, run_s = self._run(process, layout, inputs, timeout_s)
            self._deaths = 0
        return RunResult(outputs, run_s, time.perf_counter() - began)

    def return_to_service(self) -> None:
        """Forget the deaths so far: a person has looked."""
        with self._lock:
            self._deaths = 0

    def close(self) -> None:
        """End the worker; a run under way ends with WorkerDiedError. Twice is once."""
        self._closed = True
        if (process := self._process) is not None:
            process.kill()
        with self._lock:
            self._end_worker()
        self._keeper.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_worker(self) -> WorkerProcess:
        began = time.perf_counter()
        path = _inside(self._package.directory, self._graph.file)
        starts = 1 if self._info is None else self._info.starts + 1
        try:
            process = WorkerProcess(self._keeper)
            answer = process.load(path, self._threads, self._memory_limit, self._limits.start_timeout_s)
        except (WorkerStartError, OSError) as error:
            self._count_death(str(error))
            raise WorkerStartError(f"{self._label}: {error}") from error
        wanted = {tensor.name for tensor in (*self._manifest.tensors_in, *self._manifest.tensors_out)}
        found = {*answer["inputs"], *answer["outputs"]}
        if found != wanted:
            process.end()
            raise WorkerStartError(
                f"{self._label}: the graph has tensors {found}, the manifest says {wanted}"
            )
        self._process = process
        self._info = EngineInfo(
            runtime=str(answer["runtime"]),
            provider=str(answer["provider"]),
            threads=self._threads,
            graph=self._graph.file,
            graph_sha256=self._manifest.files[self._graph.file].sha256,
            precision=self._graph.precision,
            starts=starts,
            pid=process.pid,
            load_s=float(answer["load_s"]),
            ready_s=time.perf_counter() - began,
        )
        log.info("%s: worker %d is ready after %.2f s", self._label, process.pid, self._info.ready_s)
        return process

    def _run(
        self,
        process: WorkerProcess,
        layout: Layout,
        inputs: Mapping[str, NDArray[Any]],
        timeout_s: float,
    ) -> tuple[dict[str, NDArray[Any]], float]:
        memory, descriptor = self._fit(layout.size_bytes)
        for slot in layout.inputs:
            np.copyto(memory.view(slot), inputs[slot.name], casting="no")
        message = layout.message | {"timeout_s": timeout_s}
        answer = self._ask(process, message, descriptor, timeout_s, timeout_s + self._limits.grace_s)
        outputs = {slot.name: memory.view(slot).copy() for slot in layout.outputs}
        run_s = answer["run_s"]
        if answer["is"] == "unplaced":
            slots = layout.place(answer["outputs"])
            del memory
            memory, descriptor = self._fit(max(slot.end for slot in slots))
            message = {"do": "place", "outputs": [slot.to_json() for slot in slots]}
            self._ask(process, message, descriptor, timeout_s, PLACE_TIMEOUT_S)
            outputs |= {slot.name: memory.view(slot).copy() for slot in slots}
        return outputs, run_s

    def _ask(
        self,
        process: WorkerProcess,
        message: dict[str, Any],
        descriptor: int | None,
        timeout_s: float,
        wait_s: float,
    ) -> dict[str, Any]:
        """One question to the worker; whatever is wrong with it or its answer ends it."""
        try:
            if descriptor is not None and self._memory is not None:
                message = message | {"memory_bytes": self._memory.size_bytes}
            answer = process.ask(message, descriptor, wait_s)
            match answer:
                case {"is": "done", "run_s": float(run_s)} if math.isfinite(run_s):
                    return answer
                case {"is": "unplaced", "run_s": float(run_s), "outputs": dict()} if math.isfinite(run_s):
                    return answer
                case {"is": "late"}:
                    log.warning("%s: not done after %g s, stopped", self._label, timeout_s)
                    raise DeadlineError(f"{self._label}: not done after {timeout_s:g} s; the run was stopped")
                case {"is": "failed", "why": str(why)}:
                    raise RunError(f"{self._label}: the graph failed: {why:.600}")
            raise ValueError("an answer that is not one of the four")
        except TimeoutError as error:
            how = self._end_worker()
            self._count_death(f"killed {self._limits.grace_s:g} s after its deadline ({how})")
            raise DeadlineError(
                f"{self._label}: not done after {timeout_s:g} s, and did not stop; the worker was killed"
            ) from error
        except (EOFError, OSError, ValueError) as error:
            how = self._end_worker()
            self._count_death(how)
            raise WorkerDiedError(f"{self._label}: the worker died: {how} ({error})") from error
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _fit(self, size_bytes: int) -> tuple[TensorMemory, int | None]:
        """Shared memory of at least this size; with a descriptor when the worker does not have it yet."""
        if self._memory is not None and self._memory.size_bytes >= size_bytes:
            return self._memory, None
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        size_bytes = -(-max(size_bytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        descriptor = make_descriptor(size_bytes)
        try:
            self._memory = TensorMemory(descriptor, size_bytes)
        except BaseException:
            os.close(descriptor)
            raise
        return self._memory, descriptor

    def _end_worker(self) -> str:
        """End the worker, and the memory that it shared: another gets another."""
        how = "" if self._process is None else self._process.end()
        self._process = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        return how

    def _count_death(self, how: str) -> None:
        if self._closed:  # we ended it
            return
        self._deaths += 1
        self._last_death = how
        log.error("%s: worker died (%d in a row): %s", self._label, self._deaths, how)


def physical_cores() -> int:
    """Cores that this process may use; two hardware threads of one core count once.

    Convolutions fill a core's vector units from one thread; a second thread on it only takes turns.
    """
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(path.read_text())
        except OSError:  # a container without /sys
            return len(allowed)
    return len(cores)


def _inside(directory: Path, name: str) -> Path:
    """The real path of a package's file; the worker is given no other.

    Raises:
        WorkerStartError: it is not there, or leads out of the package.
    """
    path = (directory / name).resolve()
    if not path.is_file() or not path.is_relative_to(directory.resolve()):
        raise WorkerStartError(f"{directory}: {name} is not a file of the package")
    return path
