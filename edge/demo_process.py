"""The processes of the demo: started, waited for, and gone when the demo is gone.

A process that says one line when it is ready, and writes the rest to a log. It is asked to end by
SIGTERM, killed when it does not, and the kernel sends it SIGTERM when the demo itself dies.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from edge.demo_study import DemoError

_STOP_S: Final = 30.0
"""The daemon finishes what it has begun within 20 s."""
_TAIL_BYTES: Final = 2000
_PR_SET_PDEATHSIG: Final = 1


class DemoProcess:
    """One Python module of ours, run as a process for the length of a `with`."""

    def __init__(self, name: str, module: str, arguments: Sequence[str], log: Path) -> None:
        self._name = name
        self._command = [sys.executable, "-I", "-m", module, *arguments]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        libc = ctypes.CDLL(None, use_errno=True)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(os.environ),
                start_new_session=True,  # Ctrl-C ends the demo, and the demo ends this
                preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),  # noqa: PLW1509 - one thread
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._running()
        process.terminate()
        try:
            process.communicate(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()

    def ready_line(self, limit_s: float) -> str:
        """The first line that it says.

        Raises:
            DemoError: it ended, or said nothing within `limit_s`; with the end of its log.
        """
        out = self._running().stdout
        assert out is not None
        readable, _, _ = select.select([out], [], [], limit_s)
        line = out.readline().decode(errors="replace").strip() if readable else ""
        if not line:
            raise DemoError(f"{self._name} did not start; the end of {self._log}:\n{self._tail()}")
        return line

    def ended(self, wait_s: float) -> bool:
        """Whether it has ended; waits for that for `wait_s` at most."""
        try:
            self._running().wait(wait_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def _tail(self) -> str:
        return self._log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")


def environment(ours: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: ours, and never another configuration file than the one we name."""
    return {
        **{name: value for name, value in ours.items() if name != "INSITU_CONFIG"},
        "ORT_DISABLE_TELEMETRY": "1",
    }


def run_insitu(config: Path, *arguments: str, limit_s: float = 300.0) -> None:
    """Run one verb of `insitu` to its end.

    Raises:
        DemoError: it failed; with what it said.
    """
    command = [sys.executable, "-I", "-m", "edge", "--config", str(config), *arguments]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=limit_s,
            check=False,
            env=environment(os.environ),
        )
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"insitu {' '.join(arguments)} did not end within {limit_s:.0f} s") from error
    if done.returncode != 0:
        said = done.stderr[-_TAIL_BYTES:].decode(errors="replace").strip()
        raise DemoError(f"insitu {' '.join(arguments)} ended with status {done.returncode}:\n{said}")
