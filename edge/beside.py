"""One function beside another: what a stage does while it waits for something else."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Made = TypeVar("Made")


def beside(name: str, function: Callable[[], Made]) -> Future[Made]:
    """Begin `function` in a thread of its own; the caller waits for the result, or its exception.

    Whoever begins it takes its result, in every case: a thread is never left behind.
    """
    future: Future[Made] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 (it is raised again by `result`)
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
