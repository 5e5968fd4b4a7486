"""Runs `insitu` and kills it, as a power cut would, at the n-th durable step: `killed.py N ARGUMENTS…`.

A durable step is an fsync, a rename, a link, an unlink, or a COMMIT of the journal, in the order in
which the process comes to them. The process is killed before it takes step N. With N = 0 it
lives, and the number of steps is written to the file that $CRASH_STEPS names when it ends.
"""

import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Steps:
    """Counts, and kills when it is time."""

    def __init__(self, last: int) -> None:
        self._last = last
        self._lock = threading.Lock()
        self.names: list[str] = []

    def take(self, name: str) -> None:
        with self._lock:
            self.names.append(name)
            if len(self.names) == self._last:
                os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, module: Any, name: str) -> None:  # noqa: ANN401 (a module)
        inner: Callable[..., Any] = getattr(module, name)

        def counted(*args: Any, **named: Any) -> Any:  # noqa: ANN401
            self.take(name)
            return inner(*args, **named)

        setattr(module, name, counted)


def main() -> None:
    steps = Steps(int(sys.argv[1]))
    for name in ("fsync", "fdatasync", "rename", "replace", "link", "unlink"):
        steps.wrap(os, name)
    connect = sqlite3.connect

    def connect_counted(*args: Any, **named: Any) -> sqlite3.Connection:  # noqa: ANN401
        connection: sqlite3.Connection = connect(*args, **named)
        connection.set_trace_callback(lambda sql: steps.take("commit") if sql == "COMMIT" else None)
        return connection

    sqlite3.connect = connect_counted  # type: ignore[assignment]
    sys.argv = ["insitu", *sys.argv[2:]]
    from edge.__main__ import main as insitu

    try:
        insitu()
    finally:
        if "CRASH_STEPS" in os.environ:
            Path(os.environ["CRASH_STEPS"]).write_text("\n".join(steps.names))


if __name__ == "__main__":
    main()
