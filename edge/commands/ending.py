"""How a call of `insitu` ends that met an error: the words and the exit status.

What an error means is decided in one table, `edge.failures`; here it is put into words.
"""

import errno

from edge.exit_codes import CommandError


def explained(error: Exception) -> CommandError:
    """How the call ends that raised `error`."""
    if isinstance(error, CommandError):
        return error
    from edge.failures import verdict_of

    verdict = verdict_of(error)
    text = _os_words(error) if isinstance(error, OSError) else str(error)
    if not verdict.expected:
        first = text.splitlines()[0] if text else ""
        return CommandError(
            verdict.exit_code,
            f"unexpected {type(error).__name__}: {first}".rstrip(": "),
            "this is a defect of Insitu: run it again with INSITU_DEBUG=1 and report what it shows",
        )
    return CommandError(verdict.exit_code, text or type(error).__name__, verdict.next_step)


def _os_words(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    words = error.strerror or str(error)
    if error.errno in {errno.EACCES, errno.EPERM}:
        words += " (for this user)"
    return where + words
