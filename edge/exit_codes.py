"""What the exit status of `insitu` means, and the error that carries one.

`edge.cli` turns the errors of the packages into these; a script may rely on the numbers.
"""

from enum import IntEnum
from typing import Final


class ExitCode(IntEnum):
    """Exit statuses; the numbers are an interface and never change their meaning."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIGURATION = 3
    NOT_FOUND = 4
    PEER = 5
    NOT_RUNNING = 6
    REFUSED = 7
    DEFECT = 70
    INTERRUPTED = 130


MEANING: Final = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "not done, or not all of it; the message says what",
    ExitCode.USAGE: "the command line is wrong",
    ExitCode.CONFIGURATION: "the configuration is wrong",
    ExitCode.NOT_FOUND: "no such study, model, peer or file",
    ExitCode.PEER: "the other node cannot be reached, refused, or answered a failure",
    ExitCode.NOT_RUNNING: "the daemon, or one of its roles, does not run",
    ExitCode.REFUSED: "a model package is not sound, or may not be activated",
    ExitCode.DEFECT: "an error that Insitu did not expect: please report it",
    ExitCode.INTERRUPTED: "stopped by Ctrl-C",
}


class CommandError(Exception):
    """A verb cannot do what it was asked.

    Args:
        code: the exit status.
        message: which object, what is wrong; one line or several.
        hint: what to do next.
    """

    def __init__(self, code: ExitCode, message: str, hint: str = "") -> None:
        self.code = code
        self.message = message
        self.hint = hint
        super().__init__(message)


def table() -> str:
    """All exit statuses, a line each, as they stand in `insitu --help`."""
    return "\n".join(f"{code.value:5}  {MEANING[code]}" for code in ExitCode)
