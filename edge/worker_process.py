"""The parent's hold on one worker process: start it, ask it, end it.

Owns the child's environment and what it inherits; `edge.worker` is what runs there, and
`edge.engine` decides when there is another one.

*Security*: the child gets an environment of five fixed variables, an empty directory that no
longer has a name, one socket, and a memory of 16 KiB as its standard error. Whatever it answers
is checked by the caller as a stranger's would be.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from edge.errors import WorkerStartError
from edge.tensor_memory import make_descriptor, receive, send

STDERR_BYTES: Final = 16 << 10
"""Kept of the worker's standard error; the memory cannot grow, so a chatty worker fills nothing."""
STDERR_SHOWN: Final = 400
"""Characters of it that an error shows: its end, where Python's traceback names the error."""
REAP_S: Final = 5.0
"""How long a process may take to go after SIGKILL; longer only in the kernel (a broken disk or driver)."""
ENVIRONMENT: Final = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime's wheels phone home from their import (FACTS)
    "OPENBLAS_NUM_THREADS": "1",  # NumPy only copies here; its own threads would take 0.1 s and 40 MB
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",  # keeps memory flat; the runtime's tensors come from its own arena
    "LC_ALL": "C.UTF-8",
}


class WorkerProcess:
    """One child process; not thread-safe but for `kill`."""

    def __init__(self, keeper: Executor) -> None:
        """Start the process; it is ready after `load`.

        Args:
            keeper: one thread that lives as long as the process may: the kernel sends the child its
                death signal when the *thread* that started it ends, not the process.

        Raises:
            OSError: no process, memory or descriptors.
        """
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._stderr = -1
        try:
            self._stderr = make_descriptor(STDERR_BYTES)
            self._process = keeper.submit(_spawn, theirs, self._stderr).result()
        except BaseException:
            self._close()
            raise
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def load(self, graph: Path, threads: int, memory_bytes: int, timeout_s: float) -> dict[str, Any]:
        """Let it load the graph; its answer says what loaded it.

        Raises:
            WorkerStartError: it died, said why it cannot, or took too long; it is gone.
        """
        message = {"do": "load", "graph": str(graph), "threads": threads, "memory_bytes": memory_bytes}
        try:
            answer = self.ask(message, None, timeout_s)
        except TimeoutError as error:
            self.end()
            raise WorkerStartError(f"the worker was not ready within {timeout_s:g} s") from error
        except (EOFError, OSError, ValueError) as error:
            raise WorkerStartError(f"the worker did not start: {self.end()}") from error
        if answer.get("is") != "ready":
            self.end()
            raise WorkerStartError(f"the graph cannot be loaded: {answer.get('why')!s:.600}")
        return answer

    def ask(self, message: dict[str, Any], descriptor: int | None, timeout_s: float) -> dict[str, Any]:
        """Send one message and wait for its answer.

        Raises:
            TimeoutError: no answer in time.
            EOFError, OSError: the worker is gone.
            ValueError: it answered nonsense.
        """
        self._socket.settimeout(timeout_s)
        send(self._socket, message, descriptor)
        answer, extra = receive(self._socket)
        if extra is not None:
            os.close(extra)
            raise ValueError("the worker sent a descriptor")
        return answer

    def has_died(self) -> bool:
        """Whether it is gone already; it must not be asked then."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """Send SIGKILL; `end` follows. Safe from any thread."""
        self._process.kill()

    def end(self) -> str:
        """Make sure that it is gone, and say how it ended: status and the end of its standard error."""
        self._socket.close()  # a worker that waits for us ends by itself
        # It may have ended by itself a moment ago; the kill is for what has not.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.05)
        self._process.kill()
        try:
            status = self._process.wait(REAP_S)
        except subprocess.TimeoutExpired:
            self._close()
            return f"process {self.pid} does not end, even by SIGKILL"
        raw = os.pread(self._stderr, STDERR_BYTES, 0).rstrip(b"\0") if self._stderr >= 0 else b""
        self._close()
        how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
        text = " ".join(raw.decode(errors="replace").split())[-STDERR_SHOWN:]
        return f"{how}: {text}" if text else how

    def _close(self) -> None:
        self._socket.close()
        if self._stderr >= 0:
            os.close(self._stderr)
            self._stderr = -1


def _spawn(theirs: socket.socket, stderr: int) -> "subprocess.Popen[bytes]":
    """Start the child in a directory that is empty and, once it is in it, gone: nothing can appear there."""
    # A model's external data is searched for in the working directory (FACTS).
    directory = tempfile.mkdtemp(prefix="insitu-worker-")
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-B", "-m", "edge.worker", str(theirs.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            cwd=directory,
            env=ENVIRONMENT,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    finally:
        Path(directory).rmdir()
