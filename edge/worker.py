"""The process that runs one model's graph: `python -I -m edge.worker SOCKET PARENT`.

Owns the runtime's session. It is told by its parent (`edge.engine`) over a SEQPACKET socket which
graph to load and where the tensors lie in shared memory; it answers, and knows nothing else: no
study, no configuration, no DICOM. It imports NumPy and ONNX Runtime only, so that it is
ready in half a second, and everything before the last step of its confinement.

*Life*: it ends when the socket closes, and the kernel kills it when its parent dies.

*Limits*: it may hold `memory_bytes` of private memory beyond what it has when it begins to load
(RLIMIT_DATA: the heap and private maps, which is where the runtime's tensors are; an allocation
beyond it fails, the run fails with it, and the process lives). RLIMIT_AS is not set: it would
count address space that is only reserved, of which CUDA takes far more than it uses. The
tensors in shared memory are the parent's to bound. A run ends at its deadline between two
nodes of the graph; a single node that takes too long is ended by the parent's SIGKILL.

*Security*: the graph is a vendor's. Errors go to the parent as short text; standard error goes to
a small sealed memory that the parent reads when the worker has died; nothing goes to a file.

*Messages*: `{"do": "load", …}` is answered by `{"is": "ready", …}`, `{"do": "run", …}` by
`{"is": "done" | "unplaced" | "late" | "failed", …}`.
"""

import ctypes
import math
import os
import resource
import signal
import socket
import sys
import threading
import time
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edge.tensor_memory import DTYPES, Slot, TensorMemory, receive, send

PROVIDER: Final = "CPUExecutionProvider"
MAX_DESCRIPTORS: Final = 64
"""Open files: three standard ones, the socket, the memory, and those of the runtime while it loads."""
MAX_FILE_BYTES: Final = 16 << 10
"""What it may write to standard error, which is the only file that it has (`edge.engine`)."""
THREAD_BYTES: Final = 9 << 20
"""Private memory that each thread takes without touching it: its stack (8 MiB) and its heap's first pages."""
MAX_TEXT: Final = 500
"""Characters of an error's text: the runtime's own messages are shorter, a hostile node name is not."""

_PR_SET_PDEATHSIG: Final = 1


def main(arguments: list[str]) -> int:
    """Run until the parent closes the socket."""
    descriptor, parent = (int(argument) for argument in arguments)
    # 1. Nobody's orphan. The signal is lost if the parent died before this line, so look.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 1
    # The parent alone ends it; systemd and a terminal signal every process of the unit or the group.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # 2. No core file, which would hold a patient's image; few descriptors; nothing written to files.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_DESCRIPTORS, MAX_DESCRIPTORS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    with socket.socket(fileno=descriptor) as sock:
        load, _ = receive(sock)
        # 3. Private memory, from here on. Landlock goes here (issue 5): read below the package only.
        limit = _private_bytes() + load["memory_bytes"] + load["threads"] * THREAD_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        # 4. The graph, by its path in a package whose files have been checked.
        began = time.perf_counter()
        try:
            session = _session(load["graph"], load["threads"])
        except Exception as error:  # noqa: BLE001 (the runtime's errors have no common base)
            send(sock, {"is": "failed", "why": _text(error)})
            return 0
        # 5. Nothing is imported or opened after this line: seccomp goes here (issue 5).
        send(sock, _ready(session, time.perf_counter() - began))
        _Worker(sock, session).serve()
    return 0


def _session(graph: str, threads: int) -> Any:  # noqa: ANN401 (the runtime has no types)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors
    # Spinning threads made the default the slowest choice on shared cores (FACTS).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A name must not choose the parser: `model.ort` would be read as another format, unchecked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    session = ort.InferenceSession(graph, options, providers=[PROVIDER], enable_fallback=0)
    if session.get_providers() != [PROVIDER]:
        raise RuntimeError(f"the runtime took {session.get_providers()}, asked for {PROVIDER}")
    return session


def _ready(session: Any, load_s: float) -> dict[str, Any]:  # noqa: ANN401
    return {
        "is": "ready",
        "runtime": f"onnxruntime {ort.__version__}",
        "provider": session.get_providers()[0],
        "load_s": load_s,
        "inputs": [item.name for item in session.get_inputs()],
        "outputs": [item.name for item in session.get_outputs()],
    }


class _Worker:
    """One session and the memory that its tensors lie in."""

    def __init__(self, sock: socket.socket, session: Any) -> None:  # noqa: ANN401
        self._sock = sock
        self._session = session
        self._memory: TensorMemory | None = None
        self._layout: object = None
        self._binding: Any = None
        self._outputs = [item.name for item in session.get_outputs()]
        self._unplaced_names: set[str] = set()
        self._unplaced: dict[str, NDArray[Any]] = {}
        self._watch = _Watch()

    def serve(self) -> None:
        """Answer one message after the other, until the parent is gone."""
        try:
            while True:
                try:
                    message, descriptor = receive(self._sock)
                except EOFError:
                    return
                send(self._sock, self._answer(message, descriptor))
        finally:
            self._watch.close()

    def _answer(self, message: dict[str, Any], descriptor: int | None) -> dict[str, Any]:
        if descriptor is not None:
            self._take(descriptor, message["memory_bytes"])
        if message["do"] == "place":
            return self._place(message["outputs"])
        layout = [message["inputs"], message["outputs"]]
        try:
            if layout != self._layout:
                self._bind(*layout)
            return self._run(message["timeout_s"])
        except Exception as error:  # noqa: BLE001 (the runtime's errors have no common base)
            self._forget()
            return {"is": "failed", "why": _text(error)}

    def _take(self, descriptor: int, size_bytes: int) -> None:
        """Use another memory from now on."""
        self._forget()
        if self._memory is not None:
            self._memory.close()
        try:
            self._memory = TensorMemory(descriptor, size_bytes)
        finally:
            os.close(descriptor)

    def _bind(self, inputs: list[Any], outputs: list[Any]) -> None:
        """Let the graph read and write the shared memory itself; done once for a layout."""
        self._forget()
        binding = self._session.io_binding()
        for slot, array in self._views(inputs):
            binding.bind_input(slot.name, "cpu", 0, DTYPES[slot.dtype], slot.shape, array.ctypes.data)
        views = self._views(outputs)
        for slot, array in views:
            binding.bind_output(slot.name, "cpu", 0, DTYPES[slot.dtype], slot.shape, array.ctypes.data)
        self._unplaced_names = set(self._outputs) - {slot.name for slot, _ in views}
        for name in self._unplaced_names:
            binding.bind_output(name, "cpu")  # its shape is known when it has run
        self._binding, self._layout = binding, [inputs, outputs]

    def _views(self, slots: list[Any]) -> list[tuple[Slot, NDArray[Any]]]:
        if self._memory is None:
            raise RuntimeError("a run before there is memory for it")
        return [(slot, self._memory.view(slot)) for slot in map(Slot.from_json, slots)]

    def _run(self, timeout_s: float) -> dict[str, Any]:
        options = ort.RunOptions()
        # No graph capture. Unset, the runtime's wrapper looks for it by a C++ exception: 100 µs a run.
        options.add_run_config_entry("gpu_graph_id", "-1")
        self._watch.start(options, timeout_s)
        try:
            began = time.perf_counter()
            self._session.run_with_iobinding(self._binding, options)
            run_s = time.perf_counter() - began
        except Exception:
            if self._watch.fired:
                return {"is": "late"}
            raise
        finally:
            self._watch.stop()
        if not self._unplaced_names:
            return {"is": "done", "run_s": run_s}
        arrays = zip(self._outputs, self._binding.copy_outputs_to_cpu(), strict=True)
        self._unplaced = {name: array for name, array in arrays if name in self._unplaced_names}
        self._layout = None  # the binding now holds what this run made; the next one begins anew
        shapes = {name: [array.dtype.name, array.shape] for name, array in self._unplaced.items()}
        return {"is": "unplaced", "run_s": run_s, "outputs": shapes}

    def _place(self, slots: list[Any]) -> dict[str, Any]:
        """Copy the outputs of the last run whose shapes were not known before it."""
        for slot, array in self._views(slots):
            np.copyto(array, self._unplaced[slot.name], casting="no")
        self._forget()
        return {"is": "done", "run_s": 0.0}

    def _forget(self) -> None:
        """Let go of everything that points into the memory."""
        self._binding, self._layout, self._unplaced = None, None, {}


class _Watch:
    """Tells the run under way to end when its deadline has come; one thread for all runs."""

    def __init__(self) -> None:
        self.fired = False
        self._condition = threading.Condition()
        self._options: Any = None
        self._deadline = 0.0
        self._wakes = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="deadline", daemon=True)
        self._thread.start()

    def start(self, options: Any, timeout_s: float) -> None:  # noqa: ANN401
        """Watch a run from now on."""
        with self._condition:
            self.fired = False
            self._options = options
            self._deadline = time.monotonic() + timeout_s
            if self._deadline < self._wakes:  # else it looks again before that, and need not be woken
                self._condition.notify()

    def stop(self) -> None:
        """The run is over."""
        with self._condition:
            self._options = None

    def close(self) -> None:
        """End the thread."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    def _loop(self) -> None:
        with self._condition:
            while not self._closed:
                left_s = self._deadline - time.monotonic() if self._options is not None else None
                if left_s is not None and left_s <= 0:
                    self._options.terminate = True
                    self._options, self.fired = None, True
                    continue
                self._wakes = math.inf if left_s is None else self._deadline
                self._condition.wait(left_s)


def _private_bytes() -> int:
    """What RLIMIT_DATA counts: private memory that may be written, without the first stack."""
    with open("/proc/self/status", "rb") as file:  # noqa: PTH123 (pathlib is one import more)
        for line in file:
            if line.startswith(b"VmData:"):
                return int(line.split()[1]) << 10
    raise RuntimeError("/proc/self/status has no VmData")


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:MAX_TEXT]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
